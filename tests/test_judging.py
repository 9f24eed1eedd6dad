"""The calibration component: image scores, units, judgements, thresholds."""

import numpy as np
import pytest
import scipy.stats
import torch

from ddad import DDADCalibration

STATISTICS = {
    "kl_mean": [0.1, 0.2], "kl_std": [0.5, 0.25],
    "residual_mean": [8.0, 8.5], "residual_std": [1.0, 2.0],
    "appearance_mean": [7.0], "appearance_std": [0.5],
}  # fmt: skip


def calibrated(**settings):
    calibration = DDADCalibration((20, 201), num_calibration_images=40, statistics=STATISTICS, **settings)
    calibration.calibration_maps.copy_(
        torch.randn(calibration.calibration_maps.shape, generator=torch.Generator().manual_seed(0))
    )
    return calibration


def test_the_image_score_is_the_mean_of_its_highest_cells():
    calibration = DDADCalibration(num_top_cells=3)
    cells = torch.zeros(2, 32, 32)
    cells[0, 0, :4] = torch.tensor([9.0, 6.0, 3.0, 1.0])
    scores = calibration.image_score(cells.repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert scores.tolist() == [6.0, 0.0]
    with pytest.raises(ValueError, match="`num_top_cells` must be at most 1024"):
        DDADCalibration(num_top_cells=1025)


def test_units_are_those_of_the_noise_level():
    maps = torch.tensor([0.6, 0.7]).view(1, 2, 1, 1)
    torch.testing.assert_close(calibrated().standardise("kl", maps, (20, 201)).flatten(), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(calibrated().standardise("kl", maps[:, 1:], (201,)).flatten(), torch.tensor([2.0]))
    seen = calibrated().standardise("appearance", maps[:, :1] + 7, (20, 201))
    torch.testing.assert_close(seen.flatten(), torch.tensor([1.2]))


def test_a_judgement_evaluates_the_pixel_score_where_it_weighs_something_or_is_asked_for():
    calibration = calibrated()
    assert calibration.judgement(0.0, (20,), None, "appearance").scores == ("appearance",)
    assert calibration.judgement(0.0, (20,), "kl", "appearance").scores == ("kl", "appearance")
    assert calibration.judgement(0.3, (20,), None, "appearance").scores == ("kl", "appearance")
    assert calibration.judgement(0.0, (20,), None, "residual").pixel_score == "kl"  # it costs nothing more
    assert calibration.judgement(0.0, [201, 20], None, "sum") == calibration.judgement(0.0, (20, 201), "kl", "sum")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, (20,), None, "sum"), r"`alpha` must lie in \[0, 1\], found 1.5"),
        ((0.5, (), None, "sum"), "`timesteps` must be one or more different noise levels"),
        ((0.5, (20, 20), None, "sum"), "`timesteps` must be one or more different noise levels"),
        (
            (0.5, (21,), None, "sum"),
            r"`timesteps` \[21\] are not calibrated in this .*; choose from \[20, 201\]",
        ),
        ((0.5, (20,), "rgb", "sum"), "`pixel_score` must be one of .'kl',., found 'rgb'"),
        ((0.5, (20,), None, "mse"), "`feature_score` must be one of"),
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrated().judgement(*arguments)
    with pytest.raises(ValueError, match="This pipeline is not calibrated"):
        DDADCalibration((20, 201)).judgement(*arguments)


def test_the_threshold_is_a_quantile_of_held_out_scores_and_of_few_a_predictive_limit():
    calibration = calibrated(num_top_cells=4)
    judgement = calibration.judgement(0.25, (20,), None, "appearance")
    maps = calibration.calibration_maps  # kl at 20 and 201, residual at 20 and 201, appearance
    fused = (0.25 * maps[:, 0] + 0.75 * maps[:, 4]).flatten(1).numpy()
    scores = np.sort(fused, axis=1)[:, -4:].mean(axis=1)
    np.testing.assert_allclose(calibration.held_out_scores(judgement), scores, rtol=1e-5)
    student = scipy.stats.t.ppf(0.95, len(scores) - 1) * np.sqrt(1 + 1 / len(scores))
    expected = scores.mean() + student * scores.std(ddof=1)
    assert calibration.threshold(judgement) == pytest.approx(max(expected, np.quantile(scores, 0.95)), rel=1e-5)
    assert calibration.mask_level(judgement) == pytest.approx(np.quantile(fused, 0.99), rel=1e-2)
    both = calibration.judgement(0.0, (20, 201), None, "sum")
    expected = (maps[:, 2:4].mean(dim=1) + maps[:, 4]) / 2
    torch.testing.assert_close(calibration.held_out_maps(both), expected.flatten(1))
    assert DDADCalibration((20, 201), statistics=STATISTICS).threshold(judgement) is None
