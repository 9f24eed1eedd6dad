"""A pipeline as graphs of plain operators: pixels of any size in, anomaly map and image score out.

They compute what `DDADPipeline` computes, with every constant unpacked and every size but the picture's own fixed.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ddad.images_ddad import DDADImageProcessor
from ddad.pipeline import DDADPipeline


def resize_matrix(size: int, length: torch.Tensor) -> torch.Tensor:
    """The matrix that resizes `length` pixels to `size`, `[size, length]`: bilinear, averaging where it shrinks.

    Row o weighs pixel i by a triangle around its centre, max(0, 1 - |i + 1/2 - (o + 1/2) s| / max(s, 1)) with
    s = length / size, normalised: what PyTorch and Pillow call antialiased bilinear resizing.
    """
    scale = length.float() / size
    centres = (torch.arange(size) + 0.5) * scale
    pixels = torch.arange(length) + 0.5  # type: ignore[arg-type]
    weights = (1 - (pixels[None] - centres[:, None]).abs() / scale.clamp(min=1.0)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """`[N, C, H, W]` of any size -> `[N, C, size, size]`, as products with two matrices."""
    height, width = images.shape[-2:]
    down, right = (resize_matrix(size, torch.scalar_tensor(n)) for n in (height, width))
    return down @ images @ right.T


class Gaussians(nn.Module):
    """`DDADGaussianModel` with its weights unpacked, as constants of the graph."""

    def __init__(self, model: Any, inside: torch.Tensor | None):
        super().__init__()
        self.model = model
        mean, whitening, factors = model.unpacked()
        if inside is not None:  # nothing is left of what lies at other positions
            outside = (inside == 0).flatten()
            rows = factors.view(*mean.shape, -1).clone()
            rows[~outside] = model.factors_inside(rows[~outside].flatten(0, 1)).view(-1, *rows.shape[1:])
            rows[outside] = 0
            factors = rows.flatten(0, 1)
        if factors.shape[1] == 0:  # OpenVINO reads no constant without elements
            factors = factors.new_zeros(len(factors), 1)
        for name, value in (("mean", mean), ("whitening", whitening), ("factors", factors)):
            self.register_buffer(name, value.detach().clone())

    def distance(self, reduced: torch.Tensor) -> torch.Tensor:
        """`[N, P, c]` -> the distance at each position, `[N, 1, g, g]`."""
        return self.model.to_map(self.model.mahalanobis(reduced, self.mean, self.whitening, self.factors))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[N, C, h, w]` -> likewise."""
        return self.distance(self.model.reduce(features))


