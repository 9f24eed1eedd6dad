"""Does a threshold keep its promise: `python -m benchmarks.thresholds CATEGORY ... --data ... --cache ...`.

Ten times the good images of a category are divided at random, look-alikes together: of seven tenths, or as many as
asked for, come statistics and threshold as `ddad fit` measures them; of the others it is counted how many lie above.
Beside it stands the interval that is promised for so many judges and so many images that are tried: nine of ten rates
should lie inside.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.evidence import Pictures, appearance_of
from ddad import DDADCalibration, DDADImageProcessor
from ddad.calibration.calibration import measured
from ddad.calibration.factors import Views
from ddad.calibration.fitting import assign_folds, fit_statistics
from ddad.calibration.observing import CalibrationConfig
from ddad.calibration.patches import distances_by_others, remember
from ddad.calibration.promise import simulate_rates
from ddad.commands.shared import parse_rate
from ddad.datasets.lookalikes import group_lookalikes, shrink_image, split_images
from ddad.report.markdown import table

SPLITS, SIZE = 10, 256


def promised(judges: int, tried: int, rate: float) -> tuple[float, float]:
    """The 90 % interval of the rate of `tried` good images above a threshold by `judges` scores, in percent."""
    found = np.random.default_rng(1).binomial(tried, simulate_rates(judges, rate)) / tried
    low, high = np.quantile(100 * found, (0.05, 0.95))
    return float(low), float(high)


def smoothed(distances: torch.Tensor, blur: float) -> torch.Tensor:
    """`[N, P]` -> maps `[N, 1, S, S]`."""
    side = round(distances.shape[-1] ** 0.5)
    return DDADImageProcessor.blur(DDADImageProcessor.resize(distances.view(-1, 1, side, side), (SIZE, SIZE)), blur)


def rate_of(
    values: torch.Tensor, groups: list[int], photographs: int, seed: int, rate: float, blur: float, cells: int
) -> list[float]:
    """One division: judges, images tried, and the part of these above the threshold, in percent."""
    numbers, copies = list(range(len(groups))), len(values) // len(groups) - 1
    trained, tried = split_images(numbers, groups, len(numbers) - photographs, seed)
    folds = torch.tensor(assign_folds([groups[i] for i in trained], [True] * len(trained)))
    by_image = values.unflatten(0, (len(numbers), 1 + copies))
    views = Views(
        by_image[trained].flatten(0, 1),
        folds.repeat_interleave(1 + copies),
        torch.arange(len(trained) * (1 + copies)) % (1 + copies) == 0,
    )
    statistics, own = fit_statistics(views), by_image[trained, 0]
    good = {
        "appearance": smoothed(statistics.distances(own[:, None], folds)[:, 0], blur),
        "memory": smoothed(distances_by_others(views, own, folds), blur),
    }
    others = {
        "appearance": smoothed(statistics.of_all().distance(by_image[tried, 0]), blur),
        "memory": smoothed(remember(views).distance(by_image[tried, 0]), blur),
    }
    calibration = measured(
        DDADCalibration((20,), num_top_cells=cells),
        {"kl": good["appearance"], "residual": good["appearance"]} | good,  # the U-Net's are not asked
    )
    judgement = calibration.judgement(0.0, (20,), None, "appearance")
    threshold = calibration.threshold(judgement, rate)
    fine = {name: calibration.standardise(name, one, (20,)) for name, one in others.items()}
    scores = calibration.image_score(calibration.combine("appearance", fine)[:, 0])
    assert threshold is not None
    return [len(trained), len(tried), 100 * int((scores > threshold).sum()) / len(tried)]


def main() -> None:
    """Prints a row a category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the backbone sees of images")
    parser.add_argument("--features", default="tf_efficientnet_lite2-512")
    parser.add_argument("--photographs", type=int, help="that fit and judge (default: seven tenths)")
    parser.add_argument("--rate", type=parse_rate, default=0.05, help="part of good images that may fail")
    parser.add_argument("--blur", type=float, default=2.0)
    parser.add_argument("--cells", type=int, default=4)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.categories:
        pictures = Pictures.read(name, arguments.data, SIZE, CalibrationConfig())
        groups = group_lookalikes(shrink_image(pictures.train[number]) for number in range(len(pictures.train)))
        views, _ = appearance_of(name, arguments.data, arguments.features, arguments.cache)
        photographs = arguments.photographs or round(0.7 * len(groups))
        found = []
        for seed in range(SPLITS):
            found.append(
                rate_of(views.values, groups, photographs, seed, arguments.rate, arguments.blur, arguments.cells)
            )
            print(name, *found[-1], flush=True)
        intervals = [promised(int(judges), int(tried), arguments.rate) for judges, tried, _ in found]
        inside = sum(low <= rate <= high for (low, high), (*_, rate) in zip(intervals, found, strict=True))
        rates = [rate for *_, rate in found]
        low, high = intervals[0]
        rows.append(
            [
                name,
                f"{found[0][0]:.0f} and {found[0][1]:.0f}",
                f"{low:.0f} to {high:.0f}",
                f"{np.mean(rates):.1f}",
                f"{min(rates):.0f} to {max(rates):.0f}",
                f"{inside} of {SPLITS}",
            ]
        )
        print(table(["", "judges and tried", "promised, %", "mean", "measured", "inside"], rows), flush=True)


if __name__ == "__main__":
    main()
