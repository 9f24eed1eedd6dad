"""Folders of images with labels and masks, in the layouts that data sets for defect detection come in.

| layout | good images that train | test images | ground truth |
|---|---|---|---|
| `mvtec` | `train/good` | `test/good`, `test/DEFECT` | `ground_truth/DEFECT/NAME_mask.png` |
| `btad` | `train/ok` | `test/ok`, `test/ko` | `ground_truth/ko/NAME.png` |
| `mvtec_ad_2` | `train/good`, `validation/good` | `test_public/good`, `.../bad` | `test_public/ground_truth/bad` |
| `visa` | by `split_csv/1cls.csv`, or `image_anno.csv` | | as the CSV says |
| `mvtec_loco` | `train/good`, `validation/good` | as `mvtec` | `ground_truth/DEFECT/NAME/000.png` and more |
| `mvtec_3d` | `train/good/rgb` | `test/DEFECT/rgb` | `test/DEFECT/gt/NAME.png`; `xyz` is left out |
| `folder` | any images; or `good/`, four of five | `good/`, every fifth, and `defective/` | `masks/` |

Which folder holds good parts is decided by `datasets.names`, in every layout: docs/data.md.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import PIL.Image

from ddad.datasets.annotations import find_annotated
from ddad.datasets.files import describe_others, find_images, images_in, looks_like_image, walk
from ddad.datasets.ground_truth import Truths, files_by_stem, files_by_truth, find_mask, find_truths, read_mask
from ddad.datasets.names import HOW_TO_DECIDE, Choice, choose_good, describe_found, is_hidden, is_neutral, kind_of
from ddad.datasets.tables import read_rows
from ddad.runtime.pictures import IMAGE_SUFFIXES

__all__ = ["Dataset", "Sample", "find_images", "make_contact_sheet", "read_dataset", "read_mask"]

logger = logging.getLogger(__name__)

DataFormat = Literal["auto", "mvtec", "btad", "mvtec_ad_2", "mvtec_loco", "mvtec_3d", "visa", "folder"]
CONTACT_IMAGES, CONTACT_SIDE = 24, 160
TRAIN, VALIDATION = ("train", "training"), ("validation", "valid", "val")
TEST, TRUTH = ("test", "testing"), ("ground_truth", "groundtruth", "gt", "masks")
# What other sensors saw beside the picture, in MVTec 3D-AD's layout and Eyecandies'.
OTHER_SENSORS = frozenset(["xyz", "depth", "pcd", "pointcloud", "point_cloud", "normals", "ir", "infra"])


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
        others: what was left out of the folder, in a sentence.
    """

    name: str
    data_format: str
    samples: tuple[Sample, ...]
    others: str = ""

    def select(self, split: str, defective: bool | None = None) -> list[Sample]:
        """The images of a split, all of them or the good or defective ones."""
        return [sample for sample in self.samples if sample.split == split and defective in (None, sample.defective)]

    @property
    def train_paths(self) -> list[Path]:
        """Good images to train on."""
        return [sample.path for sample in self.select("train")]

    def require_training(self) -> list[Path]:
        """`train_paths`.

        Raises:
            ValueError: if there are none.
        """
        if not self.train_paths:
            raise ValueError(f"No image of {self.name} is a good one to train on: {self.describe()} {HOW_TO_DECIDE}")
        return self.train_paths

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
            f"{f' ({listed})' if listed else ''}{masks}.{self.others}"
        )


