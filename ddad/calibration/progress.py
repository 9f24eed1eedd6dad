"""How far a long work is: a bar in the terminal, and a word to whoever else waits for it."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

# Called with what is being done, how many are done, and how many there are; what it raises ends the work.
Report = Callable[[str, int, int], None]


def track(
    items: Sequence[Item], description: str, report: Report | None = None, unit: str = "image"
) -> Iterator[Item]:
    """The items one after the other; after each the bar moves and `report` is called."""
    for number, item in enumerate(tqdm(items, desc=description, mininterval=1, unit=unit), start=1):
        yield item
        if report is not None:
            report(description, number, len(items))


class Journal:
    """A report that is written down, for whoever watches from another process: lines of JSON, one a second at most.

    A line holds `what` is being done, `done` of `count`, the seconds `left` of it (None at first), and other values.

    Args:
        path: of the file, which grows.
    """

    def __init__(self, path: Path):
        self.path, self._what, self._begun, self._started, self._last = path, "", 0, 0.0, 0.0

    def __call__(self, what: str, done: int, count: int, **values: float) -> None:
        """Writes a line, unless one was written less than a second ago and the work is not done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._begun, self._started = what, done, now
        elif now - self._last < 1 and done < count:
            return
        self._last = now
        left = (now - self._started) * (count - done) / (done - self._begun) if done > self._begun else None
        line = {"what": what, "done": done, "count": count, "left": left and round(left, 1), **values}
        with contextlib.suppress(OSError):  # no hours of work end because nobody can watch them
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
