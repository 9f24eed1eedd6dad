"""The connected regions of an anomaly map above the threshold: how many defects, where, how large, how strong."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """One connected region of an image whose anomaly map lies above the threshold.

    Attributes:
        left, top, width, height: the smallest box around it, in pixels of the image.
        area: pixels in it.
        area_percent: the same, in percent of the image.
        peak_score: the highest value of the anomaly map in it, in standard deviations of normal images.
    """

    left: int
    top: int
    width: int
    height: int
    area: int
    area_percent: float
    peak_score: float


def label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the connected regions of `[H, W]` bool, touching corners included; labels from 1, and how many.

    Each pixel takes the highest number around it until nothing changes: a wave a pass, each pass over both axes, so
    that a region needs about as many passes as it has bends.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = labels
        padded = np.pad(labels, 1)
        around = np.max(
            [padded[i : i + mask.shape[0], j : j + mask.shape[1]] for i in range(3) for j in range(3)], axis=0
        )
        labels = np.where(mask, around, 0)
        for axis in (0, 1):
            labels = sweep(labels, mask, axis)
        if np.array_equal(labels, before):
            break
    numbers, flat = np.unique(labels, return_inverse=True)
    found = flat.reshape(mask.shape)
    return (found if numbers[0] == 0 else found + 1), int((numbers > 0).sum())


def sweep(labels: np.ndarray, mask: np.ndarray, axis: int) -> np.ndarray:
    """Gives every run of `mask` along an axis its highest label."""
    values, inside = np.moveaxis(labels, axis, 1), np.moveaxis(mask, axis, 1)
    starts = inside & ~np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    runs = np.cumsum(starts.ravel()).reshape(inside.shape)
    highest = np.zeros(runs.max() + 1, dtype=values.dtype)
    np.maximum.at(highest, runs[inside], values[inside])
    return np.moveaxis(np.where(inside, highest[runs], 0), 1, axis)


def find_regions(
    anomaly_map: np.ndarray,
    threshold: float,
    least_area: float = 0.0005,
    label: Callable[[np.ndarray], tuple[np.ndarray, int]] = label,
) -> list[Region]:
    """The regions above `threshold`, the strongest first; regions that touch at a corner are one.

    Args:
        anomaly_map: `[H, W]`.
        threshold: the score above which a pixel belongs to a region.
        least_area: regions that cover less of the image are left out, but for the strongest one: an image that is
            judged by a mean over cells can hold single pixels above the threshold.
        label: numbers the regions of `[H, W]` bool.

    Raises:
        ValueError: if the map is not two-dimensional.
    """
    if anomaly_map.ndim != 2:
        raise ValueError(f"`anomaly_map` must be [H, W], found {list(anomaly_map.shape)}.")
    labels, count = label(anomaly_map > threshold)
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns] - 1

    def extreme(ufunc: np.ufunc, values: np.ndarray, start: float) -> np.ndarray:
        found = np.full(count, start, dtype=np.float64)
        ufunc.at(found, numbers, values)
        return found

    top, left = (extreme(np.minimum, places, np.inf) for places in (rows, columns))
    bottom, right = (extreme(np.maximum, places, -np.inf) for places in (rows, columns))
    peak = extreme(np.maximum, anomaly_map[rows, columns], -np.inf)
    regions = [
        Region(
            left=int(left[i]),
            top=int(top[i]),
            width=int(right[i] - left[i]) + 1,
            height=int(bottom[i] - top[i]) + 1,
            area=int(area),
            area_percent=100 * int(area) / anomaly_map.size,
            peak_score=float(peak[i]),
        )
        for i, area in enumerate(np.bincount(numbers, minlength=count))
    ]
    regions.sort(key=lambda region: -region.peak_score)
    return [region for region in regions if region is regions[0] or region.area >= least_area * anomaly_map.size]
