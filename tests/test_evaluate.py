"""`ddad evaluate` on a small data set with masks: tables, JSON, card, figures."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from ddad.cli import main
from ddad.datasets.layouts import read_dataset
from ddad.evaluation.evaluate import evaluate
from ddad.evaluation.metrics import auroc
from ddad.evaluation.restoration import same_place
from ddad.evaluation.scoring import FORMS as ALL_FORMS
from tests.conftest import create_tiny_pipeline
from tests.hub.conftest import RECORD

FORMS = tuple(form for form in ALL_FORMS if form not in ("appearance", "sum"))  # the tiny pipeline judges none


@pytest.fixture
def checkpoint(tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "training.json").write_text(json.dumps(RECORD))
    return tmp_path / "tiny"


def test_every_form_is_measured_on_the_same_images(tiny_pipe, striped_data):
    report, scored, masks = evaluate(tiny_pipe, read_dataset(striped_data))
    assert tuple(report["scores"]) == FORMS and masks.shape == (8, 64, 64)
    assert (report["good_images"], report["defective_images"], report["masks"]) == (4, 4, 3)
    samples = read_dataset(striped_data).select("test")
    defective = np.array([one.defective for one in samples])
    known = np.array([one.defect != "stain" for one in samples])
    for form in FORMS:
        scores, values = scored.scores[form], report["scores"][form]
        assert values["image_auroc"] == pytest.approx(100 * auroc(scores[~defective], scores[defective]), abs=0.01)
        maps, truth = scored.maps[form][known], masks[known]
        assert values["pixel_auroc"] == pytest.approx(100 * auroc(maps[~truth], maps[truth]), abs=0.01)
    np.testing.assert_allclose(
        scored.scores["combined"], tiny_pipe([one.path for one in samples], denoise=False).image_score, rtol=1e-4
    )
    assert report["defects"]["dent"]["images"] == 3 and "pro" in report["defects"]["dent"]
    assert report["defects"]["stain"]["images"] == 1 and "pro" not in report["defects"]["stain"]
    at = report["at_threshold"]
    assert at["detected"] == sum(kind["detected"] for kind in report["defects"].values())


def test_the_command_prints_tables_and_keeps_them_with_the_checkpoint(striped_data, checkpoint, tmp_path, capsys):
    command = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(striped_data)]
    assert main([*command, "--denoise", "2", "--figures", str(tmp_path / "figures")]) == 0
    captured = capsys.readouterr()
    assert "layout mvtec: 4 good images to train, 4 good and 4 defective ones" in captured.err
    assert "| combined |" in captured.out and "| dent | 3 |" in captured.out and "PRO" in captured.out
    recorded = json.loads((checkpoint / "evaluation.json").read_text())
    assert recorded["denoising"]["good_images"] == 2
    card = (checkpoint / "README.md").read_text()
    assert "PRO to 0.3" in card and f"| {recorded['scores']['combined']['pro']:.1f} |" in card
    assert PIL.Image.open(tmp_path / "figures" / "cases.webp").height > 1000
    assert all(PIL.Image.open(tmp_path / "figures" / name).width > 800 for name in ("histogram.png", "curves.png"))
    assert main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {key: value for key, value in recorded.items() if key != "denoising"}


def test_a_region_lies_at_the_same_place_in_an_image_of_another_size():
    region = np.zeros((40, 60), dtype=bool)
    region[10:20, 30:45] = True
    assert np.array_equal(same_place(region, (40, 60)), region)
    larger = same_place(region, (80, 240))
    assert larger[20:40, 120:180].all() and larger.sum() == 20 * 60
    assert np.array_equal(same_place(larger, (40, 60)), region)


def test_without_defective_images_nothing_is_measured(striped_data, checkpoint, capsys):
    command = ["evaluate", "--checkpoint", str(checkpoint), "--data"]
    assert main([*command, str(striped_data / "test" / "good")]) == 2
    assert "Good and defective test images are needed, found 0 and 0" in capsys.readouterr().err
    assert main([*command, str(striped_data), "--data-format", "visa"]) == 2
    assert "has not the layout visa" in capsys.readouterr().err


def test_a_broken_file_is_left_out_and_said(striped_data, checkpoint, tmp_path, capsys):
    data = tmp_path / "stripes"
    shutil.copytree(striped_data, data)
    broken = data / "test" / "dent" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["left_out"] == ["0.png"] and report["defective_images"] == 3
    assert "Left out: " in captured.err and "damaged or cut off" in captured.err
