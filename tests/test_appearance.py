"""Appearance: statistics of the features themselves, against brute force; and what they are for: a verdict alone."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch

from ddad import DDADPipeline
from ddad.appearance_ddad import DDADAppearanceModel
from ddad.calibration.appearance import Statistics, store, vary_half
from ddad.calibration.calibration import create_appearance, recalibrate
from ddad.calibration.factors import Factors
from ddad.calibration.fitting import CalibrationConfig
from ddad.calibration.gaussians import Moments
from ddad.datasets.nuisance import NUISANCES, add_noise, compress, move, vary
from ddad.features_ddad import DDADFeatureExtractor
from tests.conftest import create_tiny_pipeline


@pytest.fixture
def model():
    """Statistics of 40 random feature images of 6 channels on a 4x4 grid, of which 3 components are modelled."""
    generator = torch.Generator().manual_seed(0)
    model = DDADAppearanceModel(feature_channels=6, grid_size=4, num_channels=3, num_factors=2, num_patches=50)
    values = torch.randn(40, 6, 8, 8, generator=generator)
    model.basis.copy_(torch.linalg.qr(torch.randn(6, 3, generator=generator)).Q)
    reduced = model.reduce(values)
    moments = Moments.empty(16, 3)
    moments.add(reduced)
    factors = torch.linalg.qr(torch.randn(48, 2, generator=generator)).Q
    patches = torch.randn(50, 6, generator=generator)
    statistics = Statistics.of(Factors(reduced.mean(dim=0), factors), moments, 0.2, patches)
    store(model, statistics)
    return model, statistics, values


def test_the_gaussians_are_those_of_numpy(model):
    model, statistics, values = model
    model.register_to_config(kind="gaussian")
    found = model(values[:3])
    assert found.shape == (3, 1, 4, 4)
    reduced = model.reduce(values[:3]).double().numpy()
    basis, mean = statistics.factors.double().numpy(), statistics.mean.double().numpy()
    for n in range(3):
        centred = (reduced[n] - mean).reshape(-1)
        left = (centred - basis @ (basis.T @ centred)).reshape(16, 3)
        for p in (0, 7, 15):
            inverse = np.linalg.inv(statistics.covariance[p].double().numpy())
            assert float(found[n].flatten()[p]) == pytest.approx(np.sqrt(left[p] @ inverse @ left[p]), rel=1e-3)


def test_the_memory_finds_the_nearest_patch(model):
    model, statistics, values = model
    model.register_to_config(kind="memory")
    rows = model.to_grid(values[:3])
    expected = torch.cdist(rows.double(), statistics.patches.double()).amin(dim=2)
    torch.testing.assert_close(model(values[:3]).flatten(1).double(), expected, rtol=1e-3, atol=1e-3)
    model.patches[0].copy_(rows[0, 5])
    assert float(model(values[:1]).flatten()[5]) < 1e-2


def test_both_are_averaged_in_their_own_units(model):
    model, _, values = model
    parts = {}
    for kind in ("gaussian", "memory"):
        model.register_to_config(kind=kind)
        parts[kind] = model(values)
    model.register_to_config(kind="both", scales={"gaussian": [1.0, 2.0], "memory": [3.0, 0.5]})
    torch.testing.assert_close(model(values), ((parts["gaussian"] - 1) / 2 + (parts["memory"] - 3) / 0.5) / 2)


def test_what_is_stored_is_what_was_fitted_and_small(model, tmp_path):
    model, _, values = model
    model.register_to_config(kind="gaussian")
    model.save_pretrained(tmp_path)
    assert torch.equal(DDADAppearanceModel.from_pretrained(tmp_path)(values), model(values))
    with torch.device("meta"):
        extractor = DDADFeatureExtractor("tf_efficientnet_lite2", image_size=512, grid_size=32)
        whole = create_appearance(extractor)
    assert 2 * sum(one.numel() for one in whole.parameters()) < 25e6
    assert max(2 * one.numel() for one in whole.parameters()) < 9e6  # files of a checkpoint are split between them
    with pytest.raises(ValueError, match="at most 6"):
        DDADAppearanceModel(feature_channels=6, num_channels=7)


@pytest.mark.parametrize("kind", ["gaussian", "memory", "both"])
def test_nothing_is_stored_that_is_not_used(model, kind):
    model, _, values = model
    model.register_to_config(kind=kind, scales={"gaussian": [1.0, 2.0], "memory": [3.0, 0.5]})
    small = model.trimmed()
    torch.testing.assert_close(small(values), model(values))
    count = sum(one.numel() for one in small.parameters())
    assert count < sum(one.numel() for one in model.parameters()) or kind == "both"
    assert (small.config.num_patches == 0) == (kind == "gaussian")


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

    extractor = DDADFeatureExtractor("test_efficientnet", strides=(4, 8), image_size=96, grid_size=12)
    pipe = create_tiny_pipeline()
    config = CalibrationConfig(seed=0)
    adapted, record = recalibrate(pipe, list(parts(64)), config, large=list(parts(96)), extractor=extractor)
    return adapted, record, (parts(96) + 1) / 2


def test_a_verdict_by_appearance_does_not_ask_the_unet(adapted, monkeypatch):
    pipe, record, parts = adapted
    kind, _, residual = record["choice"]["feature"].partition("+")
    stored = "sum" if residual else "mahalanobis" if kind == "mahalanobis" else "appearance"
    assert pipe.config.feature_score == stored and (kind == "mahalanobis" or pipe.appearance.config.kind == kind)
    kinds = {"gaussian", "memory", "both"}
    assert set(record["choice"]["alone"]) == {"kl", "mahalanobis", *kinds, *(f"{kind}+mahalanobis" for kind in kinds)}
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


def test_the_sum_is_the_mean_of_two_calibrated_scores(adapted):
    pipe, _, parts = adapted
    single = [
        pipe(parts[0], alpha=0.0, feature_score=name, denoise=False) for name in ("appearance", "mahalanobis", "sum")
    ]
    maps = [output.anomaly_map[0] for output in single]
    np.testing.assert_allclose((maps[0] + maps[1]) / 2, maps[2], atol=1e-4)
    cells = [
        pipe.normality.normal_maps(0.0, pipe.timesteps, "kl", name) for name in ("appearance", "mahalanobis", "sum")
    ]
    torch.testing.assert_close((cells[0] + cells[1]) / 2, cells[2])


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
    assert (tmp_path / "saved" / "appearance" / "appearance_ddad.py").is_file()


def test_parts_that_do_not_belong_together_are_refused(adapted):
    pipe, *_ = adapted
    with pytest.raises(ValueError, match="belong together: give both or neither"):
        DDADPipeline.from_pipe(pipe, appearance=None)
    with pytest.raises(ValueError, match="do not agree"):
        DDADPipeline.from_pipe(pipe, appearance=None, appearance_extractor=None, feature_score="mahalanobis")
    plain = create_tiny_pipeline()
    with pytest.raises(ValueError, match="`feature_score` must be one of"):
        DDADPipeline.from_pipe(plain, feature_score="appearance")


@pytest.mark.parametrize("few", [True, False])
def test_a_threshold_does_not_jump_beside_the_stored_settings(adapted, few):
    """A hair's breadth from the stored alpha, and at fewer noise levels: the same rule, of few images and of many."""
    pipe, _, parts = adapted
    assert pipe.config.threshold is None and pipe.normality.config.prediction_factor > 1.6
    if not few:
        pipe = DDADPipeline.from_pipe(pipe, normality=copy.deepcopy(pipe.normality))
        pipe.normality.register_to_config(prediction_factor=None)
    alpha = pipe.config.alpha
    near = pipe(parts[0], alpha=alpha + (0.001 if alpha < 1 else -0.001), denoise=False).threshold
    assert near == pytest.approx(pipe.threshold, rel=0.01)
    for timesteps in (pipe.timesteps, pipe.timesteps[:1]):
        cells = pipe.normality.normal_maps(alpha, timesteps, "kl", pipe.config.feature_score)
        scores = pipe.normality.top_cells(cells, pipe.normality.config.num_top_cells).numpy()
        limit = np.quantile(scores, 0.95)
        if few:
            count = len(scores)
            student = scipy.stats.t.ppf(0.95, count - 1) * np.sqrt(1 + 1 / count)
            limit = max(limit, scores.mean() + student * scores.std(ddof=1))
        measured = pipe(parts[0], timesteps=timesteps, denoise=False).threshold
        assert measured == pytest.approx(limit, rel=1e-5)


def test_scores_without_the_unet_cannot_be_weighed_with_it(adapted):
    pipe = DDADPipeline.from_pipe(adapted[0], alpha=0.0, feature_score="appearance")
    scores = pipe.score(adapted[2][0])
    assert scores.pixel_maps is None and scores.select(slice(0, 1), scores.timesteps).pixel_maps is None
    assert pipe(scores, denoise=False).pixel_map is None
    with pytest.raises(ValueError, match="The pixel score was not evaluated"):
        pipe(scores, alpha=0.5)
    weighed = pipe.score(adapted[2][0], pixel_score="kl")
    assert pipe(weighed, alpha=0.5, denoise=False).pixel_map is not None
