"""From a trained U-Net to a pipeline whose scores mean something: Gaussians, settings, statistics, threshold.

No training: the same runs after it, and again by `ddad calibrate` on other good images.

Every good image counts, so all of them are in the Gaussians that are stored. What judges them must not be: held-out
images are scored in folds, each under Gaussians of all images but its own.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Subset

from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.normality_ddad import DDADNormalityModel
from ddad.pipeline import DDADPipeline
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.choice import MOST_IMAGES, choose
from ddad.training.config import TrainConfig
from ddad.training.data import rotate, split_images
from ddad.training.gaussians import Moments, choose_shrinkage, principal_components, shrink
from ddad.training.progress import Report, track
from ddad.unet_ddad import DDADUNet2DModel

logger = logging.getLogger(__name__)

BATCH_SIZE = 4
FOLDS = 5
GRID_SIZE = 16
NUM_COMPONENTS = 100
# Images that the principal components are found on.
COMPONENT_IMAGES = 64
# Copies are made until there are about so many views, at least one and at most eight of an image.
VIEWS = 1200
MOST_COPIES = 8
LARGEST_SHIFT = 4
FEW_IMAGES = 50
# A threshold rests on as many; each takes 25 KB of a checkpoint.
MOST_JUDGES = 100

# What hands out images by number, `[3, S, S]` in [-1, 1]: a list, an ImageFolder, a part of one.
Images = Sequence[torch.Tensor] | Dataset[torch.Tensor]


@dataclass(frozen=True)
class CalibrationConfig:
    """How a pipeline is calibrated.

    Attributes:
        rotation_degrees: the largest rotation of the copies that the Gaussians see too.
        seed: of everything random.
        choose_settings: whether alpha, blur and cells are chosen on synthetic defects; else they stay as they are.
    """

    rotation_degrees: float = 5.0
    seed: int = 0
    choose_settings: bool = True

    @classmethod
    def of(cls, record: dict[str, Any] | None) -> "CalibrationConfig":
        """As a checkpoint with this training record was calibrated."""
        settings = record["config"] if record else {}
        return cls(settings.get("rotation_degrees", cls.rotation_degrees))


def batches(images: Images) -> Iterator[torch.Tensor]:
    """The images in order, `[N, 3, S, S]`."""
    for first in range(0, len(images), BATCH_SIZE):
        yield torch.stack([images[index] for index in range(first, min(first + BATCH_SIZE, len(images)))])


def round_to_half(module: nn.Module) -> None:
    """Rounds weights to what a float16 file holds, so that what is calibrated is what is saved."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def count_copies(images: int) -> int:
    """Rotated and shifted copies of each image: the fewer images, the more."""
    return max(1, min(MOST_COPIES, round(VIEWS / images) - 1))


