"""The second stage of a repair: a small network turns the blurred repair into detail at the photograph's own size.

The U-Net repairs a picture of 256 pixels, and what it predicts is the mean of what may be there: smooth. As in
cascaded diffusion ("Cascaded Diffusion Models for High Fidelity Image Generation", Ho et al., 2021) a second network,
trained on crops of good photographs at full size, adds what the first leaves out. It sees the repair in its
surroundings, where the part's own grain is, and changes the repaired region alone. What it adds is drawn by noise, as
grain is.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

# Pixels around a repaired region that are looked at.
SURROUNDINGS = 64


class ResidualBlock(nn.Module):
    """x + two convolutions of SiLU(x), without norm: crops and whole photographs must be treated alike."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """`[N, C, h, w]` -> the same."""
        return values + self.second(F.silu(self.first(F.silu(values))))


class DDADRefiner(ModelMixin, ConfigMixin):
    """Adds detail to a repaired region, given its surroundings.

    Args:
        channels: at a half, a quarter and an eighth of the picture's size, and so on.
        middle_blocks: residual blocks at the coarsest, dilated by 1, 2, 4, 1, ...: how far it looks.
        image_size: longest side in pixels at which it knows photographs; larger ones get the detail of this size.
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...] = (32, 80, 144),
        middle_blocks: int = 6,
        image_size: int = 640,  # noqa: ARG002 - kept in the config
    ):
        super().__init__()
        self.enter = nn.Conv2d(5 * 4, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(ResidualBlock(finer), nn.Conv2d(finer, coarser, 4, stride=2, padding=1))
            for finer, coarser in zip(channels, channels[1:], strict=False)
        )
        self.middle = nn.Sequential(
            *(ResidualBlock(channels[-1], dilation=(1, 2, 4)[number % 3]) for number in range(middle_blocks))
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarser, 4 * finer, 1), nn.PixelShuffle(2))
            for finer, coarser in zip(channels, channels[1:], strict=False)
        )
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * finer, finer, 1), ResidualBlock(finer)) for finer in channels[:-1]
        )
        self.leave = nn.Conv2d(channels[0], 3 * 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, images: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The images with detail in the mask, every other pixel as it was.

        Args:
            images: repaired, `[N, 3, H, W]` in [-1, 1].
            mask: where, `[N, 1, H, W]` in [0, 1].
            noise: what draws the detail, standard normal, `[N, 1, H, W]`.
        """
        height, width = images.shape[-2:]
        multiple = 2 ** len(self.config.channels)
        given = torch.cat([images, mask, noise.to(images)], dim=1)
        given = F.pad(given, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        values = self.enter(F.pixel_unshuffle(given, 2))
        finer = []
        for layer in self.down:
            finer.append(values)
            values = layer(values)
        values = self.middle(values)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            values = merge(torch.cat([up(values), finer.pop()], dim=1))
        detail = F.pixel_shuffle(self.leave(F.silu(values)), 2)[..., :height, :width]
        return images + mask * detail

    @torch.no_grad()
    def add_detail(self, image: torch.Tensor, mask: torch.Tensor, seed: int, grey: bool = False) -> torch.Tensor:
        """A repaired photograph with detail in the repaired region; the network sees that and its surroundings.

        Args:
            image: `[3, H, W]` in [0, 1].
            mask: `[1, H, W]` in [0, 1].
            seed: of what draws the detail.
            grey: whether the detail must have no colour.

        Returns:
            `[3, H, W]` in [0, 1]; where the mask is zero, the image bit for bit.
        """
        if not mask.any():
            return image
        height, width = image.shape[1:]
        scale = min(1.0, self.config.image_size / max(height, width))
        size = (max(1, round(scale * height)), max(1, round(scale * width)))
        seen, region = image[None], mask[None]
        if scale < 1:
            seen, region = (
                F.interpolate(values, size=size, mode="bilinear", antialias=True, align_corners=False)
                for values in (seen, region)
            )
        rows, columns = (self._span(region[0, 0].amax(dim=side) > 0) for side in (1, 0))
        noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))
        cut = [values[..., rows, columns].to(self.device, self.dtype) for values in (2 * seen - 1, region, noise)]
        detail = torch.zeros(1, 3, *size)
        detail[..., rows, columns] = (self(*cut) - cut[0]).float().cpu() / 2
        if grey:
            detail = detail.mean(dim=1, keepdim=True).expand_as(detail)
        result = torch.empty_like(image)
        for i, channel in enumerate(image):  # a photograph of 64 megapixels takes 256 MB a channel
            added = detail[:, i : i + 1]
            if scale < 1:
                added = F.interpolate(added, size=(height, width), mode="bilinear", align_corners=False)
            result[i] = torch.where(mask[0] > 0, (channel + added[0, 0].to(channel)).clamp(0, 1), channel)
        return result

    @staticmethod
    def _span(covered: torch.Tensor) -> slice:
        """From the first to the last that is covered, and what surrounds them."""
        places = covered.nonzero()[:, 0]
        return slice(max(0, int(places[0]) - SURROUNDINGS), int(places[-1]) + 1 + SURROUNDINGS)
