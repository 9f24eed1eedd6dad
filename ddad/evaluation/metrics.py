"""Metrics as pure functions: of images by their scores, of pixels by their maps, of regions by overlap."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class Verdicts:
    """What a threshold makes of scores. Rates lie in [0, 1].

    Attributes:
        false_alarms: good images above the threshold.
        detected: defective images above it.
        false_alarm_rate: the part of good images that is called defective.
        recall: the part of defective images that is found.
        f1: 2 TP / (2 TP + FP + FN).
    """

    false_alarms: int
    detected: int
    false_alarm_rate: float
    recall: float
    f1: float


def _check(good: np.ndarray, defective: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    good, defective = np.asarray(good, dtype=np.float64), np.asarray(defective, dtype=np.float64)
    if good.size == 0 or defective.size == 0:
        raise ValueError(f"{what} needs good and defective images, found {good.size} and {defective.size}.")
    if not (np.isfinite(good).all() and np.isfinite(defective).all()):
        raise ValueError(f"{what} needs finite scores.")
    return good, defective


def _ranking(good: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.concatenate([np.zeros(good.size, dtype=bool), np.ones(defective.size, dtype=bool)])
    return labels, np.concatenate([good.ravel(), defective.ravel()])


# ------------------------------------------------------------------------------------------------------------ images


def auroc(good: np.ndarray, defective: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a defective image scores above a good one, ties counting half.

    Args:
        good: scores of good images, `[N]`.
        defective: scores of defective images, `[M]`.

    Raises:
        ValueError: if one side is empty or a score is not finite.
    """
    return float(roc_auc_score(*_ranking(*_check(good, defective, "AUROC"))))


def average_precision(good: np.ndarray, defective: np.ndarray) -> float:
    """Area under the precision-recall curve, summed over its steps; see `auroc`. It depends on how many are good."""
    return float(average_precision_score(*_ranking(*_check(good, defective, "Average precision"))))


def best_f1(good: np.ndarray, defective: np.ndarray) -> tuple[float, float]:
    """The highest F1 of any threshold, and that threshold (a score at or above it is called defective).

    It is chosen with the labels at hand: what could be had, not what a user gets; see `judge`.
    """
    precision, recall, thresholds = precision_recall_curve(*_ranking(*_check(good, defective, "F1")))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


def judge(good: np.ndarray, defective: np.ndarray, threshold: float) -> Verdicts:
    """What a threshold that was chosen before makes of the scores: above it is defective."""
    good, defective = _check(good, defective, "A verdict")
    alarms, detected = int((good > threshold).sum()), int((defective > threshold).sum())
    return Verdicts(
        false_alarms=alarms,
        detected=detected,
        false_alarm_rate=alarms / good.size,
        recall=detected / defective.size,
        f1=2 * detected / (detected + alarms + defective.size),
    )


# ------------------------------------------------------------------------------------------------------------ pixels


def _check_maps(maps: np.ndarray, masks: np.ndarray) -> None:
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"Maps and masks must be `[N, H, W]` alike, found {maps.shape} and {masks.shape}.")
    if not masks.any() or masks.all():
        raise ValueError("Pixel metrics need defective and normal pixels.")
    if not np.isfinite(maps).all():
        raise ValueError("Pixel metrics need finite maps.")


