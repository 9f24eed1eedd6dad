"""From a trained U-Net to a pipeline whose scores mean something: Gaussians, settings, statistics, threshold.

No training: the same runs after it, and again by `ddad calibrate` on other good images.

Every good image counts, so all of them are in the Gaussians that are stored. What judges them must not be: held-out
images are scored in folds, each under Gaussians of all images but its own.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset

from ddad.appearance_ddad import DDADAppearanceModel
from ddad.calibration.appearance import NUM_PATCHES, Appearance, gather_looks, vary_half
from ddad.calibration.appearance import store as store_looks
from ddad.calibration.backbone import choose_image_size, create_appearance_extractor
from ddad.calibration.choice import (
    MOST_IMAGES,
    PLUS,
    SHRINKAGES,
    Trials,
    choose,
    make_defects,
    maps_of_appearance,
    maps_of_unet,
)
from ddad.calibration.factors import NUM_FACTORS, Factors, fit_factors
from ddad.calibration.fitting import (
    CalibrationConfig,
    Images,
    count_copies,
    count_factors,
    fit_components,
    fit_residuals,
    gather,
    spread,
)
from ddad.calibration.gaussians import Moments, shrink
from ddad.calibration.growth import measure_growth
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import check_output, save_checkpoint, update_record
from ddad.datasets.folder import ImageFolder, measure_max_value
from ddad.datasets.layouts import Dataset
from ddad.datasets.lookalikes import check_enough, group_lookalikes, split_images
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.normality_ddad import DDADNormalityModel

logger = logging.getLogger(__name__)

BATCH_SIZE = 4
GRID_SIZE = 16
NUM_COMPONENTS = 64
FEW_IMAGES = 50
# A threshold rests on as many; each takes 25 KB of a checkpoint.
MOST_JUDGES = 100


def batches(images: Images) -> Iterator[torch.Tensor]:
    """The images in order, `[N, 3, S, S]`."""
    for first in range(0, len(images), BATCH_SIZE):
        yield torch.stack([images[index] for index in range(first, min(first + BATCH_SIZE, len(images)))])


def round_to_half(module: nn.Module) -> None:
    """Rounds weights to what a float16 file holds, so that what is calibrated is what is saved."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


@dataclass
class Calibrated:
    """Held-out images under Gaussians that have not seen them: sums of their maps, and cells."""

    sums: dict[str, torch.Tensor]
    cells: dict[str, list[torch.Tensor]]

    def add(self, name: str, value: torch.Tensor, pipe: DDADPipeline) -> None:
        """Adds maps of some images by a score, `[N, K, S, S]`, of appearance `[N, 1, S, S]`."""
        value = value.double().cpu()
        self.sums[name][0] += value.mean(dim=(2, 3)).sum(dim=0)
        self.sums[name][1] += value.square().mean(dim=(2, 3)).sum(dim=0)
        self.cells[name].append(pipe.normality.pool(value).float())


@torch.no_grad()
def score_held_out(pipe: DDADPipeline, batch: torch.Tensor, noise: torch.Tensor, calibrated: Calibrated) -> None:
    """Adds the score maps of some held-out images, `[N, 3, S, S]`."""
    names = [name for name in pipe.normality.scores if name != "appearance"]
    for name, value in pipe.score_maps(batch.to(pipe.device), pipe.timesteps, noise, names).items():
        calibrated.add(name, value, pipe)


def store_appearance(pipe: DDADPipeline, appearance: Appearance, shrinkage: float) -> torch.Tensor:
    """Stores the statistics of all good images; what held-out ones look like by those of others, `[M, 1, g, g]`."""
    model = pipe.appearance
    distances = appearance.judge_held_out(shrinkage)
    scales = {kind: [float(value.mean()), float(value.std())] for kind, value in distances.items()}
    model.register_to_config(scales=scales)
    store_looks(model, appearance.of_all(shrinkage))
    round_to_half(model)
    pipe.register_modules(appearance=model.trimmed())
    return model.combine(distances).view(-1, 1, *(model.config.grid_size,) * 2)


