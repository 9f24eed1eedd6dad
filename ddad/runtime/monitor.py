"""What has changed on a line: parts, light, focus or material, told apart by how pictures were taken.

Every quantity is looked through for the moment at which its mean steps most clearly (a single change of mean,
"Detection of Abrupt Changes", Basseville and Nikiforov, 1993, section 2.6), in units of what differs from one picture
to the next. More defects move the share of parts that fail; a lamp, a lens or a new material move pictures as a whole.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddad.runtime.results import Kept

# So many pictures on either side of a change; fewer tell nothing.
LEAST_PICTURES = 20
# A change stands out by so many standard errors: many moments are looked at.
CLEAR = 4.5
# And it must matter: relative changes of brightness and sharpness, the distance in what it differs by from picture to
# picture, the share of parts that fail in parts of one.
LEAST_CHANGE = {"brightness": 0.03, "sharpness": 0.1, "distance": 1.0, "failing": 0.03}


@dataclass(frozen=True)
class Change:
    """A quantity that is another since a moment.

    Attributes:
        name: brightness, sharpness, distance or failing.
        since: the date of the first picture after it.
        before, after: its means.
    """

    name: str
    since: datetime.datetime
    before: float
    after: float

    @property
    def rises(self) -> bool:
        """Whether it is larger now."""
        return self.after > self.before


def find_step(values: np.ndarray, least: int = LEAST_PICTURES) -> tuple[int, float]:
    """Where the mean of a series steps most clearly, and by how many standard errors; (0, 0) of too few values.

    Of zeros and ones it is their share that steps.

    Args:
        values: `[N]`, in order.
        least: values on either side.
    """
    count = len(values)
    if count < 2 * least:
        return 0, 0.0
    places = np.arange(least, count - least + 1)
    sums = np.cumsum(values)
    before, after = sums[places - 1] / places, (sums[-1] - sums[places - 1]) / (count - places)
    if set(np.unique(values)) <= {0.0, 1.0}:  # shares: the root of twice the gain in log likelihood
        gain = count * entropy(sums[-1] / count) - places * entropy(before) - (count - places) * entropy(after)
        clear = np.sqrt(2 * np.maximum(gain, 0))
        return int(places[clear.argmax()]), float(clear.max())
    # From one to the next they differ by noise alone, whatever steps there are.
    noise = float(np.diff(values).std()) / np.sqrt(2)
    clear = np.abs(after - before) / (max(noise, 1e-9) * np.sqrt(1 / places + 1 / (count - places)))
    best = int(clear.argmax())
    return int(places[best]), float(clear[best])


def entropy(share: np.ndarray) -> np.ndarray:
    """Of a yes or no, in nats."""
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return -share * np.log(share) - (1 - share) * np.log(1 - share)


def find_changes(results: Sequence[Kept]) -> dict[str, Change]:
    """What has changed, by name."""
    read = [one for one in results if one.record.is_anomalous is not None]
    series: dict[str, list[tuple[datetime.datetime, float]]] = {
        "failing": [(one.date, float(bool(one.record.is_anomalous))) for one in read]
    }
    for name in ("brightness", "sharpness", "distance"):
        series[name] = [
            (one.date, getattr(one.record.condition, name)) for one in read if one.record.condition is not None
        ]
    changes = {}
    for name, pairs in series.items():
        values = np.array([value for _, value in pairs])
        place, clear = find_step(values)
        if clear < CLEAR:
            continue
        before, after = float(values[:place].mean()), float(values[place:].mean())
        size = abs(after - before)
        if name in ("brightness", "sharpness"):
            size /= max(abs(before), 1e-9)
        elif name == "distance":
            size /= max(float(values[:place].std()), 1e-9)
        if size >= LEAST_CHANGE[name]:
            changes[name] = Change(name, pairs[place][0], before, after)
    return changes


def share_failing(results: Sequence[Kept]) -> float:
    """The part of the images that were called defective; 0 without any."""
    verdicts = [bool(one.record.is_anomalous) for one in results if one.record.is_anomalous is not None]
    return float(np.mean(verdicts)) if verdicts else 0.0


def describe_changes(results: Sequence[Kept]) -> list[str]:
    """What has changed, why that may be, and what to do, in sentences."""
    inspected = [one for one in results if one.record.is_anomalous is not None]
    if len(inspected) < 2 * LEAST_PICTURES:
        return [f"{len(inspected)} pictures are too few to tell a change: {2 * LEAST_PICTURES} at least are needed."]
    changes = find_changes(inspected)
    sentences = []
    light, focus, distance = (changes.get(name) for name in ("brightness", "sharpness", "distance"))
    if light is not None:
        percent = 100 * abs(light.after / max(light.before, 1e-9) - 1)
        what = "brighter" if light.rises else "darker"
        advice = "Look at lamp and exposure" if light.rises else "Clean or renew the lamp"
        sentences.append(
            f"Pictures have become {what} by {percent:.0f} % since {moment(light.since)}; {failing(inspected, light)}"
            f" {advice}, or calibrate again."
        )
    if focus is not None:
        percent = 100 * abs(focus.after / max(focus.before, 1e-9) - 1)
        if focus.rises:
            why = "Noise of the sensor or another setting of the camera does that: compare pictures."
        else:
            why = "Look at focus, lens and vibration."
        what = "sharper or noisier" if focus.rises else "less sharp"
        sentences.append(
            f"Pictures have become {what} by {percent:.0f} % since {moment(focus.since)}; {failing(inspected, focus)}"
            f" {why}"
        )
    if distance is not None and distance.rises and not sentences:
        sentences.append(
            f"Parts look different all over since {moment(distance.since)}, as bright and as sharp as before;"
            f" {failing(inspected, distance)} A new batch of material, another colour or another part does that: if"
            " such parts are good, calibrate again with them."
        )
    share = changes.get("failing")
    if share is not None and not sentences:
        sentences.append(
            f"{100 * share.after:.1f} % instead of {100 * share.before:.1f} % of parts fail since"
            f" {moment(share.since)}, and pictures are as they were: {'more' if share.rises else 'fewer'} parts are"
            f" defective.{' Look at them.' if share.rises else ''}"
        )
    if not sentences:
        measured = sum(one.record.condition is not None for one in inspected)
        known = "" if measured else " Light and focus were not measured: these results are of an earlier version."
        sentences.append(
            f"Nothing has changed: {100 * share_failing(inspected):.1f} % of {len(inspected):,} parts fail.{known}"
        )
    return sentences


def failing(results: Sequence[Kept], change: Change) -> str:
    """How many fail after a change and before it."""
    before, after = (
        share_failing([one for one in results if (one.date >= change.since) is later]) for later in (False, True)
    )
    return f"{100 * after:.1f} % instead of {100 * before:.1f} % of parts fail."


def moment(date: datetime.datetime) -> str:
    """A date for people."""
    return date.strftime("%A %Y-%m-%d %H:%M")


@dataclass(frozen=True)
class Period:
    """An hour, a day, or so many pictures.

    Attributes:
        name: of it.
        count: pictures that were inspected.
        failing: the part of them that was called defective.
        scores: median and 95 % quantile of the image scores.
        condition: mean brightness, sharpness and distance; None where they were not measured.
    """

    name: str
    count: int
    failing: float
    scores: tuple[float, float]
    condition: tuple[float, float, float] | None


def by_period(results: Sequence[Kept], by: str) -> list[Period]:
    """The results by `hour` or `day`, or by so many pictures each; `auto` takes what gives some dozen at most."""
    inspected = [one for one in results if one.record.image_score is not None]
    if by == "auto":
        span = (inspected[-1].date - inspected[0].date).total_seconds() if inspected else 0
        by = "day" if span > 4 * 86400 else "hour" if span > 2 * 3600 else str(max(1, -(-len(inspected) // 12)))
    groups: dict[str, list[Kept]] = {}
    for number, one in enumerate(inspected):
        if by.isdecimal() and int(by) > 0:
            first = number // int(by) * int(by)
            name = f"{first + 1} to {min(first + int(by), len(inspected))}"
        elif by in ("hour", "day"):
            name = one.date.strftime("%Y-%m-%d %H:00" if by == "hour" else "%Y-%m-%d")
        else:
            raise ValueError(f"`by` must be hour, day, or how many pictures, found {by!r}.")
        groups.setdefault(name, []).append(one)
    return [period_of(name, group) for name, group in groups.items()]


def period_of(name: str, group: Sequence[Kept]) -> Period:
    """What is said of one."""
    scores = [one.record.image_score for one in group if one.record.image_score is not None]
    conditions = [one.record.condition for one in group if one.record.condition is not None]
    means = (
        [np.mean([getattr(one, what) for one in conditions]) for what in ("brightness", "sharpness", "distance")]
        if (conditions)
        else []
    )
    low, high = np.quantile(scores, (0.5, 0.95))
    return Period(
        name,
        len(group),
        share_failing(group),
        (float(low), float(high)),
        (float(means[0]), float(means[1]), float(means[2])) if means else None,
    )
