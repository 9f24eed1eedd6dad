"""Are these photographs enough? How many synthetic defects are found by the statistics of fewer of them.

Each image and each defect in it is judged by others alone, drawn at random from those that are not in its fold.
"""

import torch

from ddad.calibration.choice import make_defects
from ddad.calibration.fitting import Statistics
from ddad.calibration.observing import CalibrationConfig, Images, Observed, observe, spread
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline

# Good images that set the threshold, and defects of each kind.
MOST_IMAGES, DEFECTS_PER_TYPE = 24, 4
LEAST_IMAGES = 3


@torch.no_grad()
def measure_growth(
    pipe: DDADPipeline,
    judged: Images,
    observed: Observed,
    folds: torch.Tensor,
    statistics: Statistics,
    config: CalibrationConfig,
    report: Report | None = None,
) -> dict[int, float]:
    """The part of synthetic defects that is found, in percent, by how many images the statistics have seen.

    Args:
        pipe: the pipeline, whose blur and cells are chosen.
        judged: the images that judge, `[3, L, L]` in [-1, 1].
        observed: these, as the networks see them.
        folds: the fold of each.
        statistics: of the appearance of all images.
        config: how the pipeline is calibrated.
        report: called with the progress.
    """
    good = spread(len(judged), MOST_IMAGES)
    defective, _, sources = make_defects(
        torch.stack([judged[index] for index in good]), DEFECTS_PER_TYPE, config.seed + 1
    )
    seen = observe(pipe, list(defective), False, "Pasting further defects", report)
    reduced = torch.cat([observed.appearance[good], seen.appearance])[:, 0]  # [N, P, c]
    own_folds = torch.cat([folds[good], folds[good][sources]])
    by_image = statistics.views.fold[statistics.views.original]
    images, found = len(by_image), {}
    counts = sorted({max(LEAST_IMAGES, images // 4), max(LEAST_IMAGES, images // 2), images})
    for count in track(counts, "Asking fewer images", report, unit="count"):
        distances = torch.empty(reduced.shape[:2])
        for fold in own_folds.unique().tolist():
            others, own = (by_image != fold).nonzero()[:, 0], own_folds == fold
            generator = torch.Generator().manual_seed(config.seed + fold)
            chosen = others[torch.randperm(len(others), generator=generator)[:count]]
            distances[own] = statistics.of_some(chosen).distance(reduced[own])
        maps = pipe.smooth(pipe.appearance.to_map(distances))[:, 0]
        scores = pipe.calibration.image_score(maps)
        threshold = torch.quantile(scores[: len(good)], pipe.calibration.config.threshold_quantile)
        found[count] = round(100 * float((scores[len(good) :] > threshold).float().mean()), 1)
    return found
