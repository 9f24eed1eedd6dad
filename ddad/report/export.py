"""Results as files: one record an image (JSON lines, CSV), and a zip of the pictures and maps."""

import datetime
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image
import torch

from ddad.report.regions import regions_of
from ddad.runtime.condition import measure_condition
from ddad.runtime.records import Record, regions_to_csv, to_csv


def record_of(image: str, result: Any, picture: torch.Tensor | None = None) -> Record:
    """What a pipeline found on the first image, under that image's name.

    Args:
        image: the name.
        result: what the pipeline gave.
        picture: the image, `[3, H, W]` in [0, 1], where its condition is to be measured.
    """
    verdict = result.is_anomalous[0], result.image_score[0], result.threshold
    condition = None
    if picture is not None:
        condition = measure_condition(picture.permute(1, 2, 0).numpy(), result.anomaly_map[0])
    return Record(image, *verdict, tuple(regions_of(result)), condition=condition)


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
