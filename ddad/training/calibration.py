"""From a trained U-Net to a pipeline whose scores mean something: Gaussians, statistics, threshold."""

from collections.abc import Iterator

import torch
from torch import nn
from tqdm.auto import tqdm

from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.normality_ddad import DDADNormalityModel
from ddad.pipeline import DDADPipeline
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.config import TrainConfig
from ddad.training.data import ImageFolder
from ddad.unet_ddad import DDADUNet2DModel

BATCH_SIZE = 4


def batches(images: ImageFolder) -> Iterator[torch.Tensor]:
    """The images in order, `[N, 3, S, S]`."""
    for first in range(0, len(images), BATCH_SIZE):
        yield torch.stack([images[index] for index in range(first, min(first + BATCH_SIZE, len(images)))])


def round_to_half(module: nn.Module) -> None:
    """Rounds weights to what a float16 file holds, so that what is calibrated is what is saved."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


@torch.no_grad()
def fit_normality(pipe: DDADPipeline, images: ImageFolder, seed: int) -> None:
    """Fits the Gaussians: of the residuals at each noise level, then of the features (the paper's gradient denoising).

    Each image gets noise of its own: the Gaussians describe residuals under any noise.
    """
    timesteps = pipe.timesteps
    residuals: list[list[torch.Tensor]] = [[] for _ in range(len(timesteps) + 1)]
    generator = torch.Generator().manual_seed(seed)
    progress = tqdm(total=len(images), desc="Fitting normality", mininterval=1)
    for number in range(len(images)):
        image = images[number][None].to(pipe.device)
        features = pipe.extract_features(image)  # [1, C, h, w]
        residuals[-1].append(features.cpu())
        predicted = pipe.predict_at(image, timesteps, pipe.get_noise(timesteps, generator))[-1]  # [K, C, h, w]
        for index in range(len(timesteps)):
            residuals[index].append((features - predicted[index]).cpu())
        progress.update()
    progress.close()
    for index, values in enumerate(residuals):
        pipe.normality.fit(index, values)


@torch.no_grad()
def measure_statistics(pipe: DDADPipeline, images: ImageFolder) -> None:
    """Measures mean and standard deviation of each score on held-out images and stores their calibrated maps."""
    names, timesteps = pipe.normality.scores, pipe.timesteps
    noise = pipe.get_noise(timesteps)
    sums = {name: torch.zeros(2, len(timesteps), dtype=torch.float64) for name in names}
    pooled: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    progress = tqdm(total=len(images), desc="Calibrating", mininterval=1)
    for batch in batches(images):
        maps = pipe.score_maps(batch.to(pipe.device), timesteps, noise, names)
        for name, value in maps.items():
            value = value.double().cpu()  # [N, K, S, S]
            sums[name][0] += value.mean(dim=(2, 3)).sum(dim=0)
            sums[name][1] += value.square().mean(dim=(2, 3)).sum(dim=0)
            pooled[name].append(pipe.normality.pool(value).float())
        progress.update(len(batch))
    progress.close()
    statistics = {}
    for name, (total, squares) in sums.items():
        mean = total / len(images)
        statistics[f"{name}_mean"] = mean.tolist()
        statistics[f"{name}_std"] = (squares / len(images) - mean.square()).clamp(min=1e-12).sqrt().tolist()
    pipe.normality.register_to_config(statistics=statistics)
    maps = [pipe.normality.calibrate(name, torch.cat(pooled[name]), timesteps) for name in names]
    pipe.normality.calibration_maps.copy_(torch.cat(maps, dim=1))


def build_pipeline(
    config: TrainConfig,
    unet: DDADUNet2DModel,
    features: DDADFeatureExtractor,
    scheduler: DDADScheduler,
    train: ImageFolder,
    calibration: ImageFolder,
) -> DDADPipeline:
    """Fits, calibrates and assembles the pipeline of a run. All weights are exact in float16."""
    normality = DDADNormalityModel(
        feature_channels=features.feature_channels,
        num_channels=min(100, features.feature_channels),
        timesteps=config.timesteps,
        num_calibration_images=len(calibration),
        threshold_quantile=config.threshold_quantile,
    )
    unet = unet.to(memory_format=torch.contiguous_format)
    features = features.to(memory_format=torch.contiguous_format)
    round_to_half(unet)
    round_to_half(features)
    pipe = DDADPipeline(
        unet=unet,
        scheduler=scheduler,
        feature_extractor=features,
        normality=normality.to(unet.device),
        denoiser=DDADDenoiser(),
        image_processor=DDADImageProcessor(),
        category=config.category,
    )
    fit_normality(pipe, train, config.seed)
    round_to_half(normality)
    measure_statistics(pipe, calibration)
    round_to_half(normality)
    return pipe
