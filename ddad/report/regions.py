"""The connected regions of an anomaly map above the threshold: how many defects, where, how large, how strong."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage


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
    labels, count = ndimage.label(anomaly_map > threshold, structure=np.ones((3, 3)))
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        area = int(inside.sum())
        regions.append(
            Region(
                left=columns.start,
                top=rows.start,
                width=columns.stop - columns.start,
                height=rows.stop - rows.start,
                area=area,
                area_percent=100 * area / anomaly_map.size,
                peak_score=float(anomaly_map[rows, columns][inside].max()),
            )
        )
    regions.sort(key=lambda region: -region.peak_score)
    return [region for region in regions if region is regions[0] or region.area >= least_area * anomaly_map.size]


def regions_of(result: Any) -> list[Region]:
    """The regions of the first image of what a pipeline found; none on an image that is judged good."""
    return find_regions(result.anomaly_map[0], result.threshold) if result.is_anomalous[0] else []
