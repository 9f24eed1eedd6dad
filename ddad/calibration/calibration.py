"""From networks to a pipeline whose scores mean something: statistics, settings, units, threshold; no training.

Images -> what networks see of them (`observing`) -> statistics (`fitting`) and patches (`patches`) -> what is stored.
What decides is a rule, the same for every part; `benchmarks.rules` compares it with others on real defects.

Every good image counts, so all of them are in the Gaussians that are stored. What judges them must not be: held-out
images are scored in folds, each under Gaussians of all images but its own.
"""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from ddad.calibration.backbone import IMAGE_SIZE, create_appearance_extractor
from ddad.calibration.fitting import LEAST_GAIN, Gaussian, Statistics, assign_folds, fit_statistics
from ddad.calibration.growth import measure_growth
from ddad.calibration.observing import (
    ANY_ANGLE,
    MOST_IMAGES_SEEN,
    CalibrationConfig,
    Images,
    Observed,
    fit_components,
    observe,
    spread,
    vary_half,
    view_images,
)
from ddad.calibration.patches import distances_by_others, remember
from ddad.calibration.progress import Report
from ddad.calibration_ddad import FEW_SCORES, DDADCalibration
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import check_output, save_checkpoint, update_record
from ddad.datasets.folder import ImageFolder, measure_max_value
from ddad.datasets.layouts import Dataset
from ddad.datasets.lookalikes import check_enough, choose_judges, group_lookalikes, shrink_image
from ddad.datasets.orientation import MOST_IMAGES as MOST_COMPARED
from ddad.datasets.orientation import lie_in_any_orientation
from ddad.features_ddad import DDADFeatureExtractor
from ddad.gaussians_ddad import DDADGaussianModel
from ddad.images_ddad import DDADImageProcessor

logger = logging.getLogger(__name__)

RESIDUAL_GRID = 16
NUM_COMPONENTS = 64
FEW_IMAGES = FEW_SCORES
# What decides: how the part looks, without the U-Net. Blur in pixels, and how many cells make an image score.
RULE = {"alpha": 0.0, "blur_sigma": 2.0, "feature_score": "appearance"}
NUM_TOP_CELLS = 4
# A threshold rests on as many; each takes 25 KB of a checkpoint.
MOST_JUDGES = 100


