"""What a checkpoint finds on a test set: every score side by side, by kind of defect and in all."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddad.datasets.layouts import Dataset, Sample, read_mask
from ddad.datasets.splitting import count_seen
from ddad.evaluation import metrics
from ddad.evaluation.baselines import Baselines
from ddad.evaluation.nuisance import describe_nuisances
from ddad.evaluation.scoring import ScoredImages, score_images
from ddad.pipeline import DDADPipeline
from ddad.report.markdown import table

COLUMNS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro", "pro_5", "aupimo")
# What a threshold of each tolerance makes room for.
ROOM = {"strict": "photographs as they are", "tolerant": "other light, focus and position"}


def percent(value: float) -> float:
    """A part in percent, with two digits."""
    return round(100 * float(value), 2)


def measure_images(good: np.ndarray, defective: np.ndarray) -> dict[str, float]:
    """Image metrics of scores, in percent."""
    return {
        "image_auroc": percent(metrics.auroc(good, defective)),
        "image_ap": percent(metrics.average_precision(good, defective)),
    }


def measure_pixels(maps: np.ndarray, masks: np.ndarray, inside: np.ndarray | None = None) -> dict[str, float]:
    """Pixel and region metrics of maps, in percent; AUPIMO is the mean over images. Pixels `inside` count."""
    curves = metrics.pixel_curves(maps, masks, inside)
    measured = {
        "pixel_auroc": percent(curves.auroc),
        "pixel_ap": percent(curves.average_precision),
        "pro": percent(curves.pro(0.3)),
        "pro_5": percent(curves.pro(0.05)),
    }
    if (~masks.any(axis=(1, 2))).any():
        measured["aupimo"] = percent(metrics.aupimo(maps, masks, inside=inside).mean())
    return measured


def measure(
    maps: np.ndarray | None,
    scores: np.ndarray,
    samples: list[Sample],
    masks: np.ndarray | None,
    inside: np.ndarray | None = None,
) -> dict[str, float]:
    """All metrics of one form of score, in percent.

    Args:
        maps: `[N, S, S]`; None without pixel metrics.
        scores: `[N]`.
        samples: the N images.
        masks: ground truth `[N, S, S]` bool; None without pixel metrics. Defective images without a mask count for
            images alone: their masks are empty.
        inside: the pixels that count, `[S, S]` bool; None for all.
    """
    defective = np.array([sample.defective for sample in samples])
    measured = measure_images(scores[~defective], scores[defective])
    if maps is not None and masks is not None:
        known = ~defective | masks.any(axis=(1, 2))
        measured |= measure_pixels(maps[known], masks[known], inside)
    return measured


def read_masks(samples: list[Sample], size: int) -> np.ndarray | None:
    """Ground truth at the model's size, `[N, size, size]` bool; None if no image has any."""
    if not any(sample.mask for sample in samples):
        return None
    empty = np.zeros((size, size), dtype=bool)
    return np.stack(
        [empty if sample.defective and not sample.mask else read_mask(sample, (size, size)) for sample in samples]
    )


def leave_out_broken(pipe: DDADPipeline, dataset: Dataset) -> tuple[Dataset, dict[str, str]]:
    """The data set without the images and masks that cannot be read, and what is wrong with each, by file name."""
    errors: dict[Path, str] = {}
    for sample in dataset.samples:
        try:
            pipe.image_processor.read_image(sample.path)
            if sample.mask:
                read_mask(sample, (8, 8))
        except ValueError as error:
            errors[sample.path] = str(error)
    kept = tuple(sample for sample in dataset.samples if sample.path not in errors)
    return replace(dataset, samples=kept), {path.name: text for path, text in errors.items()}


def labelled(dataset: Dataset) -> tuple[list[Sample], np.ndarray]:
    """A data set's test images, and which of them are defective, `[N]` bool.

    Raises:
        ValueError: if there are no good or no defective images.
    """
    samples = dataset.select("test")
    defective = np.array([sample.defective for sample in samples], dtype=bool)
    if not defective.any() or defective.all():
        raise ValueError(
            f"Good and defective test images are needed, found {int((~defective).sum())} and {int(defective.sum())}."
        )
    return samples, defective


