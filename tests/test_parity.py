"""Every bundled category, exported for every engine that is installed, says of real images what its pipeline says."""

import numpy as np
import PIL.Image
import pytest

from ddad import DDADPipeline
from ddad.runtime import load
from ddad.runtime.engines import installed
from ddad.serving.export import export_pipeline
from tests.conftest import ROOT

CATEGORIES = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/model_index.json"))
DATASETS = ROOT.parent / "shared" / "datasets"
LEAST = 20


def real_images(category):
    """The category's own examples, and, where its data set lies beside the project, test images of it."""
    found = sorted((ROOT / "checkpoints" / category / "examples").glob("*.webp"))
    test = sorted(path for path in (DATASETS / category / "test").rglob("*.*"))
    found = [path for path in found if path.stem.count("_") == 1] + test[:: max(1, len(test) // LEAST)]
    return found[:LEAST] if test else found


def variants(path, folder):
    """The same picture in grey, in 16 bits, and at an odd size."""
    picture = PIL.Image.open(path).convert("RGB")
    grey = picture.convert("L")
    grey.save(folder / "grey.png")
    PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 16).save(folder / "deep.png")
    picture.resize((301, 777)).save(folder / "odd.png")
    return [folder / name for name in ("grey.png", "deep.png", "odd.png")]


@pytest.mark.slow
@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("category", CATEGORIES)
def test_an_exported_category_says_the_same_of_real_images(category, engine, tmp_path):
    pytest.importorskip("onnxscript")
    pipe = DDADPipeline.from_pretrained(ROOT / "checkpoints" / category)
    pipe.set_progress_bar_config(disable=True)
    inspector = load(export_pipeline(pipe, tmp_path / "exported", engine), engine)
    assert inspector.engine == engine
    images = real_images(category)
    images += variants(images[0], tmp_path)
    verdicts = []
    for path in images:
        expected, found = pipe(path, denoise=False), inspector.inspect(path)
        maps = expected.anomaly_map[0]
        difference, span = np.abs(found.anomaly_map - maps), maps.max() - maps.min()
        # Two patches of the memory may be equally near: rounding decides at a place.
        assert np.quantile(difference, 0.99) <= 1e-3 * span and difference.max() <= 0.05 * span, path
        assert found.image_score == pytest.approx(expected.image_score[0], abs=0.02)
        assert found.is_anomalous == expected.is_anomalous[0], path
        verdicts.append(found.is_anomalous)
    assert {True, False} <= set(verdicts)
    batch = np.stack([np.asarray(PIL.Image.open(path).convert("RGB").resize((320, 240))) for path in images[:8]])
    batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / 255
    together, scores = inspector.evaluate(batch)
    for number in range(len(batch)):
        alone, score = inspector.evaluate(batch[number : number + 1])
        np.testing.assert_allclose(together[number], alone[0], atol=1e-3)
        assert scores[number] == pytest.approx(score[0], abs=1e-3)
