"""What visitors' own categories were learnt from, and show: kept as long as their photographs are, an hour at most."""

import hashlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ddad.app.examples import Example
from ddad.app.sources import Source, open_all

MOST_PARTS = 500


def file_name(source: Source) -> PurePosixPath:
    """What a photograph is called, with its folders."""
    return PurePosixPath(source.name.replace("\\", "/"))


@dataclass(frozen=True)
class Photographs:
    """Photographs of good parts as a visitor gave them.

    Attributes:
        files: images, and zips of them.
        folders: the paths that the files had in the visitor's folder, where the browser said so; in the same order.
        left_out: names of those that are not to be used.
    """

    files: Sequence[str]
    folders: Sequence[str] = ()
    left_out: frozenset[str] = frozenset()

    @property
    def are_kept(self) -> bool:
        """Whether all of them are still there."""
        return bool(self.files) and all(Path(file).is_file() for file in self.files)

    def open(self, scratch: Path) -> Iterator[Source]:
        """Those that are to be used; what comes from a zip is gone with the next.

        Args:
            scratch: where files of zips are unpacked.
        """
        for source in open_all(list(self.files), scratch, self.folders):
            if file_name(source).name not in self.left_out:
                yield source

    def names_of(self, paths: Sequence[str]) -> list[str]:
        """What files are called that are byte for byte among the photographs."""
        wanted = {hashlib.sha256(Path(path).read_bytes()).digest() for path in paths}
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            return [
                file_name(source).name
                for source in self.open(Path(scratch))
                if source.path is not None and hashlib.sha256(source.path.read_bytes()).digest() in wanted
            ]

    def with_changes(self, added: Sequence[str], left_out: Sequence[str]) -> "Photographs":
        """The same with further files, and without those of some names."""
        folders = [*self.folders, *(f"added/{Path(path).name}" for path in added)] if self.folders else []
        return Photographs([*self.files, *added], folders, self.left_out | set(left_out))


@dataclass(frozen=True)
class OwnPart:
    """A visitor's own category.

    Attributes:
        photographs: that it was learnt from.
        category: that was calibrated on them; empty for a new part.
        name: of the part.
        examples: what the page offers of it.
    """

    photographs: Photographs
    category: str
    name: str
    examples: list[Example] = field(default_factory=list)


class OwnParts:
    """Visitors' own parts by the name of their category; the oldest are forgotten."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, OwnPart] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, category: str, part: OwnPart) -> None:
        """Keeps one."""
        with self._lock:
            self._parts[category] = part
            while len(self._parts) > MOST_PARTS:
                self._parts.popitem(last=False)

    def get(self, category: str) -> OwnPart | None:
        """That of a category; None for one that nobody learnt here."""
        with self._lock:
            return self._parts.get(category)

    def examples(self, category: str) -> list[Example] | None:
        """What is offered of one, as long as its pictures are there; None for a category that nobody learnt here."""
        part = self.get(category)
        return None if part is None else [example for example in part.examples if example.path.is_file()]
