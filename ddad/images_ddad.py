"""Images of any kind -> tensors at the model's size, and back to what is shown: overlay, repaired image, output type.

Beside the blur and the resizing that scores and training share, nothing here knows of defects or diffusion.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torchvision.transforms.v2.functional import gaussian_blur

ImageInput = str | os.PathLike | bytes | IO[bytes] | PIL.Image.Image | np.ndarray | torch.Tensor

# The formats that are read, told apart by content and never by a file's name. Pillow knows dozens more and hands some
# of them to other programs: an EPS file called `part.png` would start Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
# Formats that a package beside Pillow reads, once it is installed: how they begin, and what registers them.
OTHER_FORMATS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl", "DICOM": "pydicom"}
MOST_FLOATS = 64_000_000  # pixels of a file with floating-point colours that are decoded at all
SEVERAL_PAGES = ("TIFF", "GIF", "WEBP", "PNG", "AVIF")
# The largest values of cameras with 10, 12, 14 and 16 bits, which all store 16.
LARGEST_VALUES = (1023, 4095, 16383, 65535)
TIFF_LARGEST_VALUES = (281, 341)  # tags MaxSampleValue and SMaxSampleValue
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANAR = 258, 262, 284
# How Pillow unpacks channels of 16 bits, of which it keeps the upper byte; the other order gives the lower one.
OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B"}
VALUES = "ddad_values"  # in a picture's `info`: its values, where they fit no kind of picture that Pillow has
WHITE = "ddad_white"  # in a picture's `info`: the largest possible value, where its decoder knows it
PAGE = re.compile(r"(?P<path>.+)#page=(?P<page>\d+)", flags=re.DOTALL)


def name_of(source: Any) -> str:
    """What an image is called in messages: its path, or that it came as bytes."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "The image"


def is_encoded(source: Any) -> bool:
    """Whether something is an image file, or the bytes of one."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read")


def _head_of(source: Any, count: int = 132) -> bytes:
    """How a file, bytes or a stream begin."""
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return file.read(count)
    if hasattr(source, "read"):
        start = source.tell()
        head = source.read(count)
        source.seek(start)
        return bytes(head)
    return bytes(source[:count])


def kind_by_content(head: bytes) -> str | None:
    """Which of `OTHER_FORMATS` a file begins as; None for all others."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf") and head[8:12] != b"avif":
        return "HEIF"
    return "JXL" if head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" else None


def open_picture(source: Any) -> PIL.Image.Image:
    """Opens an image of a known format; to be used wherever a file of a user is read.

    Args:
        source: a path, bytes or a stream; `NAME#page=2` is the second page of a TIFF.

    Raises:
        PIL.UnidentifiedImageError: for everything else; its message says which package would read it.
        OSError, PIL.Image.DecompressionBombError: as `PIL.Image.open`.
    """
    page = None
    if isinstance(source, (str, os.PathLike)) and not os.path.exists(source):
        match = PAGE.fullmatch(os.fspath(source))
        if match is not None and os.path.exists(match["path"]):
            source, page = match["path"], int(match["page"])
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    kind = kind_by_content(_head_of(source))
    formats = list(IMAGE_FORMATS)
    if kind is not None:
        try:
            module = importlib.import_module(OTHER_FORMATS[kind])
        except ImportError:
            raise PIL.UnidentifiedImageError(
                f"is a {kind} image: `pip install 'ddad[formats]'` makes it readable, or save it as PNG"
            ) from None
        if kind == "DICOM":
            return _open_dicom(module, source)
        if kind == "HEIF":
            module.register_heif_opener()
        formats = [kind]
    try:
        picture = PIL.Image.open(source, formats=formats)
    except PIL.UnidentifiedImageError:
        if hasattr(source, "seek"):
            source.seek(0)
        if not is_tiff(source):
            raise
        return _open_float_tiff(source, page)
    if page is not None:
        picture.seek(page - 1)
        picture.info[WHITE + "_page"] = page
    return picture


