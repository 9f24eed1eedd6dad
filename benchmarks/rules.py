"""Which rule chooses best: `python -m benchmarks.rules`, on the rows of `benchmarks.evidence`.

A setting is a score with its backbone, picture size, factors, blur and cells. A rule sees the synthetic figures of a
category and the real ones of *others*; its regret is what the best setting of the category measures on real defects
beyond the one that the rule takes, in points of image AUROC and PRO together (image AUROC twice without masks).
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats

from ddad.report.markdown import table

ROOT = Path(__file__).parent.parent
AXES = ("backbone", "size", "factors", "score", "blur", "cells")

Setting = tuple[str, ...]
PRODUCT: Setting = ("tf_efficientnet_lite2", "512", "True", "appearance", "2.0", "4")
Merits = dict[str, dict[Setting, float]]


def read(path: Path) -> tuple[Merits, Merits]:
    """Real and synthetic merit of every setting, by category."""
    real: Merits = defaultdict(dict)
    made: Merits = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            setting = tuple(row[axis] for axis in AXES)
            image, pro = float(row["real_image_auroc"]), float(row["real_pro"])
            real[row["category"]][setting] = image + (image if np.isnan(pro) else pro)
            made[row["category"]][setting] = float(row["synthetic_image_auroc"]) + float(row["synthetic_pro"])
    return dict(real), dict(made)


def prior(real: Merits, without: str, allowed: Callable[[Setting], bool] = lambda _: True) -> Setting:
    """The setting that is best on average over the other categories, each measured from its own best."""
    others = [name for name in real if name != without]
    common = set.intersection(*(set(real[name]) for name in others))
    losses = {
        setting: np.mean([max(real[name].values()) - real[name][setting] for name in others])
        for setting in common
        if allowed(setting)
    }
    return min(losses, key=lambda setting: (losses[setting], setting))


def unless_ahead(real: Merits, made: Merits, name: str, margin: float) -> Setting:
    """The prior, unless another setting is ahead of it on synthetic defects by more than a margin."""
    own = prior(real, name)
    best = max(made[name], key=lambda setting: made[name][setting])
    return best if made[name][best] > made[name].get(own, -np.inf) + margin else own


def only(score: str) -> Callable[[Setting], bool]:
    """Settings of one score."""
    return lambda setting: setting[AXES.index("score")] == score


def rules(real: Merits, made: Merits) -> dict[str, Callable[[str], Setting]]:
    """By name, the setting that a rule takes for a category."""
    scores = sorted({setting[AXES.index("score")] for settings in real.values() for setting in settings})
    found: dict[str, Callable[[str], Setting]] = {
        "best on synthetic defects": lambda name: max(made[name], key=lambda setting: made[name][setting]),
        "best of other categories": lambda name: prior(real, name),
    }
    for margin in (1.0, 2.0, 4.0, 8.0):
        found[f"that, unless {margin:.0f} behind on synthetic"] = lambda name, margin=margin: unless_ahead(
            real, made, name, margin
        )
    found["what the product takes"] = lambda _: PRODUCT
    for score in scores:
        found[f"always {score}, as of other categories"] = lambda name, score=score: prior(real, name, only(score))
    return found


def compare(path: Path) -> str:
    """Image AUROC / pixel AUROC / PRO of every score with the product's other settings, by category."""
    scores: dict[str, dict[str, str]] = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = [float(row[f"real_{name}"]) for name in ("image_auroc", "pixel_auroc", "pro")]
            if all(row[axis] == value for axis, value in zip(AXES, PRODUCT, strict=True) if axis != "score"):
                shown = " / ".join(f"{one:.1f}" for one in found if not np.isnan(one))
                scores[row["score"]][row["category"]] = shown
    names = sorted(next(iter(scores.values())))
    return table(["", *scores], [[name, *(one.get(name, "") for one in scores.values())] for name in names])


def main() -> None:
    """Prints how well synthetic figures rank settings, and every rule's regret."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROOT / "benchmarks" / "results" / "evidence.csv")
    path = parser.parse_args().rows
    print(compare(path), "\n")
    real, made = read(path)
    names = sorted(real)
    if len(names) < 3:
        raise SystemExit(
            "Rules are judged on categories that they have not seen: run benchmarks.evidence on three or more."
        )
    correlations = []
    for name in names:
        settings = sorted(real[name])
        values = [[merits[name][setting] for setting in settings] for merits in (made, real)]
        correlations.append(f"{scipy.stats.spearmanr(*values).statistic:.2f}")
    print(table(["", *names], [["rank correlation of synthetic and real merit", *correlations]]), "\n")
    rows = []
    for rule, choose in rules(real, made).items():
        regrets = [max(real[name].values()) - real[name][choose(name)] for name in names]
        rows.append([rule, f"{np.mean(regrets):.2f}", f"{max(regrets):.1f}", *(f"{one:.1f}" for one in regrets)])
    print(table(["rule", "mean regret", "largest", *names], rows))
    everywhere = prior(real, "")
    print("\nBest over all categories: " + ", ".join(f"{a} {v}" for a, v in zip(AXES, everywhere, strict=True)))


if __name__ == "__main__":
    main()
