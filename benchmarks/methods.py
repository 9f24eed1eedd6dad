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

    def score(self, images: torch.Tensor) -> tuple[np.ndarray | None, np.ndarray]:
        """Images `[N, 3, S, S]` in [-1, 1] -> anomaly maps `[N, S, S]`, or None, and image scores `[N]`."""

    def size(self) -> int:
        """Bytes that must be kept to score images."""


class Images:
    """Images by their paths, as the pipeline's networks see them."""

    def __init__(self, pipe: DDADPipeline, paths: Sequence[Path]):
        self.pipe, self.paths = pipe, list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self) -> Iterator[torch.Tensor]:
        """All images in order, `[N, 3, S, S]` in [-1, 1]."""
        for first in range(0, len(self.paths), BATCH_SIZE):
            chosen = self.paths[first : first + BATCH_SIZE]
            yield self.pipe.prepare([self.pipe.image_processor.read_image(path) for path in chosen])


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
