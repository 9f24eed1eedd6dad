"""Good images from a folder, as the model sees them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ddad.images_ddad import DDADImageProcessor, ImageInput, are_whole, check_unsigned, depth_of, name_of

logger = logging.getLogger(__name__)


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Rotates `[N, 3, S, S]` about their centres by `[N]` degrees; outside is the image mirrored at its border."""
    angles = torch.deg2rad(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def measure_max_value(images: Iterable[ImageInput]) -> float | None:
    """What stands for white in a set of images of more than 8 bits: its depth by the largest value of all of them.

    Never by one image: a dark part would be as bright as a light one. None where none has more than 8 bits, or every
    one says so itself.

    Raises:
        ValueError: for a file that cannot be read, has negative values, or values of more than 16 bits.
    """
    highest, whole, processor = 0.0, True, DDADImageProcessor(min_side=1)
    for image in images:
        values, tag = processor.measured_values(image)
        if values is None or tag:
            continue
        check_unsigned(values, name_of(image))
        highest, whole = max(highest, float(values.max())), whole and are_whole(values)
    if highest == 0 or (not whole and highest <= 1):
        return None
    white = depth_of(highest) if whole else highest
    if white is None:
        raise ValueError(f"The images have values up to {highest:g}, more than 16 bits: scale them to 65535.")
    logger.info(
        "The images have values up to %g: %g stands for white, here and in what is inspected later.", highest, white
    )
    return float(white)


class ImagesInMemory(Sequence[torch.Tensor]):
    """Images of one size, `[3, size, size]` in [-1, 1], kept in 8 bits."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def append(self, image: torch.Tensor) -> None:
        """Takes an image in."""
        self._kept.append(((image + 1) * 127.5).round().to(torch.uint8))

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[torch.Tensor]: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._kept[index].float() / 127.5 - 1


class ImageFolder(Dataset[torch.Tensor]):
    """Images as the model sees them: `[3, size, size]` in [-1, 1].

    Args:
        paths: the files.
        size: the model's.
        processor: what reads them; None for one without settings of its own.
    """

    def __init__(self, paths: list[Path], size: int, processor: DDADImageProcessor | None = None):
        self.paths = paths
        self.size = size
        self.processor = processor or DDADImageProcessor()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image: torch.Tensor = self.processor.preprocess(self.processor.read_image(self.paths[index]), self.size)[0]
        return image

    def load(self) -> torch.Tensor:
        """All images, read and resized once, `[M, 3, size, size]` uint8; `[M, 1, size, size]` if all are grey."""
        images = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for index in tqdm(range(len(self)), desc="Reading images", mininterval=1):
            images[index] = ((self[index] + 1) * 127.5).round().to(torch.uint8)
        grey = bool((images == images[:, :1]).all())
        return images[:, :1].clone() if grey else images
