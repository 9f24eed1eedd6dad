"""Are these photographs enough? How many synthetic defects are found by the statistics of fewer of them.

Each image and each defect in it is judged by others alone, drawn at random from those that are not in its fold.
"""

import torch

from ddad.calibration.appearance import Appearance
from ddad.calibration.choice import make_defects
from ddad.calibration.fitting import CalibrationConfig, Images, spread
from ddad.calibration.progress import Report, track
from ddad.checkpoint.installed import DDADPipeline

# Good images that set the threshold, and defects of each kind.
MOST_IMAGES, DEFECTS_PER_TYPE = 24, 4
LEAST_IMAGES = 3


@torch.no_grad()
def measure_growth(
    pipe: DDADPipeline,
    held_out: Images,
    appearance: Appearance,
    shrinkage: float,
    config: CalibrationConfig,
    report: Report | None = None,
) -> dict[int, float]:
    """The part of synthetic defects that is found, in percent, by how many images the statistics have seen.

    Args:
        pipe: the pipeline, whose kind of appearance, blur and cells are chosen.
        held_out: the images that judge, `[3, L, L]` in [-1, 1].
        appearance: what was seen of all images.
        shrinkage: of the covariances.
        config: how the pipeline is calibrated.
        report: told of the progress.
    """
    model, looks = pipe.appearance, appearance.looks
    good = spread(len(held_out), MOST_IMAGES)
    defective, _, sources = make_defects(
        torch.stack([held_out[index] for index in good]), DEFECTS_PER_TYPE, config.seed + 1
    )
    seen = [model.to_grid(pipe.extract_appearance(image[None].to(pipe.device))).cpu() for image in defective]
    values = torch.cat([looks.judged[good].float(), *seen])  # [N, P, C]
    reduced = values @ model.basis.float().cpu()
    folds = torch.cat([looks.folds[good], looks.folds[good][sources]])
    images = int(looks.views.original.sum())
    by_image = looks.views.fold[looks.views.original]
    found = {}
    counts = sorted({max(LEAST_IMAGES, images // 4), max(LEAST_IMAGES, images // 2), images})
    for count in track(counts, "Asking fewer images", report, unit="count"):
        distances = {kind: torch.empty(values.shape[:2]) for kind in ("gaussian", "memory")}
        for fold in folds.unique().tolist():
            others, own = (by_image != fold).nonzero()[:, 0], folds == fold
            generator = torch.Generator().manual_seed(config.seed + fold)
            chosen = others[torch.randperm(len(others), generator=generator)[:count]]
            statistics = appearance.of_some(chosen, shrinkage)
            distances["gaussian"][own] = statistics.gaussian(reduced[own])
            distances["memory"][own] = statistics.memory(values[own])
        scales = {kind: (one[: len(good)].mean(), one[: len(good)].std()) for kind, one in distances.items()}
        maps = model.combine(distances, scales).view(-1, 1, *(model.config.grid_size,) * 2)
        scores = pipe.normality.image_score(pipe.smooth(maps, pipe.unet.config.sample_size)[:, 0])
        threshold = torch.quantile(scores[: len(good)], pipe.normality.config.threshold_quantile)
        found[count] = round(100 * float((scores[len(good) :] > threshold).float().mean()), 1)
    return found
