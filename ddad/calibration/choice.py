"""Settings chosen without a test image: by synthetic defects on held-out good images.

The weight of the pixel score, the blur of the maps, how many cells make the image score and how far the covariances
are shrunk are chosen by how well defects are found that nobody trained on (`synthetic`), pasted into good images that
neither the U-Net nor the statistics have seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ddad.calibration.progress import Report, track
from ddad.calibration.synthetic import DEFECT_TYPES, paste_defect
from ddad.evaluation.metrics import auroc, pixel_curves
from ddad.normality_ddad import RESIDUALS
from ddad.pipeline import DDADPipeline

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
BLURS = (2.0, 4.0)
TOP_CELLS = (1, 4, 16, 64)
SHRINKAGES = (0.4, 0.7, 0.9)
MOST_IMAGES = 48
DEFECTS_PER_TYPE = 16
BATCH_SIZE = 4
MAP_SIZE = 64  # as fine as the smallest defect; more pixels rank settings alike and take longer


class Settings(NamedTuple):
    """What is chosen; see `Choice`."""

    alpha: float
    blur_sigma: float
    num_top_cells: int
    shrinkage: float


@dataclass(frozen=True)
class Choice:
    """Settings, and what they and the default measured on the synthetic defects, in percent.

    Attributes:
        alpha: weight of the pixel score.
        blur_sigma: the Gaussian that smoothes the maps, in pixels.
        num_top_cells: cells that make the image score.
        shrinkage: of the covariances.
        image_auroc: with them.
        pro: with them.
        default: what alpha 0.5, blur 4, the highest cell and the likeliest shrinkage measured: `image_auroc`, `pro`.
        alone: what the pixel and the feature score alone measured, with all else as chosen.
    """

    alpha: float
    blur_sigma: float
    num_top_cells: int
    shrinkage: float
    image_auroc: float
    pro: float
    default: dict[str, float]
    alone: dict[str, dict[str, float]]


def make_defects(images: torch.Tensor, per_type: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Good images with synthetic defects, every kind alike often.

    Args:
        images: good, `[M, 3, S, S]` in [-1, 1].
        per_type: defects of each kind.
        seed: of everything random.

    Returns:
        `[N, 3, S, S]` in [-1, 1] and masks `[N, S, S]` bool; fewer than asked for where a kind shows on no image.
    """
    random = np.random.default_rng(seed)
    defective, masks = [], []
    for number in range(per_type * len(DEFECT_TYPES)):
        first, second = random.integers(len(images)), random.integers(len(images))
        try:
            image, mask = paste_defect(images[first], images[second], DEFECT_TYPES[number % len(DEFECT_TYPES)], random)
        except ValueError:  # no such defect shows on this image
            continue
        defective.append(image)
        masks.append(mask.numpy())
    return torch.stack(defective), np.stack(masks)


@torch.no_grad()
def raw_maps(
    pipe: DDADPipeline,
    images: torch.Tensor,
    set_shrinkage: Callable[[float], None],
    shrinkages: Sequence[float],
    report: Report | None = None,
) -> tuple[torch.Tensor, dict[float, torch.Tensor]]:
    """Unsmoothed maps of many images: KL as `[N, K, S, S]`, and for each shrinkage distances as `[N, K, g, g]`."""
    timesteps, normality = pipe.timesteps, pipe.normality
    noise = pipe.get_noise(timesteps)
    kl, residuals = [], []
    for batch in track(images.split(BATCH_SIZE), "Scoring synthetic defects", report, unit="batch"):
        batch = batch.to(pipe.device)
        originals, noisy, levels, output, predicted = pipe.predict_at(batch, timesteps, noise)
        kl.append(pipe.scheduler.pixel_maps(originals, noisy, output, levels, ["kl"])["kl"].float().cpu())
        features = pipe.extract_features(batch).repeat_interleave(len(timesteps), dim=0)
        residuals.append(normality.reduce(features - predicted))  # [N K, P, c]
    distances = {}
    for shrinkage in shrinkages:
        set_shrinkage(shrinkage)
        found = [normality.distance(one, RESIDUALS).float().cpu() for one in residuals]
        distances[shrinkage] = torch.cat(found)[:, 0].unflatten(0, (len(images), -1))
    return torch.cat(kl).view(len(images), len(timesteps), *images.shape[2:]), distances


def calibrated(maps: torch.Tensor, good: int) -> torch.Tensor:
    """`[N, K, S, S]` -> `[N, S, S]`: the mean over levels, in standard deviations of the first `good` images there."""
    normal = maps[:good]
    mean = normal.mean(dim=(0, 2, 3), keepdim=True)
    return ((maps - mean) / normal.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)).mean(dim=1)


def merit(measured: dict[str, float]) -> float:
    """What is made as large as possible: finding the part and finding the place count alike."""
    return measured["image_auroc"] + measured["pro"]


def choose(
    pipe: DDADPipeline,
    images: torch.Tensor,
    seed: int,
    set_shrinkage: Callable[[float], None],
    likeliest: float,
    report: Report | None = None,
) -> Choice:
    """The settings under which synthetic defects are found best.

    Args:
        pipe: the pipeline with its statistics; those of the held-out images must not be among them.
        images: held-out good images, `[M, 3, S, S]` in [-1, 1]; `MOST_IMAGES` are enough.
        seed: of the defects.
        set_shrinkage: gives the pipeline's covariances another shrinkage.
        likeliest: the shrinkage under which good images are most likely; stronger ones are tried too.
        report: told of the progress.
    """
    defective, truth = make_defects(images, DEFECTS_PER_TYPE, seed)
    normality, good, size = pipe.normality, len(images), images.shape[-1]
    masks = torch.cat([torch.zeros(good, size, size), torch.from_numpy(truth).float()])
    small = F.adaptive_max_pool2d(masks, MAP_SIZE).numpy() > 0
    shrinkages = [likeliest, *(one for one in SHRINKAGES if one > likeliest)]
    kl, distances = raw_maps(pipe, torch.cat([images, defective]), set_shrinkage, shrinkages, report)

    def smooth(maps: torch.Tensor, blur: float) -> torch.Tensor:
        resized = pipe.image_processor.resize(maps, (size, size))
        return F.adaptive_avg_pool2d(calibrated(pipe.image_processor.blur(resized, blur), good), MAP_SIZE)

    tried: dict[Settings, dict[str, float]] = {}
    pixel = {blur: smooth(kl, blur) for blur in BLURS}
    trials = [(blur, shrinkage) for blur in BLURS for shrinkage in shrinkages]
    for blur, shrinkage in track(trials, "Choosing settings", report, unit="trial"):
        feature = smooth(distances[shrinkage], blur)
        for alpha in ALPHAS:
            fused = alpha * pixel[blur] + (1 - alpha) * feature
            overlap = pixel_curves(fused.numpy(), small).pro()
            cells = normality.pool(fused).flatten(1)
            for count in TOP_CELLS:
                scores = normality.top_cells(cells, count).numpy()
                area = auroc(scores[:good], scores[good:])
                measured = {"image_auroc": round(100 * area, 2), "pro": round(100 * overlap, 2)}
                tried[Settings(alpha, blur, count, shrinkage)] = measured
    # Of equals the one nearest to the default.
    best = max(tried, key=lambda one: (merit(tried[one]), -abs(one.alpha - 0.5), -abs(one.blur_sigma - 4.0)))
    return Choice(
        **best._asdict(),
        **tried[best],
        default=tried[Settings(0.5, 4.0, 1, likeliest)],
        alone={"kl": tried[best._replace(alpha=1.0)], "mahalanobis": tried[best._replace(alpha=0.0)]},
    )
