"""The connected regions of an anomaly map above the threshold, as the installed package finds them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """One connected region above the threshold: its box in pixels, its area, and the map's highest value in it."""

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


def find_regions(anomaly_map: np.ndarray, threshold: float, least_area: float = 0.0005) -> list[Region]:
    """The regions above `threshold`, the strongest first; smaller ones than `least_area` of the image are left out.

    The strongest one is kept whatever its size.
    """
    labels, count = label(anomaly_map > threshold)
    regions = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(labels == number)
        regions.append(
            Region(
                left=int(columns.min()),
                top=int(rows.min()),
                width=int(columns.max() - columns.min() + 1),
                height=int(rows.max() - rows.min() + 1),
                area=len(rows),
                area_percent=100 * len(rows) / anomaly_map.size,
                peak_score=float(anomaly_map[rows, columns].max()),
            )
        )
    regions.sort(key=lambda region: -region.peak_score)
    return [region for region in regions if region is regions[0] or region.area >= least_area * anomaly_map.size]
