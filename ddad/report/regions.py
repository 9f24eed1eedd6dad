"""Regions of what a pipeline found; their definition is `ddad.runtime.regions`, which needs less installed."""

from typing import Any

from ddad.runtime.regions import Region, find_regions

__all__ = ["Region", "find_regions", "regions_of"]


def regions_of(result: Any) -> list[Region]:
    """The regions of the first image of what a pipeline found; none on an image that is judged good."""
    return find_regions(result.anomaly_map[0], result.threshold) if result.is_anomalous[0] else []
