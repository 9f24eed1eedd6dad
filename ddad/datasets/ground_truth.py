"""Ground truth: which file is that of which image, and what it marks. The rule stands in docs/data.md."""

import functools
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
import PIL.ImageOps

from ddad.datasets.files import images_in, looks_like_image
from ddad.datasets.names import kind_of

logger = logging.getLogger(__name__)

MASK_ENDINGS = ("_mask", "", "_gt")
# What programs and people put after an image's name, or before it, to call its ground truth.
TRUTH_ENDING = re.compile(
    r"[ _.-]*(?:(?:pixel)?labels?|gt|masks?|seg(?:mentation)?|anno(?:tation)?s?|ground[ _.-]?truth|truth|bw)\d*$",
    flags=re.IGNORECASE,
)
TRUTH_BEGINNING = re.compile(r"^(?:labels?|gt|masks?|seg|ground[ _.-]?truth)[ _.-]+(?=.)", flags=re.IGNORECASE)
# A ground truth that marks more than this is inverted, or of something else.
MOST_DEFECT = 0.9
# Kinds of defects may each have a number of their own; more levels were made by compression or soft brushes.
MOST_LEVELS = 16
# What JPEG leaves of nothing.
NOISE = 32


class HasTruth(Protocol):
    """An image of a data set."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def mask(self) -> Path | tuple[Path, ...] | None:
        """The files of its ground truth."""

    @property
    def defective(self) -> bool:
        """Whether it shows a defect."""


# ------------------------------------------------------------------------------------------------- what is whose


@functools.cache
def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The image files right in a folder, by their names without suffix, in lower case."""
    files: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and looks_like_image(path):
                files.setdefault(path.stem.lower(), []).append(path)
    return files


@functools.cache
def files_by_truth(folder: Path) -> dict[str, Path]:
    """The files right in a folder whose names say whose ground truth they are, by that image's name."""
    named: dict[str, Path] = {}
    for stem, files in files_by_stem(folder).items():
        if (image := truth_stem(stem)) is not None:
            named.setdefault(image, files[0])
    return named


def find_mask(image: Path, folder: Path) -> Path | tuple[Path, ...] | None:
    """The ground truth of an image: a file of its name, with or without `_mask`, in any case and form of image.

    Or a folder of its name, whose files are one ground truth together (MVTec LOCO).
    """
    files = files_by_stem(folder)
    for ending in MASK_ENDINGS:
        matches = files.get(f"{image.stem}{ending}".lower())
        if matches:
            return matches[0]
    named = files_by_truth(folder).get(image.stem.lower())
    if named is not None:
        return named
    several = images_in(folder / image.stem)
    return tuple(several) if several else None


def truth_stem(stem: str) -> str | None:
    """The name of the image whose ground truth a file of this name says it is, in lower case; None if it says none."""
    for pattern in (TRUTH_ENDING, TRUTH_BEGINNING):
        bare, count = pattern.subn("", stem)
        if count and bare:
            return bare.lower()
    return None


@dataclass
class Truths:
    """What ground truth lies among the images of a folder, told by names and by what the files hold.

    Attributes:
        masks: the files that are ground truth.
        of: an image's ground truth.
        marked: the images on which it marks a defect.
        unmarked: the images on which it marks nothing.
    """

    masks: set[Path] = field(default_factory=set)
    of: dict[Path, Path | tuple[Path, ...]] = field(default_factory=dict)
    marked: set[Path] = field(default_factory=set)
    unmarked: set[Path] = field(default_factory=set)

    def add(self, image: Path, mask: Path | tuple[Path, ...]) -> None:
        """Takes note of an image's ground truth, and of whether it marks anything."""
        files = mask if isinstance(mask, tuple) else (mask,)
        self.masks.update(files)
        self.of[image] = mask
        marks = any(marks_something(path) for path in files)
        (self.marked if marks else self.unmarked).add(image)


