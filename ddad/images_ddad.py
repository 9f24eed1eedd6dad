"""Images of any kind -> tensors at the model's size, and back to what is shown: overlay, repaired image, output type.

Beside the blur and the resizing that scores and training share, nothing here knows of defects or diffusion.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torchvision.transforms.v2.functional import gaussian_blur

ImageInput = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor

# The formats that are read, told apart by content and never by a file's name. Pillow knows dozens more and hands some
# of them to other programs: an EPS file called `part.png` would start Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
# The largest values of cameras with 10, 12, 14 and 16 bits, which all store 16.
LARGEST_VALUES = (1023, 4095, 16383, 65535)
STRIP = 2**20  # pixels that are coloured at once
TIFF_LARGEST_VALUES = (281, 341)  # tags MaxSampleValue and SMaxSampleValue


def open_picture(path: str | os.PathLike) -> PIL.Image.Image:
    """Opens an image file of one of `IMAGE_FORMATS`; to be used wherever a file of a user is read.

    Raises:
        PIL.UnidentifiedImageError: for everything else.
        OSError, PIL.Image.DecompressionBombError: as `PIL.Image.open`.
    """
    return PIL.Image.open(path, formats=IMAGE_FORMATS)


def is_tiff(path: str | os.PathLike) -> bool:
    """Whether a file begins as a TIFF does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return False


def tagged_largest_value(picture: PIL.Image.Image) -> float | None:
    """The largest possible value by a TIFF's own tags, None where it has none that says anything."""
    tags = getattr(picture, "tag_v2", {})
    for tag in TIFF_LARGEST_VALUES:
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, (int, float)) and value > 255:
            return float(value)
    return None


