"""Which settings find real defects, and whether synthetic ones know: `python -m benchmarks.evidence CATEGORY ...`.

For a category every score is judged twice under the same statistics: by its real test images, and by defects pasted
into held-out good ones, which is all that a choice can see. One row a combination of backbone, picture size, factors,
score, blur and cells, appended to a CSV; what stands there is not run again. Without factors, with the memory and
with the strongest blur only at the largest size with the first backbone.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset

from ddad import DDADDenoiser, DDADImageProcessor, DDADPipeline, DDADRenderer
from ddad.calibration import factors
from ddad.calibration.backbone import create_appearance_extractor
from ddad.calibration.calibration import empty_components, round_to_half
from ddad.calibration.factors import Views
from ddad.calibration.fitting import Statistics, assign_folds, fit_statistics
from ddad.calibration.gaussians import principal_components
from ddad.calibration.growth import standardised
from ddad.calibration.observing import (
    COMPONENT_IMAGES,
    RESIDUAL_COPIES,
    CalibrationConfig,
    Observed,
    count_copies,
    observe,
    residuals_of,
    spread,
    vary_half,
)
from ddad.calibration.part import load_base, read_once
from ddad.calibration.patches import distances_by_others, remember
from ddad.calibration.synthetic import make_defects
from ddad.checkpoint.names import INDEX_NAME
from ddad.datasets.folder import ImagesInMemory
from ddad.datasets.layouts import Sample, read_dataset, read_mask
from ddad.datasets.lookalikes import group_lookalikes, shrink_image
from ddad.datasets.nuisance import vary
from ddad.evaluation.evaluate import percent, read_masks
from ddad.evaluation.metrics import auroc, pixel_curves

ROOT = Path(__file__).parent.parent
# Maps are measured at this size by `figures`.
FIGURES_SIZE = 256
MOST_TRAIN, MOST_COPIES, MOST_HELD_OUT, MOST_TEST, DEFECTS_PER_TYPE = 120, 4, 40, 120, 10
BLURS, CELLS = (1.0, 2.0, 4.0), (1, 4, 16)
TIMESTEPS = (20, 201, 401)
# Weighted means that are candidates; `appearance` is what the product takes.
MIXTURES = {
    "appearance": {"gaussians": 2 / 3, "memory": 1 / 3},
    "gaussians+memory": {"gaussians": 1 / 2, "memory": 1 / 2},
    "gaussians+residual": {"gaussians": 1 / 2, "residual": 1 / 2},
    "two thirds gaussians, residual": {"gaussians": 2 / 3, "residual": 1 / 3},
    "gaussians+0.2kl": {"gaussians": 0.8, "kl": 0.2},
    "gaussians+residual+kl": {"gaussians": 1 / 3, "residual": 1 / 3, "kl": 1 / 3},
    "three quarters appearance, residual": {"gaussians": 1 / 2, "memory": 1 / 4, "residual": 1 / 4},
    "gaussians+memory+residual": {"gaussians": 1 / 3, "memory": 1 / 3, "residual": 1 / 3},
}


def networks_of(category: str) -> dict[str, Any]:
    """The networks of a bundled category, else those of the base, which never saw the part."""
    folder = ROOT / "checkpoints" / category
    if not (folder / INDEX_NAME).is_file():
        parts = load_base(None)
        return {name: parts[name] for name in ("unet", "scheduler", "feature_extractor")}
    pipe = DDADPipeline.from_pretrained(folder)
    return {name: getattr(pipe, name) for name in ("unet", "scheduler", "feature_extractor")}


def maps_of(
    seen: Observed, folds: torch.Tensor | None, statistics: tuple[Statistics, Statistics], with_memory: bool
) -> dict[str, torch.Tensor]:
    """The maps of images by all statistics, or each by those of what is not in its fold, `[N, K, g, g]`."""
    appearance, residual = statistics
    maps = {}
    for name, statistics in (("gaussians", appearance), ("residual", residual)):
        reduced = seen.residual if name == "residual" else seen.appearance
        assert reduced is not None
        if folds is None:
            distances = statistics.of_all().distance(reduced.flatten(0, 1)).unflatten(0, reduced.shape[:2])
        else:
            distances = statistics.distances(reduced, folds)
        side = round(distances.shape[-1] ** 0.5)
        maps[name] = distances.unflatten(-1, (side, side))
    assert seen.kl is not None
    maps["kl"] = seen.kl
    if not with_memory:
        return maps
    views, reduced = appearance.views, seen.appearance[:, 0]
    nearest = remember(views).distance(reduced) if folds is None else distances_by_others(views, reduced, folds)
    maps["memory"] = nearest.view(maps["gaussians"].shape)
    return maps


def combine(fine: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Single scores and the means of them that are candidates, `[N, S, S]` each in units of good images."""
    mixed = {}
    for name, weights in MIXTURES.items():
        if weights.keys() <= fine.keys():
            mixed[name] = sum(weight * fine[part] for part, weight in weights.items())
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
    fine, pooled = {}, {}
    for name, one in maps.items():
        smoothed = pipe.image_processor.blur(pipe.image_processor.resize(one, size), blur)
        units = standardised(smoothed, good)[good:]
        fine[name], pooled[name] = F.adaptive_avg_pool2d(units, 64), pipe.calibration.pool(units).flatten(1)
    mixed = combine(pooled)  # the mean of pooled maps is the pooled mean of maps
    for name, one in combine(fine).items():
        small, cells = one.numpy(), mixed[name]
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