@dataclass(frozen=True)
class PixelCurves:
    """What every threshold finds, from the highest to the lowest, of all pixels of all images together.

    Attributes:
        false_positive_rate: the part of normal pixels above the threshold, ascending from 0 to 1, `[K]`.
        recall: the part of defective pixels above it, likewise.
        precision: the part of pixels above it that are defective; 1 at the first, where there are none.
        overlap: per-region overlap, ascending from 0 to 1: for each connected region of defective pixels the part of
            it that lies above, and then the mean over regions, so that a small region counts as much as a large one
            (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2; regions of eight
            neighbours as in their program).
    """

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    overlap: np.ndarray

    @property
    def auroc(self) -> float:
        """Area under the ROC curve of pixels."""
        return float(np.trapezoid(self.recall, self.false_positive_rate))

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve, summed over its steps."""
        return float(np.sum(np.diff(self.recall) * self.precision[1:]))

    def pro(self, limit: float = 0.3) -> float:
        """Mean per-region overlap at false-positive rates from 0 to `limit`; 0.3 in most papers."""
        return integrate_to(self.false_positive_rate, self.overlap, limit)


def pixel_curves(maps: np.ndarray, masks: np.ndarray, inside: np.ndarray | None = None) -> PixelCurves:
    """One sort of all pixels serves all thresholds and all pixel metrics.

    Args:
        maps: anomaly maps, `[N, H, W]`.
        masks: ground truth, `[N, H, W]` bool; all False for a good image.
        inside: the pixels that count, `[H, W]` bool; None for all.

    Returns:
        The curves, a point for each different value of the maps and one before them.

    Raises:
        ValueError: if shapes differ, no pixel or every pixel is defective, or a map is not finite.
    """
    if inside is not None:
        masks = masks & inside
    _check_maps(maps, masks)
    gains = np.zeros(masks.shape, dtype=np.float64)
    regions = 0
    for mask, gain in zip(masks, gains, strict=True):
        if not mask.any():
            continue
        labels, count = ndimage.label(mask, structure=EIGHT_NEIGHBOURS)
        regions += count
        sizes = np.bincount(labels.ravel())
        gain[mask] = 1 / sizes[labels[mask]]
    if inside is not None:
        maps, masks, gains = maps[:, inside], masks[:, inside], gains[:, inside]
    order = np.argsort(-maps.ravel())
    values = maps.ravel()[order]
    last = np.append(values[1:] != values[:-1], True)  # equal values pass a threshold together
    defective = masks.ravel()[order]
    true_positives, above = np.cumsum(defective)[last], np.flatnonzero(last) + 1
    overlap = np.cumsum(gains.ravel()[order])[last] / regions
    return PixelCurves(
        false_positive_rate=np.append(0.0, (above - true_positives) / (~masks).sum()),
        recall=np.append(0.0, true_positives / masks.sum()),
        precision=np.append(1.0, true_positives / above),
        overlap=np.append(0.0, overlap),
    )


def integrate_to(rates: np.ndarray, overlaps: np.ndarray, limit: float) -> float:
    """Mean height of a curve between 0 and `limit`, by trapezoids, the last one cut at the limit."""
    inside = rates < limit
    x = np.append(rates[inside], limit)
    y = np.append(overlaps[inside], np.interp(limit, rates, overlaps))
    return float(np.trapezoid(y, x) / limit)


def aupimo(
    maps: np.ndarray,
    masks: np.ndarray,
    lowest: float = 1e-5,
    highest: float = 1e-4,
    samples: int = 300,
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """AUPIMO of each defective image: the part of its defective pixels that is found where almost nothing is.

    For each image the mean recall over false-positive rates between `lowest` and `highest`, evenly in their logarithm.
    The rates are those of the good images alone, their mean over images (Bertoldo et al., "AUPIMO: Redefining Visual
    Anomaly Detection Benchmarks with High Speed and Low Tolerance", 2024, section 3).

    Args:
        maps: anomaly maps, `[N, H, W]`.
        masks: ground truth, `[N, H, W]` bool; all False for a good image.
        lowest: the lowest rate.
        highest: the highest rate.
        samples: rates between them.
        inside: the pixels that count, `[H, W]` bool; None for all.

    Returns:
        One value in [0, 1] for each image with a defective pixel, in their order.

    Raises:
        ValueError: if there are no good images, or too few pixels in them to tell such rates.
    """
    if inside is not None:
        maps, masks = maps[:, None, inside], masks[:, None, inside]
    _check_maps(maps, masks)
    defective = masks.any(axis=(1, 2))
    normal = np.sort(maps[~defective].ravel())
    if normal.size * highest < 1:
        raise ValueError(f"AUPIMO needs good images of at least {1 / highest:.0f} pixels, found {normal.size}.")
    rates = np.geomspace(lowest, highest, samples)
    # All images have the same number of pixels, so the mean of their rates is the rate of all pixels together.
    allowed = np.floor(rates * normal.size).astype(int)
    thresholds = normal[normal.size - 1 - allowed]
    result = []
    for map_, mask in zip(maps[defective], masks[defective], strict=True):
        values = np.sort(map_[mask])
        recall = 1 - np.searchsorted(values, thresholds, side="right") / values.size
        result.append(np.trapezoid(recall, np.log(rates)) / np.log(highest / lowest))
    return np.array(result)
