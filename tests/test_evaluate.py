"""`ddad evaluate` on a small data set with masks: tables, JSON, card, figures."""

import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from ddad.cli import main
from ddad.datasets.layouts import read_dataset
from ddad.evaluation.baselines import BASELINES, Baselines, measure_errors
from ddad.evaluation.evaluate import evaluate
from ddad.evaluation.metrics import auroc
from ddad.evaluation.restoration import same_place
from ddad.evaluation.scoring import FORMS as ALL_FORMS
from tests.conftest import create_tiny_pipeline, with_memory
from tests.hub.conftest import RECORD

# The tiny pipeline judges no appearance.
FORMS = (*ALL_FORMS, *BASELINES)


@pytest.fixture
def checkpoint(tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "training.json").write_text(json.dumps(RECORD))
    return tmp_path / "tiny"


def test_every_form_is_measured_on_the_same_images(tiny_pipe, striped_data):
    tiny_pipe = with_memory(tiny_pipe)
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


def test_baselines_are_errors_in_units_of_good_images(tiny_pipe, striped_data):
    """The squared errors by hand, and means and deviations of good images taken off."""
    paths = read_dataset(striped_data).train_paths
    baselines = Baselines.of(tiny_pipe, paths)
    images = [tiny_pipe.image_processor.read_image(path) for path in paths]
    maps = baselines.maps(tiny_pipe, images)
    for values in maps.values():
        assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    x = tiny_pipe.prepare(images[:1])
    level = torch.tensor([tiny_pipe.timesteps[0]])
    noise = tiny_pipe.get_noise([int(level)])
    noisy = tiny_pipe.scheduler.add_noise(x, noise, level)
    clean = tiny_pipe.scheduler.predict_original_sample(tiny_pipe.unet(noisy, level).sample, noisy, level)
    expected = tiny_pipe.smooth((x - clean).square().mean(dim=1, keepdim=True))[:, 0]
    torch.testing.assert_close(measure_errors(tiny_pipe, images[:1])["rgb"][:, 0], expected, rtol=1e-4, atol=1e-6)


def test_without_good_training_images_there_are_no_baselines(tiny_pipe, striped_data):
    dataset = read_dataset(striped_data)
    report, *_ = evaluate(tiny_pipe, dataclasses.replace(dataset, samples=tuple(dataset.select("test"))))
    assert "rgb" not in report["scores"] and "kl" in report["scores"]


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
