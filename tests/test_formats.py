"""Files of every kind that a factory has, and the same picture as an array, as bytes and as a page: one reading."""

import io
import sys

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from ddad import DDADImageProcessor
from ddad.datasets.folder import measure_max_value
from tests.helpers import deep_png, deep_tiff

processor = DDADImageProcessor()


@pytest.fixture
def colours():
    """`[40, 50, 3]` uint16, as a camera of 12 bits gives it."""
    ramp = np.linspace(0, 3600, 40 * 50 * 3).reshape(40, 50, 3)
    return np.random.default_rng(0).permutation(ramp.reshape(-1)).reshape(ramp.shape).astype(np.uint16)


@pytest.mark.parametrize("kind", ["png", "tiff <", "tiff >"])
def test_colours_of_16_bits_keep_both_bytes(kind, colours, tmp_path):
    path = tmp_path / "deep"
    path = deep_png(path, colours, 2) if kind == "png" else deep_tiff(path, colours, order=kind[-1])
    right = torch.from_numpy(colours / 4095).float().permute(2, 0, 1)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), colours,
                   torch.from_numpy(colours).permute(2, 0, 1)):  # fmt: skip
        torch.testing.assert_close(processor.read_image(source), right, atol=1e-6, rtol=0)
    assert processor.largest_value(path) == 4095 and measure_max_value([path]) == 4095
    assert measure_max_value([colours // 8, colours]) == 4095 and measure_max_value([colours // 8]) == 1023
    with pytest.raises(ValueError, match="values up to 3600, and white is 1023, as the images that trained have"):
        DDADImageProcessor(max_value=1023.0).read_image(path)


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (4, 6)])
def test_opacity_of_16_bits(channels, colour_type, colours, tmp_path):
    values = np.concatenate([colours[..., : channels - 1], np.full((40, 50, 1), 65535, np.uint16)], axis=2)
    whole = processor.read_image(deep_png(tmp_path / "opaque.png", values, colour_type))
    right = torch.from_numpy(values[..., :-1] / 4095).float().permute(2, 0, 1)
    torch.testing.assert_close(whole, right.expand(3, -1, -1), atol=1e-6, rtol=0)
    values[:10, :, -1] = 0
    cut = processor.read_image(deep_png(tmp_path / "cut.png", values, colour_type))
    assert (cut[:, :10] == 1).all()
    torch.testing.assert_close(cut[:, 10:], right.expand(3, -1, -1)[:, 10:], atol=1e-6, rtol=0)


def test_zero_is_white_where_a_file_says_so(colours, tmp_path):
    grey = colours[..., :1]
    plain = processor.read_image(deep_tiff(tmp_path / "plain.tiff", grey, photometric=1))
    turned = processor.read_image(deep_tiff(tmp_path / "turned.tiff", grey, photometric=0))
    torch.testing.assert_close(turned, 1 - plain)


@pytest.mark.parametrize("opacity", [0, 128, 255])
@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "array", "tensor", "floats"])
def test_an_opacity_that_is_the_same_everywhere_says_nothing(opacity, kind, picture, tmp_path):
    rgba = np.concatenate([picture[..., :3], np.full((*picture.shape[:2], 1), opacity, np.uint8)], axis=2)
    source = {"array": rgba, "tensor": torch.from_numpy(rgba).permute(2, 0, 1), "floats": rgba / np.float32(255)}
    if kind in source:
        image = processor.read_image(source[kind])
    else:
        PIL.Image.fromarray(rgba).save(tmp_path / f"image.{kind}")
        image = processor.read_image(tmp_path / f"image.{kind}")
    torch.testing.assert_close(image, torch.from_numpy(picture[..., :3] / 255).float().permute(2, 0, 1))


def test_a_live_frame_and_its_file_are_one(colours, tmp_path):
    grey = colours[..., 0]
    PIL.Image.fromarray(grey).save(tmp_path / "frame.png")
    trained = DDADImageProcessor(max_value=4095.0)
    for reader in (processor, trained):
        assert torch.equal(reader.read_image(grey), reader.read_image(tmp_path / "frame.png"))
    header = b"P5\n50 40\n4095\n" + grey.astype(">u2").tobytes()
    (tmp_path / "frame.pgm").write_bytes(header)
    torch.testing.assert_close(trained.read_image(tmp_path / "frame.pgm"), trained.read_image(grey), atol=2e-5, rtol=0)
    assert measure_max_value([tmp_path / "frame.pgm"]) is None  # it says its own white


