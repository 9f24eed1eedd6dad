"""Defects that somebody outlined in another program: labelme, COCO, Pascal VOC, YOLO and CVAT, as shapes and as masks.

| format | files | image |
|---|---|---|
| `labelme` | `NAME.json` with `shapes` | `imagePath`, else `NAME` |
| `coco` | one JSON with `images` and `annotations` | `file_name` |
| `voc` | `NAME.xml`, root `annotation` | `filename`, else `NAME` |
| `yolo` | `NAME.txt` beside it or in `labels/`, parts of the image's width and height | `NAME` |
| `cvat` | one XML, root `annotations` | `name` |
| `table` | one CSV with file names and labels, or boxes | its first column of file names |
"""

import json
import logging
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import PIL.Image
import PIL.ImageDraw

from ddad.datasets.files import looks_like_image
from ddad.datasets.names import kind_of
from ddad.datasets.tables import read_rows, read_text

logger = logging.getLogger(__name__)

Format = Literal["labelme", "coco", "voc", "yolo", "cvat", "table"]
FORMATS = ("labelme", "coco", "voc", "yolo", "cvat")
LARGEST_FILE = 200 * 2**20
LABEL_COLUMNS = (
    "label",
    "class",
    "class_name",
    "defect",
    "defect_type",
    "category",
    "kind",
    "verdict",
    "result",
    "status",
)
NO_DEFECT = ("", "0", "none", "nan", "false", "background")
LINE_WIDTH = 3