def find_truths(paths: Sequence[Path], root: Path) -> Truths:
    """Ground truth that lies beside images, or in a folder of masks beside or below theirs.

    A file that repeats another's name (with `_GT`, `_label`, `_mask` and the like, or with another suffix alone) and
    holds two values is that image's ground truth. Folders whose names say so hold ground truth too.

    Args:
        paths: image files below `root`.
        root: their folder.
    """
    truths = Truths()
    by_folder: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        by_folder[path.parent][path.stem.lower()].append(path)
    for files in by_folder.values():
        _find_beside(files, truths)
    masks = {
        folder for folder in by_folder if any(kind_of(part) == "masks" for part in folder.relative_to(root).parts)
    }
    for folder in by_folder.keys() - masks:
        beside = [place for place in by_folder.keys() - masks if place.parent == folder.parent]
        # A folder of masks beside several folders of images does not say whose they are: names repeat.
        places = [
            place for place in masks if place.parent == folder or (place.parent == folder.parent and len(beside) < 2)
        ]
        for path in [path for same in by_folder[folder].values() for path in same if path not in truths.masks]:
            mask = next((mask for place in places if (mask := find_mask(path, place))), None)
            if mask is not None and path not in truths.of:
                truths.add(path, mask)
    return truths


def _find_beside(files: dict[str, list[Path]], truths: Truths) -> None:
    """Ground truth in the folder of its images, whose files are given by their names without suffix."""
    for stem, same in files.items():
        image_stem = truth_stem(stem)
        images = files.get(image_stem, []) if image_stem is not None else []
        for path in same:
            if images and holds_marks(path, MOST_LEVELS, images[0]):
                truths.add(images[0], path)
        if len(same) > 1:  # x.jpg and x.png
            drawn = [path for path in same if holds_marks(path, 2, same[0])]
            others = [path for path in same if path not in drawn]
            if len(others) == 1:
                for path in drawn:
                    truths.add(others[0], path)


def holds_marks(path: Path, most_levels: int, image: Path) -> bool:
    """Whether a file is drawn as ground truth is: as large as its image, in few values, most of them one."""
    from ddad.images_ddad import decoding, open_picture

    try:
        with decoding(str(path)), open_picture(path) as picture:
            size = picture.size
            if picture.mode in ("I", "F") or min(size) < 1 or size[0] * size[1] > 64_000_000:
                return False
            values = mask_values(picture)
            lossy = picture.format == "JPEG"
        with decoding(str(image)), open_picture(image) as other:
            if set(other.size) != set(size):
                return False
    except ValueError:
        return False
    levels = np.unique(values)
    if len(levels) <= most_levels:
        return True
    return most_levels > 2 and (lossy or is_blurred(values))


def marks_something(path: Path) -> bool:
    """Whether a ground truth marks anything; one that cannot be read is taken to."""
    from ddad.images_ddad import decoding, open_picture

    try:
        with decoding(str(path)), open_picture(path) as picture:
            return bool(marks(mask_values(picture), picture.format == "JPEG")[0].any())
    except ValueError:
        return True


# --------------------------------------------------------------------------------------------- what it marks