def vary(image: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """A copy of `[1, 3, S, S]`, rotated and shifted at random; what comes in at the border is mirrored."""
    turned = rotate(image, (2 * torch.rand(1, generator=generator) - 1) * degrees)
    top, left = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(turned, (LARGEST_SHIFT,) * 4, mode="reflect")
    return padded[..., top : top + image.shape[-2], left : left + image.shape[-1]]


@torch.no_grad()
def extract(
    pipe: DDADPipeline, images: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residuals' mean over the noise levels, and the features, of `[N, 3, S, S]`; `[N, C, h, w]` each.

    Gaussians are fitted to that mean: the residuals of the levels hardly differ.
    """
    features = pipe.extract_features(images)
    predicted = pipe.predict_at(images, pipe.timesteps, pipe.get_noise(pipe.timesteps, generator))[-1]
    return features - predicted.unflatten(0, (len(images), -1)).mean(dim=1), features


def pool(features: torch.Tensor, grid_size: int) -> torch.Tensor:
    """`[N, C, h, w]` -> `[N, P, C]` on the grid of the Gaussians."""
    return F.adaptive_avg_pool2d(features, (grid_size, grid_size)).flatten(2).transpose(1, 2)


@torch.no_grad()
def fit_components(pipe: DDADPipeline, images: Images) -> None:
    """Finds the directions of the residuals that are modelled, on some of the good images."""
    normality = pipe.normality
    step = max(1, len(images) // COMPONENT_IMAGES)
    chosen = [images[index][None].to(pipe.device) for index in range(0, len(images), step)]
    residuals = torch.cat([extract(pipe, one, None)[0] for one in chosen])
    normality.basis.copy_(
        principal_components(pool(residuals, normality.config.grid_size), normality.config.num_channels)
    )


@dataclass
class Sums:
    """Moments of residuals and features over some images, and the residuals of the images without their copies."""

    residuals: Moments
    features: Moments
    originals: list[torch.Tensor]


@torch.no_grad()
def gather(
    pipe: DDADPipeline, groups: Sequence[Images], copies: int, config: CalibrationConfig, report: Report | None
) -> list[Sums]:
    """Sums of each group of images and their copies; every image has noise of its own: Gaussians hold under any."""
    normality = pipe.normality
    shape = normality.config.grid_size**2, normality.config.num_channels
    sums = [Sums(Moments.empty(*shape), Moments.empty(*shape), []) for _ in groups]
    members = [(images, index, one) for images, one in zip(groups, sums, strict=True) for index in range(len(images))]
    for number, (images, index, one) in enumerate(track(members, "Fitting normality", report)):
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
        image = images[index][None]
        views = [image, *(vary(image, config.rotation_degrees, generator) for _ in range(copies))]
        residuals, features = extract(pipe, torch.cat(views).to(pipe.device), generator)
        values = normality.reduce(residuals).cpu()  # [V, P, c]
        one.residuals.add(values)
        one.features.add(normality.reduce(features).cpu())
        one.originals.append(values[:1])
    return sums


@dataclass
class Calibrated:
    """Held-out images under Gaussians that have not seen them: sums of their maps, and cells."""

    sums: dict[str, torch.Tensor]
    cells: dict[str, list[torch.Tensor]]


@torch.no_grad()
def score_held_out(pipe: DDADPipeline, batch: torch.Tensor, noise: torch.Tensor, found: Calibrated) -> None:
    """Adds the score maps of some held-out images, `[N, 3, S, S]`."""
    for name, value in pipe.score_maps(batch.to(pipe.device), pipe.timesteps, noise, pipe.normality.scores).items():
        value = value.double().cpu()  # [N, K, S, S]
        found.sums[name][0] += value.mean(dim=(2, 3)).sum(dim=0)
        found.sums[name][1] += value.square().mean(dim=(2, 3)).sum(dim=0)
        found.cells[name].append(pipe.normality.pool(value).float())


def store_statistics(pipe: DDADPipeline, found: Calibrated, count: int) -> None:
    """Stores mean and standard deviation of each score, and the calibrated cells of the held-out images."""
    statistics = {}
    for name, (total, squares) in found.sums.items():
        mean = total / count
        statistics[f"{name}_mean"] = mean.tolist()
        statistics[f"{name}_std"] = (squares / count - mean.square()).clamp(min=1e-12).sqrt().tolist()
    pipe.normality.register_to_config(statistics=statistics)
    cells = [pipe.normality.calibrate(name, torch.cat(values), pipe.timesteps) for name, values in found.cells.items()]
    pipe.normality.calibration_maps.copy_(torch.cat(cells, dim=1))


def create_normality(
    features: DDADFeatureExtractor, timesteps: Sequence[int], held_out: int, quantile: float
) -> DDADNormalityModel:
    """An empty model of normality for some features."""
    channels = features.feature_channels
    return DDADNormalityModel(
        feature_channels=channels,
        num_channels=min(NUM_COMPONENTS, channels),
        grid_size=GRID_SIZE,
        timesteps=tuple(timesteps),
        num_calibration_images=held_out,
        threshold_quantile=quantile,
        components=True,
        shared=True,
    )


@torch.no_grad()
def calibrate(
    pipe: DDADPipeline, train: Images, held_out: Images, config: CalibrationConfig, report: Report | None = None
) -> dict[str, Any]:
    """Fits and measures everything that follows from good images without training.

    Args:
        pipe: the pipeline; its `normality` is new and empty, its weights exact in float16.
        train: good images that the Gaussians see.
        held_out: good images that judge: in folds, each under Gaussians of all others.
        config: how.
        report: told of the progress.

    Returns:
        What was chosen, for the record.
    """
    normality, folds = pipe.normality, min(FOLDS, len(held_out))
    if len(train) + len(held_out) < FEW_IMAGES:
        logger.warning(
            "%d good images are few: the threshold rests on %d of them and will let more or fewer good parts pass than"
            " it should, and what differs among good parts but not among these will be called a defect.",
            len(train) + len(held_out),
            len(held_out),
        )
    fit_components(pipe, train)
    round_to_half(normality)
    copies = count_copies(len(train) + len(held_out))
    parts = [Subset(held_out, range(fold, len(held_out), folds)) for fold in range(folds)]
    trained, *judged = gather(pipe, [train, *parts], copies, config, report)
    everything = sum((one.residuals for one in judged), trained.residuals)
    rest = [everything - one.residuals for one in judged]
    weight, likelihoods = choose_shrinkage(rest, [torch.cat(one.originals) for one in judged])

    def store(moments: Moments) -> None:
        mean, covariance = moments.gaussian()
        normality.set_gaussian(0, mean, shrink(covariance, weight))
        round_to_half(normality)

    mean, covariance = sum((one.features for one in judged), trained.features).gaussian()
    normality.set_gaussian(normality.features_index, mean, shrink(covariance, weight))

    record: dict[str, Any] = {"views_an_image": 1 + copies, "shrinkage": weight, "log_likelihoods": likelihoods}
    if config.choose_settings:
        store(trained.residuals)
        judges = torch.stack([held_out[index] for index in range(min(MOST_IMAGES, len(held_out)))])
        choice = choose(pipe, judges, config.seed, report)
        pipe.register_to_config(alpha=choice.alpha, blur_sigma=choice.blur_sigma)
        normality.register_to_config(num_top_cells=choice.num_top_cells)
        record["choice"] = asdict(choice)
        logger.info(
            "Chosen on synthetic defects: alpha %.1f, blur %.0f, %d cells.",
            choice.alpha,
            choice.blur_sigma,
            choice.num_top_cells,
        )
    levels = len(pipe.timesteps)
    found = Calibrated(
        {name: torch.zeros(2, levels, dtype=torch.float64) for name in normality.scores},
        {name: [] for name in normality.scores},
    )
    noise, current = pipe.get_noise(pipe.timesteps), None
    scoring = [(batch, moments) for part, moments in zip(parts, rest, strict=True) for batch in batches(part)]
    for batch, moments in track(scoring, "Measuring held-out images", report, unit="batch"):
        if moments is not current:
            store(moments)
            current = moments
        score_held_out(pipe, batch, noise, found)
    store(everything)
    store_statistics(pipe, found, len(held_out))
    round_to_half(normality)
    return record


def build_pipeline(
    config: TrainConfig,
    unet: DDADUNet2DModel,
    features: DDADFeatureExtractor,
    scheduler: DDADScheduler,
    train: Images,
    held_out: Images,
) -> tuple[DDADPipeline, dict[str, Any]]:
    """Fits, calibrates and assembles the pipeline of a run; with what was chosen. All weights are exact in float16."""
    unet = unet.to(memory_format=torch.contiguous_format)
    features = features.to(memory_format=torch.contiguous_format)
    round_to_half(unet)
    round_to_half(features)
    normality = create_normality(features, config.timesteps, len(held_out), config.threshold_quantile)
    pipe = DDADPipeline(
        unet=unet,
        scheduler=scheduler,
        feature_extractor=features,
        normality=normality.to(unet.device),
        denoiser=DDADDenoiser(),
        image_processor=DDADImageProcessor(),
        category=config.category,
    )
    return pipe, calibrate(pipe, train, held_out, CalibrationConfig(config.rotation_degrees, config.seed))


def count_judges(images: int) -> int:
    """How many good images judge where no network was trained on the others: half of few, a fifth of many."""
    return max(2, min(images // 2, MOST_JUDGES), round(images / 5))


def recalibrate(
    pipe: DDADPipeline, images: Images, config: CalibrationConfig, report: Report | None = None
) -> tuple[DDADPipeline, dict[str, Any]]:
    """The same networks, calibrated on other good images: after a change of lamp or camera, without any training.

    Args:
        pipe: the pipeline, which stays as it is.
        images: good, `[3, S, S]` in [-1, 1] each.
        config: how.
        report: told of the progress.

    Raises:
        ValueError: if there are fewer than four images.
    """
    train, held_out = split_images(list(range(len(images))), count_judges(len(images)), config.seed)
    logger.info("%d good images are seen by the Gaussians, %d judge.", len(train), len(held_out))
    old = pipe.normality
    for network in (pipe.unet, pipe.feature_extractor):
        round_to_half(network)
    fresh = create_normality(pipe.feature_extractor, pipe.timesteps, len(held_out), old.config.threshold_quantile)
    adapted = DDADPipeline.from_pipe(pipe, normality=fresh.to(pipe.device), threshold=None)
    adapted.set_progress_bar_config(disable=True)
    return adapted, calibrate(adapted, Subset(images, train), Subset(images, held_out), config, report)
