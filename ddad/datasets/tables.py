"""Tables that people and spreadsheets save: commas or semicolons, with or without a byte order mark."""

import csv
from collections.abc import Sequence
from pathlib import Path

ENCODINGS = ("utf-8-sig", "cp1252")


def read_text(path: Path) -> str:
    """A text of UTF-8, UTF-16 (told by its byte order mark) or Windows-1252."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header line, whose names count without regard to capitals and spaces.

    Args:
        path: the file.
        columns: those that are needed.

    Raises:
        ValueError: if one is missing.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip() and not line.lower().startswith("sep=")]
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    table = csv.reader(lines, delimiter=delimiter)
    names = [name.strip().lower() for name in next(table, [])]
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names) or 'none'}. A table needs a"
            f" header line with {', '.join(columns)}."
        )
    rows = [dict(zip(names, [*row, *[""] * len(names)], strict=False)) for row in table]
    return [{name: value.strip() for name, value in row.items()} for row in rows]