@torch.no_grad()
def make_trials(
    pipe: DDADPipeline,
    held_out: Images,
    folds: torch.Tensor,
    config: CalibrationConfig,
    shrinkage: float,
    model_of_others: Callable[[int, float], DDADNormalityModel],
    appearance: Appearance | None,
    report: Report | None,
) -> Trials:
    """Synthetic defects in held-out images, and the maps of all scores and shrinkages of them.

    Args:
        pipe: the pipeline.
        held_out: good images, at the size at which appearance is judged where it is.
        folds: the fold of each: what is not in it judges it.
        config: how.
        shrinkage: the likeliest of the residuals' covariances.
        model_of_others: the model of residuals of all that is not in a fold, with a shrinkage.
        appearance: what was seen of good images.
        report: told of the progress.
    """
    chosen = spread(len(held_out), MOST_IMAGES)
    good, own = torch.stack([held_out[index] for index in chosen]), folds[chosen]
    defective, truth, sources = make_defects(good, config.defects_per_type, config.seed)
    images, size = torch.cat([good, defective]), pipe.unet.config.sample_size
    folds = torch.cat([own, own[sources]])
    masks = F.adaptive_max_pool2d(torch.from_numpy(truth).float()[:, None], size)[:, 0]
    masks = torch.cat([torch.zeros(len(good), size, size), masks])
    kl, features = None, {}
    if config.ask_network:
        small = torch.stack([shrink_to(pipe, image) for image in images])
        kl, features = maps_of_unet(pipe, small, folds, stronger(shrinkage), model_of_others, report)
    if appearance is not None:
        weights = stronger(appearance.fit.shrinkage)
        features |= maps_of_appearance(pipe, images, folds, len(good), appearance, weights, report)
    return Trials(len(good), masks, kl, features)


def shrink_to(pipe: DDADPipeline, image: torch.Tensor) -> torch.Tensor:
    """What the U-Net sees of an image at the size of appearance, `[3, L, L]` -> `[3, S, S]`."""
    size = pipe.unet.config.sample_size
    return pipe.image_processor.resize(image[None], (size, size))[0].clamp(-1, 1)


def stronger(likeliest: float) -> list[float]:
    """A shrinkage, and stronger ones."""
    return [likeliest, *(shrinkage for shrinkage in SHRINKAGES if shrinkage > likeliest)]


def store_statistics(pipe: DDADPipeline, calibrated: Calibrated, order: Sequence[int]) -> None:
    """Stores mean and standard deviation of each score, and the calibrated cells of the held-out images.

    Args:
        pipe: the pipeline.
        calibrated: the held-out images' maps.
        order: which image each of them is of; they are stored in the order of the images.
    """
    count, places = len(order), torch.tensor(order).argsort()
    statistics = {}
    for name, (total, squares) in calibrated.sums.items():
        mean = total / count
        statistics[f"{name}_mean"] = mean.tolist()
        statistics[f"{name}_std"] = (squares / count - mean.square()).clamp(min=1e-12).sqrt().tolist()
    pipe.normality.register_to_config(statistics=statistics)
    cells = [
        pipe.normality.calibrate(name, torch.cat(values), pipe.timesteps) for name, values in calibrated.cells.items()
    ]
    pipe.normality.calibration_maps.copy_(torch.cat(cells, dim=1)[places])


def create_normality(
    features: DDADFeatureExtractor,
    timesteps: Sequence[int],
    images: int,
    held_out: int,
    quantile: float,
    appearance: bool,
) -> DDADNormalityModel:
    """An empty model of normality for the features of so many good images, of which some are held out."""
    channels = features.feature_channels
    return DDADNormalityModel(
        feature_channels=channels,
        num_channels=min(NUM_COMPONENTS, channels),
        grid_size=GRID_SIZE,
        timesteps=tuple(timesteps),
        num_calibration_images=held_out,
        threshold_quantile=quantile,
        num_factors=count_factors(images, appearance),
        appearance=appearance,
        prediction_factor=prediction_factor(held_out, quantile) if held_out > 1 else None,
    )


