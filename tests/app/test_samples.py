"""The examples that the page offers."""

import json

import PIL.Image

from ddad.app.examples import write_examples
from ddad.app.single import introduce
from tests.conftest import CHECKPOINT


def test_examples_of_a_checkpoint_come_with_captions_defective_ones_first(tmp_path):
    folder = tmp_path / "bolt" / "examples"
    folder.mkdir(parents=True)
    for name, shade in (("good_1", 10), ("defective_2", 20), ("defective_1", 30), ("notes", 40)):
        PIL.Image.new("L", (20, 10), shade).save(folder / f"{name}.webp", lossless=True)
    found = write_examples(tmp_path / "bolt")
    assert [caption for _, caption in found] == ["Defect 1", "Defect 2", "Good 1"]
    assert [PIL.Image.open(path).getpixel((0, 0))[0] for path, _ in found] == [30, 20, 10]
    assert not any(path.is_relative_to(tmp_path) for path, _ in found)  # a page may serve none of the folder's files


def test_solar_cells_come_from_their_package_and_other_categories_have_none(tmp_path):
    found = write_examples(CHECKPOINT)
    assert len(found) == 6 and PIL.Image.open(found[0][0]).size == (300, 300)
    assert write_examples(tmp_path / "unknown") == []


def test_whose_images_they_are_is_said(tmp_path):
    assert "elpv-dataset" in introduce(CHECKPOINT) and "CC BY-NC-SA 4.0" in introduce(CHECKPOINT)
    assert introduce(tmp_path) == "Or click an example."
    (tmp_path / "training.json").write_text(json.dumps({"config": {"data_source": "Bolts of ours."}}))
    assert introduce(tmp_path) == "Or click an example. Bolts of ours."
