"""Settings chosen without a test image: by synthetic defects on held-out good images.

The weight of the pixel score, the blur of the maps and how many cells make the image score are chosen by how well
defects are found that nobody trained on (`synthetic`), pasted into good images that neither the U-Net nor the
Gaussians have seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ddad.evaluation.metrics import auroc, pro
from ddad.pipeline import DDADPipeline
from ddad.training.progress import Report, track
from ddad.training.synthetic import DEFECT_TYPES, paste_defect

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
BLURS = (2.0, 4.0, 6.0)
TOP_CELLS = (1, 4, 16, 64)
MOST_IMAGES = 48
DEFECTS_PER_TYPE = 16
BATCH_SIZE = 4
MAP_SIZE = 128  # a quarter of the pixels ranks settings alike


@dataclass(frozen=True)
class Choice:
    """Settings, and what they and the default measured on the synthetic defects, in percent.

    Attributes:
        alpha: weight of the pixel score.
        blur_sigma: the Gaussian that smoothes the maps, in pixels.
        num_top_cells: cells that make the image score.
        image_auroc: with them.
        pro: with them.
        default: what alpha 0.5, blur 4 and the highest cell measured: `image_auroc` and `pro`.
        alone: what the pixel and the feature score alone measured, at the chosen blur and cells.
    """

    alpha: float
    blur_sigma: float
    num_top_cells: int
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
def raw_maps(pipe: DDADPipeline, images: torch.Tensor, report: Report | None = None) -> dict[str, torch.Tensor]:
    """Unsmoothed pixel and feature maps of many images: `kl` as `[N, K, S, S]`, `mahalanobis` as `[N, K, g, g]`."""
    timesteps = pipe.timesteps
    noise = pipe.get_noise(timesteps)
    found: dict[str, list[torch.Tensor]] = {"kl": [], "mahalanobis": []}
    for batch in track(images.split(BATCH_SIZE), "Scoring synthetic defects", report, unit="batch"):
        maps = pipe.raw_maps(batch.to(pipe.device), timesteps, noise, tuple(found))
        for name, value in maps.items():
            found[name].append(value.float().cpu())  # [N, K, h, w]
    return {name: torch.cat(values) for name, values in found.items()}


def calibrated(maps: torch.Tensor, good: int) -> torch.Tensor:
    """`[N, K, S, S]` -> `[N, S, S]`: the mean over levels, in standard deviations of the first `good` images there."""
    normal = maps[:good]
    mean = normal.mean(dim=(0, 2, 3), keepdim=True)
    return ((maps - mean) / normal.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)).mean(dim=1)


def top_cells(cells: torch.Tensor, count: int) -> np.ndarray:
    """The mean of the highest cells, `[N, 32, 32]` -> `[N]`."""
    return cells.flatten(1).topk(count, dim=1).values.mean(dim=1).numpy()


def merit(measured: dict[str, float]) -> float:
    """What is made as large as possible: finding the part and finding the place count alike."""
    return measured["image_auroc"] + measured["pro"]


def choose(pipe: DDADPipeline, images: torch.Tensor, seed: int, report: Report | None = None) -> Choice:
    """The settings under which synthetic defects are found best.

    Args:
        pipe: the pipeline with its Gaussians; those of the held-out images must not be among them.
        images: held-out good images, `[M, 3, S, S]` in [-1, 1]; `MOST_IMAGES` are enough.
        seed: of the defects.
        report: told of the progress.
    """
    defective, truth = make_defects(images, DEFECTS_PER_TYPE, seed)
    good, size = len(images), images.shape[-1]
    masks = torch.cat([torch.zeros(good, size, size), torch.from_numpy(truth).float()])
    small = F.interpolate(masks[:, None], size=(MAP_SIZE, MAP_SIZE), mode="nearest")[:, 0].numpy() > 0
    raw = raw_maps(pipe, torch.cat([images, defective]), report)
    tried: dict[tuple[float, float, int], dict[str, float]] = {}
    for blur in BLURS:
        parts = {}
        for name, value in raw.items():
            resized = pipe.image_processor.resize(value, (size, size))
            smooth = pipe.image_processor.blur(resized, blur)
            parts[name] = F.adaptive_avg_pool2d(calibrated(smooth, good), MAP_SIZE)
        for alpha in ALPHAS:
            fused = alpha * parts["kl"] + (1 - alpha) * parts["mahalanobis"]
            overlap = pro(fused.numpy(), small)
            cells = F.adaptive_avg_pool2d(fused, 32)
            for count in TOP_CELLS:
                scores = top_cells(cells, count)
                area = auroc(scores[:good], scores[good:])
                tried[alpha, blur, count] = {"image_auroc": round(100 * area, 2), "pro": round(100 * overlap, 2)}
    # Of equals the one nearest to the default.
    best = max(tried, key=lambda one: (merit(tried[one]), -abs(one[0] - 0.5), -abs(one[1] - 4.0), -one[2]))
    alpha, blur, count = best
    return Choice(
        alpha=alpha,
        blur_sigma=blur,
        num_top_cells=count,
        **tried[best],
        default=tried[0.5, 4.0, 1],
        alone={"kl": tried[1.0, blur, count], "mahalanobis": tried[0.0, blur, count]},
    )
