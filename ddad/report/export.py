"""Results as files: one record an image (JSON lines, CSV), and a zip of the pictures and maps."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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


def to_csv(records: Iterable[Record]) -> str:
    """A table with a header line; the regions are a count and the box of the strongest.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["image", "is_anomalous", "image_score", "threshold", "regions", "left", "top", "width", "height", "error"]
    )
    for record in records:
        name = f"'{record.image}" if record.image.startswith(("=", "+", "-", "@")) else record.image
        box: list[Any] = ["", "", "", ""]
        if record.regions:
            first = record.regions[0]
            box = [first.left, first.top, first.width, first.height]
        row = [name, record.is_anomalous, _rounded(record.image_score), _rounded(record.threshold)]
        writer.writerow(["" if value is None else value for value in [*row, len(record.regions), *box, record.error]])
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

    def choose(self, image: str) -> str:
        """A name that was not given out before."""
        stem, number = shorten(PurePosixPath(image).stem or "image"), 1
        name = stem
        while name in self._used:
            number += 1
            name = f"{stem}_{number}"
        self._used.add(name)
        return name


class ResultsArchive:
    """A zip that fills as results arrive: pictures and maps by image, then the tables.

    Args:
        path: where the zip is written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records: list[Record] = []
        self._names = UniqueNames()
        self._zip = zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED)

    def add(
        self,
        record: Record,
        anomaly_map: np.ndarray | None = None,
        overlay: PIL.Image.Image | None = None,
        denoised: PIL.Image.Image | None = None,
    ) -> None:
        """Adds one image's results; the map as float32 TIFF, the pictures as PNG."""
        self.records.append(record)
        name = self._names.choose(record.image)
        pictures = {"map.tiff": None if anomaly_map is None else PIL.Image.fromarray(anomaly_map)}
        pictures |= {"overlay.png": overlay, "denoised.png": denoised}
        for suffix, picture in pictures.items():
            if picture is None:
                continue
            data = io.BytesIO()
            picture.save(data, format="TIFF" if suffix.endswith("tiff") else "PNG")
            self._zip.writestr(f"{name}_{suffix}", data.getvalue())

    def close(self) -> Path:
        """Writes the tables and closes the zip."""
        self._zip.writestr("results.csv", to_csv(self.records).encode("utf-8-sig"))  # or spreadsheets misread names
        self._zip.writestr("results.jsonl", "".join(f"{record.to_json()}\n" for record in self.records))
        self._zip.close()
        return self.path
