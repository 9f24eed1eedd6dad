"""Are these photographs enough? Which synthetic defects are found, by all of them and by fewer.

Each image and each defect in it is judged by others alone, drawn at random from those that are not in its fold.
"""

from typing import Any

import torch

from ddad.calibration.fitting import Statistics
from ddad.calibration.observing import CalibrationConfig, Images, Observed, observe, spread
from ddad.calibration.patches import remember
from ddad.calibration.progress import Report, track
from ddad.calibration.synthetic import make_defects
from ddad.checkpoint.installed import DDADPipeline
from ddad.evaluation.metrics import auroc

# Good images that set the threshold, and defects of each kind.
MOST_IMAGES, DEFECTS_PER_TYPE = 24, 6
LEAST_IMAGES = 3
# Remembered for each fold and count, which a person waits for.
MOST_PATCHES = 5000


def standardised(maps: torch.Tensor, good: int) -> torch.Tensor:
    """`[N, K, S, S]` -> `[N, S, S]`: the mean over levels, in standard deviations of the first `good` images there."""
    normal = maps[:good]
    mean = normal.mean(dim=(0, 2, 3), keepdim=True)
    return ((maps - mean) / normal.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)).mean(dim=1)


@torch.no_grad()
def measure_growth(
    pipe: DDADPipeline,
    judged: Images,
    observed: Observed,
    folds: torch.Tensor,
    statistics: Statistics,
    config: CalibrationConfig,
    report: Report | None = None,
) -> dict[str, Any]:
    """How well synthetic defects are found by appearance, by all images and by fewer.

    Args:
        pipe: the pipeline, for its blur and cells.
        judged: the images that judge, `[3, L, L]` in [-1, 1].
        observed: these, as the networks see them.
        folds: the fold of each.
        statistics: of the appearance of all images.
        config: how the pipeline is calibrated.
        report: called with the progress.

    Returns:
        In percent: `found`, the part of them that is found by how many images the statistics have seen, and
        `image_auroc`, how well all images tell them from good ones.
    """
    good = spread(len(judged), MOST_IMAGES)
    inside = pipe.inside
    defective, _, sources = make_defects(
        torch.stack([judged[index] for index in good]), DEFECTS_PER_TYPE, config.seed + 1, inside
    )
    seen = observe(pipe, list(defective), False, "Looking at synthetic defects", report)
    reduced = torch.cat([observed.appearance[good], seen.appearance])[:, 0]  # [N, P, c]
    own_folds = torch.cat([folds[good], folds[good][sources]])
    views = statistics.views
    by_image = views.fold[views.original]
    images, found = len(by_image), {}
    counts = sorted({max(LEAST_IMAGES, images // 4), max(LEAST_IMAGES, images // 2), images})
    for count in track(counts, "Asking fewer images", report, unit="count"):
        distances = {name: torch.empty(reduced.shape[:2]) for name in ("appearance", "memory")}
        for fold in own_folds.unique().tolist():
            others, own = (by_image != fold).nonzero()[:, 0], own_folds == fold
            generator = torch.Generator().manual_seed(config.seed + fold)
            chosen = others[torch.randperm(len(others), generator=generator)[:count]]
            distances["appearance"][own] = statistics.of_some(chosen).distance(reduced[own])
            distances["memory"][own] = remember(views, torch.isin(views.image, chosen), MOST_PATCHES).distance(
                reduced[own]
            )
        maps = {
            name: standardised(pipe.smooth(pipe.appearance.to_map(one), inside), len(good))
            for name, one in distances.items()
        }
        scores = pipe.calibration.image_score(pipe.calibration.combine("appearance", maps), inside)
        threshold = torch.quantile(scores[: len(good)], pipe.calibration.config.threshold_quantile)
        found[count] = round(100 * float((scores[len(good) :] > threshold).float().mean()), 1)
    area = auroc(scores[: len(good)].numpy(), scores[len(good) :].numpy())  # by all of them
    return {"found": found, "image_auroc": round(100 * area, 2)}
