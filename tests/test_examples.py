"""The examples of the documentation run as they stand, and every command explains itself."""

import csv
import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from ddad.cli import create_parser, main
from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def run_example(tmp_path, monkeypatch, solar_cells):
    """Runs an example in a folder with the bundled checkpoint, a defective cell, and two good ones in a folder."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    PIL.Image.fromarray(solar_cells.test_defective[78]).save(tmp_path / "cell.png")
    (tmp_path / "good").mkdir()
    for position in (3, 40):
        PIL.Image.fromarray(solar_cells.test_good[position]).save(tmp_path / "good" / f"{position}.png")
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_one_image(run_example, capsys, tmp_path):
    run_example("one_image.py", "cell.png")
    assert capsys.readouterr().out.startswith("defective: score ")
    assert PIL.Image.open("normal.png").size == PIL.Image.open("overlay.png").size == PIL.Image.open("cell.png").size


def test_folder_to_csv(run_example, capsys):
    shutil.copy("cell.png", "good")
    run_example("folder_to_csv.py", "good", "scores.csv")
    assert "1 of 3 images are defective" in capsys.readouterr().out
    with open("scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows][0] == "cell.png" and [row["defective"] for row in rows] == ["1", "0", "0"]


def test_own_threshold(run_example, capsys):
    run_example("own_threshold.py", "good", "cell.png")
    assert capsys.readouterr().out.count("True") == 3


def test_denoising_film(run_example, capsys):
    run_example("denoising_film.py", "cell.png", "film.gif")
    assert PIL.Image.open("film.gif").n_frames > 3
    assert "distance from normal" in capsys.readouterr().out


COMMANDS = next(action.choices for action in create_parser()._actions if isinstance(action.choices, dict))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ddad {command}" in text and "SUPPRESS" not in text
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    out = capsys.readouterr().out
    assert command in out and "exit status" in out
    with pytest.raises(SystemExit) as caught:
        main([command, "--no-such-flag"])
    assert caught.value.code == 2


def test_help_needs_no_network_library():
    code = "import sys, ddad.cli; ddad.cli.create_parser(); sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_cluster_gives_the_rows_of_predict_and_goes_on(exported, tiny_checkpoint, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    images, results = tmp_path / "images", tmp_path / "results"
    images.mkdir()
    for number in range(24):
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        PIL.Image.fromarray(values).save(images / f"{number}.png")
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:200])
    example = runpy.run_path(str(EXAMPLES / "predict_on_ray.py"))["main"]
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        (images / "23.png").rename(tmp_path / "23.png")
        example(str(exported), str(results), str(images))
        (tmp_path / "23.png").rename(images / "23.png")
        example(str(exported), str(results), str(images))
        example(str(exported), str(results), str(images))
    finally:
        ray.shutdown()
    assert "25 images are done, 0 to do." in capsys.readouterr().out
    rows = [row for file in results.glob("*.parquet") for row in parquet.read_table(file).to_pylist()]
    arguments = ["predict", str(images), "--checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "predicted")]
    assert main([*arguments, "--no-denoise"]) == 1
    lines = {line["image"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(rows) == len(lines) == 25
    for row in rows:
        line = lines[row["image"]]
        assert row["is_anomalous"] == line["is_anomalous"] and row["error"] == (line["error"] or "")
        if line["error"] is None:
            assert row["image_score"] == pytest.approx(line["image_score"], abs=1e-3)