def deep_values(picture: PIL.Image.Image) -> np.ndarray | None:
    """The values of a picture of more than 8 bits, `[H, W]`, whole numbers or floating point; None for others."""
    return np.array(picture) if picture.mode == "F" or picture.mode.startswith("I") else None


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
    except PIL.UnidentifiedImageError:
        if is_tiff(name):
            raise ValueError(
                f"{name} is a TIFF of a kind that cannot be read; save it with 8 or 16 bits, or 32-bit floating point."
            ) from None
        raise ValueError(
            f"{name} is not an image that can be read; save it as PNG, JPEG, TIFF, BMP, WebP, GIF or PPM."
        ) from None
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"{name} has far too many pixels. Crop it or scale it down.") from None
    except MemoryError:
        raise ValueError(f"{name} needs more memory than there is. Crop it or scale it down.") from None
    except Exception as error:  # decoders raise what they like
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is damaged or cut off and cannot be read ({reason}).") from None


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
    """Reads images and draws results.

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
    setting_bounds = {  # see `DDADPipeline.check_settings`
        "max_pixels": (int, 256, 10**10),
        "min_side": (int, 1, 10_000),
        "max_value": (float, 1e-9, 1e12),
    }

    @register_to_config
    def __init__(self, max_pixels: int = 64_000_000, min_side: int = 16, max_value: float | None = None):
        pass

    # ------------------------------------------------------------------------------------------------- reading images

    def read_image(self, image: ImageInput) -> torch.Tensor:
        """Turns one image of any kind into RGB, float32 `[3, H, W]` in [0, 1], at its own size.

        Pictures and files may have any mode that Pillow reads: EXIF rotation is applied, transparent pixels are put
        on white, values of more than 8 bits are divided by what stands for white (see `white_of`). Arrays are
        `[H, W]` or `[H, W, channels]`, tensors `[channels, H, W]`, with 1, 3 or 4 channels; their values are uint8,
        uint16, or floating point in [0, 1].

        Raises:
            TypeError: for an object that is no image.
            ValueError: for a file that is missing, broken or no image, and for an image that is empty, too small, too
                large, not finite or out of range. The message says which, and what to do.
        """
        if isinstance(image, (str, os.PathLike)):
            with self.open_file(image) as picture:
                return self._from_picture(picture, os.fspath(image))
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
            "An image must be a path, a PIL image, an array or a tensor (or a list of them), found"
            f" {type(image).__name__}."
        )

    def _check_size(self, width: int, height: int, name: str) -> None:
        if min(width, height) < self.config.min_side:
            raise ValueError(f"{name} is {width}x{height} pixels; each side needs at least {self.config.min_side}.")
        if width * height > self.config.max_pixels:
            raise ValueError(
                f"{name} has {width * height / 1e6:.0f} megapixels; at most {self.config.max_pixels / 1e6:.0f} are"
                " read. Crop it or scale it down."
            )

    def open_file(self, path: str | os.PathLike) -> PIL.Image.Image:
        """Opens an image file and refuses one that is too large or too small; nothing is decoded yet.

        Raises:
            ValueError: as `read_image`.
        """
        name = os.fspath(path)
        with decoding(name):
            picture = open_picture(path)
        self._check_size(*picture.size, name)
        return picture

    def _from_picture(self, picture: PIL.Image.Image, name: str) -> torch.Tensor:
        self._check_size(*picture.size, name)
        with decoding(name):  # damaged directories of a TIFF are met when its pages are counted
            pages = getattr(picture, "n_frames", 1) if picture.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
            tag = tagged_largest_value(picture)
        if pages > 1:
            raise ValueError(f"{name} holds {pages} pages or frames: save the one that is meant as a file of its own.")
        with decoding(name):
            picture = PIL.ImageOps.exif_transpose(picture)
            if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture)
            values = deep_values(picture)
            if values is None:
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        white = self.white_of(values, tag, name)
        # Floating-point values may lie a little above the brightest of those that trained.
        return self._from_tensor(torch.from_numpy(np.minimum(values.astype(np.float32) / white, 1))[None])

    def white_of(self, values: np.ndarray, tag: float | None, name: str = "The image") -> float:
        """What stands for white in a file of more than 8 bits: its own tag, else `max_value`, else its own depth.

        Floating-point values in [0, 1] are as they are.

        Args:
            values: `[H, W]`.
            tag: what the file says, or None.
            name: of the file, for messages.

        Raises:
            ValueError: for values below zero, or above what stands for white.
        """
        check_unsigned(values, name)
        high, whole = float(values.max()), are_whole(values)
        if not whole and high <= 1:
            return 1.0
        white = tag or self.config.max_value
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

    def largest_value(self, path: str | os.PathLike) -> float | None:
        """What stands for white in a file of more than 8 bits as `read_image` reads it; None for other files.

        Raises:
            ValueError: as `read_image`.
        """
        name = os.fspath(path)
        with self.open_file(path) as picture, decoding(name):
            values, tag = deep_values(picture), tagged_largest_value(picture)
        return None if values is None else self.white_of(values, tag, name)

    def _from_tensor(self, image: torch.Tensor) -> torch.Tensor:
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(
                "An image must have 1, 3 or 4 channels, last in an array and first in a tensor; found the shape"
                f" {list(image.shape)} with channels first."
            )
        self._check_size(image.shape[2], image.shape[1], "The image")
        image = image.detach().cpu()
        if image.dtype == torch.uint8:
            image = image.float() / 255
        elif image.dtype == torch.uint16:
            image = image.float() / 65535
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
            image = image[:3] * image[3:] + 1 - image[3:]
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

    # ------------------------------------------------------------------------------------------------------- drawing

    @staticmethod
    def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian blur of `[N, C, H, W]`, mirrored at the border, cut off at three standard deviations."""
        radius = min(round(3 * sigma), min(maps.shape[-2:]) - 1)
        return maps if radius == 0 else gaussian_blur(maps, [2 * radius + 1] * 2, [sigma, sigma])

    @staticmethod
    def is_grey(image: torch.Tensor) -> bool:
        """Whether `[3, H, W]` came without colour."""
        return torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])

    @staticmethod
    def merge(original: torch.Tensor, denoised: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the repaired region into the image at its own size; every pixel outside the mask stays as it was.

        Args:
            original: `[3, H, W]` in [0, 1].
            denoised: the repaired one, `[3, S, S]` in [0, 1].
            mask: `[1, S, S]` in [0, 1].

        Returns:
            `[3, H, W]`, and the mask at that size, `[1, H, W]`.
        """

        def enlarge(values: torch.Tensor) -> torch.Tensor:
            size = original.shape[1:]
            return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0].to(original)

        if DDADImageProcessor.is_grey(original):
            denoised = denoised.mean(dim=0, keepdim=True).expand_as(denoised)  # what came without colour stays without
        mask, merged = enlarge(mask), torch.empty_like(original)
        for i, channel in enumerate(original):
            changed = channel + mask[0] * (enlarge(denoised[i : i + 1])[0].clamp(0, 1) - channel)
            merged[i] = torch.where(mask[0] > 0, changed, channel)
        return merged, mask

    @staticmethod
    def overlay(
        original: torch.Tensor, anomaly_map: torch.Tensor, threshold: float, opacity: float = 0.7
    ) -> torch.Tensor:
        """The image under the heatmap, `[3, H, W]` in [0, 1]; `opacity` in [0, 1] is the heatmap's where it is full.

        The scale is fixed: no colour up to half the threshold, full colour from twice the threshold. A scale that is
        stretched over each image would set a normal part alight.
        """
        rows = max(1, STRIP // original.shape[2])  # in strips: what is computed on the way is ten times the image
        parts = zip(original.split(rows, dim=1), anomaly_map.split(rows), strict=True)
        return torch.cat([DDADImageProcessor._colour(*part, threshold, opacity) for part in parts], dim=1)

    @staticmethod
    def _colour(original: torch.Tensor, anomaly_map: torch.Tensor, threshold: float, opacity: float) -> torch.Tensor:
        strength = (anomaly_map / max(threshold, 1e-6) / 2).clamp(0, 1)  # [H, W]
        anchors = torch.tensor([[0.3, 0.0, 0.4], [0.75, 0.1, 0.35], [0.95, 0.45, 0.1], [1.0, 0.9, 0.3]])
        position = strength * (len(anchors) - 1)
        low = position.floor().clamp(max=len(anchors) - 2)
        fraction = (position - low)[..., None]
        colour = anchors[low.long()] * (1 - fraction) + anchors[low.long() + 1] * fraction  # [H, W, 3]
        # From nothing to colour without an edge: first the picture loses its own colour, then takes the heatmap's.
        covered = ((strength - 0.25) * 2).clamp(0, 1)
        covered = opacity * covered**2 * (3 - 2 * covered)
        base = original + (2 * covered).clamp(max=1) * (original.mean(dim=0, keepdim=True) - original)
        return base + covered * (colour.permute(2, 0, 1) - base)

    @staticmethod
    def to_image(image: torch.Tensor, output_type: str) -> PIL.Image.Image | np.ndarray | torch.Tensor:
        """`[3, H, W]` in [0, 1] -> a PIL image, an array `[H, W, 3]` or a tensor `[3, H, W]`."""
        image = image.detach().float().cpu()
        if output_type == "pil":
            channels = [(channel.clamp(0, 1) * 255).round_().to(torch.uint8) for channel in image]
            return PIL.Image.fromarray(torch.stack(channels, dim=-1).numpy())
        image = image.clamp(0, 1)
        return image if output_type == "pt" else image.permute(1, 2, 0).numpy()
