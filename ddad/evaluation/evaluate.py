"""Image-level evaluation of a checkpoint: every score side by side, on the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ddad.evaluation.metrics import auroc
from ddad.pipeline import DDADPipeline


@torch.no_grad()
def score_images(pipe: DDADPipeline, paths: list[Path], batch_size: int = 4) -> dict[str, np.ndarray]:
    """Image scores of every form, `[N]` each, from one evaluation of the U-Net an image.

    `combined` is the pipeline's own; the others are its parts alone, then the baselines: `rgb` (squared error of
    x0_hat) and `padim` (Mahalanobis distance of the features themselves, on the same backbone).
    """
    timesteps, normality = pipe.timesteps, pipe.normality
    noise, names = pipe.get_noise(timesteps), normality.scores
    scores: dict[str, list[float]] = {name: [] for name in ("combined", *names, "padim")}
    for first in tqdm(range(0, len(paths), batch_size), desc="Scoring", mininterval=1):
        batch = pipe.prepare([pipe.image_processor.read_image(path) for path in paths[first : first + batch_size]])
        raw = pipe.score_maps(batch, timesteps, noise, names)
        maps = {name: normality.calibrate(name, value, timesteps) for name, value in raw.items()}
        fused = {name: value.mean(dim=1) for name, value in maps.items()}
        fused["combined"] = normality.fuse(maps["kl"], maps["mahalanobis"], pipe.config.alpha)
        padim = normality(pipe.extract_features(batch), normality.features_index)  # [N, 1, g, g]
        fused["padim"] = pipe.smooth(padim, pipe.unet.config.sample_size)[:, 0]
        for name, value in fused.items():
            scores[name] += normality.image_score(value).tolist()
    return {name: np.array(values) for name, values in scores.items()}


def evaluate(pipe: DDADPipeline, good: list[Path], defective: list[Path]) -> dict[str, Any]:
    """Image AUROC in percent of every score, and what the stored threshold finds.

    Raises:
        ValueError: if there are no good or no defective images.
    """
    if not good or not defective:
        raise ValueError(f"Good and defective images are needed, found {len(good)} and {len(defective)}.")
    good_scores, defective_scores = score_images(pipe, good), score_images(pipe, defective)
    return {
        "good_images": len(good),
        "defective_images": len(defective),
        "image_auroc": {
            name: round(100 * auroc(good_scores[name], defective_scores[name]), 2) for name in good_scores
        },
        "threshold": pipe.threshold,
        "false_alarms": int((good_scores["combined"] > pipe.threshold).sum()),
        "detected": int((defective_scores["combined"] > pipe.threshold).sum()),
    }
