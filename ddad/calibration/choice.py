"""Settings chosen without a test image: by synthetic defects on held-out good images.

The feature score, the weight of the pixel score, the blur of the maps and how many cells make the image score are
chosen by how well defects are found that nobody trained on (`synthetic`), pasted into good images that neither the
U-Net nor the statistics that judge them have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ddad.calibration.progress import Report, track
from ddad.calibration.synthetic import DEFECT_TYPES, paste_defect
from ddad.checkpoint.installed import DDADPipeline
from ddad.evaluation.metrics import auroc, pixel_curves

# What bundled categories have chosen; stronger blur, other weights and more cells never were, or were superseded.
ALPHAS = (0.0, 0.2, 0.3)
BLURS = (1.0, 2.0)
TOP_CELLS = (1, 4, 16)
MOST_IMAGES = 48
# What the U-Net must add to image AUROC and PRO together, in points, to be evaluated for a verdict.
LEAST_GAIN = 0.5
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

    feature_score: str
    alpha: float
    blur_sigma: float
    num_top_cells: int


@dataclass(frozen=True)
class Choice:
    """Settings, and what they measured on the synthetic defects, in percent.

    Attributes:
        feature_score: `appearance`, `residual` or `sum`.
        alpha: weight of the pixel score.
        blur_sigma: the Gaussian that smoothes the maps, in pixels.
        num_top_cells: cells that make the image score.
        image_auroc: with them.
        pro: with them.
        alone: the best that each score alone measured: `image_auroc`, `pro`.
    """

    feature_score: str
    alpha: float
    blur_sigma: float
    num_top_cells: int
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


def standardised(maps: torch.Tensor, good: int) -> torch.Tensor:
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
        maps: of each score that is a candidate, not smoothed: `appearance` `[N, 1, g, g]`, and where the U-Net is
            asked `kl` `[N, K, S, S]` and `residual` `[N, K, g, g]`.
    """

    good: int
    truth: torch.Tensor
    maps: dict[str, torch.Tensor]


def choose(pipe: DDADPipeline, trials: Trials, report: Report | None = None) -> Choice:
    """The settings under which synthetic defects are found best.

    The appearance alone is taken where the U-Net adds less than `LEAST_GAIN` to it.

    Args:
        pipe: the pipeline, for its blur and cells.
        trials: maps of held-out good images and of synthetic defects in them.
        report: called with the progress.
    """
    good, size = trials.good, trials.truth.shape[-1]
    small = F.adaptive_max_pool2d(trials.truth, MAP_SIZE).numpy() > 0

    def see(maps: torch.Tensor, blur: float) -> Seen:
        """Smoothed and standardised; what follows is linear in the maps, and so is computed on their means alone."""
        smoothed = pipe.image_processor.blur(pipe.image_processor.resize(maps, (size, size)), blur)
        fine = standardised(smoothed, good)
        return Seen(F.adaptive_avg_pool2d(fine, MAP_SIZE), pipe.calibration.pool(fine).flatten(1))

    tried: dict[Settings, dict[str, float]] = {}
    for blur in track(BLURS, "Choosing settings", report, unit="blur"):
        seen = {name: see(maps, blur) for name, maps in trials.maps.items()}
        pixel = seen.pop("kl", None)
        if len(seen) == 2:
            seen["sum"] = seen["appearance"].mix(seen["residual"], 0.5)
        for name, feature in seen.items():
            for alpha in (0.0,) if pixel is None else (*ALPHAS, 1.0):
                fused = feature if pixel is None else feature.mix(pixel, alpha)
                overlap = pixel_curves(fused.maps.numpy(), small).pro()
                for count in TOP_CELLS:
                    scores = pipe.calibration.top_cells(fused.cells, count).numpy()
                    area = auroc(scores[:good], scores[good:])
                    measured = {"image_auroc": round(100 * area, 2), "pro": round(100 * overlap, 2)}
                    tried[Settings(name, alpha, blur, count)] = measured

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

    best = best_of(lambda settings: settings.alpha < 1)  # the pixel score alone is measured, and never chosen
    assert best is not None
    appearance = best_of(lambda settings: settings.alpha == 0 and settings.feature_score == "appearance")
    if appearance is not None and merit(tried[best]) < merit(tried[appearance]) + LEAST_GAIN:
        best = appearance
    alone = {
        feature: best_of(lambda settings, name=feature: settings.alpha == 0 and settings.feature_score == name)
        for feature in dict.fromkeys(settings.feature_score for settings in tried)
    }
    alone["kl"] = best_of(lambda settings: settings.alpha == 1)
    return Choice(
        **best._asdict(),
        **tried[best],
        alone={name: tried[settings] for name, settings in alone.items() if settings is not None},
    )
