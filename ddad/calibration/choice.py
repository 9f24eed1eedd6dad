"""Settings chosen without a test image: by synthetic defects on held-out good images.

The weight of the pixel score, the blur of the maps, how many cells make the image score and how far the covariances
are shrunk are chosen by how well defects are found that nobody trained on (`synthetic`), pasted into good images that
neither the U-Net nor the statistics that judge them have seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ddad.calibration.appearance import Appearance, Statistics
from ddad.calibration.progress import Report, track
from ddad.calibration.synthetic import DEFECT_TYPES, paste_defect
from ddad.checkpoint.installed import DDADPipeline
from ddad.evaluation.metrics import auroc, pixel_curves
from ddad.normality_ddad import DDADNormalityModel

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BLURS = (1.0, 2.0, 4.0)
TOP_CELLS = (1, 4, 16, 64)
SHRINKAGES = (0.4, 0.7, 0.9)
MOST_IMAGES = 48
# What the U-Net must add to image AUROC and PRO together, in points, to be evaluated for a verdict.
LEAST_GAIN = 0.5
# Between the names of two feature scores whose mean is one.
PLUS = "+"
BATCH_SIZE = 4
MAP_SIZE = 64  # as fine as the smallest defect; more pixels rank settings alike and take longer


class Seen(NamedTuple):
    """Calibrated maps of images, as far as they are judged: `[N, 64, 64]`, and the cells of scores, `[N, cells]`."""

    maps: torch.Tensor
    cells: torch.Tensor

    def mix(self, other: "Seen", weight: float) -> "Seen":
        """The weighted mean of two scores."""
        return Seen(*(weight * theirs + (1 - weight) * own for own, theirs in zip(self, other, strict=True)))


class Settings(NamedTuple):
    """What is chosen; see `Choice`."""

    feature: str
    alpha: float
    blur_sigma: float
    num_top_cells: int
    shrinkage: float


@dataclass(frozen=True)
class Choice:
    """Settings, and what they and the default measured on the synthetic defects, in percent.

    Attributes:
        feature: the feature score: `mahalanobis`, or the kind of appearance, `gaussian`, `memory` or `both`, or that
            and `+mahalanobis`.
        alpha: weight of the pixel score.
        blur_sigma: the Gaussian that smoothes the maps, in pixels.
        num_top_cells: cells that make the image score.
        shrinkage: of the covariances.
        image_auroc: with them.
        pro: with them.
        alone: the best that each score alone measured: `image_auroc`, `pro`.
    """

    feature: str
    alpha: float
    blur_sigma: float
    num_top_cells: int
    shrinkage: float
    image_auroc: float
    pro: float
    alone: dict[str, dict[str, float]]


def make_defects(images: torch.Tensor, per_type: int, seed: int) -> tuple[torch.Tensor, np.ndarray, list[int]]:
    """Good images with synthetic defects, every kind alike often.

    Args:
        images: good, `[M, 3, S, S]` in [-1, 1].
        per_type: defects of each kind.
        seed: of everything random.

    Returns:
        `[N, 3, S, S]` in [-1, 1], masks `[N, S, S]` bool, and the number of the good image that each defect is in;
        fewer than asked for where a kind shows on no image.
    """
    random = np.random.default_rng(seed)
    defective, masks, sources = [], [], []
    for number in range(per_type * len(DEFECT_TYPES)):
        first, second = random.integers(len(images)), random.integers(len(images))
        try:
            image, mask = paste_defect(images[first], images[second], DEFECT_TYPES[number % len(DEFECT_TYPES)], random)
        except ValueError:  # no such defect shows on this image
            continue
        defective.append(image)
        masks.append(mask.numpy())
        sources.append(int(first))
    return torch.stack(defective), np.stack(masks), sources


@torch.no_grad()
def maps_of_unet(
    pipe: DDADPipeline,
    images: torch.Tensor,
    folds: torch.Tensor,
    shrinkages: Sequence[float],
    model_of_others: Callable[[int, float], DDADNormalityModel],
    report: Report | None = None,
) -> tuple[torch.Tensor, dict[tuple[str, float], torch.Tensor]]:
    """Unsmoothed maps of the U-Net's scores, KL and by each shrinkage the residuals' distance.

    Args:
        pipe: the pipeline.
        images: `[N, 3, S, S]`.
        folds: the fold of each, `[N]`.
        shrinkages: that are tried.
        model_of_others: the model of all images that are not in a fold, with a shrinkage.
        report: told of the progress.

    Returns:
        `[N, K, S, S]`, and `[N, K, g, g]` by `("mahalanobis", shrinkage)`.
    """
    timesteps, normality = pipe.timesteps, pipe.normality
    noise = pipe.get_noise(timesteps)
    kl, residuals = [], []
    for batch in track(images.split(BATCH_SIZE), "Scoring synthetic defects", report, unit="batch"):
        batch = batch.to(pipe.device)
        originals, noisy, levels, output, predicted = pipe.predict_at(batch, timesteps, noise)
        kl.append(pipe.scheduler.pixel_maps(originals, noisy, output, levels, ["kl"])["kl"].float().cpu())
        features = pipe.extract_features(batch).repeat_interleave(len(timesteps), dim=0)
        residuals.append(normality.reduce(features - predicted))  # [N K, P, c]
    count, size = len(timesteps), normality.config.grid_size
    by_image = torch.cat(residuals).unflatten(0, (len(images), count))
    distances = {("mahalanobis", one): torch.empty(len(images), count, size, size) for one in shrinkages}
    for fold in folds.unique().tolist():
        chosen = folds == fold
        for (_, shrinkage), maps in distances.items():
            model = model_of_others(fold, shrinkage)
            maps[chosen] = model.distance(by_image[chosen].flatten(0, 1)).float().cpu().view_as(maps[chosen])
    return torch.cat(kl).view(len(images), count, *images.shape[2:]), distances


@torch.no_grad()
def maps_of_appearance(
    pipe: DDADPipeline,
    images: torch.Tensor,
    folds: torch.Tensor,
    good: int,
    appearance: Appearance,
    shrinkages: Sequence[float],
    report: Report | None = None,
) -> dict[tuple[str, float], torch.Tensor]:
    """Unsmoothed maps of images by the statistics of others, by kind and shrinkage, `[N, 1, g, g]` each.

    Args:
        pipe: the pipeline.
        images: `[N, 3, L, L]`, of which the first are good.
        folds: the fold of each, `[N]`.
        good: how many are good.
        appearance: what was seen of good images.
        shrinkages: that are tried, the likeliest first.
        report: told of the progress.
    """
    model, likeliest = pipe.appearance, shrinkages[0]
    shape = (len(images), 1, *(model.config.grid_size,) * 2)
    keys = [("gaussian", shrinkage) for shrinkage in shrinkages] + [("memory", likeliest)]
    maps = {key: torch.empty(shape) for key in keys}
    statistics: dict[float, Statistics] = {}
    current = None
    for index in track(folds.argsort(stable=True).tolist(), "Looking at synthetic defects", report):
        fold = int(folds[index])
        if fold != current:
            current, statistics = fold, appearance.of_others(fold, shrinkages)
        values = model.to_grid(pipe.extract_appearance(images[index][None].to(pipe.device))).cpu()
        reduced = values @ model.basis.float().cpu()
        for shrinkage, fitted in statistics.items():
            maps["gaussian", shrinkage][index] = fitted.gaussian(reduced).view(shape[1:])
        maps["memory", likeliest][index] = statistics[likeliest].memory(values).view(shape[1:])
    parts = [maps[kind, likeliest] for kind in ("gaussian", "memory")]
    scaled = [(part - part[:good].mean()) / part[:good].std() for part in parts]
    maps["both", likeliest] = torch.stack(scaled).mean(dim=0)
    return maps


def calibrated(maps: torch.Tensor, good: int) -> torch.Tensor:
    """`[N, K, S, S]` -> `[N, S, S]`: the mean over levels, in standard deviations of the first `good` images there."""
    normal = maps[:good]
    mean = normal.mean(dim=(0, 2, 3), keepdim=True)
    return ((maps - mean) / normal.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)).mean(dim=1)


def merit(measured: dict[str, float]) -> float:
    """What is made as large as possible: finding the part and finding the place count alike."""
    return measured["image_auroc"] + measured["pro"]


@dataclass(frozen=True)
class Trials:
    """Good images, synthetic defects pasted into them, and maps of all of them.

    Attributes:
        good: how many of the images are good: the first ones.
        truth: the defects, `[N, S, S]` of 0 and 1.
        kl: `[N, K, S, S]`, not smoothed; None where the U-Net is not asked.
        features: by feature score and shrinkage, `[N, K, g, g]`.
    """

    good: int
    truth: torch.Tensor
    kl: torch.Tensor | None
    features: dict[tuple[str, float], torch.Tensor]


def choose(pipe: DDADPipeline, trials: Trials, report: Report | None = None) -> Choice:
    """The settings under which synthetic defects are found best.

    The appearance alone is taken where the U-Net adds less than `LEAST_GAIN` to it.

    Args:
        pipe: the pipeline, for its blur and cells.
        trials: maps of held-out good images and of synthetic defects in them.
        report: told of the progress.
    """
    normality, good, size = pipe.normality, trials.good, trials.truth.shape[-1]
    small = F.adaptive_max_pool2d(trials.truth, MAP_SIZE).numpy() > 0

    def see(maps: torch.Tensor, blur: float) -> Seen:
        """Smoothed and calibrated; what follows is linear in the maps, and so is computed on their means alone."""
        smoothed = pipe.image_processor.blur(pipe.image_processor.resize(maps, (size, size)), blur)
        fine = calibrated(smoothed, good)
        return Seen(F.adaptive_avg_pool2d(fine, MAP_SIZE), normality.pool(fine).flatten(1))

    tried: dict[Settings, dict[str, float]] = {}
    alphas = (0.0,) if trials.kl is None else ALPHAS
    residual = next((key for key in trials.features if key[0] == "mahalanobis"), None)
    likeliest: dict[str, float] = {}
    for name, shrinkage in trials.features:
        likeliest.setdefault(name, shrinkage)
    for blur in track(BLURS, "Choosing settings", report, unit="blur"):
        pixel = None if trials.kl is None else see(trials.kl, blur)
        own = {key: see(maps, blur) for key, maps in trials.features.items()}
        if residual is not None:
            parts = [(name, weight) for name, weight in likeliest.items() if name != "mahalanobis"]
            own |= {
                (f"{name}{PLUS}mahalanobis", weight): own[name, weight].mix(own[residual], 0.5)
                for name, weight in parts
            }
        for (feature, shrinkage), seen in own.items():
            # Stronger shrinkages are tried alone: what the pixel score adds hardly depends on them.
            tested = alphas if likeliest.get(feature, shrinkage) == shrinkage else alphas[:1]
            for alpha in tested:
                fused = seen if pixel is None else seen.mix(pixel, alpha)
                overlap = pixel_curves(fused.maps.numpy(), small).pro()
                for count in TOP_CELLS:
                    scores = normality.top_cells(fused.cells, count).numpy()
                    area = auroc(scores[:good], scores[good:])
                    measured = {"image_auroc": round(100 * area, 2), "pro": round(100 * overlap, 2)}
                    tried[Settings(feature, alpha, blur, count, shrinkage)] = measured

    def best_of(chosen: Callable[[Settings], bool]) -> Settings | None:
        # Of equals the one nearest to blur 2 and the highest cell, by the simplest score.
        order = [settings for settings in tried if chosen(settings)]
        return max(
            order,
            key=lambda settings: (
                merit(tried[settings]),
                -settings.alpha,
                -abs(settings.blur_sigma - 2.0),
                -settings.num_top_cells,
            ),
            default=None,
        )

    best = best_of(lambda _: True)
    assert best is not None
    looks = best_of(lambda settings: settings.alpha == 0 and "mahalanobis" not in settings.feature)
    if looks is not None and merit(tried[best]) < merit(tried[looks]) + LEAST_GAIN:
        best = looks
    alone = {
        feature: best_of(lambda settings, name=feature: settings.alpha == 0 and settings.feature == name)
        for feature in dict.fromkeys(settings.feature for settings in tried)
    }
    alone["kl"] = best_of(lambda settings: settings.alpha == 1)
    return Choice(
        **best._asdict(),
        **tried[best],
        alone={name: tried[settings] for name, settings in alone.items() if settings is not None},
    )
