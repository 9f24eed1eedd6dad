"""Folders of images with labels and masks, in the layouts that data sets for defect detection come in.

| layout | good images that train | test images | ground truth |
|---|---|---|---|
| `mvtec` | `train/good` | `test/good`, `test/DEFECT` | `ground_truth/DEFECT/NAME_mask.png` |
| `btad` | `train/ok` | `test/ok`, `test/ko` | `ground_truth/ko/NAME.png` |
| `mvtec_ad_2` | `train/good`, `validation/good` | `test_public/good`, `.../bad` | `test_public/ground_truth/bad` |
| `visa` | by `split_csv/1cls.csv`, or `image_anno.csv` | | as the CSV says |
| `mvtec_loco` | `train/good`, `validation/good` | as `mvtec` | `ground_truth/DEFECT/NAME/000.png` and more |
| `folder` | any images; or `good/`, four of five | `good/`, every fifth, and `defective/` | `masks/` |

Which folder holds good parts is decided by `datasets.names`, in every layout: docs/data.md.
"""

import csv
import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from ddad.datasets.names import choose_good, describe_found, is_hidden, kind_of

logger = logging.getLogger(__name__)

DataFormat = Literal["auto", "mvtec", "btad", "mvtec_ad_2", "mvtec_loco", "visa", "folder"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
MASK_ENDINGS = ("_mask", "", "_gt")
# A ground truth that marks more than this is inverted, or of something else.
MOST_DEFECT = 0.9
CONTACT_IMAGES, CONTACT_SIDE = 24, 160


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        path: its file.
        split: `train` or `test`.
        defect: the kind of defect, `good` for none.
        mask: its ground truth, if there is one; several files are one ground truth together.
    """

    path: Path
    split: Literal["train", "test"]
    defect: str = "good"
    mask: Path | tuple[Path, ...] | None = None

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
        return [sample for sample in self.samples if sample.split == split and defective in (None, sample.defective)]

    @property
    def train_paths(self) -> list[Path]:
        """Good images to train on."""
        return [sample.path for sample in self.select("train")]

    def describe(self) -> str:
        """What was recognised, in a sentence."""
        test = self.select("test", defective=True)
        kinds = Counter(sample.defect for sample in test)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        without = sum(sample.mask is None for sample in test)
        masks = "" if not test else "; all have masks" if not without else f"; {without} of these have no mask"
        return (
            f"{self.name}, layout {self.data_format}: {len(self.train_paths)} good images to train,"
            f" {len(self.select('test', defective=False))} good and {len(test)} defective ones to test"
            f"{f' ({listed})' if listed else ''}{masks}."
        )


def make_contact_sheet(paths: Sequence[Path]) -> PIL.Image.Image:
    """Up to 24 of some images, evenly chosen, so that somebody sees what trains; what cannot be read is left grey."""
    from diffusers.utils.pil_utils import make_image_grid  # and torch, which a command line's help must not wait for

    from ddad.images_ddad import DDADImageProcessor

    processor, thumbnails = DDADImageProcessor(), []
    count = min(len(paths), CONTACT_IMAGES)
    for number in range(count):
        tile = PIL.Image.new("RGB", (CONTACT_SIDE, CONTACT_SIDE), "grey")
        try:
            image = processor.read_image(paths[number * len(paths) // count])
            picture = processor.to_image(image, "pil")
            picture.thumbnail(tile.size)
            tile.paste(picture, ((tile.width - picture.width) // 2, (tile.height - picture.height) // 2))
        except ValueError as error:
            logger.warning("%s", error)
        thumbnails.append(tile)
    columns = min(count, 6)
    rows = -(-count // columns)
    thumbnails += [PIL.Image.new("RGB", (CONTACT_SIDE, CONTACT_SIDE), "white")] * (rows * columns - count)
    return make_image_grid(thumbnails, rows, columns)


def check_empty(folder: str | Path) -> None:
    """Raises a ValueError if a folder that is to be written to holds something."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder.")


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and those below it, sorted, hidden ones left out; none if there is no such folder."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in paths if not is_hidden(path.relative_to(folder)))


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