def readable(sample: Sample) -> bool:
    """Whether its mask, if it has one, marks something."""
    if sample.mask is not None:
        try:
            read_mask(sample, (256, 256))
        except ValueError:
            return False
    return True


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
    samples = [one for one in dataset.select("test") if readable(one)]
    samples = [samples[i] for i in spread(len(samples), MOST_TEST)]
    masks = read_masks(samples, 256)
    if masks is not None:
        masks = F.adaptive_max_pool2d(torch.from_numpy(masks).float()[:, None], 64)[:, 0].numpy() > 0
    defective = np.array([one.defective for one in samples])
    return dataset.train_paths, [one.path for one in samples], defective, masks


@dataclass(frozen=True)
class Pictures:
    """All that is looked at of a category, at the largest size: other sizes are shrunk from it.

    Attributes:
        train: good, `[3, L, L]` in [-1, 1].
        folds: the fold of each.
        held_out: the numbers of those that judge.
        judged: them, every other one moved and changed.
        pasted: them with synthetic defects.
        truth: the masks of those, `[N, 64, 64]` bool.
        sources: the number in `judged` that each defect is in.
        test: real test images.
        defective: which of those are.
        masks: of those, `[N, 64, 64]` bool; None where there are none.
    """

    train: ImagesInMemory
    folds: torch.Tensor
    held_out: list[int]
    judged: ImagesInMemory
    pasted: list[torch.Tensor]
    truth: np.ndarray
    sources: list[int]
    test: ImagesInMemory
    defective: np.ndarray
    masks: np.ndarray | None

    @classmethod
    def read(cls, name: str, data: Path, size: int, config: CalibrationConfig) -> "Pictures":
        """Of a category."""
        train, test, defective, masks = read_category(name, data)
        processor = DDADImageProcessor()
        images = read_once([train[i] for i in spread(len(train), MOST_TRAIN)], processor, size, None)
        groups = group_lookalikes(shrink_image(images[number]) for number in range(len(images)))
        folds = torch.tensor(assign_folds(groups, [True] * len(images)))
        held_out = spread(len(images), MOST_HELD_OUT)
        judged = vary_half(Subset(images, held_out), config.nuisance, config.seed)
        good = torch.stack([judged[i] for i in range(len(judged))])
        pasted, truth, sources = make_defects(good, DEFECTS_PER_TYPE, config.seed)
        small = F.adaptive_max_pool2d(torch.from_numpy(truth).float()[:, None], 64)[:, 0].numpy() > 0
        shown = read_once(test, processor, size, None)
        return cls(images, folds, held_out, judged, list(pasted), small, sources, shown, defective, masks)


