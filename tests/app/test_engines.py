"""The page's verdict on the CPU by an exported graph."""

import logging

import numpy as np
import pytest
import torch

from ddad import DDADPipeline
from ddad.app import engines
from ddad.app.categories import Categories, Category
from ddad.runtime import load
from tests.conftest import ROOT, create_tiny_pipeline

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def looking():
    """A small category whose verdict is made of looks alone."""
    pipe = DDADPipeline.from_pipe(create_tiny_pipeline(), alpha=0.0, feature_score="appearance")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_graph_stands_in_for_the_networks(looking, tmp_path):
    from ddad.serving.export import export_pipeline

    inspector = load(export_pipeline(looking, tmp_path / "exported", "onnx"), "onnx")
    assert engines.rests_on_looks(looking)
    assert not engines.rests_on_looks(DDADPipeline.from_pipe(looking, alpha=0.5))
    assert not engines.rests_on_looks(DDADPipeline.from_pipe(looking, feature_score="sum"))
    category = Category(looking, looking, 0, graph=inspector)
    image = torch.rand(3, 70, 50, generator=torch.Generator().manual_seed(0))
    found, expected = category.score(image), looking.score(image)
    np.testing.assert_allclose(found.feature_maps, expected.feature_maps, atol=1e-3)
    assert found.timesteps == expected.timesteps and found.prepared is None
    # All that the page does with scores: other limits, fewer noise levels, the normal version.
    for chosen in ({"threshold": -100.0}, {"timesteps": looking.timesteps[:1]}, {"tolerance": "strict"}):
        ours, theirs = (looking(scores, denoise=True, num_denoising_steps=1, **chosen) for scores in (found, expected))
        assert ours.image_score == pytest.approx(theirs.image_score, abs=1e-3)
        assert ours.is_anomalous == theirs.is_anomalous and len(ours.denoised_image) == 1
    # A pixel score is the U-Net's: no graph has it.
    assert category.score(image, "kl").pixel_maps is not None


@pytest.mark.slow
def test_the_page_takes_the_faster(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DDAD_HOME", str(tmp_path))
    caplog.set_level(logging.INFO, "ddad.app.engines")
    category = Categories(ROOT / "checkpoints", "cpu").get("bottle")
    inspector = engines.faster_graph(category.pipe, str(ROOT / "checkpoints" / "bottle"))
    assert "a verdict takes" in caplog.text
    words = caplog.messages[-1].split()
    by_torch, by_graph = (float(words[at]) for at in (words.index("takes") + 1, words.index("and") + 1))
    assert (inspector is not None) == (by_graph < by_torch) or abs(by_graph - by_torch) <= 1
