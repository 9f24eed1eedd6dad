"""What changes from one photograph to the next and is no defect: the sensor, the lamp, the lens, where the part lies.

Statistics see copies with some of it (`vary`), and an evaluation counts false alarms under each alone (`NUISANCES`).
"""

import io
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ddad.datasets.folder import rotate

Nuisance = Literal["none", "mild", "strong"]
STRENGTHS: dict[str, float] = {"none": 0.0, "mild": 1.0, "strong": 2.0}
# At mild strength: grey levels of noise, part of light and contrast, JPEG quality, part of the width that an image is
# shifted and zoomed by, pixels of blur.
# Copies are moved by a little more: what has been seen only at the edge of a range is not known there.
BEYOND = 1.3
NOISE, LIGHT, QUALITY, SHIFT, ZOOM, BLUR = 3.0, 0.1, 50, 0.02, 0.03, 1.0


def add_noise(images: torch.Tensor, levels: float, generator: torch.Generator) -> torch.Tensor:
    """Sensor noise of so many of 255 grey levels; images `[N, 3, H, W]` in [-1, 1], here and below."""
    return images + torch.randn(images.shape, generator=generator) * (2 * levels / 255)


def change_light(images: torch.Tensor, factor: float) -> torch.Tensor:
    """So many times the light."""
    return (images + 1) * factor - 1


def change_contrast(images: torch.Tensor, factor: float) -> torch.Tensor:
    """So many times the contrast, about each image's own mean."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * factor


def change_colour(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """So many times the light in each channel, `[3]`."""
    return (images + 1) * factors.view(1, 3, 1, 1) - 1


def compress(images: torch.Tensor, quality: int) -> torch.Tensor:
    """Through a JPEG file."""
    decoded = []
    for image in images:
        file = io.BytesIO()
        values = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        PIL.Image.fromarray(values).save(file, "JPEG", quality=quality)
        with PIL.Image.open(file, formats=["JPEG"]) as picture:
            decoded.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(decoded)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Out of focus by so many pixels."""
    radius = max(1, math.ceil(3 * sigma))
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma, sigma]) if sigma > 0 else images


def move(images: torch.Tensor, down: float, right: float, zoom: float) -> torch.Tensor:
    """Shifted by parts of height and width, and enlarged; what comes in at the border is mirrored."""
    matrix = torch.tensor([[1 / zoom, 0.0, -2 * right], [0.0, 1 / zoom, -2 * down]])
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def vary(image: torch.Tensor, degrees: float, nuisance: Nuisance, generator: torch.Generator) -> torch.Tensor:
    """A copy of `[1, 3, S, S]` in [-1, 1], rotated and moved, and with some of what is no defect, at random."""
    strength = STRENGTHS[nuisance]

    def draw(most: float) -> float:
        return most * (2 * float(torch.rand(1, generator=generator)) - 1)

    def happens() -> bool:
        return strength > 0 and float(torch.rand(1, generator=generator)) < 0.5

    turned = rotate(image, torch.tensor([draw(degrees)]))
    shift, zoom = (BEYOND * most * strength for most in (SHIFT, ZOOM))
    copy = move(turned, draw(shift), draw(shift), 1 + draw(zoom))
    if happens():
        copy = change_light(copy, 1 + draw(LIGHT * strength))
    if happens():
        copy = change_contrast(copy, 1 + draw(LIGHT * strength))
    if happens():
        copy = change_colour(copy, 1 + LIGHT * strength / 3 * (2 * torch.rand(3, generator=generator) - 1))
    if happens():
        copy = blur(copy, abs(draw(BLUR * strength)))
    if happens():
        copy = add_noise(copy, abs(draw(NOISE * strength)), generator)
    copy = copy.clamp(-1, 1)
    if happens():
        copy = compress(
            copy, round(100 - (100 - lowest_quality(strength)) * float(torch.rand(1, generator=generator)))
        )
    return copy


def lowest_quality(strength: float) -> int:
    """The lowest JPEG quality of a strength."""
    return round(100 - (100 - QUALITY) * min(1.6, strength))


def _noise(images: torch.Tensor, strength: float) -> torch.Tensor:
    return add_noise(images, NOISE * strength, torch.Generator().manual_seed(0))


# What an evaluation changes good test images by, one at a time, each as far as it goes at a strength.
NUISANCES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "noise": _noise,
    "less light": lambda images, strength: change_light(images, 1 - LIGHT * strength),
    "more light": lambda images, strength: change_light(images, 1 + LIGHT * strength),
    "less contrast": lambda images, strength: change_contrast(images, 1 - LIGHT * strength),
    "more contrast": lambda images, strength: change_contrast(images, 1 + LIGHT * strength),
    "JPEG": lambda images, strength: compress(images, lowest_quality(strength)),
    "shift": lambda images, strength: move(images, SHIFT * strength, -SHIFT * strength, 1.0),
    "zoom in": lambda images, strength: move(images, 0.0, 0.0, 1 + ZOOM * strength),
    "zoom out": lambda images, strength: move(images, 0.0, 0.0, 1 - ZOOM * strength),
    "blur": lambda images, strength: blur(images, BLUR * strength),
}


# What else than its place can change of a photograph, by name.
OF_THE_CAMERA = ("noise", "less light", "more light", "less contrast", "more contrast", "JPEG", "blur")


def change_one(image: torch.Tensor, number: int, nuisance: Nuisance, generator: torch.Generator) -> torch.Tensor:
    """`[1, 3, S, S]` in [-1, 1], moved at random, and changed by one of `OF_THE_CAMERA`, by number.

    A part never lies exactly where it lay. A nuisance of the camera comes as strong as it may, and alone.
    """
    strength = STRENGTHS[nuisance]
    if not strength:
        return image
    down, right, larger = (2 * torch.rand(3, generator=generator) - 1).tolist()
    moved = move(image, SHIFT * strength * down, SHIFT * strength * right, 1 + ZOOM * strength * larger)
    return NUISANCES[OF_THE_CAMERA[number % len(OF_THE_CAMERA)]](moved.clamp(-1, 1), strength).clamp(-1, 1)