def store(normality: DDADNormalityModel, factors: Factors, moments: Moments, shrinkage: float) -> None:
    """Stores factors of residuals, and the covariances of what they leave of images."""
    normality.set_gaussian(factors.mean, shrink(moments.gaussian()[1], shrinkage))
    normality.set_factors(factors.basis)
    round_to_half(normality)


def model_of(
    normality: DDADNormalityModel, factors: Factors, moments: Moments, shrinkage: float
) -> DDADNormalityModel:
    """A model of its own, for one fold or one trial."""
    model = copy.deepcopy(normality)
    store(model, factors, moments, shrinkage)
    return model


@torch.no_grad()
def calibrate(
    pipe: DDADPipeline,
    train: Images,
    held_out: Images,
    config: CalibrationConfig,
    report: Report | None = None,
    large: tuple[Images, Images] | None = None,
) -> dict[str, Any]:
    """Fits and measures everything that follows from good images without training.

    Args:
        pipe: the pipeline; its `normality` is new and empty, its weights exact in float16.
        train: good images that the Gaussians see.
        held_out: good images that judge: in folds, each under factors and Gaussians of all others.
        config: how.
        report: told of the progress.
        large: both at the size at which appearance is judged, for a pipeline that judges it.

    Returns:
        What was chosen, for the record.
    """
    normality = pipe.normality
    if len(train) + len(held_out) < FEW_IMAGES:
        logger.warning(
            "%d good images are few: the threshold rests on %d of them and will let more or fewer good parts pass than"
            " it should, and what differs among good parts but not among these will be called a defect.",
            len(train) + len(held_out),
            len(held_out),
        )
    fit_components(pipe, train if len(train) else held_out)
    round_to_half(normality)
    copies = count_copies(len(train) + len(held_out), large is not None)
    views = gather(pipe, train, held_out, copies, config, report)
    fit = fit_residuals(views)
    shrinkage = fit.shrinkage

    record: dict[str, Any] = {
        "views_an_image": 1 + copies,
        "factors": fit.num_factors,
        "shrinkage": fit.shrinkage,
        "log_likelihoods": fit.log_likelihoods,
    }
    appearance: Appearance | None = None
    judged, varied = held_out, held_out
    if large is not None:
        folds = views.fold[views.original]
        varied = vary_half(large[1], config.nuisance, config.seed)
        judged = [shrink_to(pipe, image) for image in varied]
        looks = gather_looks(
            pipe, *large, varied, folds, config.rotation_degrees, config.nuisance, config.seed, report
        )
        appearance = Appearance.of(looks)
        record["appearance"] = {
            "views": len(looks.views.values),
            "factors": appearance.fit.num_factors,
            "shrinkage": appearance.fit.shrinkage,
            "nuisance": config.nuisance,
        }
    looks_shrinkage = 0.0 if appearance is None else appearance.fit.shrinkage
    judging = views.fold[views.held_out & views.original]  # the fold of each held-out image

    def model_of_others(fold: int, weight: float) -> DDADNormalityModel:
        return model_of(normality, fit.factors[fold].first(fit.num_factors), fit.rest[fold], weight)

    if config.choose_settings:
        trials = make_trials(pipe, varied, judging, config, shrinkage, model_of_others, appearance, report)
        choice = choose(pipe, trials, report)
        settings: dict[str, Any] = {"alpha": choice.alpha, "blur_sigma": choice.blur_sigma}
        kind, _, residual = choice.feature.partition(PLUS)
        if kind == "mahalanobis":
            shrinkage = choice.shrinkage
        else:
            looks_shrinkage = choice.shrinkage
            pipe.appearance.register_to_config(kind=kind)
        if appearance is not None:
            settings["feature_score"] = "sum" if residual else kind if kind == "mahalanobis" else "appearance"
        pipe.register_to_config(**settings)
        normality.register_to_config(num_top_cells=choice.num_top_cells)
        record["choice"] = asdict(choice)
        logger.info(
            "Chosen on synthetic defects: %s, alpha %.1f, blur %.0f, %d cells, shrinkage %.2f (image AUROC %.1f, PRO"
            " %.1f); each score alone: %s.",
            choice.feature,
            choice.alpha,
            choice.blur_sigma,
            choice.num_top_cells,
            choice.shrinkage,
            choice.image_auroc,
            choice.pro,
            ", ".join(
                f"{name} {measured['image_auroc']:.1f}, {measured['pro']:.1f}"
                for name, measured in choice.alone.items()
            ),
        )
    if appearance is not None and config.measure_growth:
        record["growth"] = measure_growth(pipe, varied, appearance, looks_shrinkage, config, report)
    looked = None if appearance is None else store_appearance(pipe, appearance, looks_shrinkage)
    calibrated = Calibrated(
        {name: torch.zeros(2, normality.num_maps(name), dtype=torch.float64) for name in normality.scores},
        {name: [] for name in normality.scores},
    )
    noise = pipe.get_noise(pipe.timesteps)
    judges = {fold: DDADPipeline.from_pipe(pipe, normality=model_of_others(fold, shrinkage)) for fold in views.folds}
    parts = {fold: (judging == fold).nonzero()[:, 0].tolist() for fold in views.folds}
    scoring = [
        (fold, part[i : i + BATCH_SIZE]) for fold, part in parts.items() for i in range(0, len(part), BATCH_SIZE)
    ]
    for fold, chosen in track(scoring, "Measuring held-out images", report, unit="batch"):
        score_held_out(judges[fold], torch.stack([judged[index] for index in chosen]), noise, calibrated)
        if looked is not None:
            calibrated.add("appearance", pipe.smooth(looked[chosen], pipe.unet.config.sample_size), pipe)
    store(normality, fit_factors(views.values, fit.num_factors), fit.everything, shrinkage)
    store_statistics(pipe, calibrated, [index for _, chosen in scoring for index in chosen])
    round_to_half(normality)
    return record


