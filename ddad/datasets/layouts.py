"""Folders of images with labels and masks, in the layouts that data sets for defect detection come in.

| layout | good images that train | test images | ground truth |
|---|---|---|---|
| `mvtec` | `train/good` | `test/good`, `test/DEFECT` | `ground_truth/DEFECT/NAME_mask.png` |
| `btad` | `train/ok` | `test/ok`, `test/ko` | `ground_truth/ko/NAME.png` |
| `mvtec_ad_2` | `train/good`, `validation/good` | `test_public/good`, `.../bad` | `test_public/ground_truth/bad` |
| `visa` | by `split_csv/1cls.csv`, or `image_anno.csv` | | as the CSV says |
| `folder` | any images; or `good/`, four of five | `good/`, every fifth, and `defective/` | `masks/` |
"""

import csv
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

logger = logging.getLogger(__name__)

DataFormat = Literal["auto", "mvtec", "btad", "mvtec_ad_2", "visa", "folder"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
GOOD_NAMES = ("good", "ok", "normal")
DEFECTIVE_NAMES = ("defective", "defect", "bad", "ko", "ng", "anomaly", "anomalous", "anomalies")
MASK_FOLDERS = ("ground_truth", "masks", "mask")
MASK_ENDINGS = ("_mask", "", "_gt")


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        path: its file.
        split: `train` or `test`.
        defect: the kind of defect, `good` for none.
        mask: its ground truth, if there is one.
    """

    path: Path
    split: Literal["train", "test"]
    defect: str = "good"
    mask: Path | None = None

    @property
    def defective(self) -> bool:
        """Whether it shows a defect."""
        return self.defect != "good"


@dataclass(frozen=True)
class Dataset:
    """The images of one category.

    Attributes:
        name: the category.
        data_format: the layout that was found.
        samples: all images.
    """

    name: str
    data_format: str
    samples: tuple[Sample, ...]

    def select(self, split: str, defective: bool | None = None) -> list[Sample]:
        """The images of a split, all of them or the good or defective ones."""
        return [one for one in self.samples if one.split == split and defective in (None, one.defective)]

    @property
    def train_paths(self) -> list[Path]:
        """Good images to train on."""
        return [one.path for one in self.select("train")]

    def describe(self) -> str:
        """What was recognised, in a sentence."""
        test = self.select("test", defective=True)
        kinds = Counter(one.defect for one in test)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        without = sum(one.mask is None for one in test)
        masks = "" if not test else "; all have masks" if not without else f"; {without} of these have no mask"
        return (
            f"{self.name}, layout {self.data_format}: {len(self.train_paths)} good images to train,"
            f" {len(self.select('test', defective=False))} good and {len(test)} defective ones to test"
            f"{f' ({listed})' if listed else ''}{masks}."
        )


def check_empty(folder: str | Path) -> None:
    """Raises a ValueError if a folder that is to be written to holds something."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder.")


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and those below it, sorted; none if there is no such folder."""
    return (
        sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    )


def find_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted.

    Raises:
        ValueError: if the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give one that holds images.")
    paths = images_in(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return paths


def find_mask(image: Path, folder: Path) -> Path | None:
    """The ground truth of an image: a file of its name, with or without `_mask`, in any form of image."""
    for ending in MASK_ENDINGS:
        for suffix in IMAGE_SUFFIXES:
            path = folder / f"{image.stem}{ending}{suffix}"
            if path.is_file():
                return path
    return None


def subfolder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder that has one of these names, in any case."""
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in names]
    return found[0] if found else None


def read_splits(root: Path, train: list[str], test: str, masks: str) -> list[Sample]:
    """Layouts of a folder for each kind of defect: MVTec AD's and its relatives.

    Args:
        root: the category's folder.
        train: folders of good images to train on.
        test: folder whose subfolders are kinds of defects, or good.
        masks: folder of ground truth with the same subfolders.
    """
    samples = [Sample(path, "train") for name in train for path in images_in(root / name)]
    for folder in sorted(path for path in (root / test).iterdir() if path.is_dir() and path != root / masks):
        defect = "good" if folder.name.lower() in GOOD_NAMES else folder.name
        for path in images_in(folder):
            mask = None if defect == "good" else find_mask(path, root / masks / folder.name)
            samples.append(Sample(path, "test", defect, mask))
    return samples


def read_mvtec(root: Path) -> list[Sample]:
    """MVTec AD (Bergmann et al., 2019)."""
    return read_splits(root, ["train"], "test", "ground_truth")


def read_mvtec_ad_2(root: Path) -> list[Sample]:
    """MVTec AD 2 (Heckler-Kram et al., 2025), the part whose labels are public."""
    return read_splits(root, ["train/good", "validation/good"], "test_public", "test_public/ground_truth")


