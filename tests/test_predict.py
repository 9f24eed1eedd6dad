"""`ddad predict`: nothing is overwritten, read again or done twice."""

import json

import numpy as np
import PIL.Image
import pytest

from ddad.cli import main


@pytest.fixture
def predict(tiny_checkpoint, capsys):
    """Runs the command; its exit status and lines."""

    def run(*inputs, output, options=()):
        capsys.readouterr()
        arguments = [
            "predict",
            *map(str, inputs),
            "--checkpoint",
            str(tiny_checkpoint),
            "--output",
            str(output),
            *options,
        ]
        status = main(arguments)
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (64, 64), dtype=np.uint8)
    PIL.Image.fromarray(values).save(path)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


def test_same_names_from_different_folders_in_two_runs(predict, tmp_path):
    first, second = write(tmp_path / "line1" / "part.png", 1), write(tmp_path / "line2" / "part.png", 2)
    output = tmp_path / "results"
    _, (one,) = predict(first, output=output)
    before = contents(output)
    _, (two,) = predict(second, output=output)
    assert one["map"].endswith("part_map.tiff") and two["map"].endswith("part_2_map.tiff")
    assert {name: contents(output)[name] for name in before} == before


def test_what_is_done_is_not_done_again(predict, tmp_path, monkeypatch):
    for number in range(3):
        write(tmp_path / "parts" / f"{number}.png", number)
    output = tmp_path / "results"
    _, before = predict(tmp_path / "parts" / "0.png", tmp_path / "parts" / "1.png", output=output)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir() if path.suffix != ".jsonl"}
    _, lines = predict(tmp_path / "parts", output=output)
    assert lines[:2] == before and lines[2]["image"].endswith("2.png")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    # A changed image, other settings and lost files are done again, beside what is there.
    write(tmp_path / "parts" / "0.png", 9)
    (output / "1_map.tiff").unlink()
    _, lines = predict(tmp_path / "parts", output=output)
    assert [line["map"].rpartition("/")[2] for line in lines] == ["0_2_map.tiff", "1_2_map.tiff", "2_map.tiff"]
    _, lines = predict(tmp_path / "parts" / "2.png", output=output, options=["--alpha", "0", "--no-denoise"])
    assert lines[0]["map"].endswith("2_2_map.tiff")


def test_results_inside_the_input_are_no_input(predict, tmp_path):
    write(tmp_path / "parts" / "0.png", 0)
    output = tmp_path / "parts" / "results"
    for _ in range(2):
        _, lines = predict(tmp_path / "parts", output=output)
        assert [line["image"] for line in lines] == [str(tmp_path / "parts" / "0.png")]


def test_a_run_that_was_killed_goes_on(predict, tmp_path):
    write(tmp_path / "parts" / "0.png", 0)
    write(tmp_path / "parts" / "1.png", 1)
    output = tmp_path / "results"
    predict(tmp_path / "parts" / "0.png", output=output)
    with (output / "results.jsonl").open("a") as file:
        file.write('{"settings": "cut of')
    status, lines = predict(tmp_path / "parts", output=output)
    assert status == 0 and len(lines) == 2
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_one_long_name_ends_no_batch_and_every_file_is_a_line_or_a_count(predict, tmp_path, capsys):
    parts = tmp_path / "parts"
    for number, name in enumerate(("a.png", "b" * 251 + ".png", "한" * 80 + ".png", "c.jfif", "nothing")):
        written = write(tmp_path / "one.png", number)
        parts.mkdir(exist_ok=True)
        (parts / name).write_bytes(written.read_bytes())
    (parts / "broken.png").write_bytes((parts / "a.png").read_bytes()[:200])
    (parts / "notes.txt").write_text("no image")
    status, lines = predict(parts, output=tmp_path / "results")
    assert status == 1 and len(lines) == 6
    assert [line["error"] is None for line in lines] == [True, True, False, True, True, True]
    stored = [json.loads(line)["line"] for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert stored == lines
    assert predict(parts, output=tmp_path / "results")[0] == 1


def test_other_files_are_counted_and_patterns_are_resolved(tiny_checkpoint, tmp_path, capsys):
    for number in range(3):
        write(tmp_path / "parts" / f"{number}.png", number)
    (tmp_path / "parts" / "notes.txt").write_text("no image")
    options = ["--checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--no-denoise"]
    assert main(["predict", str(tmp_path / "parts"), *options]) == 0
    assert "1 other files were left out (1 .txt)" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "parts" / "*.png"), *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_picture_that_is_far_too_small_is_called_so(predict, tmp_path, monkeypatch):
    monkeypatch.setattr("ddad.report.size.TOO_SMALL", 2)  # by four times, what 64 pixels look at would be refused
    for side in (31, 32):
        PIL.Image.new("L", (side, 40)).save(tmp_path / f"{side}.png")
    _, (small, enough) = predict(tmp_path / "31.png", tmp_path / "32.png", output=tmp_path / "results")
    assert "31x40 pixels, and this category looks at 64x64" in small["warning"] and "warning" not in enough


def test_an_engine_gives_the_same_lines(predict, exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("DDAD_HOME", str(tmp_path / "home"))
    paths = [write(tmp_path / "parts" / f"{number}.png", number) for number in range(2)]
    (tmp_path / "parts" / "damaged.png").write_bytes(paths[0].read_bytes()[:100])
    inputs = [*paths, tmp_path / "parts" / "damaged.png"]
    status, expected = predict(*inputs, output=tmp_path / "torch", options=["--no-denoise"])
    engine = ["--no-denoise", "--engine", "onnx"]
    assert predict(*inputs, output=tmp_path / "engine", options=engine)[0] == status == 1
    (kept,) = (tmp_path / "home" / "exports").iterdir()
    written = (kept / "verdict.onnx").stat().st_mtime_ns
    _, lines = predict(*inputs, output=tmp_path / "again", options=engine)
    assert (kept / "verdict.onnx").stat().st_mtime_ns == written  # exported once
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys() and line["error"] == other["error"]
        assert line["is_anomalous"] == other["is_anomalous"]
        assert line["image_score"] == pytest.approx(other["image_score"], abs=2e-3)
        if "map" in line:
            found, drawn = (np.asarray(PIL.Image.open(one["map"])) for one in (line, other))
            np.testing.assert_allclose(found, drawn, atol=2e-3)
    for flags, said in (
        (["--engine", "onnx"], "add --no-denoise"),
        ([*engine, "--alpha", "0.5"], "leave out --alpha"),
    ):
        arguments = [*map(str, paths), "--checkpoint", str(exported), "--output", str(tmp_path / "refused"), *flags]
        assert main(["predict", *arguments]) == 2 and said in capsys.readouterr().err
