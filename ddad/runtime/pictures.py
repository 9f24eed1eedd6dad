"""Pictures in, heatmaps out, without PyTorch: the same pixels as the installed package reads and draws."""

import os

import numpy as np
import PIL.Image
import PIL.ImageOps

ImageInput = str | os.PathLike | PIL.Image.Image | np.ndarray

WITH_OPACITY = ("LA", "La", "PA", "RGBA", "RGBa")
COLOURS = ((0.3, 0.0, 0.4), (0.75, 0.1, 0.35), (0.95, 0.45, 0.1), (1.0, 0.9, 0.3))


def read(image: ImageInput, max_value: float | None) -> np.ndarray:
    """`[3, H, W]` float32 in [0, 1], upright, on white where it is transparent.

    Args:
        image: a file, a PIL image, or an array `[H, W]` or `[H, W, 3]` of uint8, uint16 or floats in [0, 1].
        max_value: what stands for white in 16 bits; None takes 65535.

    Raises:
        ValueError: for what cannot be read here; the installed package reads more kinds.
    """
    if isinstance(image, np.ndarray):
        return from_array(image, max_value)
    picture = image if isinstance(image, PIL.Image.Image) else PIL.Image.open(image)
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"{image} holds {picture.n_frames} pages or frames: give one of them.")
    deep = any(";16" in str(part) for tile in getattr(picture, "tile", []) for part in tile)
    if deep and not picture.mode.startswith("I"):
        raise ValueError(f"{image} has colours of 16 bits, which need the package `ddad`: convert it to 8 bits.")
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode in WITH_OPACITY or "transparency" in picture.info:
        values = np.array(picture.convert("RGBA")).astype(np.float32) / 255
        colour, opacity = values[..., :3], values[..., 3:]
        same = opacity.min() == opacity.max()
        return np.ascontiguousarray((colour if same else colour * opacity + 1 - opacity).transpose(2, 0, 1))
    if picture.mode.startswith("I") or picture.mode == "F":
        return from_array(np.array(picture), max_value)
    return np.ascontiguousarray(np.array(picture.convert("RGB")).transpose(2, 0, 1).astype(np.float32) / 255)


def from_array(values: np.ndarray, max_value: float | None) -> np.ndarray:
    """`[H, W]` or `[H, W, C]` -> `[3, H, W]` float32 in [0, 1]."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)):
        raise ValueError(f"An image must be [H, W], [H, W, 1] or [H, W, 3], found {list(values.shape)}.")
    if values.dtype == np.uint8:
        white = 255.0
    elif np.issubdtype(values.dtype, np.integer):
        white = max_value or 65535.0
    else:
        white = 1.0
    parts = np.asarray(values, dtype=np.float32) / np.float32(white)
    if not np.isfinite(parts).all() or parts.min() < 0 or parts.max() > 1:
        raise ValueError(
            f"An image must lie in [0, {white:g}], found values from {values.min():g} to {values.max():g}."
        )
    channels = parts[None] if parts.ndim == 2 else parts.transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(channels, (3, *channels.shape[1:])))


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
    """The image `[3, H, W]` under the heatmap: no colour up to half the threshold, full from twice the threshold."""
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
    return PIL.Image.fromarray((drawn.transpose(1, 2, 0) * 255).round().astype(np.uint8))
