"""Results that were kept, read back: of `ddad watch`, `ddad predict`, or a service."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddad.runtime.journal import DATABASE_NAME, Journal
from ddad.runtime.records import Record

LINES_NAME = "results.jsonl"


@dataclass(frozen=True)
class Kept:
    """One image's result.

    Attributes:
        date: when it was inspected, or, where that was not noted, when its file was written.
        record: what was found.
        category: as what it was inspected; empty where that was not noted.
        overlay: the image under its heatmap; None without a file.
        normal: the image without its defects; likewise.
    """

    date: datetime.datetime
    record: Record
    category: str = ""
    overlay: Path | None = None
    normal: Path | None = None


def read_results(place: str | Path) -> list[Kept]:
    """All results of a folder, or of a service's file, in the order of their dates.

    Raises:
        ValueError: if there are none.
    """
    place = Path(place)
    if (place / DATABASE_NAME).is_file():
        found = list(read_journal(place))
    elif (place / LINES_NAME).is_file():
        found = list(read_lines(place / LINES_NAME))
    elif place.is_file():
        found = list(read_lines(place))
    else:
        raise ValueError(
            f"{place} holds no results: give the --output of `ddad watch` or `ddad predict`, or the --results of"
            " `ddad serve`."
        )
    if not found:
        raise ValueError(f"{place} holds no results yet.")
    return sorted(found, key=lambda one: one.date)


def read_journal(folder: Path) -> Iterator[Kept]:
    """Those of a watch, which may go on meanwhile."""
    journal, last = Journal(folder), 0
    try:
        while entries := journal.entries(last):
            last = entries[-1]["number"]
            yield from (kept_of(entry, folder) for entry in entries)
    finally:
        journal.close()


def read_lines(path: Path) -> Iterator[Kept]:
    """Those of lines of JSON; the last of an image counts, and what an interruption has cut off does not."""
    newest: dict[Any, Kept] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
            if "line" not in entry:  # of a service: the same name may be another part
                newest[number] = kept_of(entry, path.parent)
                continue
            modified = datetime.datetime.fromtimestamp(entry["state"]["modified"] / 1e9).astimezone()
            newest[entry["state"]["path"]] = kept_of(entry["line"] | {"date": modified.isoformat()}, path.parent)
        except (ValueError, KeyError, TypeError):
            continue
    yield from newest.values()


def kept_of(entry: dict[str, Any], folder: Path) -> Kept:
    """An entry as a result; pictures that are not there any more are left out."""

    def picture(name: str) -> Path | None:
        if not entry.get(name):
            return None
        paths = (folder / entry[name], Path(entry[name]), folder / Path(entry[name]).name)
        return next((path for path in paths if path.is_file()), None)

    date = datetime.datetime.fromisoformat(entry["date"])
    record = Record.from_dict(entry)
    normal = picture("denoised") or picture("normal_version")
    return Kept(date, record, entry.get("category", ""), picture("overlay"), normal)
