"""Appearance: statistics of the features themselves, against brute force; and what they are for: a verdict alone."""

import numpy as np
import pytest
import scipy.stats
import torch

from ddad import DDADPipeline
from ddad.calibration.calibration import recalibrate
from ddad.calibration.observing import CalibrationConfig, vary_half
from ddad.datasets.nuisance import NUISANCES, add_noise, compress, move, vary
from ddad.features_ddad import DDADFeatureExtractor
from tests.conftest import create_tiny_pipeline


def test_nuisance_is_as_strong_as_it_says():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    generator = torch.Generator().manual_seed(1)
    assert (add_noise(image, 3.0, generator) - image).std() == pytest.approx(6 / 255, rel=0.05)
    torch.testing.assert_close(move(image, 0.0, 0.0, 1.0), image, atol=1e-4, rtol=0)
    shifted = move(image, 8 / 64, 0.0, 1.0)
    torch.testing.assert_close(shifted[..., 8:, :], image[..., :-8, :], atol=1e-3, rtol=0)
    assert 0 < (compress(image, 95) - image).abs().mean() < (compress(image, 50) - image).abs().mean()
    smooth = torch.nn.functional.interpolate(image[..., :4, :4], size=(64, 64), mode="bicubic").clamp(-1, 1)
    for name, change in NUISANCES.items():
        mild, strong = (change(smooth, strength) for strength in (1.0, 2.0))
        assert mild.shape == smooth.shape and 0 < (mild - smooth).abs().mean() < (strong - smooth).abs().mean(), name
    plain = vary(image, 0.0, "none", torch.Generator().manual_seed(2))
    assert plain.shape == image.shape and plain.min() >= -1 and plain.max() <= 1
    first, second = (vary(image, 5.0, "mild", torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_every_other_image_judges_moved_and_changed_in_one_way():
    values = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    images = list(torch.nn.functional.interpolate(values, size=(96, 96), mode="bicubic").clamp(-1, 1))
    judged, again, other = (vary_half(images, "mild", seed) for seed in (0, 0, 1))
    for number, image in enumerate(images):
        assert torch.equal(judged[number], again[number])
        if number % 2 == 0:
            assert (judged[number] - image).abs().max() <= 1.01 / 255  # it was kept in bytes
        else:
            assert not torch.equal(judged[number], other[number])  # moved elsewhere
    detail = [(image[:, 1:] - image[:, :-1]).std() for image in (images[1], judged[1], images[3], judged[3])]
    assert detail[1] > 1.5 * detail[0] and detail[3] < 1.2 * detail[2]  # the first is noisy
    assert (judged[3] + 1).mean() == pytest.approx(0.9 * float((images[3] + 1).mean()), rel=0.05)  # the next is dark
    plain = vary_half(images, "none", 0)
    assert all((shown - image).abs().max() <= 1.01 / 255 for image, shown in zip(images, plain, strict=True))


@pytest.fixture(scope="module")
def adapted():
    """A tiny pipeline whose appearance was calibrated on striped parts, and what was recorded."""
    generator = torch.Generator().manual_seed(0)

    def parts(size: int) -> torch.Tensor:
        noise = torch.randn(24, 1, 96, 96, generator=torch.Generator().manual_seed(1)) * 0.05
        stripes = torch.sin(torch.arange(96) / 5 + torch.randn(24, 1, 1, 1, generator=generator.manual_seed(2)) * 0.1)
        images = (0.5 * stripes.expand(24, 3, 96, 96) + noise).clamp(-1, 1)
        return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)

    torch.manual_seed(0)  # of the backbone's weights
    extractor = DDADFeatureExtractor("test_efficientnet", strides=(4, 8), image_size=96, grid_size=12)
    pipe = create_tiny_pipeline()
    config = CalibrationConfig(seed=0)
    adapted, record = recalibrate(pipe, list(parts(96)), config, extractor=extractor)
    return adapted, record, (parts(96) + 1) / 2


def test_a_verdict_by_appearance_does_not_ask_the_unet(adapted, monkeypatch):
    pipe, record, parts = adapted
    assert pipe.config.feature_score == "appearance" and record["synthetic"]["image_auroc"] > 50
    stained = parts[0].clone()
    stained[:, 30:60, 30:60] = 1.0
    options = {"alpha": 0.0, "feature_score": "appearance", "denoise": False}
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.unet), "forward", lambda *_, **__: pytest.fail("the U-Net was evaluated"))
        output = pipe([parts[0], stained], **options)
    assert output.pixel_map is None and output.is_anomalous == [False, True]
    y, x = np.unravel_index(output.anomaly_map[1].argmax(), output.anomaly_map[1].shape)
    assert 25 <= y <= 65 and 25 <= x <= 65
    asked = pipe(stained, pixel_score="kl", **options)
    assert asked.pixel_map[0].shape == (96, 96)
    assert asked.image_score[0] == pytest.approx(output.image_score[1], rel=1e-5)
    assert pipe(pipe.score(stained, feature_score="appearance"), **options).image_score[0] == pytest.approx(
        output.image_score[1], rel=1e-5
    )


