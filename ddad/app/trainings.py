"""Trainings of visitors' own parts: `ddad train` in a process that outlives the page, and what stands in its folder.

A part's folder holds its photographs, the output of `ddad train`, how far it is, the saved state and in the end the
checkpoint. The page reads there, also after a restart.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddad.app.categories import readable
from ddad.app.sources import open_all
from ddad.app.uploads import refusal
from ddad.app.words import as_text
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.loading import load_weights
from ddad.checkpoint.names import AVERAGE_NAME, PROGRESS_NAME, STATE_FOLDER, kept_below
from ddad.unet_ddad import DDADUNet2DModel

TITLE = "Nothing is trained"
FIELDS = ("what", "done", "count", "left")  # of a line of `Journal`; the others are losses
SAVE_EVERY = 100
READ_BYTES = 400_000
STOP_SECONDS = 60.0

State = Literal["running", "unfinished", "finished"]


def parts_folder() -> Path:
    """Where trainings lie."""
    return kept_below("parts")


@dataclass(frozen=True)
class Glance:
    """How far a training is.

    Attributes:
        state: `running`, `unfinished` or `finished`.
        what: what is being done.
        done, count: steps.
        left: the seconds that still takes; None at first.
        losses: of the steps seen, as in a training record.
        last: the last line of the output that is no progress bar.
    """

    state: State
    what: str
    done: int
    count: int
    left: float | None
    losses: list[dict[str, Any]]
    last: str


def read_end(path: Path) -> str:
    """The end of a text that grows; nothing of one that is not there yet."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - READ_BYTES))
        return file.read().decode("utf-8", errors="replace")


class Training:
    """One part's folder.

    Args:
        folder: it; made by `create`.
    """

    # Processes that this page has started: a child that ended must be asked for, or it stays in the list for ever.
    _children: dict[Path, subprocess.Popen] = {}  # noqa: RUF012 - one for all

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.photographs, self.output = folder / "good", folder / "checkpoint"
        self.average = self.output / STATE_FOLDER / AVERAGE_NAME
        self.progress = self.output / PROGRESS_NAME
        self.log, self.pid = folder / "train.log", folder / "pid"

    @classmethod
    def create(cls, name: str, files: Sequence[str]) -> "Training":
        """Copies the photographs into a folder of the part's own.

        Args:
            name: of the part.
            files: photographs and zips of them, that were fitted.
        """
        folder, number = parts_folder() / name, 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{name}_{number}")
        training = cls(folder)
        training.photographs.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            count = 0
            for source in open_all(list(files), Path(scratch)):  # what comes from a zip is gone with the next
                if source.path is not None:
                    count += 1  # under names that say nothing
                    shutil.copy(source.path, training.photographs / f"{count:04d}{source.path.suffix.lower()}")
        return training

    @staticmethod
    def every() -> list["Training"]:
        """All that there are, by name."""
        return [Training(path.parent) for path in sorted(parts_folder().glob("*/good"))]

    @property
    def command(self) -> list[str]:
        """What is run, and goes on where it ended."""
        train = [sys.executable, "-m", "ddad.cli", "train", "--data", str(self.photographs)]
        return [*train, "--output", str(self.output), "--category", self.name, "--save-every", str(SAVE_EVERY)]

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        child = self._children.get(self.folder)
        if child is not None:
            return child.poll() is None
        try:
            number = int(self.pid.read_text(encoding="utf-8"))
            os.kill(number, 0)
        except (OSError, ValueError):
            return False
        command = Path(f"/proc/{number}/cmdline")  # the number may be another's by now
        return not command.is_file() or str(self.output).encode() in command.read_bytes()

    @property
    def state(self) -> State:
        """How it stands."""
        if self.is_running:
            return "running"
        return "finished" if (self.output / DDADPipeline.config_name).is_file() else "unfinished"

    def start(self) -> str:
        """Starts `ddad train`, or goes on with it; it runs on when the page ends. Returns the part's name.

        Raises:
            gr.Error: if one is running: two would be slower than one after the other.
        """
        running = next((one.name for one in self.every() if one.is_running), None)
        if running is not None:
            raise refusal(f"{readable(running)} is being trained: wait for it, or stop it first.", TITLE)
        with self.log.open("ab") as log:
            child = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._children[self.folder] = child
        self.pid.write_text(str(child.pid), encoding="utf-8")
        return self.name

    def stop(self) -> str:
        """Asks it to save and end, and waits until it has. Returns the part's name."""
        if not self.is_running:
            return self.name
        number = int(self.pid.read_text(encoding="utf-8"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while self.is_running and time.monotonic() < until:
            time.sleep(0.2)
        return self.name

    def glance(self) -> Glance:
        """How far it is, by what it writes down, and the last line that it printed."""
        now: dict[str, Any] = {"what": "Starting", "done": 0, "count": 0, "left": None}
        losses = {}
        for line in read_end(self.progress).splitlines():
            with contextlib.suppress(ValueError):  # cut off by `read_end`, or half written
                now = json.loads(line)
                values = {name: value for name, value in now.items() if name not in FIELDS}
                if values:
                    losses[now["done"]] = {"step": now["done"], **values}
        said = [line.strip() for line in re.split(r"[\r\n]+", read_end(self.log)) if line.strip()]
        last = next((line for line in reversed(said) if "%|" not in line), "")  # no bar of tqdm
        return Glance(self.state, *(now[name] for name in FIELDS), [losses[step] for step in sorted(losses)], last)

    @property
    def saved_at(self) -> float:
        """When what it has learnt was last saved; 0 for never."""
        with contextlib.suppress(OSError):
            return self.average.stat().st_mtime
        return 0.0

    def load_average(self) -> DDADUNet2DModel | None:
        """What it has learnt so far; None before it has saved, and while it saves."""
        try:
            unet = load_weights(DDADUNet2DModel, self.average)
        except (OSError, ValueError):
            return None
        return unet.float().requires_grad_(False).eval()


def time_left(seconds: float) -> str:
    """`42 s`, `18 min` or `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def describe(training: Training, glance: Glance) -> str:
    """How far it is, in words."""
    name = as_text(readable(training.name))
    if glance.state == "finished":
        return f"### ✓ {name} has a network of its own\n\nPress *Open*: it is chosen above then."
    if glance.state == "unfinished":
        why = f"\n\n{as_text(glance.last)}" if glance.last else ""
        return f"### {name} is not finished\n\nPress *Go on*.{why}"
    of = f" {glance.done} of {glance.count}" if glance.count else ""
    left = "" if glance.left is None else f", {time_left(glance.left)} left of this"
    loss = ""
    if glance.losses and glance.what == "Training":
        loss = "; loss: " + ", ".join(
            f"{key} {value:.3f}" for key, value in glance.losses[-1].items() if key != "step"
        )
    return (
        f"### {name}: {as_text(glance.what.lower())}{of}{left}{loss}\n\nIt goes on when this page is closed, and uses"
        " all processors: other things take longer meanwhile."
    )
