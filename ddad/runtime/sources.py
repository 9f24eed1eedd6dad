"""Where a line's pictures come from: a folder in which they appear, or a camera."""

import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddad.runtime.journal import Journal, State
from ddad.runtime.pictures import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Arrival:
    """A picture that is to be inspected.

    Attributes:
        name: how it is called.
        image: its file's content, or its pixels as RGB `[H, W, 3]` uint8.
        state: of the file; None for a camera's picture.
        digest: of its content; likewise.
        final: whether it will not get better: a file that is still being written may look damaged.
    """

    name: str
    image: bytes | np.ndarray
    state: State | None = None
    digest: str | None = None
    final: bool = True


class Folder:
    """The pictures of a folder and those below it, each once it is whole.

    A file is whole when nobody has changed it between two looks. Files that are written under a name of their own and
    then renamed are known by their content.

    Args:
        folder: it.
        output: whose files are results.
        journal: what was inspected before.
        say: called with a sentence when the folder vanishes and when it is back.
        patience: seconds for which a damaged file that is young may still become whole.
    """

    ended = False

    def __init__(
        self, folder: Path, output: Path, journal: Journal, say: Callable[[str], None], patience: float = 10.0
    ):
        self.folder, self.output, self.journal = folder, output.resolve(), journal
        self.say, self.patience = say, patience
        self.waiting = 0
        self._known = journal.known()
        self._before: dict[str, State] = {}
        self._lost = False

    def look(self) -> Iterator[Arrival]:
        """What has become whole since the last look, the oldest first."""
        try:
            states = {state.path: state for state in self._scan()}
        except OSError as error:
            if not self._lost:
                self.say(f"{self.folder} cannot be read ({error.strerror or error}): waiting for it.")
            self._lost, self._before = True, {}
            return
        if self._lost:
            self.say(f"{self.folder} is back.")
        self._lost = False
        new = [state for state in states.values() if state not in self._known]
        ready = sorted(
            (state for state in new if self._before.get(state.path) == state),
            key=lambda state: (state.modified, state.path),
        )
        self._before = {state.path: state for state in new}
        self.waiting = len(new)
        for state in ready:
            self.waiting -= 1
            try:
                content = Path(state.path).read_bytes()
                status = os.stat(state.path)
            except OSError:
                continue  # moved away meanwhile, or the drive has gone
            if (len(content), status.st_mtime_ns) != (state.bytes, state.modified):
                continue  # written to meanwhile
            digest = hashlib.sha256(content).hexdigest()
            if self.journal.moved(state, digest):
                self._known.add(state)
                continue
            final = time.time() - state.modified / 1e9 > self.patience
            yield Arrival(os.path.relpath(state.path, self.folder), content, state, digest, final)

    def done(self, arrival: Arrival) -> None:
        """It was inspected and kept."""
        assert arrival.state is not None
        self._known.add(arrival.state)

    def _scan(self) -> Iterator[State]:
        folders = [str(self.folder)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        if Path(entry.path).resolve() != self.output:
                            folders.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                        try:
                            status = entry.stat()
                        except FileNotFoundError:
                            continue
                        if status.st_size > 0:
                            yield State(entry.path, status.st_size, status.st_mtime_ns)


class Camera:
    """Pictures of a camera, one every so often: the newest at that time. A video's are taken by its own clock.

    Args:
        address: an index such as 0, an address such as rtsp://..., or a video file.
        every: seconds from one picture to the next.
        say: called with a sentence when the camera is lost and when it is back.

    Raises:
        ImportError: if OpenCV is not installed.
    """

    waiting = 0

    def __init__(self, address: str, every: float, say: Callable[[str], None]):
        try:
            self._cv2 = importlib.import_module("cv2")
        except ImportError:
            raise ImportError("A camera needs OpenCV: `pip install opencv-python-headless`.") from None
        self.address, self.every, self.say = address, every, say
        self.is_video = Path(address).is_file()
        self.ended = False
        self._capture: Any = None
        self._lost = False
        self._next = 0.0

    def look(self) -> Iterator[Arrival]:
        """The picture that is due, if one is."""
        if self._capture is None:
            self._open()
        if self._capture is None or self.ended:
            return
        if not self.is_video and time.monotonic() < self._next:
            self._capture.grab()  # what is older is thrown away, or the picture would be late
            return
        whole, frame = self._capture.read()
        if not whole:
            self._capture.release()
            self._capture, self.ended = None, self.is_video
            return
        seconds = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000 if self.is_video else time.monotonic()
        if self.is_video and seconds < self._next:
            return
        self._next = (self._next if self.is_video else seconds) + self.every
        name = f"{seconds:010.3f}" if self.is_video else time.strftime("%Y-%m-%dT%H-%M-%S")
        yield Arrival(name, np.ascontiguousarray(frame[..., ::-1]))

    def done(self, arrival: Arrival) -> None:
        """Nothing is kept of it here."""

    def _open(self) -> None:
        capture = self._cv2.VideoCapture(int(self.address) if self.address.isdecimal() else self.address)
        if capture.isOpened():
            self._capture = capture
            if self._lost:
                self.say(f"The camera {self.address} is back.")
            self._lost = False
            return
        if not self._lost:
            self.say(f"The camera {self.address} cannot be opened: trying again.")
        self._lost = True
        time.sleep(min(self.every, 1.0))