class Memory(nn.Module):
    """`DDADMemory` in float32, all images at once."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        for name in ("whitening", "patches", "radius"):
            self.register_buffer(name, getattr(model, name).detach().float())
        self.register_buffer("lengths", self.patches.square().sum(dim=1))

    def forward(self, reduced: torch.Tensor) -> torch.Tensor:
        """`[N, P, c]` -> the distance at each position, `[N, P]`."""
        white = (reduced @ self.whitening).flatten(0, 1)
        return self.model.nearest(white, self.patches, self.lengths, self.radius).view(reduced.shape[:2])


class Verdict(nn.Module):
    """Pixels to anomaly map and image score, as `pipe(image, denoise=False)` with the pipeline's own settings.

    Where the verdict rests on the U-Net it is evaluated once, with the noise that every image is scored under.

    Args:
        pipe: the pipeline, on the CPU in float32.
    """

    def __init__(self, pipe: DDADPipeline):
        super().__init__()
        self.judgement, self.calibration = pipe.judgement(), pipe.calibration
        self.size, self.blur_sigma = pipe.unet.config.sample_size, pipe.config.blur_sigma
        inside = pipe.calibration.inside(self.size)
        self.register_buffer("inside", None if inside is None else inside.detach().clone())
        shares = {self.judgement.scores[0]: self.judgement.alpha}
        shares[self.judgement.feature_score] = 1 - self.judgement.alpha
        # The weight of every measured score that has one.
        self.weights = {
            name: share * weight
            for score, share in shares.items()
            if share
            for name, weight in self.calibration.weights(score).items()
        }
        self.ask_looks, self.ask_network = (
            not self.weights.keys().isdisjoint(names)
            for names in (self.calibration.look_scores, self.calibration.network_scores)
        )
        if self.ask_looks:
            self.appearance_extractor = pipe.appearance_extractor
            self.appearance = Gaussians(pipe.appearance, pipe.calibration.inside(pipe.appearance.config.grid_size))
            self.memory = Memory(pipe.memory) if "memory" in self.weights else None
        if self.ask_network:
            self.networks = copy.copy(pipe)
            self.networks.scheduler = fixed_levels(pipe.scheduler, self.judgement.timesteps)
            self.unet, self.feature_extractor = pipe.unet, pipe.feature_extractor
            self.residual = Gaussians(pipe.residual, pipe.calibration.inside(pipe.residual.config.grid_size))
            self.register_buffer("noise", pipe.get_noise(self.judgement.timesteps))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, 3, H, W]` in [0, 1] -> the anomaly map `[N, S, S]` and the image score `[N]`."""
        maps = {}
        if self.ask_looks:
            maps |= self.look(resize(images, self.appearance_extractor.config.image_size).clamp(0, 1) * 2 - 1)
        if self.ask_network:
            maps |= self.ask_unet(resize(images, self.size).clamp(0, 1) * 2 - 1)
        timesteps = self.judgement.timesteps
        anomaly_map = sum(
            weight * self.calibration.standardise(name, self.smooth(maps[name]), timesteps).mean(dim=1)
            for name, weight in self.weights.items()
        )
        if self.inside is None:
            return anomaly_map, self.calibration.image_score(anomaly_map)
        anomaly_map = anomaly_map * self.inside[:, 0]
        return anomaly_map, self.calibration.image_score(anomaly_map, self.inside)

    def look(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """How unusual `[N, 3, L, L]` in [-1, 1] look, `[N, 1, g, g]` by score."""
        reduced = self.appearance.model.reduce(features(self.appearance_extractor, images))
        maps = {"appearance": self.appearance.distance(reduced)}
        if self.memory is not None:
            maps["memory"] = self.appearance.model.to_map(self.memory(reduced))
        return maps

    def ask_unet(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pixel score and the residual of `[N, 3, S, S]` in [-1, 1], `[N, K, ...]`."""
        timesteps = self.judgement.timesteps
        originals, noisy, levels, output, predicted = self.networks.predict_at(images, timesteps, self.noise)
        maps = {}
        if "kl" in self.weights:
            kl = self.networks.scheduler.pixel_maps(originals, noisy, output, levels, ["kl"])["kl"]
            maps["kl"] = kl.unflatten(0, (-1, len(timesteps)))[:, :, 0]
        if "residual" in self.weights:
            clean = features(self.feature_extractor, images).repeat_interleave(len(timesteps), dim=0)
            maps["residual"] = self.residual(clean - predicted).unflatten(0, (-1, len(timesteps)))[:, :, 0]
        return maps

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """`[N, K, g, g]` -> `[N, K, S, S]`; see `DDADPipeline.smooth`."""

        def blurred(values: torch.Tensor) -> torch.Tensor:
            large = F.interpolate(values, size=(self.size, self.size), mode="bilinear", align_corners=False)
            return DDADImageProcessor.blur(large, self.blur_sigma)

        if self.inside is None:
            return blurred(maps)
        weights = self.calibration.covered(self.inside, maps.shape[-1])
        return blurred(maps * weights) / blurred(weights).clamp(min=1e-3)


def fixed_levels(scheduler: Any, timesteps: Sequence[int]) -> Any:
    """The process at some noise levels alone, repeated for every image, without the search for them."""
    fixed = copy.copy(scheduler)
    bars = [values.float() for values in scheduler.alpha_bars(torch.tensor(timesteps))]
    fixed.alpha_bars = lambda levels: tuple(one.repeat(levels.shape[0] // len(timesteps), 1, 1, 1) for one in bars)
    return fixed


def features(extractor: Any, images: torch.Tensor) -> torch.Tensor:
    """As `extractor(images)`, in one evaluation whatever the batch."""
    return extractor.standardise(extractor.extract_together(images))


class NoisyToClean(nn.Module):
    """A U-Net that returns a tuple: what it predicts, and features."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DDADUNet2DModel`."""
        return self.network(noisy, timesteps, return_dict=False)
