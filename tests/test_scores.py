"""Scored once, judged often: `pipe.score` and what the pipeline makes of it."""

import numpy as np
import pytest
import torch

from ddad import DDADPipeline, DDADRenderer, DDADScores


def count_evaluations(pipe: DDADPipeline) -> list[int]:
    counts: list[int] = []
    pipe.unet.register_forward_hook(lambda *_: counts.append(1))
    return counts


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"alpha": 0.8, "timesteps": [201]}, {"threshold": 0.5}])
def test_judging_scores_anew_equals_scoring_anew_and_evaluates_no_network(tiny_pipe, picture, settings):
    direct = tiny_pipe([picture, picture[:60]], denoise=False, **settings)
    scores = tiny_pipe.score([picture, picture[:60]])
    assert isinstance(scores, DDADScores) and len(scores) == 2
    evaluations = count_evaluations(tiny_pipe)
    judged = tiny_pipe(scores, denoise=False, **settings)
    assert not evaluations
    assert judged.threshold == direct.threshold
    assert judged.image_score == pytest.approx(direct.image_score, rel=1e-5)  # the batch has another size
    for first, second in zip(judged.anomaly_map, direct.anomaly_map, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_scores_lead_to_the_same_normal_version(solar_pipe, defective_cell):
    direct = solar_pipe(defective_cell, num_denoising_steps=2, output_type="np")
    judged = solar_pipe(solar_pipe.score(defective_cell), num_denoising_steps=2, output_type="np")
    np.testing.assert_array_equal(judged.denoised_image[0], direct.denoised_image[0])


def test_the_kind_of_scores_stays_what_it_was(tiny_pipe, picture):
    scores = tiny_pipe.score(picture, pixel_score="kl", timesteps=[20])
    direct = tiny_pipe(picture, pixel_score="kl", timesteps=[20], denoise=False)
    judged = tiny_pipe(scores, denoise=False)
    assert judged.image_score == direct.image_score and judged.threshold == direct.threshold
    with pytest.raises(ValueError, match=r"\[201\] were not scored; choose from \[20\]"):
        tiny_pipe(scores, timesteps=[201], denoise=False)


def test_opacity_of_the_overlay(picture):
    image = torch.from_numpy(picture).permute(2, 0, 1) / 255
    heat = torch.full(image.shape[1:], 5.0)
    assert torch.equal(DDADRenderer().overlay(image, torch.zeros_like(heat), 2.0), image)  # a good part stays dark
    weak, strong = (DDADRenderer().overlay(image, heat, 2.0, opacity) for opacity in (0.3, 1.0))
    assert (weak - image).abs().mean() < (strong - image).abs().mean()
    assert float(strong.std(dim=(1, 2)).max()) < 1e-6  # at full opacity nothing of the image is left
