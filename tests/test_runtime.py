"""An exported category says what its pipeline says, where PyTorch is not installed."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from ddad import DDADImageProcessor, DDADPipeline, DDADRenderer
from ddad.cli import main
from ddad.runtime import engines, load, pictures
from ddad.runtime.regions import find_regions
from ddad.serving import export
from ddad.serving.graphs import Verdict, resize
from tests.conftest import ROOT, create_tiny_pipeline, with_memory
from tests.helpers import deep_png
from tools import reading

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint):
    return DDADPipeline.from_pretrained(tiny_checkpoint, torch_dtype=torch.float32)


@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, 64), (37, 800, 64), (30, 20, 64), (64, 64, 64)])
def test_resizing_by_matrices_is_resizing(height, width, size):
    images = torch.rand(2, 3, height, width)
    expected = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images, size), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize(("alpha", "score"), [(0.0, "appearance"), (0.3, "sum"), (1.0, "residual"), (0.5, "residual")])
def test_the_graph_computes_what_the_pipeline_does(tiny_checkpoint, alpha, score, remembers):
    pipe = DDADPipeline.from_pretrained(tiny_checkpoint, torch_dtype=torch.float32, alpha=alpha, feature_score=score)
    pipe = with_memory(pipe) if remembers else pipe
    images = torch.rand(3, 3, 90, 70)
    expected = pipe(list(images), denoise=False, output_type="pt")
    maps, scores = Verdict(pipe)(images)
    np.testing.assert_allclose(scores.tolist(), expected.image_score, rtol=1e-3, atol=1e-3)
    enlarged = F.interpolate(maps[:, None], size=(90, 70), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(enlarged, torch.stack(list(expected.anomaly_map)), rtol=1e-3, atol=2e-3)


def test_remembered_patches_are_exported(pipe, tmp_path):
    remembering = with_memory(DDADPipeline.from_pipe(pipe, alpha=0.0, feature_score="appearance"))
    folder = export.export_pipeline(remembering, tmp_path / "exported")
    picture = np.random.default_rng(0).random((50, 60, 3)).astype(np.float32)
    found = load(folder, threads=1).inspect(picture)
    assert found.image_score == pytest.approx(remembering(picture, denoise=False).image_score[0], abs=1e-3)


def test_an_exported_category_says_the_same(exported, pipe, tmp_path):
    inspector = load(exported, threads=1)
    random = np.random.default_rng(0)
    for height, width in ((64, 64), (200, 90), (31, 77)):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected, found = pipe(image, denoise=False, output_type="np"), inspector.inspect(image)
        assert found.image_score == pytest.approx(expected.image_score[0], abs=1e-3)
        assert found.threshold == pytest.approx(expected.threshold)
        assert found.is_anomalous == expected.is_anomalous[0]
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map[0], atol=2e-3)
        drawn, heatmap = np.asarray(found.overlay, float), np.asarray(pipe(image, denoise=False).overlay[0], float)
        assert np.abs(drawn - heatmap).max() <= 3


def test_the_threshold_is_set_by_value_and_by_rate(exported, pipe):
    inspector = load(exported)
    image = np.full((64, 64, 3), 127, np.uint8)
    inspector.threshold = -1e6
    assert inspector.inspect(image).is_anomalous and inspector.inspect(image).regions
    assert inspector.set_false_alarms(0.05) == pytest.approx(pipe.threshold)
    assert inspector.set_false_alarms(0.01) >= inspector.set_false_alarms(0.1)
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0.005, 0.2\]"):
        inspector.set_false_alarms(0.5)


def test_a_damaged_or_foreign_folder_is_refused(exported, tmp_path):
    with pytest.raises(OSError, match=r"is no exported category: metadata.json is missing"):
        load(tmp_path)
    for name in ("verdict.onnx", "metadata.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    with pytest.raises(ValueError, match=r"`engine` must be one of"):
        load(tmp_path, "tensorrt")
    (tmp_path / "verdict.onnx").write_bytes((exported / "verdict.onnx").read_bytes() + b" ")
    with pytest.raises(OSError, match=r"verdict.onnx is not the file that was exported"):
        load(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"format": 99}))
    with pytest.raises(OSError, match="has format 99"):
        load(tmp_path)


def test_an_export_that_says_something_else_fails(exported, tmp_path, monkeypatch, capsys):
    other = create_tiny_pipeline()
    other.register_to_config(alpha=0.9)
    other.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(export, "export_pipeline", lambda pipe, output, *_: shutil.copytree(exported, output))
    assert main(["export", str(tmp_path / "other"), "--output", str(tmp_path / "wrong")]) == 1
    assert "does not say the same" in capsys.readouterr().err


def test_it_runs_without_torch(exported, tmp_path):
    PIL.Image.new("RGB", (80, 60), (120, 90, 60)).save(tmp_path / "part.png")
    program = f"""
import sys, time
sys.modules["torch"] = sys.modules["diffusers"] = sys.modules["scipy"] = None
started = time.process_time()  # of this process: other work on the machine counts for nothing
from ddad.runtime import load
assert time.process_time() - started < 1
found = load({str(exported)!r}).inspect({str(tmp_path / "part.png")!r})
found.overlay.save({str(tmp_path / "heatmap.png")!r})
assert sys.modules["torch"] is None  # nothing has imported it
print(found.image_score, found.anomaly_map.shape)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert told.endswith("(60, 80)\n")
    assert PIL.Image.open(tmp_path / "heatmap.png").size == (80, 60)


