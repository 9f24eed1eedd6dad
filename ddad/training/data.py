"""Good images from a folder, as the model sees them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ddad.images_ddad import DDADImageProcessor


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Rotates `[N, 3, S, S]` about their centres by `[N]` degrees; outside is the image mirrored at its border."""
    angles = torch.deg2rad(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class ImageFolder(Dataset[torch.Tensor]):
    """Images as the model sees them: `[3, size, size]` in [-1, 1]."""

    def __init__(self, paths: list[Path], size: int):
        self.paths = paths
        self.size = size
        self.processor = DDADImageProcessor()

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
