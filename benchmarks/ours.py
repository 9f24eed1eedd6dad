"""The pipeline's own scores, and what the paper compares with inside the same model."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.methods import Images, network_size, top_pixels
from ddad import DDADPipeline
from ddad.evaluation.scoring import score_batch


class Ours:
    """The checkpoint's own score."""

    name, slow, form = "ddad: combined", False, "combined"

    def __init__(self, pipe: DDADPipeline, checkpoint: Path, note: str):
        self.pipe, self.checkpoint, self.note = pipe, checkpoint, note
        self.noise = pipe.get_noise(pipe.timesteps)

    def fit(self, images: Images) -> None:
        """Nothing: the checkpoint was trained before."""

    @torch.no_grad()
    def score(self, images: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Maps and cell scores as the pipeline makes them."""
        maps = score_batch(self.pipe, images, self.noise, [self.form])[self.form]
        return maps.numpy(), self.pipe.calibration.image_score(maps).numpy()

    def size(self) -> int:
        """The checkpoint's weights on disk."""
        return sum(path.stat().st_size for path in self.checkpoint.rglob("*.safetensors"))


class AnoDDPM:
    """The paper's RGB baseline in its own form: noise to t, the whole reverse chain back to 0, squared error.

    Source: "AnoDDPM: Anomaly detection with denoising diffusion probabilistic models using simplex noise" (Wyatt et
    al., 2022), on our U-Net, with Gaussian noise and the 250-step process.
    """

    name = "AnoDDPM's chain on our U-Net"
    slow = True

    def __init__(self, pipe: DDADPipeline, timestep: int = 201):
        self.pipe, self.timestep = pipe, timestep
        self.steps = [int(t) for t in pipe.scheduler.timesteps if t <= timestep]
        self.note = f"{len(self.steps)} evaluations of the U-Net an image, from t = {timestep}"

    def fit(self, images: Images) -> None:
        """Nothing: the checkpoint was trained before."""

    @torch.no_grad()
    def score(self, originals: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Squared RGB error between the image and what the chain makes of it, smoothed as ours."""
        images = self.pipe.prepare(originals)
        generator = torch.Generator().manual_seed(0)
        (first, *_), scheduler = self.steps, self.pipe.scheduler
        noise = self.pipe.get_noise([first], generator)
        current = scheduler.add_noise(images, noise.expand_as(images), torch.full((len(images),), first))
        for t in self.steps:
            levels = torch.full((len(images),), t)
            predicted = scheduler.predict(self.pipe.unet(current, levels).sample, current, levels)
            fresh = torch.randn(current.shape, generator=generator) if t > 0 else 0.0
            current = predicted.mean + (0.5 * predicted.log_variance).exp() * fresh
        error = (images - current.clamp(-1, 1)).square().mean(dim=1, keepdim=True)
        maps = self.pipe.smooth(error)[:, 0].numpy()
        return maps, maps.reshape(len(maps), -1).max(axis=1)

    def size(self) -> int:
        """The U-Net."""
        return network_size(self.pipe.unet)


class AuthorsProgram:
    """What the authors' program computes, on our U-Net: six evaluations, maps normalised by each image itself.

    KL at noise levels 5, 50 and 100 of 250, minus its mean over the image, over its standard deviation; squared error
    of the features, for which it evaluates the U-Net a second time and passes it the respaced index instead of the
    timestep; the mean of the highest 64 pixels is the image score.
    """

    name = "the authors' program on our U-Net"
    slow = False
    note = "six evaluations an image; KL normalised by each image's own statistics"

    def __init__(self, pipe: DDADPipeline):
        self.pipe = pipe

    def fit(self, images: Images) -> None:
        """Nothing: the checkpoint was trained before."""

    @torch.no_grad()
    def score(self, originals: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Its anomaly maps."""
        pipe, images = self.pipe, self.pipe.prepare(originals)
        count, size = len(images), images.shape[-1]
        timesteps = pipe.timesteps
        noise = pipe.get_noise(timesteps)
        target = pipe.extract_features(images)
        total = torch.zeros(count, 1, size, size)
        for index, timestep in enumerate(timesteps):
            kl = pipe.score_maps(images, [timestep], noise[index : index + 1], {"kl"})["kl"]  # [N, 1, S, S]
            mean, std = kl.mean(dim=(2, 3), keepdim=True), kl.std(dim=(2, 3), keepdim=True)
            levels = torch.full((count,), timestep)
            noisy = pipe.scheduler.add_noise(images, noise[index].expand_as(images), levels)
            features = pipe.unet(noisy, levels // 4).features
            features = F.interpolate(features, size=target.shape[-2:], mode="bilinear", align_corners=False)
            error = (features - target).square().mean(dim=1, keepdim=True)
            total += 0.5 * (kl - mean) / std + 0.5 * pipe.smooth(error)
        maps = (total[:, 0] / len(timesteps)).numpy()
        return maps, top_pixels(maps)

    def size(self) -> int:
        """The networks."""
        return network_size(self.pipe.unet, self.pipe.feature_extractor)