@functools.cache
def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The image files right in a folder, by their names without suffix, in lower case."""
    files: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                files.setdefault(path.stem.lower(), []).append(path)
    return files


def find_mask(image: Path, folder: Path) -> Path | tuple[Path, ...] | None:
    """The ground truth of an image: a file of its name, with or without `_mask`, in any case and form of image.

    Or a folder of its name, whose files are one ground truth together (MVTec LOCO).
    """
    for ending in MASK_ENDINGS:
        matches = files_by_stem(folder).get(f"{image.stem}{ending}".lower())
        if matches:
            return matches[0]
    several = images_in(folder / image.stem)
    return tuple(several) if several else None


def read_train(root: Path, names: Sequence[str], good: Sequence[str]) -> list[Path]:
    """Good images that train, of the folders that a layout has them in; what is named otherwise is refused.

    Raises:
        ValueError: if one of the folders holds defective images, masks or what is not clear.
    """
    chosen = []
    for name in names:
        folder = root / name
        paths = images_in(folder)
        named = [path.removeprefix(f"{name}/") for path in good]  # below the data set, or below the folder itself
        choice = choose_good([path.relative_to(folder) for path in paths], folder.name, named)
        if not good and (choice.defective or choice.masks):
            listed = describe_found([path.relative_to(folder) for path in paths])
            raise ValueError(
                f"{folder} must hold good images only, since what lies there trains. Found: {listed}. Move the others"
                " to the test folder, or name the good ones with --good FOLDER."
            )
        chosen += [paths[position] for position in choice.good]
    return chosen


def read_splits(root: Path, train: Sequence[str], test: str, masks: Path, good: Sequence[str] = ()) -> list[Sample]:
    """Layouts of a folder for each kind of defect: MVTec AD's and its relatives.

    Args:
        root: the category's folder.
        train: folders of good images to train on.
        test: folder whose subfolders are kinds of defects, or good.
        masks: folder of ground truth with the same subfolders.
        good: what the user named as good, below the folders of `train`.
    """
    samples = [Sample(path, "train") for path in read_train(root, train, good)]
    for folder in sorted(path for path in (root / test).iterdir() if path.is_dir() and path != masks):
        if is_hidden(PurePath(folder.name)):
            continue
        defect = "good" if kind_of(folder.name) == "good" else folder.name
        for path in images_in(folder):
            mask = None if defect == "good" else find_mask(path, masks / folder.name)
            samples.append(Sample(path, "test", defect, mask))
    return samples


def read_mvtec(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """MVTec AD (Bergmann et al., 2019)."""
    return read_splits(root, ["train"], "test", masks or root / "ground_truth", good)


def read_mvtec_loco(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """MVTec LOCO AD (Bergmann et al., 2022); its masks are joined, and its saturated sPRO is not what is measured."""
    return read_splits(root, ["train", "validation"], "test", masks or root / "ground_truth", good)


def read_mvtec_ad_2(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """MVTec AD 2 (Heckler-Kram et al., 2025), the part whose labels are public."""
    truth = masks or root / "test_public" / "ground_truth"
    return read_splits(root, ["train", "validation"], "test_public", truth, good)


def read_visa(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:  # noqa: ARG001 - CSVs decide
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
        normal = [row for row in rows if row["label"] == "normal"]
        for row in rows:
            mask = root.parent / row["mask"] if row["mask"] else None
            # VisA's authors train on nine tenths of the good images.
            trains = row["label"] == "normal" and normal.index(row) % 10 != 9
            defect = "good" if row["label"] == "normal" else row["label"]
            samples.append(Sample(root.parent / row["image"], "train" if trains else "test", defect, mask))
    named = [sample.path for sample in samples] + [sample.mask for sample in samples if isinstance(sample.mask, Path)]
    missing = [path for path in named if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files that the CSV of {root} names are not there, {missing[0]} for one.")
    return samples


def read_folder(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """A plain folder: good images that all train; or folders named as good and defective, with or without masks.

    With defective images every fifth good one tests and the others train, so that no image does both.

    Raises:
        ValueError: if it is not clear which images are good.
    """
    inside = [path.relative_to(root) for path in images_in(root)]
    categories = sorted(
        {path.parts[0] for path in inside if len(path.parts) > 2 and path.parts[1] in ("train", "test")}
    )
    if len(categories) > 1 and not good:
        raise ValueError(
            f"{root} holds several categories ({', '.join(categories)}): give the folder of one, for example"
            f" {root / categories[0]}."
        )
    choice = choose_good(inside, root.resolve().name, good)
    if not choice.defective:
        return [Sample(root / inside[position], "train") for position in choice.good]
    samples = [
        Sample(root / inside[position], "train" if number % 5 else "test")
        for number, position in enumerate(choice.good)
    ]
    places = [masks] if masks else sorted({root / inside[position].parts[0] for position in choice.masks})
    for position in choice.defective:
        path = inside[position]
        # `bad/dent/3.png` has its mask in `masks/bad/dent`, `masks/dent` or `masks`.
        below = [path.parent, PurePath(*path.parts[1:-1]), PurePath()]
        files = [mask for place in places for folder in below if (mask := find_mask(root / path, place / folder))]
        kinds = [part for part in path.parts[:-1] if kind_of(part) == "unclear"]
        samples.append(Sample(root / path, "test", kinds[-1] if kinds else "defective", files[0] if files else None))
    return samples


Reader = Callable[[Path, Path | None, Sequence[str]], list[Sample]]
READERS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "visa": (lambda root: (root / "image_anno.csv").is_file(), read_visa),
    "mvtec_ad_2": (lambda root: (root / "test_public").is_dir(), read_mvtec_ad_2),
    "btad": (lambda root: (root / "train" / "ok").is_dir() and (root / "test").is_dir(), read_mvtec),
    "mvtec_loco": (
        lambda root: all((root / name).is_dir() for name in ("train", "validation", "test")),
        read_mvtec_loco,
    ),
    "mvtec": (lambda root: (root / "train").is_dir() and (root / "test").is_dir(), read_mvtec),
    "folder": (lambda root: True, read_folder),  # noqa: ARG005
}


def read_dataset(
    folder: str | Path,
    data_format: DataFormat = "auto",
    good: Sequence[str] = (),
    masks: str | Path | None = None,
) -> Dataset:
    """The images of one category, and which of them train and test.

    Args:
        folder: the category's folder.
        data_format: its layout; `auto` recognises it.
        good: folders below it that hold good images, where names do not say so.
        masks: folder of ground truth, where it is not where the layout has it.

    Raises:
        ValueError: if it is no folder, has another layout than was said, holds no image, or it is not clear which
            images are good; and with what is expected.
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
    files_by_stem.cache_clear()
    samples = read(root, None if masks is None else Path(masks), good)
    if not samples:
        raise ValueError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}) where the layout {layout} has them.")
    dataset = Dataset(root.resolve().name, layout, tuple(samples))
    without = [sample for sample in dataset.select("test", defective=True) if sample.mask is None]
    if 0 < len(without) < len(dataset.select("test", defective=True)):
        logger.warning(
            "%d defective images have no mask, %s for one: they count for images, not for pixels.",
            len(without),
            without[0].path,
        )
    return dataset