@pytest.mark.parametrize(
    ("whole", "parts"),
    [("sum", {"appearance": 1 / 2, "residual": 1 / 2}), ("appearance", {"gaussians": 2 / 3, "memory": 1 / 3})],
)
def test_a_score_is_the_weighted_mean_of_others(adapted, whole, parts):
    pipe, _, images = adapted

    def both(name):
        output = pipe(images[0], alpha=0.0, feature_score=name, denoise=False)
        cells = pipe.calibration.held_out_maps(pipe.judgement(0.0, feature_score=name))
        return torch.from_numpy(output.anomaly_map[0]), cells

    for together, *single in zip(both(whole), *map(both, parts), strict=True):
        expected = sum(weight * one for weight, one in zip(parts.values(), single, strict=True))
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)


def test_a_pipeline_without_memory_judges_by_its_gaussians(adapted, picture):
    """As those that were saved before there was one."""
    old = create_tiny_pipeline()
    assert old.memory is None and old.calibration.weights("appearance") == {"appearance": 1.0}
    assert old(picture, feature_score="appearance", alpha=0.0, denoise=False).image_score == pytest.approx(
        old(picture, feature_score="gaussians", alpha=0.0, denoise=False).image_score
    )
    with pytest.raises(ValueError, match="`feature_score` must not be 'memory': this pipeline remembers no patches"):
        old(picture, feature_score="memory")
    with pytest.raises(ValueError, match="The calibration was measured with a `memory`, which is missing"):
        DDADPipeline.from_pipe(adapted[0], memory=None)


def test_appearance_is_saved_loaded_and_repaired_from(adapted, tmp_path):
    pipe, _, parts = adapted
    from ddad.checkpoint.saving import save_checkpoint

    stained = parts[0].clone()
    stained[:, 30:60, 30:60] = 1.0
    save_checkpoint(pipe, None, tmp_path / "saved")
    loaded = DDADPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    first, second = pipe(stained, num_denoising_steps=2), loaded(stained, num_denoising_steps=2)
    assert second.image_score[0] == pytest.approx(first.image_score[0], rel=1e-4)
    assert loaded.threshold == pytest.approx(pipe.threshold)
    for folder, file in (("appearance", "gaussians_ddad.py"), ("memory", "memory_ddad.py")):
        assert (tmp_path / "saved" / folder / file).is_file()


def test_a_threshold_does_not_jump_beside_the_stored_settings(adapted):
    """A hair's breadth from the stored alpha, and at fewer noise levels: the same rule."""
    pipe, _, parts = adapted
    assert pipe.config.threshold is None
    alpha = pipe.config.alpha
    near = pipe(parts[0], alpha=alpha + (0.001 if alpha < 1 else -0.001), denoise=False).threshold
    assert near == pytest.approx(pipe.threshold, rel=0.01)
    for timesteps in (pipe.timesteps, pipe.timesteps[:1]):
        scores = pipe.calibration.held_out_scores(pipe.judgement(alpha, timesteps)).numpy()
        student = scipy.stats.t.ppf(0.95, len(scores) - 1) * np.sqrt(1 + 1 / len(scores))
        limit = max(np.quantile(scores, 0.95), scores.mean() + student * scores.std(ddof=1))
        measured = pipe(parts[0], timesteps=timesteps, denoise=False).threshold
        assert measured == pytest.approx(limit, rel=1e-5)


def test_scores_without_the_unet_cannot_be_weighed_with_it(adapted):
    pipe = DDADPipeline.from_pipe(adapted[0], alpha=0.0, feature_score="appearance")
    scores = pipe.score(adapted[2][0])
    assert scores.pixel_maps is None and scores.select(scores.timesteps).pixel_maps is None
    assert pipe(scores, denoise=False).pixel_map is None
    with pytest.raises(ValueError, match="The pixel score was not evaluated"):
        pipe(scores, alpha=0.5)
    weighed = pipe.score(adapted[2][0], pixel_score="kl")
    assert pipe(weighed, alpha=0.5, denoise=False).pixel_map is not None
