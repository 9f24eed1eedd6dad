"""From what was computed at the model's size to what is shown at an image's own: maps, heatmaps, normal versions.

Of many photographs each result is drawn when it is read, since all of them together take memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

# Heatmaps are computed in strips of so many pixels: what is computed on the way is ten times the image.
STRIP = 2**20


class DDADResults(Sequence):
    """Results at the images' own sizes, each computed when it is read; the one that was read last is kept.

    Args:
        compute: the index of an image -> its result.
        count: how many there are.
    """

    def __init__(self, compute: Callable[[int], Any], count: int):
        self._compute, self._count, self._last = compute, count, (-1, None)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        index, last = range(self._count)[index], self._last
        if last[0] != index:
            last = self._last = (index, self._compute(index))
        return last[1]


@dataclass(frozen=True)
class DDADDrawing:
    """Images, and how results become pictures and arrays at their sizes.

    Attributes:
        renderer: what draws.
        images: `[3, H, W]` in [0, 1] each.
        output_type: `"pil"`, `"np"` or `"pt"`.
    """

    renderer: "DDADRenderer"
    images: Sequence[torch.Tensor]
    output_type: str

    def results(self, compute: Callable[[int], Any]) -> DDADResults:
        """One result an image, computed when it is read."""
        return DDADResults(compute, len(self.images))

    def _enlarge(self, maps: torch.Tensor, index: int) -> torch.Tensor:
        size = self.images[index].shape[1:]
        values = maps[index][None, None]
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].cpu()

    def maps(self, maps: torch.Tensor) -> DDADResults:
        """Maps `[N, S, S]` at the images' own sizes, `[H, W]` each."""

        def draw(index: int) -> torch.Tensor | np.ndarray:
            values = self._enlarge(maps, index)
            return values if self.output_type == "pt" else values.numpy()

        return self.results(draw)

    def regions(self, inside: torch.Tensor | None) -> DDADResults:
        """Where is looked at, of `[N, 1, S, S]`, at the images' own sizes, `[H, W]` bool each; None for everywhere."""

        def draw(index: int) -> torch.Tensor | np.ndarray:
            everywhere = torch.ones(self.images[index].shape[1:], dtype=torch.bool)
            region = everywhere if inside is None else self._enlarge(inside[:, 0], index) > 0.5
            return region if self.output_type == "pt" else region.numpy()

        return self.results(draw)

    def overlays(self, maps: torch.Tensor, threshold: float, inside: torch.Tensor | None = None) -> DDADResults:
        """The images under the heatmaps of `[N, S, S]`, hatched outside of `[N, 1, S, S]`."""

        def draw(index: int) -> Any:
            overlay = self.renderer.overlay(self.images[index], self._enlarge(maps, index), threshold)
            if inside is not None:
                overlay = self.renderer.hatch(overlay, self._enlarge(inside[:, 0], index) > 0.5)
            return self.renderer.to_image(overlay, self.output_type)

        return self.results(draw)

    def normal_versions(
        self, repaired: Callable[[int], torch.Tensor], masks: torch.Tensor, refiner: Any, seeds: Sequence[int]
    ) -> DDADResults:
        """The images without their defects.

        Args:
            repaired: the index of an image -> its repair at the model's size, `[3, S, S]` in [0, 1].
            masks: where they were repaired, `[N, 1, S, S]`.
            refiner: what adds detail to repairs; None leaves them as they are.
            seeds: of the detail of each.
        """

        def draw(index: int) -> Any:
            merged, mask = self.renderer.merge(self.images[index], repaired(index), masks[index])
            if refiner is not None:
                merged = refiner.add_detail(merged, mask, seeds[index], self.renderer.is_grey(merged))
            return self.renderer.to_image(merged, self.output_type)

        return self.results(draw)

    def films(self, frames: Callable[[int], Sequence[torch.Tensor]]) -> DDADResults:
        """The steps of each image at the model's size, `[3, S, S]` in [0, 1] each."""
        return self.results(lambda index: [self.renderer.to_image(image, self.output_type) for image in frames(index)])