def test_pages_are_read_by_their_number(picture, tmp_path):
    pages = [PIL.Image.fromarray(np.roll(picture, 7 * number, axis=0)) for number in range(3)]
    path = tmp_path / "pages.tiff"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for number, page in enumerate(pages, start=1):
        torch.testing.assert_close(processor.read_image(f"{path}#page={number}"), processor.read_image(page))
    with pytest.raises(ValueError, match="3 pages or frames.*#page=1"):
        processor.read_image(path)
    with pytest.raises(ValueError, match="cannot be read"):
        processor.read_image(f"{path}#page=9")


@pytest.mark.parametrize(("format_", "package", "tolerance"), [
    ("AVIF", "PIL", 0.03), ("JPEG2000", "PIL", 0.03), ("HEIF", "pillow_heif", 0.05), ("JXL", "pillow_jxl", 0.05),
])  # fmt: skip
def test_formats_of_phones_and_archives(format_, package, tolerance, tmp_path):
    module = pytest.importorskip(package)
    if format_ == "HEIF":
        module.register_heif_opener()
    ramp = np.stack(np.meshgrid(np.linspace(20, 220, 64), np.linspace(40, 200, 48)), axis=-1)
    smooth = np.concatenate([ramp, ramp[..., :1]], axis=2).astype(np.uint8)
    path = tmp_path / "photo.bin"  # told by content
    PIL.Image.fromarray(smooth).save(path, format_)
    right = torch.from_numpy(smooth / 255).float().permute(2, 0, 1)
    for source in (path, path.read_bytes()):
        assert (processor.read_image(source) - right).abs().mean() < tolerance


@pytest.mark.parametrize("inverted", [False, True])
def test_dicom(inverted, colours, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = 40, 50, 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.PixelData = colours[..., 0].tobytes()
    pydicom.dcmwrite(tmp_path / "part.dcm", data, enforce_file_format=True)
    right = torch.from_numpy(colours[..., 0] / 4095).float()
    image = processor.read_image(tmp_path / "part.dcm")[0]
    torch.testing.assert_close(image, 1 - right if inverted else right, atol=1e-6, rtol=0)


def test_a_format_whose_package_is_missing_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ValueError, match=r"phone.heic is a HEIF image: `pip install 'ddad\[formats\]'`"):
        processor.read_image(tmp_path / "phone.heic")


def test_exif_turns_deep_colours_too(colours, tmp_path):
    path = deep_tiff(tmp_path / "deep.tiff", colours)
    with PIL.Image.open(path) as opened:
        assert not opened.getexif().get(0x0112)
    for orientation in range(2, 9):
        picture = PIL.Image.fromarray((colours // 16).astype(np.uint8))
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        picture.save(tmp_path / "turned.png", exif=exif)
        from ddad.images_ddad import EXIF_TURNS

        turned = processor.read_image(tmp_path / "turned.png")
        right = EXIF_TURNS[orientation](np.asarray(picture))
        torch.testing.assert_close(turned, torch.from_numpy(right.copy() / 255).float().permute(2, 0, 1))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_floating_point_colours(tmp_path, compression):
    values = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    path = tmp_path / "float.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression=compression)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(processor.read_image(source).permute(1, 2, 0).numpy(), values)
    tifffile.imwrite(path, values * 800, photometric="rgb")
    with pytest.raises(ValueError, match="floating-point values up to 800: divide by the largest"):
        processor.read_image(path)
    assert measure_max_value([path]) == pytest.approx(800, rel=1e-2)


def test_floating_point_colours_without_their_reader(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((40, 50, 3), np.float32), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"float.tif is a TIFF of a kind that `pip install 'ddad\[formats\]'`"):
        processor.read_image(tmp_path / "float.tif")


def test_no_image_in_a_folder_that_is_called_tiff_is_called_no_image(tmp_path):
    folder = tmp_path / "TIFF"
    folder.mkdir()
    (folder / "part.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="is not an image that can be read"):
        processor.read_image(folder / "part.png")


def test_floating_point_colours_that_claim_too_much_take_no_memory(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((40, 50, 3), np.float32), photometric="rgb")
    monkeypatch.setattr("ddad.images_ddad.MOST_FLOATS", 1999)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="large.tif has far too many pixels"):
        DDADImageProcessor().read_image(tmp_path / "large.tif")