def evaluate(pipe: DDADPipeline, dataset: Dataset) -> tuple[dict[str, Any], ScoredImages, np.ndarray | None]:
    """Measures every form of score on the test images of a data set, and the baselines where good images train.

    Returns:
        The measurements, in percent where they are parts; maps and scores of all test images; their masks.

    Raises:
        ValueError: if there are no good or no defective images.
    """
    samples, defective = labelled(dataset)
    masks, own = read_masks(samples, pipe.unet.config.sample_size), pipe.inside
    inside = None if own is None else own[0, 0].numpy() > 0
    if masks is not None and inside is not None:
        masks = masks & inside
    baselines = Baselines.of(pipe, dataset.train_paths) if len(dataset.train_paths) > 1 else None
    scored = score_images(pipe, [sample.path for sample in samples], baselines)
    combined, threshold = scored.scores["combined"], pipe.threshold
    best, best_threshold = metrics.best_f1(combined[~defective], combined[defective])
    verdicts = asdict(metrics.judge(combined[~defective], combined[defective], threshold))
    report: dict[str, Any] = {
        "data": dataset.name,
        "good_images": int((~defective).sum()),
        "good_images_seen": count_seen(dataset),
        "defective_images": int(defective.sum()),
        "masks": 0 if masks is None else int(masks.any(axis=(1, 2)).sum()),
        "scores": {
            name: measure(scored.maps[name], scored.scores[name], samples, masks, inside) for name in scored.scores
        },
        "threshold": round(threshold, 4),
        "at_threshold": {
            name: value if isinstance(value, int) else percent(value) for name, value in verdicts.items()
        },
        "best_f1": percent(best),
        "best_f1_threshold": round(best_threshold, 4),
        "tolerances": at_tolerances(pipe, combined[~defective], combined[defective]),
        "defects": {},
    }
    for kind in sorted({sample.defect for sample in samples if sample.defective}):
        chosen = np.array([sample.defect in ("good", kind) for sample in samples])
        of_kind = [sample for sample in samples if sample.defect in ("good", kind)]
        detected = combined[np.array([sample.defect == kind for sample in samples])] > threshold
        row = {"images": int(detected.size), "detected": int(detected.sum())}
        kind_masks = masks[chosen] if masks is not None and masks[chosen].any() else None
        measured = measure(scored.maps["combined"][chosen], combined[chosen], of_kind, kind_masks, inside)
        report["defects"][kind] = row | measured
    return report, scored, masks


def at_tolerances(pipe: DDADPipeline, good: np.ndarray, defective: np.ndarray) -> dict[str, dict[str, float | int]]:
    """For each tolerance that is known its threshold, and how many good and defective images lie above it."""
    found = {}
    for name in pipe.calibration.known_tolerances:
        threshold = pipe.calibration.threshold(pipe.judgement(tolerance=name))
        found[name] = {
            "threshold": round(threshold, 4),
            "detected": int((defective > threshold).sum()),
            "false_alarms": int((good > threshold).sum()),
        }
    return found


def format_tables(report: dict[str, Any]) -> str:
    """The measurements as two tables in Markdown, by score and by kind of defect, and a sentence on the threshold."""
    columns = [name for name in COLUMNS if name in report["scores"]["combined"]]
    heads = [name.replace("_", " ").replace("auroc", "AUROC").replace("pro", "PRO") for name in columns]
    by_score = [[form, *(f"{values[name]:.1f}" for name in columns)] for form, values in report["scores"].items()]
    by_kind = [
        [
            kind,
            str(values["images"]),
            str(values["detected"]),
            *(f"{values[name]:.1f}" if name in values else "" for name in columns),
        ]
        for kind, values in report["defects"].items()
    ]
    at = report["at_threshold"]
    lines = [
        table(["score", *heads], by_score),
        "",
        table(["defect (combined score)", "images", "found", *heads], by_kind),
        "",
        f"At the stored threshold {report['threshold']:.2f} {at['detected']} of {report['defective_images']} defective"
        f" images are found and {at['false_alarms']} of {report['good_images']} good ones called defective: F1"
        f" {at['f1']:.1f}. The best F1 that any threshold has on these images is {report['best_f1']:.1f}.",
        f"{report['good_images_seen']} of the good images show a part that trains: `ddad split` makes a test without.",
    ]
    for name, other in report["tolerances"].items():
        lines.append(
            f"With room for {ROOM[name]} ({name}) the threshold is {other['threshold']:.2f}: {other['detected']}"
            f" found, {other['false_alarms']} good ones called defective."
        )
    if "nuisances" in report:
        lines += ["", describe_nuisances(report["nuisances"])]
    return "\n".join(lines)