def read_mask(sample: HasTruth, size: tuple[int, int]) -> np.ndarray:
    """The ground truth as `[height, width]` bool; all False for a good image.

    Every value above zero is defect; see `marks` for what was compressed or drawn softly. Transparent pixels are none,
    EXIF turns a mask as it turns its image, and several files are one ground truth together.

    Args:
        sample: the image.
        size: height and width to which it is brought, by the nearest pixel.

    Raises:
        ValueError: if the image and its mask differ in size, most of the mask is defect or nothing is, or there is no
            mask.
    """
    from ddad.images_ddad import decoding, open_picture  # and torch, which a command line's help must not wait for

    if not sample.defective:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        raise ValueError(f"{sample.path} has no mask.")
    with decoding(str(sample.path)), open_picture(sample.path) as image:
        raw_size, image_size = image.size, PIL.ImageOps.exif_transpose(image).size
    paths = sample.mask if isinstance(sample.mask, tuple) else (sample.mask,)
    defect = np.zeros(image_size[::-1], dtype=bool)
    for path in paths:
        with decoding(str(path)), open_picture(path) as mask:
            lossy = mask.format == "JPEG"
            values = mask_values(PIL.ImageOps.exif_transpose(mask))
        if values.shape != defect.shape:
            hint = " It fits the photograph before its EXIF turns it." if values.shape == raw_size[::-1] else ""
            shape = values.shape[::-1]
            raise ValueError(f"{path} has {shape} pixels, its image {sample.path} {image_size}.{hint}")
        marked, halved = marks(values, lossy)
        if halved:
            warn_once(
                f"Masks stored as JPEG, or compressed or drawn softly ({path.parent}), are read as defect from half of"
                " their largest value."
            )
        defect |= marked
    if defect.mean() > MOST_DEFECT:
        raise ValueError(
            f"{defect.mean():.0%} of {paths[0]} is marked as defect: is it inverted? Defects must be above zero and"
            " the rest zero."
        )
    if not defect.any():
        raise ValueError(
            f"{paths[0]} marks nothing, and its image {sample.path} is said to be defective: is it the right file?"
            " Take the mask away if it is not known where the defect is."
        )
    resized = PIL.Image.fromarray(defect).resize(size[::-1], PIL.Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)


def mask_values(mask: PIL.Image.Image) -> np.ndarray:
    """The brightest channel of a mask, `[H, W]`; zero where it is transparent, the index's colour for a palette.

    Where nothing opaque has any colour, the transparency itself is the mask: a defect drawn in black on a layer.
    """
    if mask.mode in ("RGBA", "LA", "PA") or (mask.mode == "P" and "transparency" in mask.info):
        # An alpha channel that is the same everywhere says nothing about the defect.
        rgba = np.asarray(mask.convert("RGBA"))
        alpha, colour = rgba[..., 3], rgba[..., :3].max(axis=2)
        if alpha.min() == alpha.max():
            return np.asarray(colour)
        coloured = np.where(alpha > 0, colour, 0)
        same = colour.min() == colour.max()
        chosen: np.ndarray = alpha if same or not coloured.any() else coloured
        return chosen
    values: np.ndarray = np.asarray(mask.convert("RGB") if mask.mode == "P" else mask)
    return values if values.ndim == 2 else np.asarray(values.max(axis=2))


def is_blurred(values: np.ndarray) -> bool:
    """Whether a mask's values lie at both ends of its range, in more than two levels, and few between.

    So it looks after a lossy compression, whatever the file's format is now, and with soft edges. Numbers of kinds or
    parts of defects are small, or lie all over the range.
    """
    if values.dtype == bool or len(levels := np.unique(values)) < 3 or levels[-1] < 2 * NOISE:
        return False
    high = float(levels[-1])
    if len(levels) <= MOST_LEVELS:
        return bool(((levels <= high / 8) | (levels >= high * 7 / 8)).all())
    between = (values > 0.25 * high) & (values < 0.75 * high)
    return bool(between.sum() <= (values >= 0.75 * high).sum())


def marks(values: np.ndarray, lossy: bool = False) -> tuple[np.ndarray, bool]:
    """Where a mask marks a defect: every value above zero; from half of the largest where it was once compressed.

    Args:
        values: `[H, W]`.
        lossy: whether the file's format loses something.

    Returns:
        `[H, W]` bool, and whether half of the largest value was the limit.
    """
    if not lossy and not is_blurred(values):
        return np.asarray(values > 0), False
    highest = float(values.max())
    if lossy and highest <= NOISE:
        return np.zeros(values.shape, dtype=bool), True
    return np.asarray(values >= max(1, highest / 2)), True


@functools.cache
def warn_once(message: str) -> None:
    """Says something once."""
    logger.warning(message)
