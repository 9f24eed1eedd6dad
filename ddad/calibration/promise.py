"""What a threshold promises: which part of good parts to come it will call defective, and how sure that is."""

import functools
import math

import numpy as np
import scipy.stats

from ddad.calibration_ddad import FEW_SCORES, DDADCalibration

DRAWS = 4000
# Rates that are offered: the part of good parts that may fail.
RATES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)


@functools.cache
def simulate_rates(judges: int, rate: float) -> np.ndarray:
    """What really lies above thresholds that so many scores of good images give, of 4,000 draws, in [0, 1].

    Few scores are taken for normal, as `DDADCalibration.predictive_limit` does, more for ones of an exponential tail.
    A quantile means the same whatever their distribution.
    """
    law = scipy.stats.norm if judges < FEW_SCORES else scipy.stats.gumbel_r
    scores = law.ppf(np.random.default_rng(0).random((DRAWS, judges)))
    return np.asarray(law.sf(DDADCalibration.limit(scores, rate)))


def expect_false_alarms(judges: int, rate: float) -> tuple[float, float, float]:
    """Mean and 90 % interval of the part of further good images above a threshold, in percent."""
    rates = 100 * simulate_rates(judges, rate)
    low, high = np.quantile(rates, (0.05, 0.95))
    return round(float(rates.mean()), 1), round(float(low), 1), round(float(high), 1)


def photographs_missing(judges: int, rate: float) -> int:
    """How many more good photographs a rate needs: one of them at least is to lie above its threshold."""
    return max(0, math.ceil(round(1 / rate, 6)) - judges)


def promise(judges: int, rate: float) -> str:
    """The same in a sentence."""
    mean, low, high = expect_false_alarms(judges, rate)
    missing = photographs_missing(judges, rate)
    words = f"Of new good parts {low:g} to {high:g} % will be called defective, {mean:g} % in the mean (90 % interval)"
    if missing:
        return f"{words}; {missing} more good photographs are needed for {100 * rate:g} %."
    return f"{words}."
