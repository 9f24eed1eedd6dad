"""Results as files: one record an image (JSON lines, CSV), and a zip of the pictures and maps."""

import csv
import datetime
import io
import itertools
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image

from ddad.report.regions import Region, regions_of


@dataclass(frozen=True)
class Record:
    """What was found on one image, or why it could not be inspected.

    Attributes:
        image: the image's file name.
        is_anomalous: the verdict; None for an image that could not be inspected.
        image_score, threshold: in standard deviations of normal images.
        regions: the defect regions, the strongest first.
        error: why the image could not be inspected, or None.
    """

    image: str
    is_anomalous: bool | None = None
    image_score: float | None = None
    threshold: float | None = None
    regions: tuple[Region, ...] = ()
    error: str | None = None

    @classmethod
    def of(cls, image: str, result: Any) -> "Record":
        """What a pipeline found on the first image, under that image's name."""
        verdict = (result.is_anomalous[0], result.image_score[0], result.threshold)
        return cls(image, *verdict, tuple(regions_of(result)))

    def to_dict(self) -> dict[str, Any]:
        """The record in plain types; numbers with four digits after the point."""
        return _rounded(asdict(self))

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value


KINDS_OF_FILES = ("overlay", "map", "normal_version")


def cell(name: str) -> str:
    """A text that no spreadsheet takes for a formula: such a one gets an apostrophe before it."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


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
    head = ["image", "is_anomalous", "image_score", "threshold", "regions", "left", "top", "width", "height", "error"]
    writer.writerow([*head, *([] if files is None else [*KINDS_OF_FILES, "category", "date"])])
    for record, pictures in zip(records, itertools.repeat({}) if files is None else files, strict=False):
        box: list[Any] = ["", "", "", ""]
        if record.regions:
            first = record.regions[0]
            box = [first.left, first.top, first.width, first.height]
        row = [cell(record.image), record.is_anomalous, _rounded(record.image_score), _rounded(record.threshold)]
        more = [] if files is None else [*(cell(pictures.get(kind, "")) for kind in KINDS_OF_FILES), category, date]
        row = [*row, len(record.regions), *box, record.error, *more]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def regions_to_csv(records: Iterable[Record]) -> str:
    """A table of all regions of all images, numbered as on the pictures."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "region", *(one.name for one in fields(Region))])
    for record in records:
        for number, region in enumerate(record.regions, start=1):
            writer.writerow([cell(record.image), number, *(_rounded(value) for value in asdict(region).values())])
    return text.getvalue()


LONGEST_NAME = 180  # bytes; file systems take 255, and endings and numbers follow


def shorten(name: str) -> str:
    """A name of at most `LONGEST_NAME` bytes."""
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


class UniqueNames:
    """Names for result files: the image's own stem, with a number where another image had it.

    Args:
        used: names that are taken already.
    """

    def __init__(self, used: Iterable[str] = ()) -> None:
        self._used = set(used)

    def choose(self, image: str, folders: bool = False) -> str:
        """A name that was not given out before.

        Args:
            image: its file.
            folders: whether the folders that it lay in are kept, without any that leads upwards.
        """
        path, number = PurePosixPath(image.replace("\\", "/")), 1
        parts = [shorten(part) for part in path.parts[:-1] if part not in ("..", ".", "/") and ":" not in part]
        stem = shorten(path.stem or "image")
        base = "/".join([*(parts if folders else []), stem])
        name = base
        while name in self._used:
            number += 1
            name = f"{base}_{number}"
        self._used.add(name)
        return name


class ResultsArchive:
    """A zip that fills as results arrive: pictures and maps by image, then the tables.

    Args:
        path: where the zip is written.
        category: what the images were inspected as.
    """

    def __init__(self, path: str | Path, category: str = ""):
        self.path, self.category = Path(path), category
        self.records: list[Record] = []
        self.files: list[dict[str, str]] = []
        self._names = UniqueNames()
        self._zip = zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED)

    def add(
        self,
        record: Record,
        anomaly_map: np.ndarray | None = None,
        overlay: PIL.Image.Image | None = None,
        denoised: PIL.Image.Image | None = None,
    ) -> None:
        """Adds one image's results; the map as float32 TIFF, the pictures as PNG, in the folders that it lay in."""
        name = self._names.choose(record.image, folders=True)
        pictures = {
            "map": None if anomaly_map is None else PIL.Image.fromarray(anomaly_map),
            "overlay": overlay,
            "normal_version": denoised,
        }
        files = {}
        for kind, picture in pictures.items():
            if picture is None:
                continue
            data = io.BytesIO()
            picture.save(data, format="TIFF" if kind == "map" else "PNG")
            files[kind] = f"{name}_{kind}.{'tiff' if kind == 'map' else 'png'}"
            self._zip.writestr(files[kind], data.getvalue())
        self.records.append(record)
        self.files.append(files)

    def close(self) -> Path:
        """Writes the tables and closes the zip."""
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        lines = [
            {**record.to_dict(), **files, "category": self.category, "date": date}
            for record, files in zip(self.records, self.files, strict=True)
        ]
        # With a byte order mark, or spreadsheets misread names.
        self._zip.writestr("results.csv", to_csv(self.records, self.files, self.category, date).encode("utf-8-sig"))
        self._zip.writestr("regions.csv", regions_to_csv(self.records).encode("utf-8-sig"))
        self._zip.writestr("results.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
        self._zip.close()
        return self.path
