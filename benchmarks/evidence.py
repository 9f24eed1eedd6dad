"""Which settings find real defects, and whether synthetic ones know: `python -m benchmarks.evidence CATEGORY ...`.

For a category every score is judged twice under the same statistics: by its real test images, and by defects pasted
into held-out good ones, which is all that a choice can see. One row a combination of backbone, picture size, factors,
score, blur and cells, appended to a CSV; what stands there is not run again.

`memory` is the distance to the nearest patch of good images ("PatchCore", Roth et al., 2022, section 3.3), measured on
the principal components that the Gaussians see. It is in no checkpoint; it is here so that its absence has a reason.
"""

import argparse
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Subset

from ddad import DDADDenoiser, DDADImageProcessor, DDADPipeline, DDADRenderer
from ddad.calibration import factors
from ddad.calibration.backbone import create_appearance_extractor
from ddad.calibration.calibration import empty_components, round_to_half
from ddad.calibration.choice import make_defects, standardised
from ddad.calibration.fitting import Statistics, assign_folds, fit_statistics
from ddad.calibration.observing import (
    CalibrationConfig,
    Observed,
    fit_components,
    observe,
    spread,
    vary_half,
    view_images,
)
from ddad.calibration.part import load_base, read_once
from ddad.checkpoint.names import INDEX_NAME
from ddad.datasets.layouts import read_dataset
from ddad.datasets.lookalikes import group_lookalikes, shrink_image
from ddad.evaluation.evaluate import percent, read_masks
from ddad.evaluation.metrics import auroc, pixel_curves

ROOT = Path(__file__).parent.parent
MOST_TRAIN, MOST_HELD_OUT, MOST_TEST, DEFECTS_PER_TYPE = 160, 48, 160, 12
BLURS, CELLS = (1.0, 2.0, 4.0), (1, 4, 16)
PATCHES = 10_000
TIMESTEPS = (20, 201, 401)


def networks_of(category: str) -> dict[str, Any]:
    """The networks of a bundled category, else those of the base, which never saw the part."""
    folder = ROOT / "checkpoints" / category
    if not (folder / INDEX_NAME).is_file():
        parts = load_base(None)
        return {name: parts[name] for name in ("unet", "scheduler", "feature_extractor")}
    pipe = DDADPipeline.from_pretrained(folder)
    return {name: getattr(pipe, name) for name in ("unet", "scheduler", "feature_extractor")}


