"""The bundled checkpoint on real solar cells."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from ddad.cli import main
from ddad.evaluation.metrics import auroc
from tests.conftest import CHECKPOINT
from tests.helpers import run_without_package


def test_a_crack_is_found_where_it_is_and_removed(solar_pipe, defective_cell):
    output = solar_pipe(defective_cell)
    assert output.is_anomalous == [True] and output.image_score[0] > 1.5 * output.threshold
    anomaly, denoised = output.anomaly_map[0], np.array(output.denoised_image[0]).astype(float)
    dark_corner, intact = np.s_[80:120, 270:290], np.s_[215:240, 150:280]
    assert anomaly[dark_corner].mean() > output.threshold > anomaly[intact].mean()
    np.testing.assert_array_equal(denoised[intact][..., 0], defective_cell[intact])
    bright = np.median(defective_cell)
    assert defective_cell[dark_corner].mean() < 0.5 * bright
    assert denoised[dark_corner].mean() > 0.75 * bright
    before, after = output.normality_distance[0]
    assert after < 0.7 * before
    again = solar_pipe(output.denoised_image[0], denoise=False)
    assert again.image_score[0] < 0.6 * output.image_score[0]


def test_a_good_cell_stays_dark_and_comes_out_as_it_went_in(solar_pipe, solar_cells):
    output = solar_pipe(list(solar_cells.test_good[:12]))
    passed = [i for i, anomalous in enumerate(output.is_anomalous) if not anomalous]
    assert len(passed) >= 9
    for i in passed:
        np.testing.assert_array_equal(np.array(output.denoised_image[i])[..., 0], solar_cells.test_good[i])


@pytest.mark.slow
def test_recorded_evaluation_is_what_a_sample_gives(solar_pipe, solar_cells):
    recorded = json.loads((CHECKPOINT / "evaluation.json").read_text())
    good = solar_pipe(list(solar_cells.test_good[::6]), denoise=False).image_score
    defective = solar_pipe(list(solar_cells.test_defective[::15]), denoise=False).image_score
    assert 100 * auroc(np.array(good), np.array(defective)) == pytest.approx(
        recorded["scores"]["combined"]["image_auroc"], abs=8
    )
    assert recorded["threshold"] == pytest.approx(solar_pipe.threshold, abs=1e-4)


def test_scores_are_those_that_were_recorded(solar_pipe, solar_cells):
    # A score that drifts with a library's version would make every threshold wrong.
    expected = json.loads((CHECKPOINT.parent.parent / "tests" / "data" / "solar_scores.json").read_text())
    output = solar_pipe(list(solar_cells.test_defective[:4]), denoise=False)
    np.testing.assert_allclose(output.image_score, expected["image_score"], rtol=2e-3)
    found = [anomaly[100:103, 100:103] for anomaly in output.anomaly_map]
    np.testing.assert_allclose(found, expected["slices"], atol=2e-2, rtol=2e-3)


@pytest.mark.slow
def test_it_gives_the_same_where_the_package_is_not_installed(solar_pipe, defective_cell, tmp_path):
    import shutil

    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    ((image_score, _, size),) = run_without_package(defective_cell, folder, home=tmp_path)
    assert image_score == pytest.approx(solar_pipe(defective_cell, denoise=False).image_score[0], rel=1e-4)
    assert size == [300, 300]


def test_predict_writes_files_and_a_line_for_each_image(solar_cells, tmp_path, capsys):
    first, second = tmp_path / "a" / "cell.png", tmp_path / "b" / "cell.png"
    for path, cell in ((first, solar_cells.test_defective[78]), (second, solar_cells.test_good[3])):
        path.parent.mkdir()
        PIL.Image.fromarray(cell).save(path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(first.read_bytes()[:2000])
    output = tmp_path / "results"
    command = ["predict", str(first), str(broken), str(tmp_path / "b"), str(tmp_path / "gone.png")]
    assert main([*command, "--checkpoint", str(CHECKPOINT), "--output", str(output)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(first), str(broken), str(second), str(tmp_path / "gone.png")]
    assert lines[0]["is_anomalous"] and lines[0]["image_score"] > lines[0]["threshold"]
    assert "damaged or cut off" in lines[1]["error"] and "does not exist" in lines[3]["error"]
    assert lines[0]["map"] != lines[2]["map"]  # two files of one name do not overwrite each other
    for line in (lines[0], lines[2]):
        anomaly = np.array(PIL.Image.open(line["map"]))
        assert anomaly.shape == (300, 300) and anomaly.dtype == np.float32
        assert PIL.Image.open(line["overlay"]).size == PIL.Image.open(line["denoised"]).size == (300, 300)
    capsys.readouterr()
    options = ["--no-denoise", "--alpha", "0", "--timesteps", "201", "--threshold", "1000"]
    assert main(["predict", str(first), *options, "--checkpoint", str(CHECKPOINT), "--output", str(output)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["threshold"] == 1000 and not line["is_anomalous"] and "denoised" not in line


def test_predict_says_what_is_wrong(tmp_path, capsys):
    for arguments, message in (
        (["--checkpoint", str(tmp_path)], "model_index.json is missing"),
        (["--checkpoint", str(CHECKPOINT), "--alpha", "2"], "`alpha` must lie in [0, 1], found 2.0"),
        (["--checkpoint", str(CHECKPOINT), "--timesteps", "21"], "`timesteps` [21] are not calibrated"),
    ):
        image = tmp_path / "image.png"
        PIL.Image.new("L", (64, 64)).save(image)
        assert main(["predict", str(image), "--output", str(tmp_path / "results"), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_most_defective_cells_become_normal(solar_pipe, solar_cells):
    cells = list(solar_cells.test_defective[::15])
    output = solar_pipe(cells)
    chosen = [i for i, anomalous in enumerate(output.is_anomalous) if anomalous]
    assert len(chosen) > 8
    before = np.array([output.normality_distance[i][0] for i in chosen])
    after = np.array([output.normality_distance[i][1] for i in chosen])
    # A faint defect, found by how it looks, may lie as near to normal as what repainting puts in its place.
    strong = before > np.median(before)
    assert (after < before)[strong].all() and after.mean() < 0.85 * before.mean()
    again = solar_pipe([output.denoised_image[i] for i in chosen], denoise=False)
    fallen = np.array(again.image_score) < np.array([output.image_score[i] for i in chosen])
    assert fallen.mean() > 0.9


@pytest.mark.slow
@torch.no_grad()
def test_the_papers_form_runs_on_a_real_cell(solar_pipe, defective_cell):
    output = solar_pipe(defective_cell, denoise="whole", num_denoising_steps=10)
    assert np.abs(np.array(output.denoised_image[0]).astype(int)[..., 0] - defective_cell).mean() > 0.5
