"""Drawings of what was found, as PIL images of the image's own size."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont
from scipy import ndimage

from ddad.report.regions import Region

FOUND_COLOUR = (0, 229, 255)  # cyan is on no heatmap of ours
TRUTH_COLOUR = (255, 255, 255)


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels just outside a mask, so that the line covers nothing of the defect; bool `[H, W]`."""
    return ndimage.binary_dilation(mask, iterations=width) & ~mask


def draw_outline(picture: PIL.Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """The picture with a line around a mask, bool `[H, W]`; the width suits the picture's size."""
    values = np.array(picture.convert("RGB"))
    values[outline(mask, max(1, round(min(mask.shape) / 200)))] = colour
    return PIL.Image.fromarray(values)


def draw_regions(
    picture: PIL.Image.Image, anomaly_map: np.ndarray, threshold: float, regions: list[Region]
) -> PIL.Image.Image:
    """The picture with a line around all that is above the threshold and a number at each region of the table.

    The picture may be an enlarged one: the map is stretched over it.
    """
    if not regions:
        return picture
    scale = picture.width / anomaly_map.shape[1]
    stretched = PIL.Image.fromarray(anomaly_map).resize(picture.size, PIL.Image.Resampling.BILINEAR)
    picture = draw_outline(picture, np.array(stretched) > threshold, FOUND_COLOUR)
    size = max(11, round(min(picture.size) / 22))
    font, draw = PIL.ImageFont.load_default(size), PIL.ImageDraw.Draw(picture)
    for number, region in enumerate(regions, start=1):
        place = (round(region.left * scale), max(0, round(region.top * scale) - size - 4))
        box = draw.textbbox(place, str(number), font=font)
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=(0, 0, 0))
        draw.text(place, str(number), fill=FOUND_COLOUR, font=font)
    return picture


def draw_truth(picture: PIL.Image.Image, truth: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with a white line around a ground-truth mask; every value above zero is defect.

    Raises:
        ValueError: if the mask has another shape than the picture (their proportions differ by more than 2 %).
    """
    grey = truth.convert("L")
    if abs(grey.width * picture.height / (grey.height * picture.width) - 1) > 0.02:
        raise ValueError(
            f"The ground truth is {grey.width}x{grey.height} pixels and the image {picture.width}x{picture.height}: it"
            " belongs to another image."
        )
    mask = np.array(grey.resize(picture.size, PIL.Image.Resampling.NEAREST)) > 0
    return draw_outline(picture, mask, TRUTH_COLOUR)


def colour_map(values: np.ndarray, threshold: float) -> PIL.Image.Image:
    """A map `[H, W]` as a picture on a fixed scale: black at zero, white at twice the threshold.

    Black, purple, orange and white grow in brightness, so that the order is seen without colour too.
    """
    strength = np.clip(values / max(threshold, 1e-6) / 2, 0, 1)
    anchors = np.array([[0, 0, 0], [72, 12, 110], [190, 45, 80], [250, 140, 10], [255, 255, 235]], dtype=np.float64)
    position = strength * (len(anchors) - 1)
    channels = [np.interp(position, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return PIL.Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def save_animation(frames: list[PIL.Image.Image], path: str | Path) -> Path:
    """The denoising steps as an endless animated GIF that rests on the first and on the last one."""
    path = Path(path)
    frames = [frame.convert("RGB") for frame in frames]
    durations = [150] * len(frames)
    durations[0], durations[-1] = 900, 1500
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path