class DDADRenderer(SchedulerMixin, ConfigMixin):
    """Draws results. It is a `SchedulerMixin` for the reason for which the image processor is one.

    Args:
        opacity: of the heatmap where it is full, in [0, 1].
    """

    source_code = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(self, opacity: float = 0.7):
        pass

    def draw(self, images: Sequence[torch.Tensor], output_type: str) -> DDADDrawing:
        """Results of images `[3, H, W]` in [0, 1], as `output_type` says."""
        return DDADDrawing(self, images, output_type)

    @staticmethod
    def is_grey(image: torch.Tensor) -> bool:
        """Whether `[3, H, W]` came without colour."""
        return torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])

    @staticmethod
    def merge(original: torch.Tensor, denoised: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the repaired region into the image at its own size; every pixel outside the mask stays as it was.

        Args:
            original: `[3, H, W]` in [0, 1].
            denoised: the repaired one, `[3, S, S]` in [0, 1].
            mask: `[1, S, S]` in [0, 1].

        Returns:
            `[3, H, W]`, and the mask at that size, `[1, H, W]`.
        """

        def enlarge(values: torch.Tensor) -> torch.Tensor:
            size = original.shape[1:]
            return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0].to(original)

        if DDADRenderer.is_grey(original):
            denoised = denoised.mean(dim=0, keepdim=True).expand_as(denoised)  # what came without colour stays without
        mask, merged = enlarge(mask), torch.empty_like(original)
        for i, channel in enumerate(original):
            changed = channel + mask[0] * (enlarge(denoised[i : i + 1])[0].clamp(0, 1) - channel)
            merged[i] = torch.where(mask[0] > 0, changed, channel)
        return merged, mask

    def overlay(
        self, original: torch.Tensor, anomaly_map: torch.Tensor, threshold: float, opacity: float | None = None
    ) -> torch.Tensor:
        """The image under the heatmap, `[3, H, W]` in [0, 1].

        The scale is fixed: no colour up to half the threshold, full colour from twice the threshold. A scale that is
        stretched over each image would set a normal part alight.

        Args:
            original: `[3, H, W]` in [0, 1].
            anomaly_map: `[H, W]`.
            threshold: in its unit.
            opacity: of the heatmap where it is full; None takes the setting.
        """
        opacity = self.config.opacity if opacity is None else opacity
        rows = max(1, STRIP // original.shape[2])
        parts = zip(original.split(rows, dim=1), anomaly_map.split(rows), strict=True)
        return torch.cat([self._colour(*part, threshold, opacity) for part in parts], dim=1)

    @staticmethod
    def hatch(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Pale, with grey stripes, where nothing is looked at; `[3, H, W]` in [0, 1] and `[H, W]` bool."""
        height, width = inside.shape
        period = max(6, min(height, width) // 40)
        stripes = (torch.arange(height)[:, None] + torch.arange(width)) % period < max(1, period // 6)
        pale = torch.where(stripes, 0.45, 0.5 * image + 0.5)
        return torch.where(inside, image, pale)

    @staticmethod
    def _colour(original: torch.Tensor, anomaly_map: torch.Tensor, threshold: float, opacity: float) -> torch.Tensor:
        strength = (anomaly_map / max(threshold, 1e-6) / 2).clamp(0, 1)  # [H, W]
        anchors = torch.tensor([[0.3, 0.0, 0.4], [0.75, 0.1, 0.35], [0.95, 0.45, 0.1], [1.0, 0.9, 0.3]])
        position = strength * (len(anchors) - 1)
        low = position.floor().clamp(max=len(anchors) - 2)
        fraction = (position - low)[..., None]
        colour = anchors[low.long()] * (1 - fraction) + anchors[low.long() + 1] * fraction  # [H, W, 3]
        # From nothing to colour without an edge: first the picture loses its own colour, then takes the heatmap's.
        covered = ((strength - 0.25) * 2).clamp(0, 1)
        covered = opacity * covered**2 * (3 - 2 * covered)
        base = original + (2 * covered).clamp(max=1) * (original.mean(dim=0, keepdim=True) - original)
        return base + covered * (colour.permute(2, 0, 1) - base)

    @staticmethod
    def to_image(image: torch.Tensor, output_type: str) -> PIL.Image.Image | np.ndarray | torch.Tensor:
        """`[3, H, W]` in [0, 1] -> a PIL image, an array `[H, W, 3]` or a tensor `[3, H, W]`."""
        image = image.detach().float().cpu()
        if output_type == "pil":
            channels = [(channel.clamp(0, 1) * 255).round_().to(torch.uint8) for channel in image]
            return PIL.Image.fromarray(torch.stack(channels, dim=-1).numpy())
        image = image.clamp(0, 1)
        return image if output_type == "pt" else image.permute(1, 2, 0).numpy()
