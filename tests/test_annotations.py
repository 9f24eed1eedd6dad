"""Defects that were outlined in other programs: they never train, and become masks."""

import json

import numpy as np
import PIL.Image
import pytest

from ddad.cli import main
from ddad.datasets.annotations import read_annotations
from ddad.datasets.files import walk
from ddad.datasets.layouts import read_dataset, read_mask

BOX = (14, 21, 34, 27)  # left, top, right, bottom


def write_labelme(root):
    shape = {"label": "scratch", "points": [BOX[:2], BOX[2:]], "shape_type": "rectangle"}
    (root / "5.json").write_text(json.dumps({"shapes": [shape], "imagePath": "..\\old\\5.png"}))
    (root / "4.json").write_text(json.dumps({"shapes": [], "imagePath": "4.png"}))


def write_coco(root):
    left, top, right, bottom = BOX
    data = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(6)],
        "categories": [{"id": 3, "name": "scratch"}],
        "annotations": [{"image_id": 5, "category_id": 3, "segmentation": [[left, top, right, top, right, bottom, left,
                                                                            bottom]]}],
    }  # fmt: skip
    (root / "_annotations.coco.json").write_text(json.dumps(data))


def write_voc(root):
    sides = "".join(
        f"<{name}>{value}</{name}>" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
    )
    (root / "5.xml").write_text(
        f"<annotation><filename>5.png</filename><object><name>scratch</name><bndbox>{sides}</bndbox></object></annotation>"
    )


def write_yolo(root):
    left, top, right, bottom = BOX
    values = ((left + right) / 2 / 48, (top + bottom) / 2 / 40, (right - left) / 48, (bottom - top) / 40)
    (root / "5.txt").write_text("0 " + " ".join(map(str, values)) + "\n")
    (root / "classes.txt").write_text("scratch\n")


def write_cvat(root):
    left, top, right, bottom = BOX
    points = f"{left},{top};{right},{top};{right},{bottom};{left},{bottom}"
    shape = f'<image name="5.png"><polygon label="scratch" points="{points}"/></image>'
    (root / "annotations.xml").write_text(f'<annotations><image name="good/4.png"/>{shape}</annotations>')


WRITERS = {
    "labelme": write_labelme, "coco": write_coco, "voc": write_voc, "yolo": write_yolo, "cvat": write_cvat,
}  # fmt: skip


@pytest.fixture
def photographs(tmp_path):
    root = tmp_path / "photographs"
    root.mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(60, 120, (40, 48)).astype(np.uint8)
        PIL.Image.fromarray(values).save(root / f"{number}.png")
    return root


@pytest.mark.parametrize("name", WRITERS)
def test_annotated_images_do_not_train_and_become_masks(name, photographs, tmp_path, capsys):
    WRITERS[name](photographs)
    with pytest.raises(ValueError, match=r"1 images would train although a file beside them marks something.*convert"):
        read_dataset(photographs)
    for source in ("auto", name):
        output = tmp_path / source
        assert main(["dataset", "convert", str(photographs), "--from", source, "--output", str(output)]) == 0
        said = capsys.readouterr().err
        assert "5 good images (1 of them test)" in said
        assert ("boxes only" in said) == (name in ("labelme", "voc", "yolo"))
        dataset = read_dataset(output)
        assert len(dataset.train_paths) == 4 and len(dataset.select("test", defective=False)) == 1
        (defective,) = dataset.select("test", defective=True)
        assert defective.defect == ("class_0" if name == "yolo" else "scratch")
        marked = np.argwhere(read_mask(defective, (40, 48)))
        low, high = marked.min(axis=0), marked.max(axis=0)
        assert np.abs([*low[::-1], *high[::-1]] - np.array(BOX)).max() <= 1


def test_a_table_of_labels_beside_images(photographs):
    (photographs / "labels.csv").write_text(
        "file;label\n" + "".join(f"{n}.png;{'ok' if n < 5 else 'NG'}\n" for n in range(6))
    )
    with pytest.raises(ValueError, match="labels.csv on 5.png"):
        read_dataset(photographs)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"shapes": 3}', '{"shapes": [{}]}', '{"images": [], "annotations": [{"image_id": []}]}', "<a",
             "1 2", "<annotations><image name='5.png'><box/></image></annotations>", "5 x y z w", "\0" * 50]
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["json", "xml", "txt", "csv"])
def test_other_files_and_damaged_ones_stop_nobody(text, suffix, photographs):
    (photographs / f"5.{suffix}").write_text(text)
    _, files = read_annotations(walk(photographs))
    assert not files
    assert len(read_dataset(photographs).train_paths) == 6


def test_nothing_to_convert_is_said(photographs, tmp_path):
    with pytest.raises(ValueError, match="holds no annotation that is known"):
        from ddad.datasets.converting import convert_annotations

        convert_annotations(photographs, tmp_path / "new")