def _open_float_tiff(source: Any, page: int | None) -> PIL.Image.Image:
    """A TIFF with floating-point colours, of which Pillow has no kind; tifffile reads it.

    Raises:
        PIL.UnidentifiedImageError: for another kind of TIFF, and where tifffile is not installed.
        PIL.Image.DecompressionBombError: for one with more pixels than `MOST_FLOATS`.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise PIL.UnidentifiedImageError(
            "is a TIFF of a kind that `pip install 'ddad[formats]'` may make readable; or save it with 8 or 16 bits"
        ) from None
    with tifffile.TiffFile(source) as file:
        if not file.pages:
            raise PIL.UnidentifiedImageError("is a TIFF without a picture")
        if page is None and len(file.pages) > 1:
            raise ValueError(f"it holds {len(file.pages)} pages: name one of them as NAME#page=1")
        found = file.pages[(page or 1) - 1]
        shape, kind = found.shape, found.dtype
        if len(shape) != 3 or shape[2] not in (3, 4) or kind is None or kind.kind != "f":
            raise PIL.UnidentifiedImageError("is a TIFF of another kind")
        height, width = shape[:2]
        if width * height > MOST_FLOATS:  # before any memory is taken: a damaged header may claim anything
            raise PIL.Image.DecompressionBombError
        picture = PIL.Image.new("RGB", (width, height))
        picture.info[VALUES] = found.asarray().astype(np.float32)
    return picture


def _open_dicom(pydicom: Any, source: Any) -> PIL.Image.Image:
    """The picture of a DICOM file of one frame, as its bits are stored."""
    data = pydicom.dcmread(source)
    values = data.pixel_array
    if int(getattr(data, "NumberOfFrames", 1) or 1) > 1:
        raise ValueError("it holds several frames: save the one that is meant as a file of its own")
    if values.dtype.kind == "i" and values.min() >= 0:
        values = values.astype(np.uint16)
    white = 2 ** int(data.BitsStored) - 1
    if data.PhotometricInterpretation == "MONOCHROME1":  # zero is white
        values = white - values
    picture = PIL.Image.fromarray(values.astype(np.int32) if values.dtype.kind == "i" else values)
    if white > 255:
        picture.info[WHITE] = white
    return picture


# What EXIF's orientations do to values `[H, W, ...]`, as `PIL.ImageOps.exif_transpose` does it to pictures.
EXIF_TURNS: dict[Any, Any] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: values.swapaxes(0, 1)[:, ::-1],
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: values.swapaxes(0, 1)[::-1],
}


def is_tiff(source: Any) -> bool:
    """Whether a file begins as a TIFF does."""
    try:
        return _head_of(source)[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except (OSError, TypeError):
        return False


def tagged_largest_value(picture: PIL.Image.Image) -> float | None:
    """The largest possible value by the file itself, None where it says nothing.

    It stands in a TIFF's tags and a DICOM's header; of a PGM the decoder has scaled the values by what the file says.
    """
    if picture.format == "PPM" and picture.mode.startswith("I"):
        return 65535.0
    if WHITE in picture.info:
        return float(picture.info[WHITE])
    tags = getattr(picture, "tag_v2", {})
    for tag in TIFF_LARGEST_VALUES:
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, (int, float)) and value > 255:
            return float(value)
    return None


def has_deep_channels(picture: PIL.Image.Image) -> bool:
    """Whether a file that Pillow gives with 8 bits a channel has more, of several channels."""
    if VALUES in picture.info:
        return True
    if picture.mode not in ("RGB", "RGBA", "LA", "RGBX", "CMYK"):
        return False
    if picture.format == "PNG":
        return any(isinstance(tile[3], str) and ";16" in tile[3] for tile in picture.tile)
    if picture.format == "TIFF":
        bits = getattr(picture, "tag_v2", {}).get(TIFF_BITS, ())
        return len(bits) > 1 and max(bits) > 8 if isinstance(bits, tuple) else False
    return False


def deep_values(picture: PIL.Image.Image) -> np.ndarray | None:
    """The values of a picture of more than 8 bits, `[H, W]` or `[H, W, C]`, whole numbers or floating point.

    None for a picture of 8 bits. Of colours Pillow keeps the upper byte alone; they are decoded once for each byte.

    Raises:
        ValueError: for a kind of file whose lower bytes cannot be had.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        return np.array(picture)
    return _deep_channels(picture) if has_deep_channels(picture) else None


