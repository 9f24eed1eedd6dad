"""Annotated images as a data set in MVTec AD's layout: good ones that train and test, defective ones with masks."""

import re
import shutil
from collections import Counter
from pathlib import Path

from ddad.datasets.annotations import draw_mask, read_annotations
from ddad.datasets.files import looks_like_image, walk
from ddad.datasets.ground_truth import TRUTH_ENDING
from ddad.datasets.layouts import check_empty
from ddad.datasets.names import choose_good, kind_of
from ddad.images_ddad import DDADImageProcessor


def folder_named(label: str) -> str:
    """A folder for a kind of defect; never one that says good or masks."""
    name = re.sub(r"[^\w-]+", "_", label).strip("_")[:60] or "defective"
    return f"defect_{name}" if kind_of(name) in ("good", "masks") or TRUTH_ENDING.search(name) else name


def convert_annotations(folder: str | Path, output: str | Path, source: str = "auto") -> str:
    """Writes the data set; every fifth good image tests, and the others train.

    Args:
        folder: images, and annotations anywhere below it.
        output: not there yet, or empty.
        source: one of `annotations.FORMATS`, or `auto`.

    Returns:
        What was written, in words.

    Raises:
        ValueError: if the folder holds no annotation, `output` holds something, or an image cannot be read.
    """
    folder, output = Path(folder), Path(output)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give one that holds images and their annotations.")
    check_empty(output)
    files = list(walk(folder))
    found, _ = read_annotations(files, source)
    if not found:
        raise ValueError(f"{folder} holds no annotation that is known ({source}) and names an image in it.")
    images = [path for path in files if looks_like_image(path)]
    without = [path for path in images if path not in found]
    clear = [path for path in images if not found.get(path)]
    # What names say goes on holding: a folder NG without annotations is no folder of good images.
    choice = choose_good([path.relative_to(folder) for path in clear], good=()) if without else None
    good = [clear[position] for position in choice.good] if choice is not None else clear
    processor, boxes, kinds, number = DDADImageProcessor(), 0, Counter[str](), 0
    for number, path in enumerate(good):
        target = output / ("test" if number % 5 == 4 else "train") / "good" / f"{number:04d}{path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for number, (path, shapes) in enumerate(found.items()):
        if not shapes:
            continue
        kind = folder_named(Counter(shape.label for shape in shapes).most_common(1)[0][0])
        kinds[kind] += 1
        target = output / "test" / kind / f"{number:04d}{path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        drawn = [shape for shape in shapes if shape.points]
        boxes += sum(shape.box for shape in drawn)
        if drawn:
            _, height, width = processor.read_image(path).shape
            mask = output / "ground_truth" / kind / f"{number:04d}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            draw_mask(drawn, (width, height)).save(mask)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    text = f"{len(good)} good images ({len(good) // 5} of them test), and with defects: {listed}."
    if without:
        text += (
            f" {len(without)} images have no annotation: {sum(path in set(good) for path in without)} were taken for"
        )
        text += " good."
    if boxes:
        text += f" {boxes} defects are boxes only, larger than what they hold: pixel metrics are too low by that."
    return text