def read_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """The ground truth as `[height, width]` bool; all False for a good image.

    Every value above zero is defect. A JPEG leaves small values around what it shows, so there it is every value of at
    least half the largest. Transparent pixels are none, EXIF turns a mask as it turns its image, and several files are
    one ground truth together.

    Args:
        sample: the image.
        size: height and width to which it is brought, by the nearest pixel.

    Raises:
        ValueError: if the image and its mask differ in size, most of the mask is defect, or there is none.
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
        defect |= values >= max(1, values.max() / 2) if lossy else values > 0
        if lossy:
            warn_once(f"Masks stored as JPEG ({path.parent}) are read as defect from half of their largest value.")
    if defect.mean() > MOST_DEFECT:
        raise ValueError(
            f"{defect.mean():.0%} of {paths[0]} is marked as defect: is it inverted? Defects must be above zero and"
            " the rest zero."
        )
    resized = PIL.Image.fromarray(defect).resize(size[::-1], PIL.Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)


def mask_values(mask: PIL.Image.Image) -> np.ndarray:
    """The brightest channel of a mask, `[H, W]`; zero where it is transparent, the index's colour for a palette."""
    if mask.mode in ("RGBA", "LA", "PA") or (mask.mode == "P" and "transparency" in mask.info):
        # An alpha channel that is full everywhere says nothing about the defect.
        rgba = np.asarray(mask.convert("RGBA"))
        return np.where(rgba[..., 3] > 0, rgba[..., :3].max(axis=2), 0)
    values = np.asarray(mask.convert("RGB") if mask.mode == "P" else mask)
    return values if values.ndim == 2 else values.max(axis=2)


@functools.cache
def warn_once(message: str) -> None:
    """Says something once."""
    logger.warning(message)