@dataclass(frozen=True)
class Shape:
    """One outlined defect.

    Attributes:
        label: its kind, as it was called.
        points: corners in pixels, or in parts of the image's width and height if `relative`.
        box: whether only a box was drawn, which is larger than the defect.
        line: whether the points are joined by a line of some width, not filled.
        relative: what the points count.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    box: bool = False
    line: bool = False
    relative: bool = False


Annotations = dict[Path, list[Shape]]


def _box(label: str, sides: Sequence[float], relative: bool = False) -> Shape:
    left, top, right, bottom = sides
    return Shape(label, ((left, top), (right, top), (right, bottom), (left, bottom)), box=True, relative=relative)


class _Images:
    """The images of a folder, by what annotations call them."""

    def __init__(self, paths: Iterable[Path]):
        self.paths = list(paths)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_name[path.name.lower()].append(path)
            self._by_stem[path.stem.lower()].append(path)

    def named(self, name: str, near: Path) -> Path | None:
        """The image of a name (a path of any machine), the nearest to the annotation if there are several."""
        last = PurePath(name.replace("\\", "/"))
        found = self._by_name.get(last.name.lower()) or []
        tail = [path for path in found if path.as_posix().lower().endswith(last.as_posix().lower())]
        return self._nearest(tail or found, near)

    def stem(self, stem: str, near: Path) -> Path | None:
        """The image of a name without suffix."""
        return self._nearest(self._by_stem.get(stem.lower()) or [], near)

    @staticmethod
    def _nearest(paths: Sequence[Path], near: Path) -> Path | None:
        def distance(path: Path) -> int:
            return -sum(a == b for a, b in zip(path.parent.parts, near.parent.parts, strict=False))

        return min(paths, key=distance, default=None)


def _numbers(values: Iterable[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a coordinate is no number")
    return numbers


def _pairs(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple(zip(values[::2], values[1::2], strict=True))


def _labelme(data: dict[str, Any], file: Path, images: _Images) -> Annotations:
    image = images.named(str(data.get("imagePath") or ""), file) or images.stem(file.stem, file)
    shapes = []
    for shape in data["shapes"]:
        label, kind = str(shape.get("label", "defect")), shape.get("shape_type", "polygon")
        points = tuple((x, y) for x, y in (_numbers(point[:2]) for point in shape["points"]))
        if kind == "rectangle":
            (left, top), (right, bottom) = points[0], points[-1]
            shapes.append(_box(label, (left, top, right, bottom)))
        elif kind == "circle":
            (x, y), radius = points[0], math.dist(points[0], points[1])
            angles = [2 * math.pi * number / 48 for number in range(48)]
            shapes.append(Shape(label, tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles)))
        else:
            shapes.append(Shape(label, points, line=kind in ("line", "linestrip", "point", "points")))
    return {image: shapes} if image is not None else {}


def _coco(data: dict[str, Any], file: Path, images: _Images) -> Annotations:
    names = {one["id"]: str(one.get("name", "defect")) for one in data.get("categories", [])}
    paths = {one["id"]: images.named(str(one["file_name"]), file) for one in data["images"]}
    found: Annotations = {path: [] for path in paths.values() if path is not None}
    for one in data["annotations"]:
        path = paths.get(one.get("image_id"))
        if path is None:
            continue
        label, outlines = names.get(one.get("category_id"), "defect"), one.get("segmentation")
        if isinstance(outlines, list) and outlines:
            outlines = outlines if isinstance(outlines[0], list) else [outlines]
            found[path] += [Shape(label, _pairs(_numbers(outline))) for outline in outlines if len(outline) >= 6]
        elif one.get("bbox"):  # also where the mask is run-length coded
            left, top, width, height = _numbers(one["bbox"])
            found[path].append(_box(label, (left, top, left + width, top + height)))
    return found


def _voc(root: ElementTree.Element, file: Path, images: _Images) -> Annotations:
    image = images.named(root.findtext("filename") or "", file) or images.stem(file.stem, file)
    shapes = []
    for one in root.iter("object"):
        box = one.find("bndbox")
        if box is not None:
            sides = _numbers(box.findtext(side) or "nan" for side in ("xmin", "ymin", "xmax", "ymax"))
            shapes.append(_box(one.findtext("name") or "defect", sides))
    return {image: shapes} if image is not None else {}


def _cvat(root: ElementTree.Element, file: Path, images: _Images) -> Annotations:
    found: Annotations = {}
    for one in root.iter("image"):
        path = images.named(one.get("name") or "", file)
        if path is None:
            continue
        shapes = found.setdefault(path, [])
        for shape in one:
            label = shape.get("label") or "defect"
            if shape.tag == "box":
                shapes.append(_box(label, _numbers(shape.get(side) or "nan" for side in ("xtl", "ytl", "xbr", "ybr"))))
            elif shape.tag in ("polygon", "polyline", "points"):
                points = _numbers(
                    value for pair in (shape.get("points") or "").split(";") for value in pair.split(",")
                )
                shapes.append(Shape(label, _pairs(points), line=shape.tag != "polygon"))
            elif shape.tag == "mask":
                left, top, width, height = _numbers(
                    shape.get(side) or "nan" for side in ("left", "top", "width", "height")
                )
                shapes.append(_box(label, (left, top, left + width, top + height)))
    return found


def _yolo(file: Path, images: _Images) -> Annotations:
    image = images.stem(file.stem, file)
    if image is None:
        return {}
    shapes = []
    for line in read_text(file).splitlines():
        values = line.split()
        if len(values) not in (5, 6) and not (len(values) >= 7 and len(values) % 2):
            if values:
                return {}  # some other text
            continue
        try:
            numbers = _numbers(values)
        except ValueError:
            return {}
        if len(values) in (5, 6):
            x, y, width, height = numbers[1:5]
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            shapes.append(_box(f"class_{values[0]}", corners, relative=True))
        else:
            shapes.append(Shape(f"class_{values[0]}", _pairs(numbers[1:]), relative=True))
    return {image: shapes}


def _table(file: Path, images: _Images) -> Annotations:
    rows = read_rows(file, ())
    if not rows:
        return {}
    column = next((name for name in rows[0] if any(images.named(row.get(name, ""), file) for row in rows[:20])), None)
    labels = next((name for name in rows[0] if name in LABEL_COLUMNS), None)
    boxes = {"xmin", "ymin", "xmax", "ymax"} <= rows[0].keys()
    if column is None or not (labels or boxes):
        return {}
    found: Annotations = {}
    for row in rows:
        path = images.named(row[column], file)
        if path is None:
            continue
        shapes = found.setdefault(path, [])
        label = row.get(labels or "", "") or ("defect" if boxes else "")
        if label.lower() in NO_DEFECT or kind_of(label) == "good":
            continue
        box = _numbers(row[side] for side in ("xmin", "ymin", "xmax", "ymax")) if boxes else None
        shapes.append(Shape(label, ()) if box is None else _box(label, box))
    return found


def _reader(file: Path) -> tuple[Format, Callable[[_Images], Annotations]] | None:
    """How a file is read, by what it holds; None for one that is no annotation."""
    suffix = file.suffix.lower()
    if suffix == ".txt":
        return "yolo", lambda images: _yolo(file, images)
    if suffix == ".csv":
        own = file.name in ("image_anno.csv", "1cls.csv")  # VisA's, which its layout reads
        return None if own else ("table", lambda images: _table(file, images))
    if suffix == ".json":
        data = json.loads(read_text(file))
        if isinstance(data, dict) and isinstance(data.get("shapes"), list):
            return "labelme", lambda images: _labelme(data, file, images)
        if isinstance(data, dict) and isinstance(data.get("annotations"), list) and "images" in data:
            return "coco", lambda images: _coco(data, file, images)
    if suffix == ".xml" and "<!ENTITY" not in (text := read_text(file)):  # which may grow without end
        root = ElementTree.fromstring(text)
        if root.tag == "annotation":
            return "voc", lambda images: _voc(root, file, images)
        if root.tag == "annotations":
            return "cvat", lambda images: _cvat(root, file, images)
    return None


def read_file(file: Path, images: _Images) -> tuple[Format | None, Annotations]:
    """What one file says of the images; of a file of another kind, nothing."""
    try:
        reader = _reader(file) if file.stat().st_size <= LARGEST_FILE else None
        if reader is not None:
            return reader[0], reader[1](images)
    except (ValueError, LookupError, TypeError, AttributeError, ElementTree.ParseError, RecursionError) as error:
        logger.warning("%s looks like an annotation and cannot be read: %s", file, error)
    return None, {}


def read_annotations(paths: Iterable[Path], wanted: str = "auto") -> tuple[Annotations, dict[Path, Path]]:
    """The shapes on every image that an annotation names (none on a good one), and the file that says so.

    Args:
        paths: all files of a folder.
        wanted: one of `FORMATS`, or `auto` for all of them.
    """
    everything = list(paths)
    images = _Images(path for path in everything if looks_like_image(path))
    found: Annotations = {}
    files: dict[Path, Path] = {}
    for file in everything:
        if file.suffix.lower() not in (".json", ".xml", ".txt", ".csv"):
            continue
        name, annotations = read_file(file, images)
        if name is None or wanted not in ("auto", name):
            continue
        for path, shapes in annotations.items():
            found.setdefault(path, []).extend(shapes)
            if shapes:
                files[path] = file
    return found, files


def find_annotated(paths: Iterable[Path]) -> dict[Path, Path]:
    """The images on which an annotation marks something, and the file that says so."""
    return read_annotations(paths)[1]


def draw_mask(shapes: Sequence[Shape], size: tuple[int, int]) -> PIL.Image.Image:
    """Ground truth of shapes: 255 inside them, 0 elsewhere, of an image of that width and height."""
    mask = PIL.Image.new("L", size)
    draw = PIL.ImageDraw.Draw(mask)
    for shape in shapes:
        scale = size if shape.relative else (1, 1)
        points = [(x * scale[0], y * scale[1]) for x, y in shape.points]
        if len(points) == 1:
            (x, y) = points[0]
            draw.ellipse((x - LINE_WIDTH, y - LINE_WIDTH, x + LINE_WIDTH, y + LINE_WIDTH), fill=255)
        elif shape.line or len(points) == 2:
            draw.line(points, fill=255, width=LINE_WIDTH)
        elif points:
            draw.polygon(points, fill=255)
    return mask
