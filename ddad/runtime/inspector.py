"""An exported category: its graph, its threshold, and what it says of an image."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ddad.runtime import pictures
from ddad.runtime.condition import measure_condition
from ddad.runtime.engines import Evaluate, create
from ddad.runtime.records import Record
from ddad.runtime.regions import Region, find_regions

METADATA_NAME, REGION_NAME = "metadata.json", "region.png"
FORMAT = 2
READING = ("max_value", "min_side", "max_pixels")


@dataclass(frozen=True)
class Inspection:
    """What was found on an image.

    Attributes:
        image: `[H, W, 3]` as it was read, uint8, or float32 in [0, 1] of what has more than 8 bits.
        small_map: the anomaly map as the graph gives it, `[S, S]`.
        image_score: how anomalous the image is, in standard deviations of good images.
        threshold: the score above which it is called anomalous.
        opacity: of the heatmap.
        inside: where was looked, `[S, S]` of ones and zeros; None for everywhere.
    """

    image: np.ndarray
    small_map: np.ndarray
    image_score: float
    threshold: float
    opacity: float
    inside: np.ndarray | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.image_score > self.threshold

    @cached_property
    def anomaly_map(self) -> np.ndarray:
        """At the image's own size, `[H, W]`."""
        return pictures.enlarge(self.small_map, self.image.shape[:2])

    @cached_property
    def regions(self) -> list[Region]:
        """Where it lies above the threshold, the strongest first; none on an image that is good."""
        return find_regions(self.anomaly_map, self.threshold) if self.is_anomalous else []

    def record(self, name: str) -> Record:
        """For tables and JSON, under the image's name."""
        verdict = self.is_anomalous, self.image_score, self.threshold
        condition = measure_condition(self.image, self.small_map)
        return Record(name, *verdict, tuple(self.regions), condition=condition)

    @cached_property
    def overlay(self) -> PIL.Image.Image:
        """The image under the heatmap, on a scale fixed by the threshold; hatched where was not looked."""
        drawn = pictures.overlay(self.image, self.anomaly_map, self.threshold, self.opacity)
        if self.inside is None:
            return drawn
        return pictures.hatch(drawn, pictures.enlarge(self.inside, self.image.shape[:2]) > 0.5)


class Inspector:
    """Inspects images by an exported category.

    Args:
        metadata: what `ddad export` wrote beside the graph.
        evaluate: what evaluates the graph.
        engine: its name.
        inside: where it looks, `[S, S]` of ones and zeros; None for everywhere.

    Attributes:
        evaluate: see there.
        threshold: the score above which an image is anomalous; may be set.
    """

    def __init__(self, metadata: dict[str, Any], evaluate: Evaluate, engine: str, inside: np.ndarray | None = None):
        self.metadata, self.engine, self.evaluate, self.inside = metadata, engine, evaluate, inside
        self.threshold: float = metadata["threshold"]

    @property
    def category(self) -> str:
        """The product."""
        return self.metadata["category"]

    def set_false_alarms(self, rate: float) -> float:
        """Sets the threshold above which so large a part of good images lies, in [0, 1]; it is returned.

        Between the rates that were measured the threshold is interpolated.

        Raises:
            ValueError: for a rate beyond those.
        """
        self.threshold = self.threshold_at(rate)
        return self.threshold

    def threshold_at(self, rate: float) -> float:
        """The threshold above which so large a part of good images lies; see `set_false_alarms`."""
        rates, thresholds = (np.array(self.metadata["thresholds"][name]) for name in ("rates", "thresholds"))
        if not rates.min() <= rate <= rates.max():
            raise ValueError(f"`rate` must lie in [{rates.min():g}, {rates.max():g}], found {rate}.")
        order = np.argsort(rates)
        return float(np.interp(rate, rates[order], thresholds[order]))

    def inspect(self, image: pictures.ImageInput, threshold: float | None = None) -> Inspection:
        """What is found on an image of any size; threads may call it at the same time.

        Args:
            image: a file, its bytes, a stream, a PIL image or an array.
            threshold: for this image alone.

        Raises:
            ValueError: if it cannot be read.
        """
        return self.judge(self.read(image), threshold)

    def read(self, image: pictures.ImageInput) -> np.ndarray:
        """An image as it is judged, `[H, W, 3]`; what cannot be read raises a ValueError."""
        return pictures.read(image, **{name: self.metadata[name] for name in READING})

    def judge(self, pixels: np.ndarray, threshold: float | None = None) -> Inspection:
        """What is found on an image that `read` gave; `threshold` as for `inspect`."""
        maps, scores = self.evaluate(pictures.as_planes(pixels)[None])
        limit = self.threshold if threshold is None else threshold
        return Inspection(pixels, maps[0], float(scores[0]), limit, self.metadata["opacity"], self.inside)


def load(folder: str | os.PathLike, engine: str | None = None, threads: int | None = None) -> Inspector:
    """Loads an exported category.

    Args:
        folder: that `ddad export` wrote.
        engine: `"onnx"` or `"openvino"`; None takes the faster where both are installed.
        threads: at most so many; None leaves it to the engine.

    Raises:
        OSError: if the folder is none, or a file of it was changed.
        ImportError: if no engine is installed.
    """
    folder = Path(folder)
    path = folder / METADATA_NAME
    if not path.is_file():
        raise OSError(f"{folder} is no exported category: {METADATA_NAME} is missing. `ddad export` writes one.")
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if metadata.get("format") != FORMAT:
        raise OSError(f"{path} has format {metadata.get('format')}, and this version reads {FORMAT}: export it again.")
    for name, digest in metadata["sha256"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise OSError(f"{folder / name} is not the file that was exported: copy the folder once more.")
    name, evaluate = create(folder, engine, threads)
    if REGION_NAME not in metadata["sha256"]:
        return Inspector(metadata, evaluate, name)
    with PIL.Image.open(folder / REGION_NAME) as region:
        return Inspector(metadata, evaluate, name, (np.asarray(region) > 127).astype(np.float32))
