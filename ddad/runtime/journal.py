"""What was inspected, on disk: nothing twice, nothing lost, whenever the power goes.

One SQLite file holds a row an image. The table for spreadsheets and what is sent elsewhere follow from it, so that
both go on where they stopped.
"""

import csv
import datetime
import io
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddad.runtime.records import HEADS, Record, cells_of

DATABASE_NAME, TABLE_NAME = "inspections.sqlite", "inspections.csv"
SCHEMA = """
CREATE TABLE IF NOT EXISTS inspections (
    number INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT, bytes INTEGER, modified INTEGER, digest TEXT, entry TEXT);
CREATE INDEX IF NOT EXISTS by_content ON inspections (digest, bytes, modified);
CREATE TABLE IF NOT EXISTS sent (sink TEXT PRIMARY KEY, number INTEGER);
"""


@dataclass(frozen=True)
class State:
    """By what a file is known again.

    Attributes:
        path: where it lies.
        bytes: its length.
        modified: when it was written, in nanoseconds.
    """

    path: str
    bytes: int
    modified: int


class Journal:
    """The inspections of a folder of results; threads may use it at the same time.

    Args:
        folder: of the results; made where it is not there.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._turn = threading.RLock()
        self._base = sqlite3.connect(folder / DATABASE_NAME, check_same_thread=False, isolation_level=None)
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(SCHEMA)

    def _ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._turn:
            return self._base.execute(question, values).fetchall()

    def known(self) -> set[State]:
        """The files that were inspected."""
        return {
            State(*row) for row in self._ask("SELECT path, bytes, modified FROM inspections WHERE path IS NOT NULL")
        }

    def moved(self, state: State, digest: str) -> bool:
        """Whether a file is one that was inspected under another name, which is gone; its new name is noted."""
        question = "SELECT number, path FROM inspections WHERE digest = ? AND bytes = ? AND modified = ?"
        for number, path in self._ask(question, digest, state.bytes, state.modified):
            if path is not None and not os.path.exists(path):
                self._ask("UPDATE inspections SET path = ? WHERE number = ?", state.path, number)
                return True
        return False

    def add(
        self, record: Record, category: str, state: State | None = None, digest: str | None = None, overlay: str = ""
    ) -> int:
        """Keeps what was found; its number."""
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        entry = json.dumps({"date": date, "category": category, "overlay": overlay, **record.to_dict()})
        place = (None, None, None) if state is None else (state.path, state.bytes, state.modified)
        question = (
            "INSERT INTO inspections (path, bytes, modified, digest, entry) VALUES (?, ?, ?, ?, ?) RETURNING number"
        )
        return int(self._ask(question, *place, digest, entry)[0][0])

    def entries(self, after: int, most: int = 500) -> list[dict[str, Any]]:
        """What was kept after a number, in order."""
        question = "SELECT number, entry FROM inspections WHERE number > ? ORDER BY number LIMIT ?"
        return [{"number": number, **json.loads(entry)} for number, entry in self._ask(question, after, most)]

    def counts(self) -> dict[str, int]:
        """How many were inspected, are defective, and could not be read."""
        question = """SELECT COUNT(*), COALESCE(SUM(json_extract(entry, '$.is_anomalous') = 1), 0),
            COALESCE(SUM(json_extract(entry, '$.error') IS NOT NULL), 0) FROM inspections"""
        return dict(zip(("inspected", "defective", "unreadable"), self._ask(question)[0], strict=True))

    def sent(self, sink: str) -> int:
        """The number up to which something was sent."""
        rows = self._ask("SELECT number FROM sent WHERE sink = ?", sink)
        return int(rows[0][0]) if rows else 0

    def mark_sent(self, sink: str, number: int) -> None:
        """Notes it."""
        self._ask(
            "INSERT INTO sent VALUES (?, ?) ON CONFLICT (sink) DO UPDATE SET number = excluded.number", sink, number
        )

    def close(self) -> None:
        """Nothing is kept after this."""
        with self._turn:
            self._base.close()


COLUMNS = ["number", "date", "category", *HEADS, "overlay"]


class Table:
    """The journal as a table that spreadsheets open; what an interruption has cut off is written anew.

    Args:
        journal: what it follows from.
    """

    def __init__(self, journal: Journal):
        self._journal, self.path = journal, journal.folder / TABLE_NAME
        self._last = self._mend()

    def _mend(self) -> int:
        """Cuts off a line that is not whole, or begins anew where the head is not; the number of the last line."""
        head = b"\xef\xbb\xbf" + line_of(COLUMNS)  # with the mark without which spreadsheets misread names
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content.rpartition(b"\n")[0] + b"\n"
        if not whole.startswith(head):
            self.path.write_bytes(head)
            return 0
        with self.path.open("r+b") as file:
            file.truncate(len(whole))
        last = whole[:-1].rpartition(b"\n")[2].partition(b",")[0]
        return int(last) if last.isdigit() else 0

    def update(self) -> None:
        """Appends what is new."""
        with self.path.open("ab") as file:
            for lines in self._new():
                file.write(lines)

    def _new(self) -> Iterator[bytes]:
        while entries := self._journal.entries(self._last):
            yield b"".join(map(table_line, entries))
            self._last = entries[-1]["number"]


def line_of(values: list[Any]) -> bytes:
    """A row as a line of CSV, whose texts have no line breaks."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        ["" if value is None else str(value).replace("\r", " ").replace("\n", " ") for value in values]
    )
    return text.getvalue().encode()


def table_line(entry: dict[str, Any]) -> bytes:
    """An entry as a line."""
    record = Record.from_dict(entry)
    return line_of([entry["number"], entry["date"], entry["category"], *cells_of(record), entry["overlay"]])
