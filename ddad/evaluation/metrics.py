"""Metrics as pure functions."""

import numpy as np
from scipy import stats


def auroc(good: np.ndarray, defective: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a defective image scores above a good one, ties counting half.

    Args:
        good: scores of good images, `[N]`.
        defective: scores of defective images, `[M]`.

    Raises:
        ValueError: if one side is empty or a score is not finite.
    """
    good, defective = np.asarray(good, dtype=np.float64), np.asarray(defective, dtype=np.float64)
    if good.size == 0 or defective.size == 0:
        raise ValueError(f"AUROC needs good and defective images, found {good.size} and {defective.size}.")
    if not (np.isfinite(good).all() and np.isfinite(defective).all()):
        raise ValueError("AUROC needs finite scores.")
    # The Mann-Whitney statistic counts the pairs in order.
    return float(stats.mannwhitneyu(defective, good, method="asymptotic").statistic / (good.size * defective.size))
