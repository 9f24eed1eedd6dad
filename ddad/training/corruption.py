"""Damages good images at random places, so that the U-Net learns to paint what belongs there.

The paper trains on good images alone and trusts that noise drowns a defect. A U-Net that has seen damage learns to
ignore it: its prediction of the clean image and of the clean features then differ from a defective image where the
defect is. Damage as a training signal is that of "DRAEM" (Zavrtanik et al., 2021), here without any defect class.
"""

import math

import torch
import torch.nn.functional as F

from ddad.images_ddad import DDADImageProcessor


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_mask(size: int, generator: torch.Generator) -> torch.Tensor:
    """A blob, a rectangle or a strip, `[1, 1, size, size]` of 0 and 1."""
    kind = int(torch.randint(3, (1,), generator=generator))
    if kind == 0:
        cells = int(2 ** int(torch.randint(1, 5, (1,), generator=generator)))
        noise = torch.randn(1, 1, cells + 1, cells + 1, generator=generator)
        noise = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)
        return (noise > torch.quantile(noise, uniform(0.6, 0.97, generator))).float()
    x, y = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="xy")
    x, y = x - uniform(0, 1, generator), y - uniform(0, 1, generator)
    if kind == 1:
        inside = (x.abs() < uniform(0.03, 0.35, generator)) & (y.abs() < uniform(0.03, 0.35, generator))
    else:
        angle = uniform(0, math.pi, generator)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        inside = (along.abs() < uniform(0.05, 0.6, generator)) & (across.abs() < uniform(0.004, 0.04, generator))
    return inside[None, None].float()


def fill(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Fills a mask smoothly from its surroundings: means of what lies outside, from the coarsest scale down.

    Args:
        images: `[N, C, H, W]`.
        mask: `[N, 1, H, W]`; what is above zero is filled.
    """
    known = (mask == 0).to(images.dtype)
    # An image that is masked everywhere has nothing to fill from but itself.
    known = torch.where(known.sum(dim=(2, 3), keepdim=True) > 0, known, torch.ones_like(known))
    result = (images * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True)
    result = result.expand_as(images)
    for scale in (64, 32, 16, 8, 4, 2):
        weight = F.avg_pool2d(known, scale)
        mean = F.avg_pool2d(images * known, scale) / weight.clamp(min=1e-6)
        weight, mean = (
            F.interpolate(value, size=images.shape[-2:], mode="bilinear", align_corners=False)
            for value in (weight, mean)
        )
        result = weight * mean + (1 - weight) * result
    return torch.where(mask > 0, result, images)


def corrupt(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Damages one image, `[3, S, S]` in [-1, 1], at one to three places.

    Each place is filled from its surroundings, set to one grey, replaced by
    another part of the image, made darker or brighter, or covered with noise.
    """
    images = image[None]
    for _ in range(int(torch.randint(1, 4, (1,), generator=generator))):
        mask = random_mask(image.shape[-1], generator)
        kind = int(torch.randint(7, (1,), generator=generator))
        if kind <= 2:
            content = fill(images, mask)
        elif kind == 3:
            content = torch.full_like(images, uniform(-1, 1, generator))
        elif kind == 4:
            shifts = torch.randint(image.shape[-1], (2,), generator=generator).tolist()
            content = torch.roll(images, shifts, dims=(2, 3)).flip(int(torch.randint(2, 4, (1,), generator=generator)))
        elif kind == 5:
            content = (images + 1) * uniform(0.3, 1.6, generator) - 1
        else:
            grey = torch.randn(1, 1, *image.shape[1:], generator=generator)
            content = images + uniform(0.05, 0.5, generator) * DDADImageProcessor.blur(
                grey, uniform(0.5, 3, generator)
            )
        opacity = mask if kind <= 2 else mask * uniform(0.4, 1, generator)
        images = (images + opacity * (content - images)).clamp(-1, 1)
    return images[0]