def prediction_factor(count: int, quantile: float) -> float | None:
    """How far above the mean a threshold by so many scores lies at least; None where they are many."""
    if count >= FEW_IMAGES:
        return None
    return math.sqrt(1 + 1 / count) * float(scipy.stats.t.ppf(quantile, count - 1))


def held_out_scores(pipe: DDADPipeline) -> np.ndarray:
    """The image scores of the held-out good images, each by the statistics of others, `[M]`."""
    cells = pipe.normality.normal_maps(pipe.config.alpha, pipe.timesteps, "kl", pipe.config.feature_score)
    assert cells is not None  # every calibrated pipeline stores some
    return pipe.normality.top_cells(cells, pipe.normality.config.num_top_cells).numpy()


def create_appearance(extractor: DDADFeatureExtractor) -> DDADAppearanceModel:
    """Empty statistics of an extractor's features."""
    channels = extractor.feature_channels
    return DDADAppearanceModel(
        feature_channels=channels,
        grid_size=extractor.config.grid_size,
        num_channels=min(NUM_COMPONENTS, channels),
        num_factors=max(NUM_FACTORS),
        num_patches=NUM_PATCHES,
    )


def recalibrate(
    pipe: DDADPipeline,
    images: Images,
    config: CalibrationConfig,
    report: Report | None = None,
    large: Images | None = None,
    extractor: DDADFeatureExtractor | None = None,
) -> tuple[DDADPipeline, dict[str, Any]]:
    """The same networks, calibrated on other good images: after a change of lamp or camera, without any training.

    Args:
        pipe: the pipeline, which stays as it is.
        images: good, `[3, S, S]` in [-1, 1] each.
        config: how.
        report: told of the progress.
        large: the same images, `[3, L, L]`, where appearance is judged.
        extractor: what judges it; None takes the pipeline's.

    Raises:
        ValueError: if there are fewer than four images.
    """
    numbers = list(range(len(images)))
    check_enough(len(numbers))
    train, held_out = [], numbers
    if len(numbers) > MOST_JUDGES:
        groups = group_lookalikes(images[number] for number in numbers)
        train, held_out = split_images(numbers, groups, MOST_JUDGES, config.seed)
    logger.info(
        "%d good images are seen; %d of them judge, each by the statistics of others.", len(numbers), len(held_out)
    )
    for network in (pipe.unet, pipe.feature_extractor):
        round_to_half(network)
    quantile = pipe.normality.config.threshold_quantile
    judged = large is not None
    fresh = create_normality(pipe.feature_extractor, pipe.timesteps, len(images), len(held_out), quantile, judged)
    changed: dict[str, Any] = {"normality": fresh.to(pipe.device), "appearance": None, "appearance_extractor": None}
    parts = None
    if large is not None:
        extractor = copy.deepcopy(pipe.appearance_extractor if extractor is None else extractor).to(pipe.device)
        extractor.fit(batches(Subset(large, train or held_out)))
        round_to_half(extractor)
        changed |= {"appearance": create_appearance(extractor).to(pipe.device), "appearance_extractor": extractor}
        changed["feature_score"] = "appearance"
        parts = Subset(large, train), Subset(large, held_out)
    adapted = DDADPipeline.from_pipe(pipe, **changed, threshold=None)
    adapted.set_progress_bar_config(disable=True)
    return adapted, calibrate(adapted, Subset(images, train), Subset(images, held_out), config, report, parts)