def round_to_half(module: nn.Module) -> None:
    """Rounds weights to what a float16 file holds, so that what is calibrated is what is saved."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


# ------------------------------------------------------------------------------------------------- what becomes stored


def empty_components(
    features: DDADFeatureExtractor,
    extractor: DDADFeatureExtractor,
    timesteps: Sequence[int],
    quantile: float,
    region: torch.Tensor | None = None,
) -> dict[str, Any]:
    """The components of a pipeline that follow from good images, before any was seen.

    Args:
        features: what the U-Net predicts.
        extractor: what appearance is judged by.
        timesteps: the noise levels that score.
        quantile: the part of good images that the threshold lets pass.
        region: `[R, R]`, above zero where is looked at; None looks everywhere.
    """
    calibration = DDADCalibration(tuple(timesteps), threshold_quantile=quantile, num_top_cells=NUM_TOP_CELLS)

    def gaussians(channels: int, grid: int) -> DDADGaussianModel:
        return DDADGaussianModel(channels, min(NUM_COMPONENTS, channels), grid)

    return {
        "residual": gaussians(features.feature_channels, RESIDUAL_GRID),
        "appearance": gaussians(extractor.feature_channels, extractor.config.grid_size),
        "appearance_extractor": extractor,
        "calibration": calibration if region is None else calibration.with_region(region),
        "memory": None,
    }


def filled(model: DDADGaussianModel, gaussian: Gaussian) -> DDADGaussianModel:
    """The component that holds a Gaussian, exact in float16."""
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    stored = type(model)(**settings | {"num_factors": gaussian.factors.shape[1]}).to(model.device)
    stored.basis.copy_(model.basis)
    stored.set_gaussian(gaussian.mean, gaussian.covariance, gaussian.factors)
    round_to_half(stored)
    return stored


def measured(calibration: DDADCalibration, maps: dict[str, torch.Tensor], changed: int = 0) -> DDADCalibration:
    """The units of all scores, and the cells of the held-out images in them, exact in float16.

    Args:
        calibration: an empty one, for its settings.
        maps: of each score, smoothed, `[M + changed, K, S, S]`, of appearance and memory `[M + changed, 1, S, S]`.
        changed: how many of these, the last, are of changed images, which give no units.
    """
    statistics, cells = {}, []
    for name in (name for name in calibration.all_scores if name in maps):
        values = maps[name].double()
        own = calibration.inside(values.shape[-1])
        inside = torch.ones(1, *values.shape[-2:]).double() if own is None else own[0].to(values)
        good = values[: len(values) - changed, :, inside[0] > 0]  # [M, K, pixels]
        mean, std = good.mean(dim=(0, 2)), good.std(dim=(0, 2), correction=0).clamp(min=1e-6)
        statistics |= {f"{name}_mean": mean.tolist(), f"{name}_std": std.tolist()}
        cells.append(calibration.pool_inside((values - mean[:, None, None]) / std[:, None, None], inside))
    settings = {name: value for name, value in calibration.config.items() if not name.startswith("_")}
    stored = DDADCalibration(
        **settings
        | {
            "num_calibration_images": len(cells[0]) - changed,
            "num_changed_images": changed,
            "statistics": statistics,
        }
    )
    stored.calibration_maps.copy_(torch.cat(cells, dim=1))
    if calibration.region is not None:
        stored.region.copy_(calibration.region)
    round_to_half(stored)
    return stored


def held_out_scores(pipe: DDADPipeline) -> np.ndarray:
    """The image scores of the held-out good images as they are, each by the statistics of others, `[M]`."""
    scores = pipe.calibration.held_out_scores(pipe.judgement(tolerance="strict"))
    assert scores is not None  # every calibrated pipeline stores some
    return scores.numpy()


# -------------------------------------------------------------------------------------------------------- calibration


def score_maps(
    pipe: DDADPipeline, observed: Observed, folds: torch.Tensor, appearance: Statistics, residual: Statistics
) -> dict[str, torch.Tensor]:
    """The maps of images by the statistics of others, on their grids.

    Args:
        pipe: the pipeline.
        observed: the images.
        folds: the fold of each: what is not in it judges it.
        appearance: statistics of features.
        residual: of residuals.

    Returns:
        By score, `[N, K, g, g]`.
    """
    maps = {"kl": observed.kl}
    for name, statistics in (("appearance", appearance), ("residual", residual)):
        distances = statistics.distances(getattr(observed, name), folds)  # [N, K, P]
        maps[name] = getattr(pipe, name).to_map(distances).unflatten(0, distances.shape[:2])[:, :, 0]
    nearest = distances_by_others(appearance.views, observed.appearance[:, 0], folds)
    return maps | {"memory": pipe.appearance.to_map(nearest)}


def with_unchanged(half_changed: Observed, unchanged: Observed) -> Observed:
    """All held-out images as they are, then every second of them changed, as `DDADCalibration` stores them.

    Args:
        half_changed: M images, every second one changed.
        unchanged: these as they are, M / 2.
    """
    places = range(len(half_changed))
    parts = half_changed.select(places[::2]) + unchanged + half_changed.select(places[1::2])
    first = len(places[::2])
    return parts.select([*(place // 2 + first * (place % 2) for place in places), *range(len(places), len(parts))])


def model_images(
    pipe: DDADPipeline, images: Images, folds: torch.Tensor, config: CalibrationConfig, report: Report | None
) -> tuple[tuple[Statistics, Statistics], dict[str, Any]]:
    """Statistics of appearance and of residuals, of good images and copies of them.

    Copies are turned by any angle where the parts seem to lie so, and where that makes images more likely that have no
    part in the statistics. A `rotation_degrees` of 0 asks for copies as they lie.

    Returns:
        The two, and for the record what was asked and found.
    """

    def model(degrees: float, ask_network: bool = False) -> Statistics:
        varied = dataclasses.replace(config, rotation_degrees=degrees)
        return fit_statistics(view_images(pipe, images, folds, varied, ask_network, report))

    degrees, appearance = config.rotation_degrees, model(config.rotation_degrees)
    compared = spread(len(images), MOST_COMPARED)
    seems = degrees > 0 and lie_in_any_orientation(images[place] for place in compared)
    orientation: dict[str, Any] = {"seems_any": seems, "turned": False}
    if seems:
        turned = model(ANY_ANGLE)
        likelihoods = [one.log_likelihoods[one.num_factors] for one in (appearance, turned)]
        orientation |= {"log_likelihoods": likelihoods, "turned": likelihoods[1] > likelihoods[0] + LEAST_GAIN}
        if orientation["turned"]:
            degrees, appearance = ANY_ANGLE, turned
    return (appearance, model(degrees, ask_network=True)), orientation


@torch.no_grad()
def calibrate(
    pipe: DDADPipeline,
    images: Images,
    held_out: Sequence[int],
    config: CalibrationConfig,
    report: Report | None = None,
    extractor: DDADFeatureExtractor | None = None,
) -> tuple[DDADPipeline, dict[str, Any]]:
    """Fits and measures everything that follows from good images without training.

    Args:
        pipe: the pipeline, whose networks are exact in float16; it stays as it is.
        images: good, `[3, L, L]` in [-1, 1] at the size at which appearance is judged.
        held_out: the numbers of those that judge: in folds, each under factors and Gaussians of all others.
        config: how.
        report: called with the progress.
        extractor: what judges appearance; None takes the pipeline's.

    Returns:
        The pipeline, calibrated, and what was found, for the record.
    """
    if len(images) < FEW_IMAGES:
        logger.warning(
            "%d good images are few: the threshold rests on %d of them and will let more or fewer good parts pass than"
            " it should, and what differs among good parts but not among these will be called a defect.",
            len(images),
            len(held_out),
        )
    fresh = empty_components(
        pipe.feature_extractor,
        pipe.appearance_extractor if extractor is None else extractor,
        pipe.timesteps,
        pipe.calibration.config.threshold_quantile,
        pipe.calibration.region,
    )
    tolerance = "strict" if config.nuisance == "none" else config.tolerance
    pipe = DDADPipeline.from_pipe(pipe, **fresh, **RULE, threshold=None, tolerance=tolerance)
    pipe.set_progress_bar_config(disable=True)
    pipe.residual.to(pipe.unet.device)
    pipe.appearance.to(pipe.unet.device)
    judges = set(held_out)
    others = [number for number in range(len(images)) if number not in judges]
    numbers = sorted([*(others[place] for place in spread(len(others), MOST_IMAGES_SEEN)), *judges])
    seen = Subset(images, numbers)
    groups = group_lookalikes(shrink_image(seen[place]) for place in range(len(seen)))
    folds = torch.tensor(assign_folds(groups, [number in judges for number in numbers]))
    fit_components(pipe, seen)
    (appearance, residual), orientation = model_images(pipe, seen, folds, config, report)
    judged = vary_half(Subset(images, sorted(judges)), config.nuisance, config.seed)
    own = torch.tensor([int(fold) for number, fold in zip(numbers, folds, strict=True) if number in judges])
    observed = observe(pipe, judged, True, "Measuring held-out images", report)
    record: dict[str, Any] = {
        "nuisance": config.nuisance,
        "orientation": orientation,
        **{name: describe(one) for name, one in (("appearance", appearance), ("residual", residual))},
    }
    record["synthetic"] = measure_growth(pipe, judged, observed, own, appearance, config, report)
    logger.info(
        "Synthetic defects in held-out images: image AUROC %.1f %%; found by so many images, in %%: %s.",
        record["synthetic"]["image_auroc"],
        record["synthetic"]["found"],
    )
    changed = 0 if config.nuisance == "none" else len(judged) // 2
    if changed:
        plain = observe(pipe, Subset(images, sorted(judges)[1::2]), True, "Measuring unchanged images", report)
        observed, own = with_unchanged(observed, plain), torch.cat([own, own[1::2]])
    unsmoothed, inside = score_maps(pipe, observed, own, appearance, residual), pipe.inside
    maps = {name: pipe.smooth(one, inside) for name, one in unsmoothed.items()}
    found = {
        "appearance": filled(pipe.appearance, appearance.of_all()),
        "residual": filled(pipe.residual, residual.of_all()),
        "memory": remember(appearance.views).to(pipe.unet.device),
        "calibration": measured(pipe.calibration, maps, changed),
    }
    calibrated = DDADPipeline.from_pipe(pipe, **found)
    calibrated.set_progress_bar_config(disable=True)
    return calibrated, record


def describe(statistics: Statistics) -> dict[str, Any]:
    """For the record: of how many views, and what was chosen by likelihood."""
    return {
        "views": len(statistics.views.values),
        "factors": statistics.num_factors,
        "shrinkage": statistics.shrinkage,
        "log_likelihoods": statistics.log_likelihoods,
    }


def recalibrate(
    pipe: DDADPipeline,
    images: Images,
    config: CalibrationConfig,
    report: Report | None = None,
    extractor: DDADFeatureExtractor | None = None,
) -> tuple[DDADPipeline, dict[str, Any]]:
    """The same networks, calibrated on other good images: after a change of lamp or camera, without any training.

    Args:
        pipe: the pipeline, which stays as it is.
        images: good, `[3, L, L]` in [-1, 1] each, at the size of the extractor.
        config: how.
        report: called with the progress.
        extractor: what judges appearance; None takes the pipeline's.

    Raises:
        ValueError: if there are fewer than four images.
    """
    numbers = list(range(len(images)))
    check_enough(len(numbers))
    held_out = numbers
    if len(numbers) > MOST_JUDGES:
        groups = group_lookalikes(shrink_image(images[number]) for number in numbers)
        held_out = choose_judges(groups, MOST_JUDGES, config.seed)
    logger.info(
        "%d good images are seen; %d of them judge, each by the statistics of others.", len(numbers), len(held_out)
    )
    extractor = copy.deepcopy(pipe.appearance_extractor if extractor is None else extractor).to(pipe.unet.device)
    extractor.fit(images[number][None] for number in numbers)
    for network in (pipe.unet, pipe.feature_extractor, extractor):
        round_to_half(network)
    return calibrate(pipe, images, held_out, config, report, extractor)


@dataclass(frozen=True)
class AppearanceConfig:
    """By what appearance is judged.

    Attributes:
        image_size: at which images are looked at; None takes the default.
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
    appearance: AppearanceConfig,
) -> None:
    """Fits and measures anew on other good images, and saves; no network is trained.

    Args:
        pipe: the pipeline.
        record: its training record, if there is one.
        dataset: whose good images are used.
        output: a folder that is not there yet.
        config: how.
        appearance: by what appearance is judged, which is kept from the pipeline where nothing is asked for.

    Raises:
        ValueError: if there are too few images, or `output` holds something.
    """
    check_output(output)
    processor = DDADImageProcessor(max_value=measure_max_value(dataset.require_training()))
    pipe = DDADPipeline.from_pipe(pipe, image_processor=processor)
    extractor = pipe.appearance_extractor
    if appearance != AppearanceConfig():
        size = appearance.image_size or IMAGE_SIZE
        extractor = create_appearance_extractor(
            size, pipe.feature_extractor, appearance.backbone, appearance.weights, appearance.strides
        )
    images = ImageFolder(dataset.train_paths, extractor.config.image_size, processor)
    adapted, calibration = recalibrate(pipe, images, config, extractor=extractor)
    if record is not None:
        record = update_record(record, adapted, calibration, dataset.name, len(images))
    save_checkpoint(adapted, record, output)
    logger.info("Saved to %s.", output)
