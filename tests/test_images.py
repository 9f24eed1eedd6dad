"""Whatever a user brings becomes the same float image, or a clear error."""

import os
import struct
import subprocess

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch

from ddad import DDADImageProcessor
from ddad.datasets.folder import measure_max_value
from ddad.datasets.layouts import Sample, read_mask
from ddad.images_ddad import IMAGE_FORMATS
from tests.helpers import EPS

processor = DDADImageProcessor()
read = processor.read_image


def test_path_picture_array_and_tensor_agree(picture, tmp_path):
    path = tmp_path / "part.png"
    PIL.Image.fromarray(picture).save(path)
    expected = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    for source in (
        path,
        str(path),
        PIL.Image.open(path),
        picture,
        picture[..., 0],
        picture[..., :1],
        picture.astype(np.float32) / 255,
        picture.astype(np.float64) / 255,
        picture.astype(np.uint16) * 257,
        torch.from_numpy(picture).permute(2, 0, 1),
        expected,
        expected[:1].double(),
    ):
        found = read(source)
        assert found.dtype == torch.float32 and found.shape == (3, 90, 70)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "I", "F"])
def test_every_mode_reads_as_the_same_picture(picture, mode, tmp_path):
    source = PIL.Image.fromarray(picture)
    if mode == "I":
        converted = PIL.Image.fromarray(picture[..., 0].astype(np.int32) * 257)
    elif mode == "F":
        converted = PIL.Image.fromarray(picture[..., 0].astype(np.float32) / 255)
    elif mode == "P":
        converted = source.quantize(256)
    else:
        converted = source.convert(mode)
    expected = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    assert (read(converted) - expected).abs().max() < 0.02
    if mode in ("L", "LA", "P", "RGBA"):
        converted.save(tmp_path / "part.png")
        assert (read(tmp_path / "part.png") - expected).abs().max() < 0.02


def test_sixteen_bits_keep_their_precision(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for suffix in ("png", "tiff"):
        path = tmp_path / f"deep.{suffix}"
        PIL.Image.fromarray(values).save(path)
        torch.testing.assert_close(read(path)[0], torch.from_numpy(values / 65535).float(), atol=1e-6, rtol=0)


def test_transparent_pixels_are_white_and_exif_rotation_is_applied(tmp_path):
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[:16, :, 3] = 255
    image = read(PIL.Image.fromarray(clear))
    assert image[:, :16].max() == 0 and image[:, 16:].min() == 1
    tensor = torch.from_numpy(clear).permute(2, 0, 1)
    assert torch.equal(read(tensor), image)
    path = tmp_path / "rotated.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: width and height change places
    PIL.Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read(path).shape == (3, 40, 20)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((32, 32, 3), np.nan, np.float32), "not finite"),
        (torch.full((3, 32, 32), float("inf")), "not finite"),
        (np.full((32, 32, 3), 200.0), r"must lie in \[0, 1\].*200"),
        (-torch.ones(3, 32, 32), r"must lie in \[0, 1\]"),
        (np.zeros((32, 32, 3), np.int64), "uint8, uint16 or floating point"),
        (np.zeros((32, 32, 2), np.uint8), "1, 3 or 4 channels"),
        (torch.zeros(32, 32, 3), "1, 3 or 4 channels"),
        (np.zeros((32,), np.uint8), r"\[H, W\]"),
        (np.zeros((0, 0, 3), np.uint8), "0x0 pixels"),
        (np.zeros((4, 400, 3), np.uint8), "400x4 pixels"),
        (np.zeros((10_000, 10_000), np.uint8), "100 megapixels"),
        (PIL.Image.new("L", (8, 8)), "8x8 pixels"),
    ],
)
def test_bad_images_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        read(source)


def test_objects_that_are_no_images_are_refused():
    with pytest.raises(TypeError, match="found int"):
        read(7)
    with pytest.raises(TypeError, match="found NoneType"):
        read(None)


def test_bad_files_are_refused_by_name(picture, tmp_path):
    missing = tmp_path / "missing.png"
    with pytest.raises(ValueError, match=r"missing\.png does not exist"):
        read(missing)
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        read(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.png is not an image"):
        read(empty)
    for suffix in ("png", "jpg"):
        whole = tmp_path / f"whole.{suffix}"
        noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(whole)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"cut\.{suffix} is damaged or cut off"):
            read(cut)


def test_huge_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    PIL.Image.new("1", (10_000, 10_000)).save(path)

    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.Image.Image, "load", load)
    with pytest.raises(ValueError, match=r"huge\.png has 100 megapixels"):
        read(path)


def test_lists_name_the_image_that_is_bad(picture):
    with pytest.raises(ValueError, match="Image 1 of the list: .*not finite"):
        processor.read_images([picture, np.full((32, 32), np.nan)])
    with pytest.raises(ValueError, match="no image"):
        processor.read_images([])
    assert len(processor.read_images(np.stack([picture] * 3))) == 3
    assert len(processor.read_images(torch.zeros(2, 3, 32, 32))) == 2