def _deep_channels(picture: PIL.Image.Image) -> np.ndarray:
    if VALUES in picture.info:
        return picture.info[VALUES]
    source = getattr(picture, "filename", None) or getattr(picture, "fp", None)
    modes = {tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in picture.tile}
    pages = picture.info.get(WHITE + "_page")
    if len(modes) == 1 and source is not None:
        (mode,) = modes
        native = mode.replace("16N", "16L" if sys.byteorder == "little" else "16B")

        def decode(rawmode: str, kind: str) -> np.ndarray:
            if hasattr(source, "seek"):
                source.seek(0)
            file = io.BytesIO(source.read()) if hasattr(source, "read") else source
            with PIL.Image.open(file, formats=[str(picture.format)]) as again:
                if pages:
                    again.seek(pages - 1)
                again._mode = kind
                again.tile = [_with_mode(tile, rawmode) for tile in again.tile]
                return np.array(again)

        if picture.format == "PNG" and mode == "LA;16B":  # four bytes a pixel: both of grey, both of alpha
            both = decode("RGBA", "RGBA").astype(np.uint16)
            return both[..., ::2] * 256 + both[..., 1::2]
        if native in OTHER_BYTE and (picture.format == "PNG" or picture.tag_v2.get(TIFF_PLANAR, 1) == 1):
            kind = "RGBA" if native.startswith("RGBA") else "RGB"
            return decode(native, kind).astype(np.uint16) * 256 + decode(OTHER_BYTE[native], kind)
    raise ValueError("its colours of 16 bits are stored in a way that cannot be read: save it with 8 bits, or as PNG")


def _with_mode(tile: Any, rawmode: str) -> Any:
    """A tile that is unpacked in another way."""
    arguments = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
    return type(tile)(tile[0], tile[1], tile[2], arguments)


def check_unsigned(values: np.ndarray, name: str) -> None:
    """Raises a ValueError for values below zero."""
    if values.min() < 0:
        raise ValueError(
            f"{name} has negative values (down to {values.min():g}): signed images have no black. Add an offset, or"
            " save them unsigned."
        )


def are_whole(values: np.ndarray) -> bool:
    """Whether values count what a camera counts; floating-point values of at most 1 are parts of white."""
    return values.dtype.kind != "f" or bool(values.max() > 1 and (values == np.round(values)).all())


def white_is_zero(picture: PIL.Image.Image) -> bool:
    """Whether a TIFF of more than 8 bits says that zero is white; of 8 bits Pillow turns such a one itself."""
    tags = getattr(picture, "tag_v2", {})
    return picture.format == "TIFF" and picture.mode[:1] in ("I", "F") and tags.get(TIFF_PHOTOMETRIC) == 0


