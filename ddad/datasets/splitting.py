"""A data set split anew, so that no part that trains tests as well."""

import shutil
from pathlib import Path

from ddad.datasets.layouts import Dataset, check_empty
from ddad.datasets.lookalikes import group_lookalikes, split_images
from ddad.images_ddad import DDADImageProcessor


def count_seen(dataset: Dataset) -> int:
    """How many good test images seem to show a part that also trains."""
    train, test = dataset.train_paths, [sample.path for sample in dataset.select("test", defective=False)]
    groups = group_lookalikes(map(DDADImageProcessor().read_image, train + test))
    trained = set(groups[: len(train)])
    return sum(group in trained for group in groups[len(train) :])


def write_split(dataset: Dataset, folder: str | Path, seed: int = 0) -> None:
    """Copies a data set into MVTec AD's layout, its good images split anew: images of one part are on one side.

    As many good images test as before, or a few less; the defective ones are what they were.

    Args:
        dataset: the data set.
        folder: where it is written to; not there yet, or empty.
        seed: of the split.

    Raises:
        ValueError: if `folder` holds something, or there are too few good images.
    """
    folder = Path(folder)
    check_empty(folder)
    test = [sample.path for sample in dataset.select("test", defective=False)]
    good = dataset.train_paths + test
    train, test = split_images(good, group_lookalikes(map(DDADImageProcessor().read_image, good)), len(test), seed)
    copies = [
        (path, f"{split}/good/{number:04d}")
        for split, paths in (("train", train), ("test", test))
        for number, path in enumerate(paths)
    ]
    for number, sample in enumerate(dataset.select("test", defective=True)):
        copies.append((sample.path, f"test/{sample.defect}/{number:04d}"))
        if isinstance(sample.mask, tuple):
            several = enumerate(sample.mask)
            copies += [(path, f"ground_truth/{sample.defect}/{number:04d}/{index:03d}") for index, path in several]
        elif sample.mask is not None:
            copies.append((sample.mask, f"ground_truth/{sample.defect}/{number:04d}_mask"))
    for source, name in copies:
        target = folder / f"{name}{source.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
