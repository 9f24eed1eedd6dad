"""The examples that the page offers, and what is stored of them."""

import json

import PIL.Image
import pytest

from ddad.app.examples import Examples, read_results, write_results
from ddad.app.single_events import introduce
from tests.conftest import CHECKPOINT, ROOT, create_tiny_pipeline


def write_photographs(folder, names=("good_1", "defective_2", "defective_1", "notes")):
    folder.mkdir(parents=True)
    for number, name in enumerate(names, start=1):
        PIL.Image.new("L", (40, 30), 10 * number).save(folder / f"{name}.webp", lossless=True)


def test_examples_of_a_checkpoint_come_with_captions_defective_ones_first(tmp_path):
    write_photographs(tmp_path / "bolt" / "examples")
    found = Examples(tmp_path, ["bolt"]).of("bolt")
    assert [one.caption for one in found] == ["Defect 1", "Defect 2", "Good 1"]
    assert [PIL.Image.open(one.path).getpixel((0, 0))[0] for one in found] == [30, 20, 10]
    assert not any(one.path.is_relative_to(tmp_path) for one in found)  # a page may serve none of the folder's files
    assert Examples(tmp_path, ["bolt"]).of("nut") == [] and Examples(tmp_path, []).of("bolt") == []


def test_what_is_found_on_examples_is_stored_for_this_state_of_the_checkpoint(tmp_path):
    pipe = create_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "bolt")
    write_photographs(tmp_path / "bolt" / "examples", ("good_1", "defective_1"))
    write_results(tmp_path / "bolt")
    (first, _) = Examples(tmp_path, ["bolt"]).of("bolt")
    result = pipe(tmp_path / "bolt" / "examples" / "defective_1.webp")
    assert first.finding.image_score == pytest.approx(result.image_score[0], rel=1e-4)
    assert first.finding.threshold == pytest.approx(result.threshold) and first.finding.size == (40, 30)
    assert PIL.Image.open(first.heatmap).width == 900 and PIL.Image.open(first.normal).size == (40, 30)
    # Another state of the checkpoint: nothing stored is shown.
    settings = tmp_path / "bolt" / "model_index.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"alpha": 0.1}))
    assert read_results(tmp_path / "bolt") == {}
    assert Examples(tmp_path, ["bolt"]).of("bolt")[0].finding is None


def test_examples_are_called_by_what_they_show(tmp_path):
    write_photographs(tmp_path / "bolt" / "examples")
    captions = {"defective_1": "Thread torn", "good_1": "Good"}
    (tmp_path / "bolt" / "examples" / "captions.json").write_text(json.dumps(captions))
    assert [one.caption for one in Examples(tmp_path, ["bolt"]).of("bolt")] == ["Thread torn", "Defect 2", "Good"]


@pytest.mark.parametrize(
    "checkpoint", sorted((ROOT / "checkpoints").glob("*/examples")), ids=lambda one: one.parent.name
)
def test_bundled_examples_are_finished(checkpoint):
    found = read_results(checkpoint.parent)
    assert len(found) == 6, "run `make examples`"
    captions = json.loads((checkpoint / "captions.json").read_text())
    assert captions.keys() == found.keys() and len(set(captions.values())) == 6


def test_whose_images_they_are_is_said(tmp_path):
    assert "elpv-dataset" in introduce(CHECKPOINT)
    assert introduce(tmp_path) == ""
    (tmp_path / "training.json").write_text(json.dumps({"config": {"data_source": "Bolts of ours."}}))
    assert introduce(tmp_path) == "Bolts of ours."
