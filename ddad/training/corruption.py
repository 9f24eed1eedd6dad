"""Damages good images at random places, so that the U-Net learns to paint what belongs there.

The paper trains on good images alone and trusts that noise drowns a defect. A U-Net that has seen damage learns to
ignore it: its prediction of the clean image and of the clean features then differ from a defective image where the
defect is. Damage as a training signal is that of "DRAEM" (Zavrtanik et al., 2021), here without any defect class.
"""

import math

import torch
import torch.nn.functional as F

from ddad.images_ddad import DDADImageProcessor

MOST_PLACES = 3
CONTENTS = ("fill", "fill", "fill", "grey", "other", "brightness", "grain")


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


class Corruption:
    """Damages batches of images at one to three places, with masks from a pool that is drawn once.

    Drawing a mask costs a processor as much as a hundredth of a training step, flipping one nothing: each of the pool
    is used in eight orientations.

    Args:
        size: side of the images.
        device: where the images are.
        seed: seed of the pool.
        pool_size: masks in the pool.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu", seed: int = 0, pool_size: int = 1024):
        generator = torch.Generator().manual_seed(seed)
        masks = [random_mask(size, generator)[0].bool() for _ in range(pool_size)]
        self.masks = torch.stack(masks).to(device)  # [M, 1, S, S]

    def draw_masks(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Masks from the pool, all in one of its eight orientations, `[count, 1, S, S]` of 0 and 1."""
        chosen = torch.randint(len(self.masks), (count,), generator=generator)
        turns, mirrored = torch.randint(4, (2,), generator=generator).tolist()
        masks = torch.rot90(self.masks[chosen.to(self.masks.device)].float(), turns, dims=(2, 3))
        return masks.flip(3) if mirrored % 2 else masks

    @staticmethod
    def content(kind: str, images: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What is painted into a mask: `[N, 3, S, S]`, for the kinds in `CONTENTS`."""

        def numbers(low: float, high: float) -> torch.Tensor:
            return (low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)).to(images.device)

        if kind == "fill":
            return fill(images, mask)
        if kind == "grey":
            return numbers(-1, 1).expand_as(images)
        if kind == "other":
            shifts = torch.randint(images.shape[-1], (2,), generator=generator).tolist()
            return torch.roll(images, shifts, dims=(2, 3)).flip(int(torch.randint(2, 4, (1,), generator=generator)))
        if kind == "brightness":
            return (images + 1) * numbers(0.3, 1.6) - 1
        grain = torch.randn(len(images), 1, *images.shape[2:], generator=generator).to(images.device)
        softened: torch.Tensor = DDADImageProcessor.blur(grain, uniform(0.5, 3, generator))
        return images + numbers(0.05, 0.5) * softened

    def __call__(self, images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
        """Damages images, `[N, 3, S, S]` in [-1, 1], each with a probability.

        Each place is filled from its surroundings, set to one grey, replaced by another part of the image, made darker
        or brighter, or covered with grain. What is drawn depends on the generator (of the CPU) alone.
        """
        damaged = images.clone()
        hit = torch.rand(len(images), generator=generator) < probability
        places = torch.randint(1, MOST_PLACES + 1, (len(images),), generator=generator)
        for place in range(MOST_PLACES):
            kinds = torch.randint(len(CONTENTS), (len(images),), generator=generator)
            for kind in dict.fromkeys(CONTENTS):
                of_kind = torch.tensor([CONTENTS[index] == kind for index in kinds.tolist()])
                chosen = (hit & (places > place) & of_kind).nonzero()[:, 0].to(images.device)
                if len(chosen) == 0:
                    continue
                current, mask = damaged[chosen], self.draw_masks(len(chosen), generator)
                opacity = mask
                if kind != "fill":
                    strength = 0.4 + 0.6 * torch.rand(len(chosen), 1, 1, 1, generator=generator)
                    opacity = mask * strength.to(mask.device)
                content = self.content(kind, current, mask, generator)
                damaged[chosen] = (current + opacity * (content - current)).clamp(-1, 1)
        return damaged
