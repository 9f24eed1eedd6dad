"""Defective photographs among the good ones: `python -m benchmarks.contaminated CATEGORY ... --data ... --cache ...`.

To 120 good images real defective ones are added that are taken for good, 5 and 10 %. Which of them does a fit name as
unlike the rest, which good ones with them, and what is lost by what is not named? Three draws each; the other test
images are judged under the clean statistics, the contaminated ones, and those without what was named.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.evidence import appearance_of, figures, read_category
from benchmarks.thresholds import smoothed
from ddad.calibration.factors import Views
from ddad.calibration.fitting import assign_folds, fit_statistics
from ddad.calibration.growth import standardised
from ddad.calibration.part import UNLIKE, deviations
from ddad.calibration.patches import distances_by_others, remember
from ddad.report.markdown import table

DRAWS, TOP, BLUR = 3, 4, 2.0


def mixed_views(good: Views, copies: int, added: torch.Tensor, seed: int) -> Views:
    """Good views, and features of images that are taken for good, `[N, P, c]`, each with as many equal copies."""
    values = torch.cat([good.values, added.repeat_interleave(1 + copies, dim=0)])
    images = len(values) // (1 + copies)
    order = np.random.default_rng(seed).permutation(images).tolist()
    folds = torch.tensor(assign_folds(order, [True] * images))
    original = torch.arange(len(values)) % (1 + copies) == 0
    return Views(values, folds.repeat_interleave(1 + copies), original)


def without(views: Views, copies: int, named: np.ndarray) -> Views:
    """The same without some images."""
    kept = torch.from_numpy(~named).repeat_interleave(1 + copies)
    return Views(views.values[kept], views.fold[kept], views.original[kept])


def scores_of(views: Views, test: torch.Tensor) -> tuple[np.ndarray, list[torch.Tensor], int]:
    """Image scores of what was taken for good, each by others; maps of it and of test images; how many it is."""
    statistics, own = fit_statistics(views), views.values[views.original]
    folds = views.fold[views.original]
    distances = {
        "gaussians": torch.cat([statistics.distances(own[:, None], folds)[:, 0], statistics.of_all().distance(test)]),
        "memory": torch.cat([distances_by_others(views, own, folds), remember(views).distance(test)]),
    }
    side = round(own.shape[1] ** 0.5)
    maps = {name: one.view(-1, 1, side, side) for name, one in distances.items()}
    fine = sum(
        weight * standardised(smoothed(distances[name], BLUR), len(own))
        for name, weight in (("gaussians", 2 / 3), ("memory", 1 / 3))
    )
    cells = torch.nn.functional.adaptive_avg_pool2d(fine[: len(own)], 32).flatten(1)
    scores = cells.topk(TOP, dim=1).values.mean(dim=1).numpy()
    return scores, [maps["gaussians"], maps["gaussians"], maps["memory"]], len(own)


def main() -> None:
    """Prints a row a category and part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the backbone sees of images")
    parser.add_argument("--features", default="tf_efficientnet_lite2-256")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.categories:
        _, _, defective, masks = read_category(name, arguments.data)
        good, (_, _, test) = appearance_of(name, arguments.data, arguments.features, arguments.cache)
        test, images = test[:, 0], int(good.original.sum())
        copies = len(good.values) // images - 1
        for part in (0.05, 0.1):
            found, wrongly, measured = [], [], []
            for seed in range(DRAWS):
                count = round(part * images)
                chosen = np.random.default_rng(seed).choice(np.flatnonzero(defective), count, replace=False)
                rest = np.setdiff1d(np.arange(len(test)), chosen)
                views = mixed_views(good, copies, test[chosen], seed)
                scores, maps, taken = scores_of(views, test[rest])
                named = deviations(scores) > UNLIKE
                found.append(100 * named[images:].mean())
                wrongly.append(int(named[:images].sum()))
                truth = None if masks is None else masks[rest]
                clean, cleaned = (scores_of(one, test[rest]) for one in (good, without(views, copies, named)))
                for _, some, number in (clean, (scores, maps, taken), cleaned):
                    row = figures(some, number, defective[rest], truth)
                    measured.append([row["image_auroc"], row["pro"]])
            means = np.array(measured).reshape(DRAWS, 3, 2).mean(axis=0)
            shown = [f"{auroc:.1f} / {pro:.1f}" for auroc, pro in means]
            rows.append([name, f"{100 * part:.0f} %", f"{np.mean(found):.0f} %", f"{np.mean(wrongly):.1f}", *shown])
            heads = ["", "defective", "of them named", "good ones named", "clean", "with them", "without the named"]
            print(table(heads, rows), flush=True)


if __name__ == "__main__":
    main()
