"""What a threshold costs and buys: false alarms against defects found, and the one that costs least."""

from dataclasses import dataclass

import numpy as np

from ddad.calibration.progress import track
from ddad.calibration.promise import RATES, expect_false_alarms, photographs_missing
from ddad.datasets.layouts import Dataset
from ddad.evaluation.evaluate import labelled
from ddad.evaluation.metrics import judge
from ddad.pipeline import DDADPipeline
from ddad.report.markdown import table

# Between the lowest and the highest rate that are offered, so many are tried for the one that costs least.
TRIED = 60


@dataclass(frozen=True)
class LabelledScores:
    """Image scores of test images: of good ones `[N]` and of defective ones `[M]`."""

    good: np.ndarray
    defective: np.ndarray


def score_dataset(pipe: DDADPipeline, dataset: Dataset) -> LabelledScores:
    """The pipeline's scores of a data set's test images.

    Raises:
        ValueError: if there are no good or no defective ones.
    """
    samples, defective = labelled(dataset)
    paths = [sample.path for sample in samples]
    scores = np.array([pipe(path, denoise=False).image_score[0] for path in track(paths, "Scoring", None)])
    return LabelledScores(scores[~defective], scores[defective])


def trade_table(pipe: DDADPipeline, rates: list[float], scores: LabelledScores | None = None) -> str:
    """A row a rate: threshold, what is promised, what is missing for it, and what it does with labelled images."""
    calibration, judgement = pipe.calibration, pipe.judgement()
    judges, rows = calibration.config.num_calibration_images, []
    for rate in rates:
        threshold = calibration.threshold(judgement, rate)
        mean, low, high = expect_false_alarms(judges, rate)
        missing = photographs_missing(judges, rate)
        own = " (now)" if abs(rate - calibration.false_alarms) < 1e-9 else ""
        row = [f"{100 * rate:g} %{own}", f"{threshold:.2f}", f"{low:g} to {high:g} %, mean {mean:g} %"]
        row.append(f"{missing} more good photographs" if missing else "")
        if scores is not None:
            verdicts = judge(scores.good, scores.defective, threshold)
            row += [
                f"{verdicts.detected} of {len(scores.defective)}",
                f"{verdicts.false_alarms} of {len(scores.good)}",
            ]
        rows.append(row)
    headers = ["good parts that may fail", "threshold", "of new ones really (90 %)", "needed for it"]
    return table([*headers, *(["found", "false alarms"] if scores is not None else [])], rows)


def choose_by_cost(pipe: DDADPipeline, scores: LabelledScores, miss_costs: float, defects: float) -> str:
    """The threshold at which false alarms and misses cost least, in a sentence.

    The rate of false alarms is that which the threshold is made for, since test images are few; what is missed is
    counted on the defective ones.

    Args:
        pipe: the pipeline.
        scores: of labelled images.
        miss_costs: how many false alarms one miss costs.
        defects: the part of parts on the line that are defective, in (0, 1).

    Raises:
        ValueError: for a cost or part that is none.
    """
    if miss_costs <= 0 or not 0 < defects < 1:
        raise ValueError(f"A miss must cost something and 0 < defects < 1, found {miss_costs:g} and {defects:g}.")
    calibration, judgement = pipe.calibration, pipe.judgement()

    def cost(rate: float) -> tuple[float, float, float]:
        threshold = calibration.threshold(judgement, rate)
        missed = float((scores.defective <= threshold).mean())
        return 1000 * ((1 - defects) * rate + miss_costs * defects * missed), threshold, missed

    rates = np.geomspace(max(RATES), min(RATES), TRIED)
    best = min(rates, key=cost)
    total, threshold, missed = cost(best)
    return (
        f"Where a missed defect costs {miss_costs:g} false alarms and {100 * defects:g} % of parts are defective, a"
        f" threshold of {threshold:.2f} costs least: {100 * best:.1f} % false alarms, {100 * missed:.1f} % of defects"
        f" missed, {total:.1f} alarms' worth in a thousand parts (now {cost(calibration.false_alarms)[0]:.1f})."
    )
