"""A new part from a handful of good photographs: statistics, settings and threshold in a minute, without training.

The verdict rests on how the part looks, in Gaussians of its features. The normal version comes from a base network
that has seen other products and never this one, until `ddad train` gives the part a network of its own.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddad.calibration.advice import PartReport, find_other_kind, pooled_features
from ddad.calibration.backbone import IMAGE_SIZE, create_appearance_extractor, with_settings
from ddad.calibration.calibration import empty_components, held_out_scores, recalibrate
from ddad.calibration.observing import CalibrationConfig, shrink_to_unet
from ddad.calibration.progress import Report, track
from ddad.calibration.promise import expect_false_alarms
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.loading import find_folder, load_weights
from ddad.checkpoint.names import BUNDLED_BASE
from ddad.checkpoint.saving import library_versions
from ddad.datasets.folder import ImagesInMemory, measure_max_value
from ddad.datasets.lookalikes import check_enough, group_lookalikes
from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.pipeline import ImageInput
from ddad.refining_ddad import DDADRefiner
from ddad.rendering_ddad import DDADRenderer
from ddad.scheduling_ddad import DDADScheduler
from ddad.unet_ddad import DDADUNet2DModel

TIMESTEPS = (20, 201, 401)
QUANTILE = 0.95
# A photograph is unlike the rest if its score is so many deviations above theirs.
UNLIKE = 5.0


def load_base(base: str | Path | None) -> dict[str, Any]:
    """Networks, diffusion process and feature extractors of a base; refiner and that of appearance may be missing.

    Raises:
        OSError: if there is none.
    """
    if base is None and not (BUNDLED_BASE / "unet").is_dir():
        raise OSError("A base network is needed: name its folder or repository, such as checkpoints/base of a clone.")
    folder = find_folder(base or BUNDLED_BASE, {})
    for name in ("unet", "scheduler", "feature_extractor"):
        if not (folder / name).is_dir():
            raise OSError(f"{base or folder} is no base network: its folder {name} is missing.")
    classes = {
        "unet": DDADUNet2DModel,
        "feature_extractor": DDADFeatureExtractor,
        "appearance_extractor": DDADFeatureExtractor,
        "refiner": DDADRefiner,
    }
    networks = {
        name: load_weights(kind, folder / name).float().requires_grad_(False).eval()
        for name, kind in classes.items()
        if (folder / name).is_dir()
    }
    return {**networks, "scheduler": DDADScheduler.from_pretrained(folder / "scheduler")}


def read_once(
    images: Sequence[ImageInput], processor: DDADImageProcessor, size: int, report: Report | None
) -> ImagesInMemory:
    """The images at a size; large photographs are decoded once, and one at a time."""
    kept = ImagesInMemory()
    for image in track(images, "Reading photographs", report):
        kept.append(processor.preprocess(processor.read_image(image), size)[0])
    return kept


def find_unlike(pipe: DDADPipeline, names: Sequence[str]) -> list[str]:
    """The names of held-out images whose score, by the others, lies far above those of the others."""
    scores = held_out_scores(pipe)
    if len(scores) != len(names):
        return []
    above = deviations(scores)
    return [names[index] for index in np.argsort(-above) if above[index] > UNLIKE]


def deviations(scores: np.ndarray) -> np.ndarray:
    """How many deviations each score lies above the others, `[M]` -> `[M]`.

    The larger of two measures: against mean and standard deviation of the others, which a second outlier spoils, and
    against median and median absolute deviation of all, which few images make coarse.
    """
    middle = np.median(scores)
    robust = (scores - middle) / max(1.4826 * float(np.median(np.abs(scores - middle))), 1e-6)
    others = [np.delete(scores, index) for index in range(len(scores))]
    spreads = np.maximum([rest.std(ddof=1) for rest in others], 1e-6)
    return np.maximum(robust, (scores - [rest.mean() for rest in others]) / spreads)


@dataclass(frozen=True)
class Photographs:
    """Photographs of good parts as they are looked at.

    Attributes:
        images: `[3, L, L]` in [-1, 1].
        names: how each is called in what is said of them.
        processor: what read them, and will read others.
    """

    images: ImagesInMemory
    names: Sequence[str]
    processor: DDADImageProcessor

    @property
    def size(self) -> int:
        """Height and width at which appearance is looked at."""
        return self.images[0].shape[-1]


def fit_part(
    images: Sequence[ImageInput],
    category: str = "my_part",
    base: str | Path | None = None,
    image_size: int | None = None,
    config: CalibrationConfig | None = None,
    device: str | torch.device = "cpu",
    report: Report | None = None,
    region: ImageInput | None = None,
) -> tuple[DDADPipeline, dict[str, Any], PartReport]:
    """A pipeline for a part of which there are good photographs, and nothing else.

    Args:
        images: photographs of good parts, four at least; twenty or more are better. Each is read once.
        category: what the part is called.
        base: folder or repository of a base network; None takes that of a clone of the project.
        image_size: at which appearance is looked at; None takes 512, however small the images are.
        config: how it is calibrated; None takes the default.
        device: where networks are evaluated.
        report: called with the progress.
        region: an image that is white where is looked at, of the photographs' aspect ratio; None looks everywhere.

    Returns:
        The pipeline, its record as `save_checkpoint` takes it, and what was understood.

    Raises:
        OSError: if there is no base network.
        ValueError: if there are too few images, or one cannot be read, or the region is of another aspect ratio.
    """
    started = time.monotonic()
    check_enough(len(images))
    if region is not None:
        first = DDADImageProcessor().read_image(images[0])
        region = DDADImageProcessor().read_region(region, tuple(first.shape[1:]))
    parts = load_base(base)
    names = [
        Path(image).name if isinstance(image, (str, os.PathLike)) else f"image {number}"
        for number, image in enumerate(images, start=1)
    ]
    processor = DDADImageProcessor(max_value=measure_max_value(images))
    photographs = Photographs(read_once(images, processor, image_size or IMAGE_SIZE, report), names, processor)
    return fit_photographs(photographs, parts, category, base, config, device, report, started, region)


def fit_photographs(
    photographs: Photographs,
    parts: dict[str, Any],
    category: str,
    base: str | Path | None = None,
    config: CalibrationConfig | None = None,
    device: str | torch.device = "cpu",
    report: Report | None = None,
    started: float | None = None,
    region: ImageInput | None = None,
) -> tuple[DDADPipeline, dict[str, Any], PartReport]:
    """As `fit_part`, of photographs that were read.

    Args:
        photographs: they.
        parts: what `load_base` gave.
        category: as for `fit_part`, and what follows but the last too.
        base: where the parts came from.
        config: how.
        device: where.
        report: called with the progress.
        started: when the work began, by `time.monotonic`; None for now.
        region: where is looked at.
    """
    started = time.monotonic() if started is None else started
    images, parts = photographs.images, dict(parts)
    extractor = parts.pop("appearance_extractor", None)
    if extractor is None:
        extractor = create_appearance_extractor(photographs.size, parts["feature_extractor"])
    else:
        extractor = with_settings(extractor, image_size=photographs.size, grid_size=photographs.size // 16)
    pipe = DDADPipeline(
        **parts,
        **empty_components(parts["feature_extractor"], extractor, TIMESTEPS, QUANTILE),
        denoiser=DDADDenoiser(),
        image_processor=photographs.processor,
        renderer=DDADRenderer(),
        category=category,
    ).to(device)
    if region is not None:
        pipe = pipe.with_region(region)
    config = config or CalibrationConfig()
    fitted, calibration = recalibrate(pipe, images, config, report)
    small = [shrink_to_unet(pipe, images[index][None])[0] for index in range(len(images))]
    groups = group_lookalikes(small)
    members: dict[int, list[str]] = {}
    for name, group in zip(photographs.names, groups, strict=True):
        members.setdefault(group, []).append(name)
    part_report = PartReport(
        images=len(images),
        image_auroc=calibration["synthetic"]["image_auroc"],
        found=calibration["synthetic"]["found"],
        false_alarms=expect_false_alarms(fitted.calibration.config.num_calibration_images, 1 - QUANTILE),
        same_part=[group for group in members.values() if len(group) > 1],
        unlike=find_unlike(fitted, photographs.names),
        threshold=fitted.threshold,
        seconds=round(time.monotonic() - started, 1),
        turned=calibration["orientation"]["turned"],
        other_kind=find_other_kind(pooled_features(pipe.feature_extractor, small), photographs.names),
    )
    return fitted, describe(fitted, category, base, calibration, config, part_report), part_report


def describe(
    pipe: DDADPipeline,
    category: str,
    base: str | Path | None,
    calibration: dict[str, Any],
    config: CalibrationConfig,
    part_report: PartReport,
) -> dict[str, Any]:
    """The record of a fitted part: that of a training of no step."""
    settings = {
        "category": category,
        "license": "",
        "data_source": "",
        "base": Path(base or BUNDLED_BASE).name,
        "steps": 0,
        "threshold_quantile": QUANTILE,
        "rotation_degrees": config.rotation_degrees,
        "nuisance": config.nuisance,
        "seed": config.seed,
    }
    return {
        "config": settings,
        "training_images": 0,
        "calibration_images": pipe.calibration.config.num_calibration_images,
        "calibration": calibration | {"images": part_report.images},
        "fitted": dataclasses.asdict(part_report),
        "losses": [],
        "images_seen": 0,
        "seconds": part_report.seconds,
        "threshold": pipe.threshold,
        "parameters": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "device": str(pipe.device),
        "versions": library_versions(),
    }