def read_visa(root: Path) -> list[Sample]:
    """VisA (Zou et al., 2022): the split of `../split_csv/1cls.csv`; without it the good images of `image_anno.csv`.

    Raises:
        ValueError: if a CSV names a file that is not there.
    """
    split = root.parent / "split_csv" / "1cls.csv"
    samples = []
    if split.is_file():
        with split.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["object"] == root.name]
        for row in rows:
            mask = root.parent / row["mask"] if row["mask"] else None
            defect = "good" if row["label"] == "normal" else row["label"]
            samples.append(Sample(root.parent / row["image"], row["split"], defect, mask))  # type: ignore[arg-type]
    else:
        with (root / "image_anno.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        good = [row for row in rows if row["label"] == "normal"]
        for row in rows:
            mask = root.parent / row["mask"] if row["mask"] else None
            # VisA's authors train on nine tenths of the good images.
            trains = row["label"] == "normal" and good.index(row) % 10 != 9
            defect = "good" if row["label"] == "normal" else row["label"]
            samples.append(Sample(root.parent / row["image"], "train" if trains else "test", defect, mask))
    missing = [path for one in samples for path in (one.path, one.mask) if path is not None and not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files that the CSV of {root} names are not there, {missing[0]} for one.")
    return samples


def read_folder(root: Path) -> list[Sample]:
    """A plain folder: good images that all train; or `good` and `defective`, with or without masks.

    Then every fifth good image tests and the others train, so that no image does both.
    """
    good, defective = subfolder(root, GOOD_NAMES), subfolder(root, DEFECTIVE_NAMES)
    if defective is None:
        return [Sample(path, "train") for path in images_in(root)]
    masks = subfolder(root, MASK_FOLDERS)
    images = images_in(good) if good else []
    samples = [Sample(path, "train" if number % 5 else "test") for number, path in enumerate(images)]
    for path in images_in(defective):
        inside = path.relative_to(defective)
        defect = inside.parts[0] if len(inside.parts) > 1 else "defective"
        folders = [masks / inside.parent, masks / defective.name / inside.parent] if masks else []
        found = [mask for folder in folders if (mask := find_mask(path, folder))]
        samples.append(Sample(path, "test", defect, found[0] if found else None))
    return samples


READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], list[Sample]]]] = {
    "visa": (lambda root: (root / "image_anno.csv").is_file(), read_visa),
    "mvtec_ad_2": (lambda root: (root / "test_public").is_dir(), read_mvtec_ad_2),
    "btad": (lambda root: (root / "train" / "ok").is_dir() and (root / "test").is_dir(), read_mvtec),
    "mvtec": (lambda root: (root / "train").is_dir() and (root / "test").is_dir(), read_mvtec),
    "folder": (lambda root: True, read_folder),  # noqa: ARG005
}


def read_dataset(folder: str | Path, data_format: DataFormat = "auto") -> Dataset:
    """The images of one category, and which of them train and test.

    Args:
        folder: the category's folder.
        data_format: its layout; `auto` recognises it.

    Raises:
        ValueError: if it is no folder, has another layout than was said, or holds no image; and with what is expected.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder. Give one that holds the images of one category.")
    layout: str = data_format
    if layout == "auto":
        layout = next(name for name, (fits, _) in READERS.items() if fits(root))
    fits, read = READERS[layout]
    if not fits(root):
        raise ValueError(f"{root} has not the layout {layout}; see `ddad/datasets/layouts.py` for what it is.")
    samples = read(root)
    if not samples:
        raise ValueError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}) where the layout {layout} has them.")
    dataset = Dataset(root.resolve().name, layout, tuple(samples))
    without = [one for one in dataset.select("test", defective=True) if one.mask is None]
    if 0 < len(without) < len(dataset.select("test", defective=True)):
        logger.warning(
            "%d defective images have no mask, %s for one: they count for images, not for pixels.",
            len(without),
            without[0].path,
        )
    return dataset


def read_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """The ground truth as `[height, width]` bool: every value above zero is defect; all False for a good image.

    Args:
        sample: the image.
        size: height and width to which it is brought, by the nearest pixel.

    Raises:
        ValueError: if the image and its mask differ in size, or a defective image has no mask.
    """
    from ddad.images_ddad import decoding, open_picture  # and torch, which a command line's help must not wait for

    if not sample.defective:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        raise ValueError(f"{sample.path} has no mask.")
    with decoding(str(sample.path)), open_picture(sample.path) as image:
        image_size = image.size
    with decoding(str(sample.mask)), open_picture(sample.mask) as mask:
        mask_size = mask.size
        # The alpha channel of a mask says nothing about the defect.
        values = np.asarray(mask.convert("RGB") if mask.mode in ("RGBA", "P", "LA") else mask)
    if mask_size != image_size:
        raise ValueError(f"{sample.mask} has {mask_size} pixels, its image {sample.path} {image_size}.")
    defect = values > 0 if values.ndim == 2 else values.max(axis=2) > 0
    resized = PIL.Image.fromarray(defect).resize(size[::-1], PIL.Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)