def blend_on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours `[H, W, C]` in [0, 1] on white, by their opacity `[H, W]` in [0, 1].

    An opacity that is the same everywhere says nothing: frame grabbers leave it zero.
    """
    if alpha.min() == alpha.max():
        return values
    return values * alpha[..., None] + (1 - alpha[..., None])


def depth_of(highest: float) -> float | None:
    """The largest value of a camera whose values go up to `highest`; None beyond 16 bits."""
    return next((float(value) for value in LARGEST_VALUES if highest <= value), None)


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever goes wrong while one image is opened or decoded becomes a `ValueError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist.") from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a folder; give the images inside it.") from None
    except PIL.UnidentifiedImageError as error:
        if "ddad[formats]" in str(error):
            raise ValueError(f"{name} {error}.") from None
        if is_tiff(name) or str(error).startswith("is a TIFF"):
            raise ValueError(
                f"{name} is a TIFF of a kind that cannot be read; save it with 8 or 16 bits, or 32-bit floating point."
            ) from None
        raise ValueError(
            f"{name} is not an image that can be read; save it as PNG, JPEG, TIFF, BMP, WebP, GIF, PPM,"
            " JPEG 2000 or AVIF."
        ) from None
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"{name} has far too many pixels. Crop it or scale it down.") from None
    except MemoryError:
        raise ValueError(f"{name} needs more memory than there is. Crop it or scale it down.") from None
    except Exception as error:  # decoders raise what they like
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is damaged or cut off and cannot be read ({reason}).") from None


def check_size(width: int, height: int, name: str, min_side: int, max_pixels: int) -> None:
    """Raises a ValueError for an image that is too small or too large to be read."""
    if min(width, height) < min_side:
        raise ValueError(f"{name} is {width}x{height} pixels; each side needs at least {min_side}.")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width * height / 1e6:.0f} megapixels; at most {max_pixels / 1e6:.0f} are read. Crop it or"
            " scale it down."
        )


def white_of(values: np.ndarray, tag: float | None, max_value: float | None, name: str) -> float:
    """What stands for white in a file of more than 8 bits: its own tag, else `max_value`, else its own depth.

    Floating-point values in [0, 1] are as they are.

    Args:
        values: `[H, W]` or `[H, W, C]`.
        tag: what the file says, or None.
        max_value: what the images that trained say, or None.
        name: of the file, for messages.

    Raises:
        ValueError: for values below zero, or above what stands for white.
    """
    check_unsigned(values, name)
    high, whole = float(values.max()), are_whole(values)
    if not whole and high <= 1:
        return 1.0
    white = tag or max_value
    if white is None and not whole:
        raise ValueError(
            f"{name} has floating-point values up to {high:.3g}: divide by the largest possible value, so that"
            " they lie in [0, 1]."
        )
    if white is None:
        white = depth_of(high)
    if white is None or (whole and high > white):
        limit = f"{white:g}, as the images that trained have" if white else "65535"
        raise ValueError(f"{name} has values up to {high:g}, and white is {limit}: scale it accordingly.")
    return float(white)


def parts_of_white(
    values: np.ndarray, tag: float | None, inverted: bool, max_value: float | None, name: str
) -> np.ndarray:
    """Values of more than 8 bits as parts of white, float32 `[H, W, 1]` or `[H, W, 3]`.

    Args:
        values: `[H, W]` or `[H, W, C]`, with an opacity last where C is 2 or 4.
        tag: as for `white_of`, and the last two likewise.
        inverted: whether zero is white.
        max_value: see there.
        name: see there.

    Raises:
        ValueError: as `white_of`.
    """
    values = values[..., None] if values.ndim == 2 else values
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    white = white_of(values[..., :colours], tag, max_value, name)
    # Floating-point values may lie a little above the brightest of those that trained.
    parts = np.minimum(values[..., :colours].astype(np.float32) / white, 1)
    if inverted:
        parts = 1 - parts
    if colours < values.shape[2]:
        opacity = values[..., colours].astype(np.float32)
        parts = blend_on_white(parts, opacity / max(float(opacity.max()), 1.0))
    return np.ascontiguousarray(parts, dtype=np.float32)


def read_picture(picture: PIL.Image.Image, name: str, max_value: float | None) -> np.ndarray:
    """The pixels of an opened picture, upright and on white: uint8 `[H, W, 3]`, or parts of white as float32.

    Raises:
        ValueError: if it is damaged, holds several pictures, or has values that cannot be read.
    """
    with decoding(name):  # damaged directories of a TIFF are met when its pages are counted
        pages = getattr(picture, "n_frames", 1) if picture.format in SEVERAL_PAGES else 1
        tag, inverted = tagged_largest_value(picture), white_is_zero(picture)
    if pages > 1 and WHITE + "_page" not in picture.info:
        raise ValueError(
            f"{name} holds {pages} pages or frames: save the one that is meant as a file of its own, or name a"
            f" page of a TIFF as {name}#page=1."
        )
    with decoding(name):
        deep = _deep_channels(picture) if has_deep_channels(picture) else None
        orientation = picture.getexif().get(0x0112) if deep is not None else None
        picture = picture if deep is not None else PIL.ImageOps.exif_transpose(picture)
        if deep is None and (picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info):
            rgba = np.array(picture.convert("RGBA")).astype(np.float32) / 255
            return blend_on_white(rgba[..., :3], rgba[..., 3])
        values = deep if deep is not None else deep_values(picture)
        if values is None:
            return np.array(picture.convert("RGB"))
    if orientation in EXIF_TURNS:
        values = EXIF_TURNS[orientation](values)
    return parts_of_white(values, tag, inverted, max_value, name)


class DDADImages(Sequence):
    """Images of their own sizes, read as float32 `[3, H, W]` in [0, 1].

    They are kept in 8 bits where that loses nothing, as it does for most files: a quarter of the memory.

    Args:
        images: `[3, H, W]` in [0, 1] each.
    """

    def __init__(self, images: Iterable[torch.Tensor]):
        self._kept = [self._in_8_bits(image) for image in images]

    @staticmethod
    def _in_8_bits(image: torch.Tensor) -> torch.Tensor:
        small = torch.empty(image.shape, dtype=torch.uint8)
        for channel, kept in zip(image, small, strict=True):  # one by one: it takes a third of the memory
            kept.copy_((channel * 255).round_())
            if not torch.equal(kept / 255, channel):
                return image
        return small

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> "DDADImages": ...

    def __getitem__(self, index: int | slice) -> "torch.Tensor | DDADImages":
        if isinstance(index, slice):
            part = DDADImages(())
            part._kept = self._kept[index]
            return part
        image = self._kept[index]
        return image if image.is_floating_point() else image / 255


class DDADImageProcessor(SchedulerMixin, ConfigMixin):
    """Reads images, and brings images and maps to a size.

    It is a `SchedulerMixin` because that is what diffusers loads as a component that has a configuration and no
    weights, also from remote code.

    Args:
        max_pixels: images with more pixels are refused before they are decoded.
        min_side: images with a shorter side are refused.
        max_value: what stands for white in files of more than 8 bits whose tags do not say so: 4095 for a camera of
            12 bits, whose files have 16. Measured on the images that train. None takes the smallest of 1023, 4095,
            16383 and 65535 that an image does not exceed.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(self, max_pixels: int = 64_000_000, min_side: int = 16, max_value: float | None = None):
        pass

    # ------------------------------------------------------------------------------------------------- reading images

    def read_image(self, image: ImageInput) -> torch.Tensor:
        """Turns one image of any kind into RGB, float32 `[3, H, W]` in [0, 1], at its own size.

        Pictures, files, the bytes of one and streams may have any mode that Pillow reads: EXIF rotation is applied,
        transparent pixels are put on white (unless all are equally so), values of more than 8 bits are divided by what
        stands for white (see `white_of`). `NAME#page=2` is the second page of a TIFF. Arrays are RGB, `[H, W]` or
        `[H, W, channels]`, tensors `[channels, H, W]`, with 1, 3 or 4 channels; their values are uint8, floating
        point in [0, 1], or uint16, read as files of 16 bits are.

        Raises:
            TypeError: for an object that is no image.
            ValueError: for a file that is missing, broken or no image, and for an image that is empty, too small, too
                large, not finite or out of range. The message says which, and what to do.
        """
        if is_encoded(image):
            with self.open_file(image) as picture:
                return self._from_picture(picture, name_of(image))
        if isinstance(image, PIL.Image.Image):
            return self._from_picture(image, "The image")
        if isinstance(image, np.ndarray):
            if image.ndim == 2:
                image = image[..., None]
            if image.ndim != 3:
                raise ValueError(f"An image array must be [H, W] or [H, W, channels], found {list(image.shape)}.")
            return self._from_tensor(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        if isinstance(image, torch.Tensor):
            return self._from_tensor(image)
        raise TypeError(
            "An image must be a path, bytes, a PIL image, an array or a tensor (or a list of them), found"
            f" {type(image).__name__}."
        )

    def open_file(self, path: Any) -> PIL.Image.Image:
        """Opens an image file and refuses one that is too large or too small; nothing is decoded yet.

        Raises:
            ValueError: as `read_image`.
        """
        name = name_of(path)
        with decoding(name):
            picture = open_picture(path)
        check_size(*picture.size, name, self.config.min_side, self.config.max_pixels)
        return picture

    def _from_picture(self, picture: PIL.Image.Image, name: str) -> torch.Tensor:
        check_size(*picture.size, name, self.config.min_side, self.config.max_pixels)
        values = torch.from_numpy(read_picture(picture, name, self.config.max_value)).permute(2, 0, 1)
        return values.float() / 255 if values.dtype == torch.uint8 else self._from_tensor(values)

    def largest_value(self, image: ImageInput) -> float | None:
        """What stands for white in an image of more than 8 bits as `read_image` reads it; None for others.

        Raises:
            ValueError: as `read_image`.
        """
        values, tag = self.measured_values(image)
        return None if values is None else white_of(values, tag, self.config.max_value, name_of(image))

    def measured_values(self, image: ImageInput) -> tuple[np.ndarray | None, float | None]:
        """The values of an image of more than 8 bits, without its opacity, and what it says itself of their largest.

        Raises:
            ValueError: as `read_image`.
        """
        if isinstance(image, (np.ndarray, torch.Tensor)):
            deep = image.dtype in (np.uint16, torch.uint16)
            return (np.asarray(image) if deep else None), None
        name = name_of(image)
        picture = image if isinstance(image, PIL.Image.Image) else self.open_file(image)
        with decoding(name):
            values, tag = deep_values(picture), tagged_largest_value(picture)
        if values is not None and values.ndim == 3:
            values = values[..., : values.shape[2] - (values.shape[2] in (2, 4))]
        return values, tag

    def _from_tensor(self, image: torch.Tensor) -> torch.Tensor:
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(
                "An image must have 1, 3 or 4 channels, last in an array and first in a tensor; found the shape"
                f" {list(image.shape)} with channels first."
            )
        size = (image.shape[2], image.shape[1])
        check_size(*size, "The image", self.config.min_side, self.config.max_pixels)
        image = image.detach().cpu()
        if image.dtype == torch.uint8:
            image = image.float() / 255
        elif image.dtype == torch.uint16:
            values = image.permute(1, 2, 0).numpy()
            parts = parts_of_white(values, None, False, self.config.max_value, "The image")
            return self._from_tensor(torch.from_numpy(parts).permute(2, 0, 1))
        elif not image.is_floating_point():
            raise ValueError(f"Image values must be uint8, uint16 or floating point, found {image.dtype}.")
        image = image.float()
        if not torch.isfinite(image).all():
            raise ValueError("The image has values that are not finite (NaN or infinity).")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"Floating-point images must lie in [0, 1], found values from {low:.3g} to {high:.3g}. Divide by the"
                " largest possible value, or give uint8."
            )
        if image.shape[0] == 4:
            opacity = image[3:]
            image = image[:3] if opacity.min() == opacity.max() else image[:3] * opacity + 1 - opacity
        return image.expand(3, -1, -1).contiguous()

    @staticmethod
    def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resizes `[N, C, H, W]` to `size` (height, width), averaging where it shrinks."""
        if tuple(images.shape[-2:]) == tuple(size):
            return images
        return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)

    def preprocess(self, image: torch.Tensor, size: int) -> torch.Tensor:
        """An image as `read_image` gives it -> what the model sees, `[1, 3, size, size]` in [-1, 1]."""
        return self.resize(image[None], (size, size)).clamp(0, 1) * 2 - 1

    def read_images(self, image: ImageInput | Sequence[ImageInput]) -> DDADImages:
        """One image, a list of them, an array `[N, H, W, C]` or a tensor `[N, C, H, W]` -> images `[3, H, W]`.

        Raises:
            ValueError: as `read_image`, with the index of the image in the list; and for an empty list.
        """
        if isinstance(image, (list, tuple)) or (isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4):
            if len(image) == 0:
                raise ValueError("There is no image in the list.")
            return DDADImages(self._read_each(image))
        return DDADImages([self.read_image(image)])  # type: ignore[arg-type]  # no list, as was seen above

    def _read_each(self, images: Iterable[ImageInput]) -> Iterator[torch.Tensor]:
        for index, image in enumerate(images):
            try:
                yield self.read_image(image)
            except (TypeError, ValueError) as error:
                raise type(error)(f"Image {index} of the list: {error}") from None

    # -------------------------------------------------------------------------------------------------------- regions

    def read_region(self, region: ImageInput, size: tuple[int, int] | None = None) -> torch.Tensor:
        """A mask of where to look as bool `[H, W]`: True where it is white, lighter than middle grey.

        Args:
            region: an image as `read_image` takes it, or a bool array or tensor `[H, W]`.
            size: height and width of the image that it is a mask of; None for any.

        Raises:
            TypeError, ValueError: as `read_image`, for a mask of another aspect ratio than the image's, and for one
                that is black all over.
        """
        if isinstance(region, (np.ndarray, torch.Tensor)) and str(region.dtype) in ("bool", "torch.bool"):
            inside = torch.as_tensor(region)
        else:
            inside = self.read_image(region).mean(dim=0) > 0.5
        if inside.ndim != 2:
            raise ValueError(f"A region must be [H, W], found {list(inside.shape)}.")
        if size is not None:
            (height, width), (own_height, own_width) = size, inside.shape
            # To a pixel of the smaller of both: a mask may have been made smaller, not cropped.
            if abs(own_width * height - own_height * width) > max(height, width, own_height, own_width):
                raise ValueError(
                    f"The region has {own_width}x{own_height} pixels and the image {width}x{height}: another aspect"
                    " ratio, so it shows another picture. Give a mask of the image's own size."
                )
        if not inside.any():
            raise ValueError("The region is black all over, so nothing would be looked at: white is what decides.")
        return inside

    def read_regions(
        self, region: ImageInput | Sequence[ImageInput], sizes: Sequence[tuple[int, int]], size: int
    ) -> torch.Tensor:
        """Masks of images of some sizes (height, width), `[N, 1, size, size]` of ones and zeros; see `read_region`.

        Args:
            region: one for all images, or a list of as many.
            sizes: of the images.
            size: height and width of the result.

        Raises:
            TypeError, ValueError: as `read_region`, and for another number of masks.
        """
        each: list[Any] = list(region) if isinstance(region, (list, tuple)) else [region] * len(sizes)
        if len(each) != len(sizes):
            raise ValueError(f"There are {len(sizes)} images and {len(each)} regions: give one for all, or one each.")
        read = [self.read_region(mask, own).float()[None, None] for mask, own in zip(each, sizes, strict=True)]
        return torch.cat([(self.resize(mask, (size, size)) >= 0.5).float() for mask in read])

    # -------------------------------------------------------------------------------------------------- images, maps

    @staticmethod
    def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian blur of `[N, C, H, W]`, mirrored at the border, cut off at three standard deviations."""
        radius = min(round(3 * sigma), min(maps.shape[-2:]) - 1)
        return maps if radius == 0 else gaussian_blur(maps, [2 * radius + 1] * 2, [sigma, sigma])
