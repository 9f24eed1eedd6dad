"""Drawings of what was found, as PIL images of the image's own size."""

import math
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


def line_width(shape: tuple[int, ...]) -> int:
    """The width of lines that suits a picture's size."""
    return max(1, round(min(shape) / 200))


def draw_outline(picture: PIL.Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """The picture with a line around a mask, bool `[H, W]`; the width suits the picture's size."""
    values = np.array(picture.convert("RGB"))
    values[outline(mask, line_width(mask.shape))] = colour
    return PIL.Image.fromarray(values)


def region_mask(anomaly_map: np.ndarray, threshold: float, region: Region) -> np.ndarray:
    """The pixels of one region, bool `[H, W]`: what is connected in its box and has its area."""
    rows = slice(region.top, region.top + region.height)
    columns = slice(region.left, region.left + region.width)
    labels, _ = ndimage.label(anomaly_map[rows, columns] > threshold, structure=np.ones((3, 3)))
    mask = np.zeros(anomaly_map.shape, dtype=bool)
    areas = np.bincount(labels.ravel(), minlength=2)[1:]
    mask[rows, columns] = labels == 1 + int(np.abs(areas - region.area).argmin())
    return mask


def draw_regions(
    picture: PIL.Image.Image, anomaly_map: np.ndarray, threshold: float, regions: list[Region]
) -> PIL.Image.Image:
    """The picture with a line around each region of the table, and its number at the line.

    The picture may be an enlarged one: the map is stretched over it.
    """
    if not regions:
        return picture
    stretched = np.array(PIL.Image.fromarray(anomaly_map).resize(picture.size, PIL.Image.Resampling.BILINEAR))
    reach = math.ceil(picture.width / anomaly_map.shape[1])  # to where stretching may move a region's edge
    masks = []
    for region in regions:
        mask = PIL.Image.fromarray(region_mask(anomaly_map, threshold, region))
        near = np.array(mask.resize(picture.size, PIL.Image.Resampling.NEAREST))
        masks.append(ndimage.binary_dilation(near, iterations=reach) & (stretched > threshold) | near)
    every = np.logical_or.reduce(masks)
    picture = draw_outline(picture, every, FOUND_COLOUR)
    size = max(11, round(min(picture.size) / 22))
    font, draw = PIL.ImageFont.load_default(size), PIL.ImageDraw.Draw(picture)
    taken = every.copy()
    for number, mask in enumerate(masks, start=1):
        box = draw.textbbox((0, 0), str(number), font=font, anchor="lt")
        left, top = place_label(taken, mask, (int(box[2]) + 4, int(box[3]) + 4), line_width(mask.shape))
        taken[top : top + int(box[3]) + 4, left : left + int(box[2]) + 4] = True
        draw.rectangle((left, top, left + box[2] + 3, top + box[3] + 3), fill=(0, 0, 0))
        draw.text((left + 2, top + 2), str(number), fill=FOUND_COLOUR, font=font, anchor="lt")
    return picture


def place_label(taken: np.ndarray, mask: np.ndarray, size: tuple[int, int], gap: int) -> tuple[int, int]:
    """Left and top of a label that touches a region's line, where it covers least of what is taken.

    Args:
        taken: what should stay free, bool `[H, W]`: the defects, and other labels.
        mask: the region, bool `[H, W]`.
        size: width and height of the label.
        gap: the width of the line.
    """
    rows, columns = np.nonzero(mask)
    width, height = size
    upper, lower, first, last = rows.argmin(), rows.argmax(), columns.argmin(), columns.argmax()
    places = [
        (columns[upper] - width // 2, rows[upper] - gap - height),
        (columns[lower] - width // 2, rows[lower] + gap + 1),
        (columns[first] - gap - width, rows[first] - height // 2),
        (columns[last] + gap + 1, rows[last] - height // 2),
    ]
    inside = [
        (int(np.clip(left, 0, taken.shape[1] - width)), int(np.clip(top, 0, taken.shape[0] - height)))
        for left, top in places
    ]
    return min(inside, key=lambda place: taken[place[1] : place[1] + height, place[0] : place[0] + width].sum())


def draw_truth(picture: PIL.Image.Image, truth: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with a white line around a ground-truth mask, and below it what the lines mean.

    Every value above zero is defect. The line has dark edges, so that it shows on white too.

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
    width = line_width(mask.shape)
    values = np.array(picture.convert("RGB"))
    values[outline(mask, 3 * width)] = (0, 0, 0)
    values[outline(mask, 2 * width)] = TRUTH_COLOUR
    return draw_legend(PIL.Image.fromarray(values), {"found": FOUND_COLOUR, "ground truth": TRUTH_COLOUR})


def draw_legend(picture: PIL.Image.Image, lines: dict[str, tuple[int, int, int]]) -> PIL.Image.Image:
    """The picture with a strip below it that says what its lines mean."""
    size = max(11, round(min(picture.size) / 28))
    font = PIL.ImageFont.load_default(size)
    extended = PIL.Image.new("RGB", (picture.width, picture.height + 2 * size), (40, 40, 40))
    extended.paste(picture)
    draw, left, middle = PIL.ImageDraw.Draw(extended), size // 2, picture.height + size
    for name, colour in lines.items():
        draw.line((left, middle, left + 2 * size, middle), fill=colour, width=max(2, size // 5))
        draw.text((left + 2.5 * size, middle), name, fill=(255, 255, 255), font=font, anchor="lm")
        left += round(4 * size + draw.textlength(name, font=font))
    return extended


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
