"""Pictures in, heatmaps out, without PyTorch: the same pixels as the installed package reads and draws."""

import os
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image

from ddad.runtime.reading import check_size, decoding, is_encoded, name_of, open_picture, parts_of_white, read_picture

ImageInput = str | os.PathLike | bytes | IO[bytes] | PIL.Image.Image | np.ndarray

# A name says only that somebody means a picture; what it is its content says.
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jfif", ".jpe",
    ".dib", ".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".hif", ".jxl", ".dcm", ".dicom",
)  # fmt: skip
COLOURS = ((0.3, 0.0, 0.4), (0.75, 0.1, 0.35), (0.95, 0.45, 0.1), (1.0, 0.9, 0.3))
STRIP = 2**20  # pixels that are drawn at once: what is computed of each takes a hundred times its memory


def read(
    image: ImageInput, max_value: float | None = None, min_side: int = 16, max_pixels: int = 64_000_000
) -> np.ndarray:
    """`[H, W, 3]`, upright, on white where it is transparent: uint8, or float32 in [0, 1] where it has more bits.

    Args:
        image: a file, its bytes, a stream, a PIL image, or an array `[H, W]` or `[H, W, 3]` of uint8, uint16 or
            floats in [0, 1].
        max_value: what stands for white in more than 8 bits where the file does not say so; None takes its depth.
        min_side: a picture with a shorter side is refused.
        max_pixels: one with more is refused before it is decoded.

    Raises:
        ValueError: for what cannot be read; the message says why, and what to do.
    """
    if isinstance(image, np.ndarray):
        return from_array(image, max_value, min_side, max_pixels)
    name = name_of(image)
    if is_encoded(image):
        with decoding(name):
            picture = open_picture(image)
        with picture:
            check_size(*picture.size, name, min_side, max_pixels)
            return as_colours(read_picture(picture, name, max_value))
    check_size(*image.size, name, min_side, max_pixels)
    return as_colours(read_picture(image, name, max_value))


def from_array(values: np.ndarray, max_value: float | None, min_side: int, max_pixels: int) -> np.ndarray:
    """As `read`, of an array."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)):
        raise ValueError(f"An image must be [H, W], [H, W, 1] or [H, W, 3], found {list(values.shape)}.")
    check_size(values.shape[1], values.shape[0], "The image", min_side, max_pixels)
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype == np.uint8:
        return as_colours(values)
    if values.dtype == np.uint16:
        return as_colours(parts_of_white(values, None, False, max_value, "The image"))
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"Image values must be uint8, uint16 or floating point, found {values.dtype}.")
    return as_colours(values.astype(np.float32))


def as_colours(values: np.ndarray) -> np.ndarray:
    """`[H, W, C]` -> `[H, W, 3]`, and a ValueError for what does not lie in the range of its kind."""
    if values.dtype != np.uint8:
        if not np.isfinite(values).all():
            raise ValueError("The image has values that are not finite (NaN or infinity).")
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"Floating-point images must lie in [0, 1], found values from {values.min():.3g} to"
                f" {values.max():.3g}. Divide by the largest possible value, or give uint8."
            )
    return np.broadcast_to(values, (*values.shape[:2], 3))


def as_planes(values: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` as it was read -> what the graph takes, float32 `[3, H, W]` in [0, 1]."""
    planes = np.empty((3, *values.shape[:2]), np.float32)
    for channel in range(3):
        np.divide(values[..., channel], np.float32(255 if values.dtype == np.uint8 else 1), out=planes[channel])
    return planes


def write_whole(picture: PIL.Image.Image, target: Path, form: str = "PNG") -> None:
    """Writes a file; an interruption leaves no half of it under its name."""
    fresh = target.with_name(f".{target.name}")
    picture.save(fresh, format=form)
    os.replace(fresh, target)


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, `[S, S]` -> `[H, W]`, as PyTorch without antialiasing."""

    def places(count: int, of: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(count) + 0.5) * of / count - 0.5, 0, None)
        low = np.minimum(at.astype(int), of - 1)
        return low, np.minimum(low + 1, of - 1), (at - low).astype(np.float32)

    top, bottom, down = places(size[0], values.shape[0])
    left, right, across = places(size[1], values.shape[1])
    rows = values[top] * (1 - down[:, None]) + values[bottom] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def overlay(image: np.ndarray, anomaly_map: np.ndarray, threshold: float, opacity: float) -> PIL.Image.Image:
    """An image as it was read under the heatmap: no colour up to half the threshold, full from twice the threshold."""
    drawn = np.empty(image.shape, np.uint8)
    rows = max(1, STRIP // image.shape[1])
    for first in range(0, len(image), rows):
        strip = slice(first, first + rows)
        drawn[strip] = draw(as_planes(image[strip]), anomaly_map[strip], threshold, opacity)
    return PIL.Image.fromarray(drawn)


def hatch(picture: PIL.Image.Image, inside: np.ndarray) -> PIL.Image.Image:
    """Pale, with grey stripes, where was not looked, `[H, W]` bool."""
    height, width = inside.shape
    period = max(6, min(height, width) // 40)
    stripes = (np.arange(height)[:, None] + np.arange(width)) % period < max(1, period // 6)
    pixels = np.asarray(picture)
    pale = np.where(stripes[..., None], np.uint8(115), (pixels // 2 + 128).astype(np.uint8))
    return PIL.Image.fromarray(np.where(inside[..., None], pixels, pale))


def draw(image: np.ndarray, anomaly_map: np.ndarray, threshold: float, opacity: float) -> np.ndarray:
    """`[3, H, W]` in [0, 1] and its map `[H, W]` -> uint8 `[H, W, 3]`."""
    strength = np.clip(anomaly_map / max(threshold, 1e-6) / 2, 0, 1)
    anchors = np.array(COLOURS, dtype=np.float32)
    position = strength * (len(anchors) - 1)
    low = np.minimum(position.astype(int), len(anchors) - 2)
    fraction = (position - low)[..., None]
    colour = (anchors[low] * (1 - fraction) + anchors[low + 1] * fraction).transpose(2, 0, 1)
    covered = np.clip((strength - 0.25) * 2, 0, 1)
    covered = opacity * covered**2 * (3 - 2 * covered)
    base = image + np.minimum(2 * covered, 1) * (image.mean(axis=0, keepdims=True) - image)
    drawn = np.clip(base + covered * (colour - base), 0, 1)
    return (drawn.transpose(1, 2, 0) * 255).round().astype(np.uint8)
