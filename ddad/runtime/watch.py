"""Watches a folder or a camera: source -> verdict -> journal -> table, pictures, receivers."""

import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path

from ddad.runtime.inspector import Inspection, Inspector
from ddad.runtime.journal import Journal, Table
from ddad.runtime.pictures import write_whole
from ddad.runtime.records import Record
from ddad.runtime.sinks import Send, Sink
from ddad.runtime.sources import Arrival, Camera, Folder

PICTURES = "overlays"
FINISHING_SECONDS = 15.0


class Watch:
    """Inspects what arrives until it is told to end.

    Args:
        inspector: what inspects.
        output: folder of the results.
        address: a folder, or what `Camera` opens.
        every: seconds between two looks, or two pictures of a camera.
        receivers: by name, what sends an entry somewhere.
        all_overlays: whether good images get an overlay too.
    """

    def __init__(
        self,
        inspector: Inspector,
        output: Path,
        address: str,
        every: float = 1.0,
        receivers: dict[str, Send] | None = None,
        all_overlays: bool = False,
    ):
        self.inspector, self.every, self.all_overlays = inspector, every, all_overlays
        self.journal = Journal(output)
        self.table = Table(self.journal)
        self.overlays = output / PICTURES
        self.overlays.mkdir(exist_ok=True)
        is_folder = Path(address).is_dir() or not (address.isdecimal() or "://" in address or Path(address).is_file())
        self.source: Folder | Camera = (
            Folder(Path(address), output, self.journal, self.say) if is_folder else Camera(address, every, self.say)
        )
        self.sinks = [Sink(name, self.journal, send, self.say) for name, send in (receivers or {}).items()]
        self.ended = threading.Event()
        self._recent: deque[float] = deque()
        self._counts = self.journal.counts()

    def say(self, sentence: str) -> None:
        """On a line of its own, above the counts."""
        print(f"\r\033[K{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)

    def run(self, once: bool = False) -> None:
        """Until `ended` is set, or, `once`, until nothing is left to inspect."""
        self.table.update()
        for sink in self.sinks:
            sink.start()
        idle = 0
        while not self.ended.is_set() and not (once and idle > 1) and not self.source.ended:
            started, found = time.monotonic(), 0
            for arrival in self.source.look():
                found += self.take(arrival)
                if self.ended.is_set():
                    break
            self.show()
            idle = 0 if found or self.source.waiting else idle + 1
            if isinstance(self.source, Folder):
                # A slow drive is not asked more often than it answers.
                self.ended.wait(max(self.every, time.monotonic() - started if not found else 0))
        for sink in self.sinks:
            sink.finish(FINISHING_SECONDS)
        self.journal.close()

    def take(self, arrival: Arrival) -> bool:
        """Inspects a picture and keeps what was found; False where it may still become whole."""
        try:
            found = self.inspector.inspect(arrival.image)
            record = found.record(arrival.name)
            overlay = self.draw(found, arrival) if found.is_anomalous or self.all_overlays else ""
        except ValueError as error:
            if not arrival.final:
                return False
            record, overlay = Record(arrival.name, error=str(error)), ""
        self.journal.add(record, self.inspector.category, arrival.state, arrival.digest, overlay)
        self.source.done(arrival)
        self.table.update()
        for sink in self.sinks:
            sink.notify()
        self._recent.append(time.monotonic())
        self._counts["inspected"] += 1
        self._counts["defective"] += record.is_anomalous is True
        self._counts["unreadable"] += record.error is not None
        self.show()
        return True

    def draw(self, found: Inspection, arrival: Arrival) -> str:
        """Writes the picture under its heatmap; its name in the folder of results."""
        stem = arrival.name.replace(os.sep, "_")[:150]
        name = f"{PICTURES}/{stem}_{(arrival.digest or f'{time.time_ns():x}')[:12]}.png"
        target = self.journal.folder / name
        write_whole(found.overlay, target)
        return name

    def show(self) -> None:
        """The counts, on the last line of a terminal."""
        if not sys.stderr.isatty():
            return
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 60:
            self._recent.popleft()
        counts = self._counts
        share = 100 * counts["defective"] / max(counts["inspected"], 1)
        line = (
            f"{time.strftime('%H:%M:%S')} {counts['inspected']:,} inspected, {len(self._recent)} in the last minute;"
            f" {counts['defective']:,} defective ({share:.1f} %), {counts['unreadable']:,} unreadable,"
            f" {self.source.waiting:,} waiting"
        )
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def watch(
    inspector: Inspector,
    output: Path,
    address: str,
    every: float,
    receivers: dict[str, Send],
    all_overlays: bool,
    once: bool,
) -> None:
    """Watches until the process is told to end; what was begun is ended."""
    watching = Watch(inspector, output, address, every, receivers, all_overlays)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watching.ended.set())
    watching.say(f"Watching {address} as {inspector.category}; results in {output}.")
    watching.run(once)
    watching.say("Ended.")