def make_contact_sheet(paths: Sequence[Path]) -> PIL.Image.Image:
    """Up to 24 of some images, evenly chosen, so that somebody sees what trains; what cannot be read is left grey."""
    from diffusers.utils.pil_utils import make_image_grid  # and torch, which a command line's help must not wait for

    from ddad.images_ddad import DDADImageProcessor
    from ddad.rendering_ddad import DDADRenderer

    processor, thumbnails = DDADImageProcessor(), []
    count = min(len(paths), CONTACT_IMAGES)
    for number in range(count):
        tile = PIL.Image.new("RGB", (CONTACT_SIDE, CONTACT_SIDE), "grey")
        try:
            image = processor.read_image(paths[number * len(paths) // count])
            picture = DDADRenderer.to_image(image, "pil")
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


def child(root: Path, names: Sequence[str]) -> Path | None:
    """The folder right in `root` of one of these names, in any capitals; None if there is none."""
    wanted = {name.casefold() for name in names}
    places = (path for path in root.iterdir() if path.name.casefold() in wanted and path.is_dir())
    return min(places, default=None)


def pictures_in(folder: Path) -> list[Path]:
    """The image files below a folder, without what other sensors saw beside a folder `rgb`."""

    def is_other(path: Path) -> bool:
        return any(
            part.casefold() in OTHER_SENSORS and child(parent, ["rgb"]) is not None
            for part, parent in zip(reversed(path.relative_to(folder).parts[:-1]), path.parents[1:], strict=False)
        )

    return [path for path in images_in(folder) if not is_other(path)]


def choose(root: Path, paths: Sequence[Path], good: Sequence[str], root_name: str, truths: Truths) -> Choice:
    """Which of these images are good, by names, ground truth and the user's word; see `choose_good`."""
    inside = [path.relative_to(root) for path in paths]
    by_content = [
        [position for position, path in enumerate(paths) if path in known]
        for known in (truths.masks, truths.marked, truths.unmarked)
    ]
    return choose_good(inside, root_name, good, *by_content)


def read_train(root: Path, folders: Sequence[Path], good: Sequence[str], truths: Truths) -> list[Path]:
    """Good images that train, of the folders that a layout has them in; what is named otherwise is refused.

    Raises:
        ValueError: if one of the folders holds defective images, masks or what is not clear.
    """
    chosen = []
    for folder in folders:
        paths = pictures_in(folder)
        if not paths:
            continue
        place = folder.relative_to(root).as_posix()
        named = [path.removeprefix(f"{place}/") for path in good]  # below the data set, or below the folder itself
        named = ["." if path.rstrip("/") == place else path for path in named]
        choice = choose(folder, paths, named, folder.name, truths)
        marked = [paths[position] for position in choice.defective if paths[position] in truths.marked]
        named_so = [position for position in choice.defective if paths[position] not in truths.marked]
        masks = [position for position in choice.masks if paths[position] not in truths.masks]
        if not good and (named_so or masks):
            listed = describe_found([path.relative_to(folder) for path in paths])
            raise ValueError(
                f"{folder} must hold good images only, since what lies there trains. Found: {listed}. Move the others"
                " to the test folder, or name the good ones with --good FOLDER."
            )
        if marked:
            logger.warning(
                "%d images in %s are left out: their ground truth marks a defect, %s for one.",
                len(marked),
                folder,
                marked[0],
            )
        chosen += [paths[position] for position in choice.good]
    return chosen


def read_splits(
    root: Path, train: Sequence[Path | None], test: Path, masks: Path | None, good: Sequence[str] = ()
) -> list[Sample]:
    """Layouts of a folder for each kind of defect: MVTec AD's and its relatives.

    Args:
        root: the category's folder.
        train: folders of good images to train on, those that there are.
        test: folder whose subfolders are kinds of defects, or good; or that holds the images itself.
        masks: folder of ground truth with the same subfolders.
        good: what the user named as good, below the folders of `train`.

    Raises:
        ValueError: if it is not clear which images are good.
    """
    places = [folder for folder in train if folder is not None]
    truths = find_truths([path for folder in (*places, test) for path in pictures_in(folder)], root)
    samples = [Sample(path, "train") for path in read_train(root, places, good, truths)]
    loose = []
    kinds = [path for path in test.iterdir() if path.is_dir() and kind_of(path.name) in ("unclear", "defective")]
    for folder in sorted(test.iterdir()):
        if is_hidden(PurePath(folder.name)) or folder == masks:
            continue
        if not folder.is_dir():
            loose += [folder] if looks_like_image(folder) and folder not in truths.masks else []
            continue
        if kind_of(folder.name) == "masks":
            continue
        defect = "good" if kind_of(folder.name) == "good" else folder.name
        for path in pictures_in(folder):
            below = path.relative_to(folder).parts[:-1]
            if path in truths.masks or any(kind_of(part) == "masks" for part in below):
                continue
            mask = None
            if defect != "good":
                # Names repeat from kind to kind, so ground truth without a folder of its kind is that of a single one.
                places = [masks / folder.name, *([masks] if len(kinds) == 1 else [])] if masks else []
                mask = next((mask for place in places if (mask := find_mask(path, place))), truths.of.get(path))
            samples.append(Sample(path, "test", defect, mask))
    return samples + read_loose(test, loose, masks, truths)


def read_loose(test: Path, paths: list[Path], masks: Path | None, truths: Truths) -> list[Sample]:
    """Test images that lie right in the test folder: their ground truth or their names say which are defective.

    Raises:
        ValueError: where neither says it.
    """
    if not paths:
        return []
    for path in paths:
        mask = find_mask(path, masks) if masks is not None and path not in truths.of else None
        if mask is not None:
            truths.add(path, mask)
    try:
        choice = choose(test, paths, (), "", truths)
    except ValueError:
        choice = Choice()
    if len(choice.good) + len(choice.defective) + len(choice.masks) < len(paths) or not (
        choice.defective or truths.of
    ):
        raise ValueError(
            f"{test} holds {len(paths)} images of which nothing says whether they are good, {paths[0].name} for one:"
            f" put them into {test.name}/good and {test.name}/KIND_OF_DEFECT, or give the folder of good images alone."
        )
    samples = [Sample(paths[position], "test") for position in choice.good]
    return samples + [
        Sample(paths[position], "test", "defective", truths.of.get(paths[position])) for position in choice.defective
    ]


def read_mvtec(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """MVTec AD (Bergmann et al., 2019), MVTec LOCO AD (2022), MVTec 3D-AD (2021) and BTAD, and what looks like them.

    Masks of LOCO are joined, and its saturated sPRO is not what is measured; of 3D-AD the pictures are read alone.
    """
    test = child(root, TEST)
    assert test is not None  # as `fits` has seen
    return read_splits(root, [child(root, TRAIN), child(root, VALIDATION)], test, masks or child(root, TRUTH), good)


def read_mvtec_ad_2(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """MVTec AD 2 (Heckler-Kram et al., 2025), the part whose labels are public."""
    test = root / "test_public"
    return read_splits(root, [child(root, TRAIN), child(root, VALIDATION)], test, masks or child(test, TRUTH), good)


def read_visa(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:  # noqa: ARG001 - CSVs decide
    """VisA (Zou et al., 2022): the split of `../split_csv/1cls.csv`; without it the good images of `image_anno.csv`.

    Raises:
        ValueError: if a CSV cannot be read or names a file that is not there.
    """
    split = root.parent / "split_csv" / "1cls.csv"
    table = split if split.is_file() else root / "image_anno.csv"
    samples, left_out, normal = [], [], 0
    columns = ("object", "split", "label", "image", "mask") if split.is_file() else ("label", "image", "mask")
    for row in read_rows(table, columns):
        if row.get("object", root.name) != root.name:
            continue
        path = root.parent / row["image"]
        mask = root.parent / row["mask"] if row["mask"] else None
        is_good = row["label"].casefold() in ("normal", "good", "ok")
        if split.is_file():
            part = split_named(row["split"], table)
        else:  # VisA's authors train on nine tenths of the good images
            normal += is_good
            part = "train" if is_good and normal % 10 else "test"
        if part == "train" and not is_good:
            left_out.append(path)
            continue
        samples.append(Sample(path, part, "good" if is_good else row["label"], None if is_good else mask))
    named = [sample.path for sample in samples] + [sample.mask for sample in samples if isinstance(sample.mask, Path)]
    missing = [path for path in named if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files that the CSV of {root} names are not there, {missing[0]} for one.")
    if left_out:
        logger.warning(
            "%d defective images that %s puts into train are left out, %s for one: only good ones train.",
            len(left_out),
            table,
            left_out[0],
        )
    return samples


def split_named(name: str, table: Path) -> Literal["train", "test"]:
    """The split that a table names.

    Raises:
        ValueError: for a name that is neither's.
    """
    wanted = name.strip().casefold()
    if wanted in (*TRAIN, *VALIDATION):
        return "train"
    if wanted in TEST:
        return "test"
    raise ValueError(f"{table} names a split {name!r}: it must be train or test.")


def read_folder(root: Path, masks: Path | None, good: Sequence[str]) -> list[Sample]:
    """A plain folder: good images that all train; or folders named as good and defective, with or without masks.

    With defective images every fifth good one tests and the others train, so that no image does both.

    Raises:
        ValueError: if it is not clear which images are good.
    """
    paths = pictures_in(root)
    inside = [path.relative_to(root) for path in paths]
    splits = {*TRAIN, *TEST}
    categories = sorted({path.parts[0] for path in inside if len(path.parts) > 2 and path.parts[1].lower() in splits})
    if len(categories) > 1 and not good:
        raise ValueError(
            f"{root} holds several categories ({', '.join(categories)}): give the folder of one, for example"
            f" {root / categories[0]}."
        )
    truths = find_truths(paths, root)
    choice = choose(root, paths, good, root.resolve().name, truths)
    tests = {path.parts[0] for path in inside if path.parts[0].casefold() in TEST}
    if tests and any(inside[position].parts[0] in tests for position in choice.good):
        raise ValueError(
            f"{root} has a folder {sorted(tests)[0]} and none of good images that train beside it. Found:"
            f" {describe_found(inside)}. Name those that train with --good FOLDER, or give their folder alone."
        )
    if not choice.defective:
        return [Sample(paths[position], "train") for position in choice.good]
    samples = [
        Sample(paths[position], "train" if number % 5 else "test") for number, position in enumerate(choice.good)
    ]
    places = [masks] if masks else sorted({root / inside[position].parts[0] for position in choice.masks})
    for position in choice.defective:
        path = inside[position]
        # `bad/dent/3.png` has its mask in `masks/bad/dent`, `masks/dent` or `masks`.
        below = [path.parent, PurePath(*path.parts[1:-1]), PurePath()]
        files = [mask for place in places if place.is_dir() for folder in below
                 if (mask := find_mask(root / path, place / folder))]  # fmt: skip
        mask = truths.of.get(root / path) or (files[0] if files else None)
        samples.append(Sample(root / path, "test", defect_named(path), mask))
    return samples


def defect_named(path: PurePath) -> str:
    """The kind of defect by a file's folders: the deepest name that is neither a verdict nor a number."""
    kinds = [part for part in path.parts[:-1] if kind_of(part) == "unclear" and not is_neutral(part)]
    return kinds[-1] if kinds else "defective"


def check_annotations(root: Path, samples: Sequence[Sample]) -> None:
    """Refuses images that would train although an annotation beside them marks something on them.

    Raises:
        ValueError: with the first of them, and what to do.
    """
    trains = {sample.path.resolve() for sample in samples if sample.split == "train"}
    annotated = {image: file for image, file in find_annotated(walk(root)).items() if image.resolve() in trains}
    if annotated:
        image, file = next(iter(annotated.items()))
        raise ValueError(
            f"{len(annotated)} images would train although a file beside them marks something on them: {file.name} on"
            f" {image.name} for one. Move them out, or make masks of the annotations with `ddad dataset convert"
            f" {root} --output NEW`."
        )


Reader = Callable[[Path, Path | None, Sequence[str]], list[Sample]]


def has_splits(root: Path) -> bool:
    """Whether there is a folder of what trains and one of what tests."""
    return child(root, TRAIN) is not None and child(root, TEST) is not None


def is_btad(root: Path) -> bool:
    """Whether the good images that train are called ok."""
    train = child(root, TRAIN)
    return has_splits(root) and train is not None and child(train, ["ok"]) is not None


def is_3d(root: Path) -> bool:
    """Whether pictures lie in folders `rgb` with what another sensor saw beside them."""
    train = child(root, TRAIN)
    return (
        has_splits(root)
        and train is not None
        and any(
            path.name.casefold() == "rgb" and child(path.parent, tuple(OTHER_SENSORS)) is not None
            for path in train.glob("*/*")
        )
    )


READERS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "visa": (lambda root: (root / "image_anno.csv").is_file(), read_visa),
    "mvtec_ad_2": (lambda root: (root / "test_public").is_dir(), read_mvtec_ad_2),
    "btad": (is_btad, read_mvtec),
    "mvtec_3d": (is_3d, read_mvtec),
    "mvtec_loco": (lambda root: has_splits(root) and child(root, VALIDATION) is not None, read_mvtec),
    "mvtec": (has_splits, read_mvtec),
    "folder": (lambda root: True, read_folder),  # noqa: ARG005
}


def describe_left_out(root: Path, samples: Sequence[Sample]) -> str:
    """The files below a folder that are neither images that are used nor their ground truth."""
    used = {path for sample in samples for path in (sample.path, sample.mask) if isinstance(path, Path)}
    used |= {path for sample in samples if isinstance(sample.mask, tuple) for path in sample.mask}
    left = [path for path in walk(root) if path not in used]
    return f" {describe_others(left)}." if left else ""


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
    files_by_truth.cache_clear()
    samples = read(root, None if masks is None else Path(masks), good)
    check_annotations(root, samples)
    if not samples:
        raise ValueError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}) where the layout {layout} has them.")
    dataset = Dataset(root.resolve().name, layout, tuple(samples), describe_left_out(root, samples))
    without = [sample for sample in dataset.select("test", defective=True) if sample.mask is None]
    if 0 < len(without) < len(dataset.select("test", defective=True)):
        logger.warning(
            "%d defective images have no mask, %s for one: they count for images, not for pixels.",
            len(without),
            without[0].path,
        )
    return dataset