def memory_distance(reduced: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The distance to the nearest patch, `[N, P, c]` and `[M, c]` -> `[N, P]`."""
    return torch.stack([torch.cdist(one, patches).amin(dim=1) for one in reduced])


def some_patches(statistics: Statistics, fold: int | None) -> torch.Tensor:
    """Patches of all views that are not in a fold."""
    views = statistics.views
    values = (views.values if fold is None else views.values[views.fold != fold]).flatten(0, 1)
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:PATCHES]]


def maps_of(
    seen: Observed, folds: torch.Tensor | None, appearance: Statistics, residual: Statistics
) -> dict[str, torch.Tensor]:
    """The maps of images by all statistics, or each by those of what is not in its fold, `[N, K, g, g]`."""
    count, maps = len(seen), {}
    for name, statistics in (("appearance", appearance), ("residual", residual)):
        reduced = getattr(seen, name)
        if folds is None:
            distances = statistics.of_all().distance(reduced.flatten(0, 1)).unflatten(0, reduced.shape[:2])
        else:
            distances = statistics.distances(reduced, folds)
        side = round(distances.shape[-1] ** 0.5)
        maps[name] = distances.unflatten(-1, (side, side))
    reduced = seen.appearance[:, 0]
    if folds is None:
        nearest = memory_distance(reduced, some_patches(appearance, None))
    else:
        nearest = torch.empty(reduced.shape[:2])
        for fold in folds.unique().tolist():
            nearest[folds == fold] = memory_distance(reduced[folds == fold], some_patches(appearance, fold))
    maps["memory"] = nearest.view(count, 1, *maps["appearance"].shape[2:])
    assert seen.kl is not None
    return maps | {"kl": seen.kl}


def combine(fine: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Single scores and the means of them that are candidates, `[N, S, S]` each in units of good images."""
    means = {
        "sum": ("appearance", "residual"),
        "appearance+memory": ("appearance", "memory"),
        "appearance+0.2kl": ("appearance", "kl"),
        "sum of three": ("appearance", "residual", "kl"),
    }
    weights = {"appearance+0.2kl": (0.8, 0.2)}
    mixed = {
        name: sum(w * fine[part] for w, part in zip(weights.get(name, [1 / len(parts)] * 3), parts, strict=False))
        for name, parts in means.items()
    }
    return fine | mixed


def measure(
    pipe: DDADPipeline,
    maps: dict[str, torch.Tensor],
    good: int,
    defective: np.ndarray,
    truth: np.ndarray | None,
    blur: float,
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Score, cells, and what they measure; the first `good` images give the units, images after them are judged.

    Args:
        pipe: for resizing and blur.
        maps: of each score: of the good ones that give units, then of those that are judged.
        good: how many give units.
        defective: which of the judged ones are, `[N]` bool.
        truth: masks of the judged ones, `[N, 64, 64]` bool; None where there are none.
        blur: of the maps.
    """
    size = (pipe.unet.config.sample_size,) * 2
    fine = {
        name: standardised(pipe.image_processor.blur(pipe.image_processor.resize(one, size), blur), good)[good:]
        for name, one in maps.items()
    }
    for name, one in combine(fine).items():
        small = F.adaptive_avg_pool2d(one, 64).numpy()
        cells = pipe.calibration.pool(one).flatten(1)
        curves = None
        if truth is not None:  # a defective image without a mask counts for images alone
            known = truth.any(axis=(1, 2)) | ~defective
            curves = pixel_curves(small[known], truth[known])
        for count in CELLS:
            yield (
                name,
                count,
                {
                    "scores": pipe.calibration.top_cells(cells, count).numpy(),
                    "pixel_auroc": float("nan") if curves is None else curves.auroc,
                    "pro": float("nan") if curves is None else curves.pro(),
                },
            )


def read_category(name: str, data: Path) -> tuple[list[Any], list[Any], np.ndarray, np.ndarray | None]:
    """Good images to train, test images, which are defective `[N]`, and masks `[N, 64, 64]` where there are any."""
    if name.startswith("solar_cell"):
        from ddad.datasets.elpv import load_solar_cells

        cells = load_solar_cells("mono" if name.endswith("mono") else "poly")
        test = [*cells.test_good, *cells.test_defective]
        defective = [False] * len(cells.test_good) + [True] * len(cells.test_defective)
        kept = spread(len(test), MOST_TEST)
        return list(cells.train), [test[i] for i in kept], np.array(defective)[kept], None
    dataset = read_dataset(data / name)
    samples = dataset.select("test")
    samples = [samples[i] for i in spread(len(samples), MOST_TEST)]
    masks = read_masks(samples, 256)
    if masks is not None:
        masks = F.adaptive_max_pool2d(torch.from_numpy(masks).float()[:, None], 64)[:, 0].numpy() > 0
    defective = np.array([one.defective for one in samples])
    return dataset.train_paths, [one.path for one in samples], defective, masks


def run(name: str, data: Path, backbone: str, size: int) -> Iterator[dict[str, Any]]:
    """All rows of a category at one size and backbone."""
    train, test, defective, real = read_category(name, data)
    train = [train[i] for i in spread(len(train), MOST_TRAIN)]
    processor, networks = DDADImageProcessor(), networks_of(name)
    extractor = create_appearance_extractor(size, networks["feature_extractor"], backbone)
    images = read_once(train, processor, size, None)
    extractor.fit(images[number][None] for number in range(len(images)))
    pipe = DDADPipeline(
        **networks,
        **empty_components(networks["feature_extractor"], extractor, TIMESTEPS, 0.95),
        denoiser=DDADDenoiser(),
        image_processor=processor,
        renderer=DDADRenderer(),
        feature_score="appearance",
    )
    round_to_half(extractor)
    config = CalibrationConfig()
    groups = group_lookalikes(shrink_image(images[number]) for number in range(len(images)))
    folds = torch.tensor(assign_folds(groups, [True] * len(images)))
    fit_components(pipe, images)
    looks, residuals = view_images(pipe, images, folds, config, None)
    held_out = spread(len(images), MOST_HELD_OUT)
    judged = vary_half(Subset(images, held_out), config.nuisance, config.seed)
    good = observe(pipe, judged, True, "Held-out images", None)
    pasted, truth, sources = make_defects(
        torch.stack([judged[i] for i in range(len(judged))]), DEFECTS_PER_TYPE, config.seed
    )
    bad = observe(pipe, list(pasted), True, "Synthetic defects", None)
    shown = observe(pipe, read_once(test, processor, size, None), True, "Test images", None)
    own = folds[held_out]
    synthetic = F.adaptive_max_pool2d(torch.from_numpy(truth).float()[:, None], 64)[:, 0].numpy() > 0
    for with_factors in (True, False):
        before = factors.NUM_FACTORS
        factors.NUM_FACTORS = before if with_factors else (0,)
        appearance, residual = fit_statistics(looks), fit_statistics(residuals)
        factors.NUM_FACTORS = before
        units = maps_of(good, own, appearance, residual)
        by_others = maps_of(bad, own[sources], appearance, residual)
        by_all = maps_of(shown, None, appearance, residual)
        for blur in BLURS:
            pairs = zip(
                measure(pipe, {k: torch.cat([units[k], units[k], by_others[k]]) for k in units}, len(good),
                        np.arange(len(good) + len(pasted)) >= len(good),
                        np.concatenate([np.zeros((len(good), 64, 64), bool), synthetic]), blur),
                measure(pipe, {k: torch.cat([units[k], by_all[k]]) for k in units}, len(good), defective, real, blur),
                strict=True,
            )  # fmt: skip
            for (score, cells, made), (_, _, found) in pairs:
                yield {
                    "category": name,
                    "backbone": backbone,
                    "size": size,
                    "factors": with_factors,
                    "score": score,
                    "blur": blur,
                    "cells": cells,
                    "real_image_auroc": percent(auroc(found["scores"][~defective], found["scores"][defective])),
                    "real_pixel_auroc": percent(found["pixel_auroc"]),
                    "real_pro": percent(found["pro"]),
                    "synthetic_image_auroc": percent(auroc(made["scores"][: len(good)], made["scores"][len(good) :])),
                    "synthetic_pro": percent(made["pro"]),
                    "good_images": len(train),
                    "held_out": len(held_out),
                    "test_good": int((~defective).sum()),
                    "test_defective": int(defective.sum()),
                }


def main() -> None:
    """Runs what is missing of the categories asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384, 512])
    parser.add_argument("--backbones", nargs="+", default=["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "evidence.csv")
    arguments = parser.parse_args()
    done = set()
    if arguments.output.is_file():
        with arguments.output.open(newline="", encoding="utf-8") as file:
            done = {(row["category"], row["backbone"], int(row["size"])) for row in csv.DictReader(file)}
    for size, backbone, name in itertools.product(arguments.sizes, arguments.backbones, arguments.categories):
        if (name, backbone, size) in done:
            continue
        rows = list(run(name, arguments.data, backbone, size))
        fresh = not arguments.output.is_file()
        with arguments.output.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            if fresh:
                writer.writeheader()
            writer.writerows(rows)
        print(name, backbone, size, len(rows), "rows", flush=True)


if __name__ == "__main__":
    main()
