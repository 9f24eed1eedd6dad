"""What every method of the benchmark offers, and what is common to them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ddad import DDADPipeline
from ddad.features_ddad import DDADFeatureExtractor

BATCH_SIZE = 8


class Method(Protocol):
    """One way to find defects.

    Attributes:
        name: its row.
        note: what a reader must know of how it was run here.
        slow: whether one image takes seconds; such methods are measured on some of the test images.
    """

    name: str
    note: str
    slow: bool

    def fit(self, images: "Images") -> None:
        """Learns from good images."""

    def score(self, images: list[torch.Tensor]) -> tuple[np.ndarray | None, np.ndarray]:
        """Images `[3, H, W]` in [0, 1] -> anomaly maps `[N, s, s]`, or None, and image scores `[N]`."""

    def size(self) -> int:
        """Bytes that must be kept to score images."""


def judged_by(pipe: DDADPipeline) -> DDADFeatureExtractor:
    """The backbone that the pipeline's verdict rests on: rivals get the same."""
    return pipe.feature_extractor if pipe.config.feature_score == "residual" else pipe.appearance_extractor


def look(pipe: DDADPipeline, images: list[torch.Tensor]) -> torch.Tensor:
    """Images as that backbone sees them in the pipeline, `[N, 3, L, L]` in [-1, 1]."""
    return pipe.prepare(images) if judged_by(pipe) is pipe.feature_extractor else pipe.prepare_appearance(images)


class Images:
    """Images by their paths."""

    def __init__(self, pipe: DDADPipeline, paths: Sequence[Path]):
        self.pipe, self.paths = pipe, list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[list[torch.Tensor]]:
        """All images in order, `[3, H, W]` in [0, 1]."""
        for first in range(0, len(self.paths), BATCH_SIZE):
            yield [self.pipe.image_processor.read_image(path) for path in self.paths[first : first + BATCH_SIZE]]

    def looks(self) -> Iterator[torch.Tensor]:
        """All images in order, as `look` gives them."""
        return (look(self.pipe, batch) for batch in self.batches())


def network_size(*modules: torch.nn.Module) -> int:
    """Bytes of weights at half precision, as checkpoints store them."""
    return sum(2 * value.numel() for module in modules for value in module.state_dict().values())


def top_pixels(maps: np.ndarray, count: int = 64) -> np.ndarray:
    """The mean of the highest pixels of each map: the image score of the authors' program."""
    flat = maps.reshape(len(maps), -1)
    return np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)


def backbone_input(features: DDADFeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as the backbone was trained to see them."""
    mean, std = (
        torch.tensor(value).view(1, 3, 1, 1) for value in (features.config.image_mean, features.config.image_std)
    )
    return ((images + 1) / 2 - mean) / std