@dataclass(frozen=True)
class AppearanceConfig:
    """By what appearance is judged.

    Attributes:
        image_size: at which images are looked at; None chooses by their own size.
        backbone: a timm model's name; None takes the default where its weights are at hand.
        weights: a file of its weights.
        strides: of the features that are taken; None takes the extractor's own.
    """

    image_size: int | None = None
    backbone: str | None = None
    weights: str | None = None
    strides: tuple[int, ...] | None = None


def calibrate_checkpoint(
    pipe: DDADPipeline,
    record: dict | None,
    dataset: Dataset,
    output: str,
    config: CalibrationConfig,
    looks: AppearanceConfig,
) -> None:
    """Fits and measures anew on other good images, and saves; no network is trained.

    Args:
        pipe: the pipeline.
        record: its training record, if there is one.
        dataset: whose good images are used.
        output: a folder that is not there yet.
        config: how.
        looks: by what appearance is judged, which is kept from the pipeline where nothing is asked for.

    Raises:
        ValueError: if there are too few images, or `output` holds something.
    """
    check_output(output)
    processor = DDADImageProcessor(max_value=measure_max_value(dataset.require_training()))
    images = ImageFolder(dataset.train_paths, pipe.unet.config.sample_size, processor)
    pipe = DDADPipeline.from_pipe(pipe, image_processor=processor)
    extractor = pipe.appearance_extractor
    if extractor is None or looks != AppearanceConfig():
        size = looks.image_size or choose_image_size(dataset.train_paths)
        extractor = create_appearance_extractor(
            size, pipe.feature_extractor, looks.backbone, looks.weights, looks.strides
        )
    large = ImageFolder(dataset.train_paths, extractor.config.image_size, processor)
    adapted, calibration = recalibrate(pipe, images, config, large=large, extractor=extractor)
    if record is not None:
        record = update_record(record, adapted, calibration, dataset.name, len(images))
    save_checkpoint(adapted, record, output)
    logger.info("Saved to %s.", output)
