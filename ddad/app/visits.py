"""What the page remembers of its visitors: whose image is inspected now, and which settings they chose.

Every image that a visitor gives starts a run. A run that is no longer the visitor's newest is stopped, and nothing
that still arrives from it is shown: what stands on the page belongs to the image above it.
"""

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr

from ddad.app.inspection import Inspection
from ddad.runtime.results import Kept

MOST_VISITS = 1000
MOST_HELD = 20
_numbers = itertools.count(1)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A visitor pressed Stop, or gave another image."""


class Run:
    """The work for one image of one visitor.

    Attributes:
        number: no other run of this process has it.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the work at its next step."""
        self._stopped.set()

    def check(self) -> None:
        """To be called between the steps of the work.

        Raises:
            Stopped: if the run was stopped.
        """
        if self._stopped.is_set():
            raise Stopped

    # On ZeroGPU a run is handed to another process, which no click reaches.
    def __getstate__(self) -> int:
        return self.number

    def __setstate__(self, number: int) -> None:
        self.number, self._stopped = number, threading.Event()


@dataclass(frozen=True)
class Settings:
    """What a visitor chose for a category.

    Attributes:
        alpha: weight of the pixel score.
        timesteps: noise levels.
        tolerance: what a measured threshold has room for.
        threshold: None is the one measured on good parts for the others.
        false_alarms: the part of good parts that it lets fail; None is the category's own.
    """

    alpha: float
    timesteps: tuple[int, ...]
    tolerance: str
    threshold: float | None = None
    false_alarms: float | None = None

    @property
    def pixel_score(self) -> Literal["kl"] | None:
        """What `score` is to measure of the pixels, whatever the category itself weighs."""
        return "kl" if self.alpha > 0 else None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of a pipeline's call."""
        return {
            "alpha": self.alpha,
            "timesteps": list(self.timesteps),
            "tolerance": self.tolerance,
            "threshold": self.threshold,
            "false_alarms": self.false_alarms,
        }


@dataclass
class LineCounts:
    """What the line view has seen.

    Attributes:
        good, defective, wrong: how many verdicts there were, and how many of them the visitor called wrong.
        dropped: pictures of the camera that came while another was looked at.
        last: the newest verdict.
        busy: held while a picture is looked at.
    """

    good: int = 0
    defective: int = 0
    wrong: int = 0
    dropped: int = 0
    last: "Judged | None" = None
    busy: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Judged:
    """What was said of an image, and may be wrong.

    Attributes:
        path: the image.
        is_anomalous, image_score, threshold: the verdict.
    """

    path: str
    is_anomalous: bool
    image_score: float
    threshold: float


@dataclass
class Visit:
    """One visitor.

    Attributes:
        run: the newest run.
        moment: when the browser asked for it, by the browser's clock.
        category, path: what is inspected in it; no path where nothing is.
        inspection: its scores, once they are there.
        view: what the page shows of it, by component.
        settings: by category, what was chosen in this visit.
        opened: the places of the page that the visitor has opened, of those that are filled only for who looks.
        other: a calibration or a batch under way.
        judged: what was said of the newest run's image, once it was.
        note: what stands below the verdict on it.
        batch, rows: what was said of the images of the last batch by the number of their row, and its table's rows.
        results: of the same images, for a report.
        corrected: verdicts on several images that the visitor marked as wrong, by the image.
        line: what the line view has seen.
        originals: by the name of its preview, a file that browsers cannot show.
    """

    run: Run = field(default_factory=Run)
    moment: float = 0.0
    category: str = ""
    path: str | None = None
    inspection: Inspection | None = None
    view: dict[Any, Any] = field(default_factory=dict)
    settings: dict[str, Settings] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)
    other: Run = field(default_factory=Run)
    judged: Judged | None = None
    note: str = ""
    batch: dict[int, Judged] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)
    results: list[Kept] = field(default_factory=list)
    corrected: dict[str, Judged] = field(default_factory=dict)
    line: LineCounts = field(default_factory=LineCounts)
    originals: dict[str, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def begin(self, category: str, path: str | None, moment: float = 0.0) -> Run:
        """Stops the newest run and starts another.

        Args:
            category: what the image is inspected as.
            path: the image, or None for none.
            moment: when the browser asked for it. Requests are handled in threads, and one may overtake another.

        Raises:
            Stopped: if the browser has asked for something newer meanwhile.
        """
        with self.lock:
            self.advance(moment)
            self.run.stop()
            self.run = Run()
            self.category, self.path, self.inspection, self.view = category, path, None, {}
            self.judged, self.note = None, ""
            return self.run

    def again(self, moment: float) -> Run:
        """Starts another run for the same image.

        Raises:
            Stopped: as `begin`.
        """
        with self.lock:
            self.advance(moment)
            self.run.stop()
            self.run = Run()
            return self.run

    def advance(self, moment: float) -> None:
        """Takes note of a moment of the browser.

        Raises:
            Stopped: if a newer one was seen.
        """
        if moment < self.moment:
            raise Stopped
        self.moment = moment

    def toggle_wrong(self, judged: Judged) -> bool:
        """Marks a verdict as wrong, or no longer where it was; whether it is now."""
        if self.corrected.pop(judged.path, None) is not None:
            return False
        self.corrected[judged.path] = judged
        return True

    def begin_other(self) -> Run:
        """Stops a calibration or batch under way and starts another."""
        with self.lock:
            self.other.stop()
            self.other = Run()
            return self.other

    def show(self, run: Run, view: dict[Any, Any]) -> dict[Any, Any]:
        """What a run may show: all of it if the run is the newest, nothing otherwise."""
        with self.lock:
            if run is not self.run:
                return {component: gr.skip() for component in view}
            self.view.update(view)
            return view


class Visits:
    """The visitors by their browser's session; the longest unseen are forgotten."""

    def __init__(self, most: int = MOST_VISITS):
        self._most = most
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request | None) -> Visit:
        """The visit that a request belongs to; a fresh one for a request that names no session."""
        session = None if request is None else request.session_hash
        if session is None:
            return Visit()
        with self._lock:
            visit = self._visits.setdefault(session, Visit())
            self._visits.move_to_end(session)
            while len(self._visits) > self._most:
                self._visits.popitem(last=False)
            # What takes memory is kept of those who came last; it is computed again for who comes back.
            if len(self._visits) > MOST_HELD:
                idle = next(itertools.islice(reversed(self._visits.values()), MOST_HELD, None))
                idle.inspection, idle.view = None, {}
            return visit

    def end(self, request: gr.Request) -> None:
        """Forgets a visitor who has closed the page, and stops the work for them."""
        with self._lock:
            visit = self._visits.pop(request.session_hash or "", None)
        if visit is not None:
            visit.run.stop()
            visit.other.stop()
