"""The connected regions of an anomaly map above the threshold: how many defects, where, how large, how strong."""

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


def find_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of `[H, W]` bool along its rows, in reading order: row, first column, and the column after the last."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).view(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    return rows, starts, np.nonzero(steps == -1)[1]


def connect(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """For each run the number of the first run that it is connected with, corners included.

    Runs that touch one of the row below are joined there; each round every tree takes the lowest neighbour's root.
    """
    stride = width + 2  # keys of neighbouring rows never meet
    below = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, below + starts, side="left")
    counts = np.searchsorted(rows * stride + starts, below + ends, side="right") - first
    upper = np.repeat(np.arange(len(rows)), counts)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    parents = np.arange(len(rows))
    while True:
        one, other = parents[upper], parents[lower]
        if np.array_equal(one, other):
            return parents
        np.minimum.at(parents, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(grandparents := parents[parents], parents):
            parents = grandparents


def find_regions(anomaly_map: np.ndarray, threshold: float, least_area: float = 0.0005) -> list[Region]:
    """The regions above `threshold`, the strongest first; regions that touch at a corner are one.

    Args:
        anomaly_map: `[H, W]`.
        threshold: the score above which a pixel belongs to a region.
        least_area: regions that cover less of the image are left out, but for the strongest one: an image that is
            judged by a mean over cells can hold single pixels above the threshold.

    Raises:
        ValueError: if the map is not two-dimensional.
    """
    if anomaly_map.ndim != 2:
        raise ValueError(f"`anomaly_map` must be [H, W], found {list(anomaly_map.shape)}.")
    width = anomaly_map.shape[1]
    rows, starts, ends = find_runs(anomaly_map > threshold)
    if len(rows) == 0:
        return []
    borders = np.stack([rows * width + starts, rows * width + ends], axis=1).ravel()
    peaks = np.maximum.reduceat(anomaly_map.ravel(), borders[: -1 if borders[-1] == anomaly_map.size else None])[::2]
    _, numbers = np.unique(connect(rows, starts, ends, width), return_inverse=True)
    count = numbers.max() + 1

    def extreme(ufunc: np.ufunc, values: np.ndarray, start: float) -> np.ndarray:
        found = np.full(count, start, dtype=np.float64)
        ufunc.at(found, numbers, values)
        return found

    top, left = (extreme(np.minimum, places, np.inf) for places in (rows, starts))
    bottom, right = (extreme(np.maximum, places, -np.inf) for places in (rows, ends))
    peak = extreme(np.maximum, peaks, -np.inf)
    regions = [
        Region(
            left=int(left[i]),
            top=int(top[i]),
            width=int(right[i] - left[i]),
            height=int(bottom[i] - top[i]) + 1,
            area=int(area),
            area_percent=100 * int(area) / anomaly_map.size,
            peak_score=float(peak[i]),
        )
        for i, area in enumerate(np.bincount(numbers, weights=ends - starts))
    ]
    regions.sort(key=lambda region: -region.peak_score)
    return [region for region in regions if region is regions[0] or region.area >= least_area * anomaly_map.size]