@torch.no_grad()
def look(
    pipe: DDADPipeline, pictures: Pictures, config: CalibrationConfig, ask_network: bool
) -> tuple[Views, list[Any]]:
    """Views of the good images, and what the networks see of those that judge, of pasted defects and of test images.

    Args:
        pipe: the pipeline, whose components get their directions.
        pictures: of a category.
        config: how copies are made.
        ask_network: residuals of the U-Net and its pixel score, or the features of appearance.

    Returns:
        The views, `Views`, and three tensors or pairs of residuals and pixel scores.
    """
    size = (pipe.unet.config.sample_size if ask_network else pipe.appearance_extractor.config.image_size,) * 2
    train, model = pictures.train, pipe.residual if ask_network else pipe.appearance

    def shrink(images: torch.Tensor) -> torch.Tensor:
        return pipe.image_processor.resize(images, size).clamp(-1, 1)

    def see(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        shrunk = shrink(images)
        return residuals_of(pipe, shrunk, generator) if ask_network else pipe.extract_appearance(shrunk)

    some = torch.cat([model.to_grid(see(train[i][None])) for i in spread(len(train), COMPONENT_IMAGES)])
    model.basis.copy_(principal_components(some, model.config.num_channels).half())
    copies = RESIDUAL_COPIES if ask_network else min(MOST_COPIES, count_copies(len(train)))
    values = []
    for number in range(len(train)):
        generator, image = torch.Generator().manual_seed(number), train[number][None]
        varied = [vary(image, config.rotation_degrees, config.nuisance, generator) for _ in range(copies)]
        values.append(model.reduce(see(torch.cat([image, *varied]), generator)))
    views = Views(
        torch.cat(values),
        pictures.folds.repeat_interleave(1 + copies),
        torch.arange(len(train) * (1 + copies)) % (1 + copies) == 0,
    )
    found = []
    for images in (pictures.judged, pictures.pasted, pictures.test):
        if ask_network:
            seen = observe(pipe, [shrink(images[i][None])[0] for i in range(len(images))], True, "U-Net", None)
            found.append((seen.residual, seen.kl))
        else:
            found.append(torch.cat([model.reduce(see(images[i][None])) for i in range(len(images))])[:, None])
    return views, found


def cached(path: Path | None, compute: Callable[[], tuple[Views, list[Any]]]) -> tuple[Views, list[Any]]:
    """What `look` found, from a file or computed and written there, in float16; None computes it."""
    if path is None or not path.is_file():
        views, found = compute()
        if path is None:
            return views, found
        values = {"views": views.values, "fold": views.fold, "original": views.original}
        for number, one in enumerate(found):
            values |= {
                f"{number}.{place}": part for place, part in enumerate(one if isinstance(one, tuple) else [one])
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        half = {key: (one.half() if one.is_floating_point() else one).contiguous() for key, one in values.items()}
        save_file(half, path)
    values = {key: one.float() if one.is_floating_point() else one for key, one in load_file(path).items()}
    parts = [
        [values[f"{number}.{place}"] for place in range(2) if f"{number}.{place}" in values] for number in range(3)
    ]
    found = [one[0] if len(one) == 1 else tuple(one) for one in parts]
    return Views(values["views"], values["fold"], values["original"]), found


def pipeline_of(networks: dict[str, Any], pictures: Pictures, backbone: str, size: int) -> DDADPipeline:
    """Of networks and empty statistics; appearance is looked at by a backbone at a size."""
    extractor = create_appearance_extractor(size, networks["feature_extractor"], backbone)
    shrunk = (size, size)
    extractor.fit(DDADImageProcessor.resize(one[None], shrunk).clamp(-1, 1) for one in list(pictures.train))
    round_to_half(extractor)
    return DDADPipeline(
        **networks,
        **empty_components(networks["feature_extractor"], extractor, TIMESTEPS, 0.95),
        denoiser=DDADDenoiser(),
        image_processor=DDADImageProcessor(),
        renderer=DDADRenderer(),
    )


def appearance_of(name: str, data: Path, features: str, cache: Path | None) -> tuple[Views, list[Any]]:
    """What `look` finds by features alone, no U-Net: `features` is "tf_efficientnet_lite2-512", say."""
    backbone, size = features.rsplit("-", 1)

    def compute() -> tuple[Views, list[Any]]:
        pictures, config = Pictures.read(name, data, int(size), CalibrationConfig()), CalibrationConfig()
        return look(pipeline_of(networks_of(name), pictures, backbone, int(size)), pictures, config, False)

    return cached(None if cache is None else cache / f"{name}-{features}.safetensors", compute)


def run(
    name: str, data: Path, combinations: Sequence[tuple[str, int]], cache: Path | None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a category, for each of some backbones and sizes; the U-Net is evaluated once for all of them."""
    networks, config = networks_of(name), CalibrationConfig()
    pictures = Pictures.read(name, data, max(size for _, size in combinations), config)

    def seen_by(pipe: DDADPipeline, what: str, ask_network: bool) -> tuple[Views, list[Any]]:
        path = None if cache is None else cache / f"{name}-{what}.safetensors"
        return cached(path, lambda: look(pipe, pictures, config, ask_network))

    residuals, by_network = seen_by(pipeline_of(networks, pictures, "tf_efficientnet_lite0", 256), "network", True)
    for backbone, size in combinations:
        pipe = pipeline_of(networks, pictures, backbone, size)
        looks, by_appearance = seen_by(pipe, f"{backbone}-{size}", False)
        seen = [Observed(one, *other) for one, other in zip(by_appearance, by_network, strict=True)]
        rows = []
        everything = size == max(size for _, size in combinations) and backbone == combinations[0][0]
        for with_factors in (True, False) if everything else (True,):
            statistics = fit(looks, with_factors), fit(residuals, with_factors)
            shared = {"category": name, "backbone": backbone, "size": size, "factors": with_factors}
            rows += [shared | row for row in judge(pipe, pictures, seen, statistics, everything and with_factors)]
        yield rows


def fit(views: Views, with_factors: bool = True) -> Statistics:
    """Statistics of views, with as many factors as the likelihood chooses or none."""
    before = factors.NUM_FACTORS
    factors.NUM_FACTORS = before if with_factors else (0,)
    statistics = fit_statistics(views)
    factors.NUM_FACTORS = before
    return statistics


def figures(
    maps: list[torch.Tensor], good: int, defective: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | int]:
    """What the mean of standardised maps measures: the best cells of 1, 4, 16 are the same for all scores: 4."""
    fine = []
    for one in maps:
        blurred = DDADImageProcessor.blur(DDADImageProcessor.resize(one, (FIGURES_SIZE, FIGURES_SIZE)), 2.0)
        fine.append(standardised(blurred, good)[good:])
    fused = torch.stack(fine).mean(dim=0)
    scores = F.adaptive_avg_pool2d(fused, 32).flatten(1).topk(4, dim=1).values.mean(dim=1).numpy()
    row: dict[str, float | int] = {
        "image_auroc": percent(auroc(scores[~defective], scores[defective])),
        "pixel_auroc": float("nan"),
        "pro": float("nan"),
    }
    if masks is not None:
        known = masks.any(axis=(1, 2)) | ~defective
        curves = pixel_curves(F.adaptive_avg_pool2d(fused, 64).numpy()[known], masks[known])
        row |= {"pixel_auroc": percent(curves.auroc), "pro": percent(curves.pro())}
    return row


def judge(
    pipe: DDADPipeline,
    pictures: Pictures,
    seen: list[Observed],
    statistics: tuple[Statistics, Statistics],
    everything: bool,
) -> Iterator[dict[str, Any]]:
    """What every score measures on real and on synthetic defects under the same statistics."""
    good, bad, shown = seen
    own, count, defective = pictures.folds[pictures.held_out], len(good), pictures.defective
    units = maps_of(good, own, statistics, everything)
    by_others = maps_of(bad, own[pictures.sources], statistics, everything)
    by_all = maps_of(shown, None, statistics, everything)
    made_defective = np.arange(count + len(bad)) >= count
    truth = np.concatenate([np.zeros((count, 64, 64), bool), pictures.truth])
    for blur in BLURS if everything else BLURS[:2]:
        made_maps = {name: torch.cat([units[name], units[name], by_others[name]]) for name in units}
        real_maps = {name: torch.cat([units[name], by_all[name]]) for name in units}
        pairs = zip(
            measure(pipe, made_maps, count, made_defective, truth, blur),
            measure(pipe, real_maps, count, defective, pictures.masks, blur),
            strict=True,
        )
        for (score, cells, made), (_, _, real) in pairs:
            yield {
                "score": score,
                "blur": blur,
                "cells": cells,
                "real_image_auroc": percent(auroc(real["scores"][~defective], real["scores"][defective])),
                "real_pixel_auroc": percent(real["pixel_auroc"]),
                "real_pro": percent(real["pro"]),
                "synthetic_image_auroc": percent(auroc(made["scores"][:count], made["scores"][count:])),
                "synthetic_pro": percent(made["pro"]),
                "good_images": len(pictures.train),
                "held_out": count,
                "test_good": int((~defective).sum()),
                "test_defective": int(defective.sum()),
            }


def main() -> None:
    """Runs what is missing of the categories asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 384, 256])
    parser.add_argument("--backbones", nargs="+", default=["tf_efficientnet_lite2", "tf_efficientnet_lite0"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "evidence.csv")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the networks see of images")
    arguments = parser.parse_args()
    done = set()
    if arguments.output.is_file():
        with arguments.output.open(newline="", encoding="utf-8") as file:
            done = {(row["category"], row["backbone"], int(row["size"])) for row in csv.DictReader(file)}
    for name in arguments.categories:
        combinations = [
            (backbone, size)
            for backbone, size in itertools.product(arguments.backbones, arguments.sizes)
            if (name, backbone, size) not in done
        ]
        if not combinations:
            continue
        for rows in run(name, arguments.data, combinations, arguments.cache):
            fresh = not arguments.output.is_file()
            with arguments.output.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                if fresh:
                    writer.writeheader()
                writer.writerows(rows)
            print(name, rows[0]["backbone"], rows[0]["size"], len(rows), "rows", flush=True)


if __name__ == "__main__":
    main()