@pytest.mark.parametrize("shape", [(60, 80), (1, 50), (50, 1)])
@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.5, 0.6, 2.0])
def test_regions_are_those_that_scipy_labels(shape, threshold):
    anomaly_map = np.random.default_rng(0).random(shape).astype(np.float32)
    labels, count = ndimage.label(anomaly_map > threshold, structure=np.ones((3, 3)))
    expected = []
    for number, (down, across) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels == number
        box = (across.start, down.start, across.stop - across.start, down.stop - down.start)
        expected.append((*box, int(inside.sum()), pytest.approx(float(anomaly_map[inside].max()))))
    found = [
        (one.left, one.top, one.width, one.height, one.area, one.peak_score)
        for one in find_regions(anomaly_map, threshold, least_area=0)
    ]
    assert len(found) == count and found == sorted(expected, key=lambda one: -one[-1].expected)


def pictures_of(folder):
    """Kinds of files that both read."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    PIL.Image.fromarray(rgb).save(folder / "rgb.png")
    PIL.Image.fromarray(rgb).save(folder / "rgb.jpg", quality=90)
    PIL.Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    PIL.Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.tiff")
    PIL.Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    rgba = np.dstack([rgb, random.integers(0, 256, (40, 50), dtype=np.uint8)])
    PIL.Image.fromarray(rgba).save(folder / "transparent.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    deep = random.integers(0, 4000, (40, 50)).astype(np.uint16)
    PIL.Image.fromarray(deep).save(folder / "deep.png")
    PIL.Image.fromarray(deep).save(folder / "deep.tiff", tiffinfo={281: 8191})
    deep_png(folder / "colours_of_16_bits.png", random.integers(0, 4000, (40, 50, 3)).astype(np.uint16), 2)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("max_value", [None, 4095.0])
def test_the_same_pixels_are_read(pipe, tmp_path, max_value):
    processor = DDADImageProcessor(max_value=max_value)
    for path in pictures_of(tmp_path):
        expected = processor.read_image(path).numpy()
        for source in (path, path.read_bytes()):
            found = pictures.as_planes(pictures.read(source, max_value))
            np.testing.assert_array_equal(found, expected, err_msg=path.name)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        pictures.read(np.full((20, 20), 3.0))
    with pytest.raises(ValueError, match="each side needs at least 16"):
        pictures.read(np.zeros((20, 4), np.uint8))


def test_pictures_are_read_by_the_same_functions():
    assert reading.TARGET.read_text() == reading.generate(), "run `python -m tools.reading`"


def test_maps_and_heatmaps_are_drawn_alike():
    small = torch.rand(1, 1, 32, 32)
    expected = F.interpolate(small, size=(75, 130), mode="bilinear", align_corners=False)[0, 0]
    enlarged = pictures.enlarge(small[0, 0].numpy(), (75, 130))
    np.testing.assert_allclose(enlarged, expected.numpy(), atol=1e-5)
    image = torch.rand(3, 75, 130)
    heatmap = DDADRenderer().overlay(image, 4 * expected, 1.0)
    drawn = pictures.overlay(image.permute(1, 2, 0).numpy(), 4 * enlarged, 1.0, 0.7)
    assert np.abs(np.asarray(drawn, float) - (heatmap.permute(1, 2, 0).numpy() * 255)).max() <= 1


def test_the_example_in_cpp_says_the_same(exported, tmp_path):
    """Built against onnxruntime's headers and library below `ORT_HOME`, where there are any."""
    home, compiler = os.environ.get("ORT_HOME"), shutil.which("g++")
    if home is None or compiler is None:
        pytest.skip("needs g++, and ORT_HOME with onnxruntime's include and lib: no package carries its headers")
    program = tmp_path / "inspect"
    source = ROOT / "docs" / "examples" / "inspect.cpp"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{home}/include", f"-L{home}/lib", "-lonnxruntime"]
    subprocess.run([compiler, source, *flags, "-o", program], check=True)
    picture = tmp_path / "part.ppm"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(picture)
    run = [program, exported, picture]
    told = subprocess.run(
        run, capture_output=True, text=True, check=True, env={"LD_LIBRARY_PATH": f"{home}/lib"}
    ).stdout
    _, score, threshold, verdict = told.split()
    found = load(exported, "onnx").inspect(picture)
    assert float(score) == pytest.approx(found.image_score, rel=1e-4)
    assert float(threshold) == pytest.approx(found.threshold, rel=1e-4)
    assert verdict == ("defective" if found.is_anomalous else "good")


def test_the_faster_engine_is_taken(exported, monkeypatch):
    """Which it is depends on the processor."""
    images = np.zeros((1, 3, 20, 20), np.float32)

    def slow(seconds):
        def create(path, threads):
            def evaluate(images):
                time.sleep(seconds)
                return images[:, 0], images[:, 0, 0, 0]

            return evaluate

        return create

    monkeypatch.setattr(engines, "installed", lambda: ["openvino", "onnx"])
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    for faster, seconds in (("onnx", (0.02, 0.0)), ("openvino", (0.0, 0.02))):
        monkeypatch.setattr(engines, "with_openvino", slow(seconds[0]))
        monkeypatch.setattr(engines, "with_onnxruntime", slow(seconds[1]))
        name, evaluate = engines.create(exported, None, None)
        assert name == faster and evaluate(images)[1].shape == (1,)
    assert engines.create(exported, "openvino", None)[0] == "openvino"
