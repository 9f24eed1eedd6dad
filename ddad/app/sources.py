"""The files that visitors give: images, folders, zips of them. Names inside a zip decide nothing on this machine."""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ddad.datasets.names import is_hidden
from ddad.runtime.pictures import IMAGE_SUFFIXES

LARGEST_FILE = 50 * 2**20


@dataclass(frozen=True)
class Source:
    """One image to inspect: its name for the table, and where it is, or why it cannot be had."""

    name: str
    path: Path | None = None
    error: str | None = None


def open_zip(path: Path, scratch: Path) -> Iterator[Source]:
    """The files of a zip, each written to `scratch` only when its turn comes.

    The names inside decide nothing about where something is written, and no file is unpacked past `LARGEST_FILE`.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        yield Source(path.name, error="This zip is damaged or none.")
        return
    with archive:
        for member in archive.infolist():
            if member.is_dir() or is_hidden(PurePosixPath(member.filename)):
                continue
            target = scratch / f"image{PurePosixPath(member.filename).suffix[:10]}"
            try:
                with archive.open(member) as stream:
                    data = stream.read(LARGEST_FILE + 1)
            except Exception as error:  # decompressors raise what they like
                locked = isinstance(error, RuntimeError) and "password" in str(error)
                reason = "is locked with a password" if locked else "is damaged in the zip"
                yield Source(member.filename, error=f"This file {reason}.")
                continue
            if len(data) > LARGEST_FILE:
                yield Source(member.filename, error=f"This file has more than {LARGEST_FILE // 2**20} MB.")
                continue
            target.write_bytes(data)
            yield Source(member.filename, target)
            target.unlink()


# What a browser tells of a folder that was chosen (`page.js`), for the event that takes it.
FOLDERS = "(files, _, ...rest) => [files, JSON.stringify(window.ddadFolders ?? []), ...rest]"


def read_folders(listed: str) -> list[str]:
    """The paths of files in a folder that was chosen, as `FOLDERS` lists them; none where nothing is listed."""
    try:
        paths = json.loads(listed or "[]")
    except ValueError:
        return []
    return [str(path) for path in paths] if isinstance(paths, list) else []


def bare(name: str) -> str:
    """A file's name as it is compared: what is uploaded loses signs that file systems do not have."""
    return re.sub(r"\W+", "", PurePosixPath(name).name)


def open_all(paths: list[str], scratch: Path, folders: Sequence[str] = ()) -> Iterator[Source]:
    """The images among uploaded files, those inside zips included.

    Args:
        paths: the files.
        scratch: where files of zips are unpacked, each when its turn comes.
        folders: the paths that the files had with the visitor, in the same order; not believed if names differ.
    """
    names = [Path(path).name for path in paths]
    if [bare(name) for name in folders] == [bare(name) for name in names]:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in folders]  # below what was chosen
    for name, path in zip(names, map(Path, paths), strict=True):
        if is_hidden(PurePosixPath(name)):
            continue
        if path.suffix.lower() == ".zip":
            yield from open_zip(path, scratch)
        else:
            yield Source(name, path)


def is_other_file(source: Source) -> bool:
    """Whether something is no image and does not claim to be one: notes and tables lie in many folders."""
    return PurePosixPath(source.name).suffix.lower() not in (*IMAGE_SUFFIXES, ".zip")


def count_files(paths: list[str]) -> int:
    """How many files there are, those inside zips counted."""
    count = 0
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                count += sum(not member.is_dir() for member in archive.infolist())
        except (zipfile.BadZipFile, OSError):
            count += 1
    return count
