"""The maps of every form of score for the images of a data set, from one evaluation of the networks an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ddad.evaluation.baselines import Baselines
from ddad.pipeline import DDADPipeline

# `combined` is the pipeline's own score; the others are parts of it alone.
FORMS = ("combined", "appearance", "gaussians", "memory", "sum", "kl", "residual")


@dataclass(frozen=True)
class ScoredImages:
    """What was measured of some images.

    Attributes:
        maps: by form, `[N, S, S]` float32 at the model's size, calibrated and smoothed as the pipeline does.
        scores: by form, `[N]`.
    """

    maps: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


@torch.no_grad()
def score_batch(
    pipe: DDADPipeline, originals: Sequence[torch.Tensor], noise: torch.Tensor, forms: Sequence[str] = FORMS
) -> dict[str, torch.Tensor]:
    """The maps of a batch in some forms, `[N, S, S]` each; nothing is computed that none of them needs.

    Args:
        pipe: the pipeline.
        originals: images `[3, H, W]` in [0, 1].
        noise: one for each of the pipeline's noise levels, `[K, 3, S, S]`.
        forms: of `FORMS`.
    """
    timesteps, calibration = pipe.timesteps, pipe.calibration
    parts = ("kl", pipe.config.feature_score)
    known = (*calibration.pixel_scores, *calibration.known_feature_scores)
    names = [name for name in known if name in forms or (name in parts and "combined" in forms)]
    fused: dict[str, torch.Tensor] = {}
    if names:
        maps = dict(zip(names, pipe.calibrated_maps(originals, timesteps, noise, names), strict=True))
        fused |= {name: value.mean(dim=1) for name, value in maps.items()}
    if "combined" in forms:
        fused["combined"] = calibration.fuse(*(maps[name] for name in parts), pipe.config.alpha)
    return {name: fused[name] for name in forms if name in fused}


def score_images(
    pipe: DDADPipeline,
    paths: Sequence[Path],
    baselines: Baselines | None = None,
    batch_size: int = 4,
) -> ScoredImages:
    """Maps and image scores of every form, and of the baselines where they are given."""
    noise: Any = pipe.get_noise(pipe.timesteps)
    inside = pipe.inside
    maps: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[np.ndarray]] = {}
    progress = tqdm(total=len(paths), desc="Scoring", mininterval=1, unit="image")
    for first in range(0, len(paths), batch_size):
        images = [pipe.image_processor.read_image(path) for path in paths[first : first + batch_size]]
        found = score_batch(pipe, images, noise) | ({} if baselines is None else baselines.maps(pipe, images))
        for name, value in found.items():
            value = value.float().cpu()
            if inside is not None:
                value = value * inside[:, 0]
            maps.setdefault(name, []).append(value.numpy())
            scores.setdefault(name, []).append(pipe.calibration.image_score(value, inside).numpy())
        progress.update(len(images))
    progress.close()
    return ScoredImages(
        {name: np.concatenate(values) for name, values in maps.items()},
        {name: np.concatenate(values) for name, values in scores.items()},
    )
