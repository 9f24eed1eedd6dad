"""What was found on an image as a record: JSON, or a row of a table. Nothing but the standard library is needed."""

import csv
import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ddad.runtime.condition import Condition
from ddad.runtime.regions import Region


@dataclass(frozen=True)
class Record:
    """What was found on one image, or why it could not be inspected.

    Attributes:
        image: the image's file name.
        is_anomalous: the verdict; None for an image that could not be inspected.
        image_score, threshold: in standard deviations of normal images.
        regions: the defect regions, the strongest first.
        error: why the image could not be inspected, or None.
        condition: how the picture was taken, where that was measured.
    """

    image: str
    is_anomalous: bool | None = None
    image_score: float | None = None
    threshold: float | None = None
    regions: tuple[Region, ...] = ()
    error: str | None = None
    condition: Condition | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Record":
        """From `to_dict`, whatever else stands there."""
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        condition = own.get("condition")
        return cls(
            **own
            | {
                "regions": tuple(Region(**region) for region in own["regions"]),
                "condition": None if condition is None else Condition(**condition),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The record in plain types; numbers with four digits after the point."""
        return rounded(asdict(self))

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())


def rounded(value: Any) -> Any:
    """A value, or what holds values, with four digits after the point."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return value


KINDS_OF_FILES = ("overlay", "map", "normal_version")
HEADS = ("image", "is_anomalous", "image_score", "threshold", "regions", "left", "top", "width", "height", "error")


def cell(name: str) -> str:
    """A text that no spreadsheet takes for a formula: such a one gets an apostrophe before it."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def cells_of(record: Record) -> list[Any]:
    """A record as cells of a table, under `HEADS`; the regions are a count and the box of the strongest."""
    box: list[Any] = [None] * 4
    if record.regions:
        first = record.regions[0]
        box = [first.left, first.top, first.width, first.height]
    numbers = [record.is_anomalous, rounded(record.image_score), rounded(record.threshold), len(record.regions)]
    return [cell(record.image), *numbers, *box, record.error]


def to_csv(
    records: Iterable[Record], files: Iterable[dict[str, str]] | None = None, category: str = "", date: str = ""
) -> str:
    """A table with a header line; the regions are a count and the box of the strongest.

    Args:
        records: a line each.
        files: of each record, the files that show it, by kind; the columns are left out without them.
        category: of all of them.
        date: of all of them.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*HEADS, *([] if files is None else [*KINDS_OF_FILES, "category", "date"])])
    for record, pictures in zip(records, itertools.repeat({}) if files is None else files, strict=False):
        more = [] if files is None else [*(cell(pictures.get(kind, "")) for kind in KINDS_OF_FILES), category, date]
        writer.writerow(["" if value is None else value for value in [*cells_of(record), *more]])
    return text.getvalue()


def regions_to_csv(records: Iterable[Record]) -> str:
    """A table of all regions of all images, numbered as on the pictures."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "region", *(one.name for one in fields(Region))])
    for record in records:
        for number, region in enumerate(record.regions, start=1):
            writer.writerow([cell(record.image), number, *(rounded(value) for value in asdict(region).values())])
    return text.getvalue()