def test_resizing_averages_instead_of_skipping():
    stripes = torch.zeros(3, 512, 512)
    stripes[:, :, ::2] = 1
    small = processor.preprocess(stripes, 64)
    assert small.shape == (1, 3, 64, 64) and small.abs().max() < 0.1  # grey, not moiré


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program called `gs` that leaves a mark when somebody starts it."""
    folder, mark = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)
    return mark


def test_no_file_starts_another_program(tmp_path, ghostscript):
    path = tmp_path / "part.png"
    path.write_bytes(EPS)
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        PIL.Image.open(path).load()
    assert ghostscript.exists(), "the trap itself must work"
    ghostscript.unlink()
    with pytest.raises(ValueError, match="is not an image that can be read; save it as PNG"):
        read(path)
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_mask(Sample(path, "test", "bad", path), (8, 8))
    assert not ghostscript.exists()


@pytest.mark.parametrize("format_", sorted(IMAGE_FORMATS))
def test_formats_are_told_by_content(picture, format_, tmp_path):
    path = tmp_path / "part.dat"
    PIL.Image.fromarray(picture).save(path, format_, **({"lossless": True} if format_ == "WEBP" else {}))
    expected = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    assert (read(path) - expected).abs().max() < 0.05


@pytest.mark.parametrize("format_", ["ICO", "PCX", "TGA", "DDS", "PDF", "SGI"])
def test_formats_that_nobody_named_are_refused(picture, format_, tmp_path):
    path = tmp_path / "part.png"
    PIL.Image.fromarray(picture).save(path, format_)
    with pytest.raises(ValueError, match="is not an image that can be read"):
        read(path)


@pytest.mark.parametrize("error", [RuntimeError("no reason"), KeyError(3), struct.error("short"), ZeroDivisionError()])
def test_whatever_a_decoder_raises_is_the_files_error(picture, error, tmp_path, monkeypatch):
    path = tmp_path / "part.png"
    PIL.Image.fromarray(picture).save(path)

    def fail(*_):
        raise error

    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match="part.png is damaged or cut off"):
        read(path)


def deep(path, values, **options):
    PIL.Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize(("bits", "white"), [(10, 1023), (12, 4095), (14, 16383), (16, 65535)])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_the_depth_of_a_camera_is_seen_in_16_bits(bits, white, suffix, tmp_path):
    values = np.linspace(0, 0.9 * white, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = deep(tmp_path / f"deep.{suffix}", values)
    torch.testing.assert_close(read(path)[0], torch.from_numpy(values / white).float(), atol=1e-6, rtol=0)
    assert processor.largest_value(path) == white


def test_a_set_decides_what_white_is_and_no_single_image(tmp_path):
    bright, dark = (np.full((32, 32), value, dtype=np.uint16) for value in (3900, 700))
    bright, dark = deep(tmp_path / "bright.png", bright), deep(tmp_path / "dark.png", dark)
    PIL.Image.new("L", (32, 32), 9).save(tmp_path / "plain.png")
    white = measure_max_value([bright, dark, tmp_path / "plain.png"])
    assert white == 4095 and measure_max_value([tmp_path / "plain.png"]) is None
    trained = DDADImageProcessor(max_value=white)
    assert float(trained.read_image(dark).mean()) == pytest.approx(700 / 4095)
    assert float(trained.read_image(tmp_path / "plain.png").mean()) == pytest.approx(9 / 255)
    too_deep = deep(tmp_path / "deep.png", np.full((32, 32), 9000, dtype=np.uint16))
    with pytest.raises(ValueError, match="values up to 9000, and white is 4095, as the images that trained have"):
        trained.read_image(too_deep)
    # It is stored with a checkpoint.
    trained.save_pretrained(tmp_path / "processor")
    assert DDADImageProcessor.from_pretrained(tmp_path / "processor").config.max_value == 4095


def test_a_files_own_tag_goes_before_everything(tmp_path):
    values = np.full((32, 32), 700, dtype=np.uint16)
    path = deep(tmp_path / "tagged.tiff", values, tiffinfo={281: 16383})
    assert float(DDADImageProcessor(max_value=4095).read_image(path).mean()) == pytest.approx(700 / 16383)
    assert measure_max_value([path]) is None


def test_floating_point_files(tmp_path):
    values = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    inside, beyond = deep(tmp_path / "inside.tiff", values), deep(tmp_path / "beyond.tiff", values * 812.5)
    torch.testing.assert_close(read(inside)[0], torch.from_numpy(values))
    with pytest.raises(ValueError, match=r"floating-point values up to 812: divide by the largest"):
        read(beyond)
    white = measure_max_value([beyond])
    assert white == pytest.approx(812.5) and measure_max_value([inside]) is None
    read_beyond = DDADImageProcessor(max_value=white).read_image(beyond)[0]
    torch.testing.assert_close(read_beyond, torch.from_numpy(values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_floating_point_file_of_black_or_white_alone_is_that(value, tmp_path):
    path = deep(tmp_path / "flat.tiff", np.full((32, 32), value, dtype=np.float32))
    assert float(read(path).min()) == float(read(path).max()) == value and measure_max_value([path]) is None


def test_signed_deep_and_many_pages_are_refused_in_a_sentence(tmp_path):
    signed = deep(tmp_path / "signed.tiff", np.linspace(-2600, 18100, 1024).reshape(32, 32).astype(np.int32))
    with pytest.raises(ValueError, match="has negative values .down to -2600.*Add an offset"):
        read(signed)
    with pytest.raises(ValueError, match="has negative values"):
        measure_max_value([signed])
    page = PIL.Image.new("L", (32, 32))
    page.save(tmp_path / "pages.tiff", save_all=True, append_images=[page])
    with pytest.raises(ValueError, match="holds 2 pages or frames: save the one"):
        read(tmp_path / "pages.tiff")
    (tmp_path / "odd.tif").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(ValueError, match="is a TIFF of a kind that cannot be read; save it with 8 or 16 bits"):
        read(tmp_path / "odd.tif")
