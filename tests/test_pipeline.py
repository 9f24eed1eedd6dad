"""The pipeline's contract, on a tiny untrained model."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch

from ddad import DDADRenderer
from tests.conftest import create_tiny_pipeline


@pytest.fixture
def pictures(picture):
    generator = np.random.default_rng(0)
    return [picture, generator.integers(0, 255, (64, 100, 3), dtype=np.uint8), picture[:40, :66]]


def calls(module):
    count = []
    module.register_forward_hook(lambda *_: count.append(1))
    return count


def test_maps_have_each_images_own_size(tiny_pipe, pictures):
    output = tiny_pipe(pictures, threshold=0.0)
    for i, picture in enumerate(pictures):
        for maps in (output.anomaly_map, output.pixel_map, output.feature_map):
            assert maps[i].shape == picture.shape[:2] and maps[i].dtype == np.float32
        assert output.overlay[i].size == output.denoised_image[i].size == picture.shape[1::-1]
    assert output.is_anomalous == [score > 0 for score in output.image_score]


def test_one_evaluation_of_each_network_scores_all_noise_levels(tiny_pipe, picture):
    evaluations, extractions = calls(tiny_pipe.unet), calls(tiny_pipe.feature_extractor)
    tiny_pipe([picture, picture], denoise=False)
    assert (len(evaluations), len(extractions)) == (1, 1)


def test_scores_do_not_depend_on_the_batch(tiny_pipe, pictures):
    together = tiny_pipe(pictures, threshold=0.0)
    split = tiny_pipe(pictures, threshold=0.0, batch_size=1)
    for i, picture in enumerate(pictures):
        alone = tiny_pipe(picture, threshold=0.0)
        assert alone.image_score[0] == pytest.approx(together.image_score[i], rel=1e-4)
        assert split.image_score[i] == pytest.approx(together.image_score[i], rel=1e-4)
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[i], atol=1e-4, rtol=1e-4)


def test_every_call_gives_the_same_and_a_seed_repeats(tiny_pipe, picture):
    def score(**arguments):
        return tiny_pipe(picture, denoise=False, **arguments).image_score[0]

    assert score() == score()
    seeded = [score(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] and seeded[0] != seeded[2]


def test_one_and_two_threads_agree(tiny_pipe, picture):
    threads = torch.get_num_threads()
    scores = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            scores.append(tiny_pipe(picture, denoise=False).image_score[0])
    finally:
        torch.set_num_threads(threads)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_tuple_equals_dict(tiny_pipe, picture):
    output = tiny_pipe(picture, threshold=0.0)
    values = tiny_pipe(picture, threshold=0.0, return_dict=False)
    assert len(values) == len(dataclasses.fields(output)) == len(output.to_tuple())
    for field, value in zip(dataclasses.fields(output), values, strict=True):
        expected = output[field.name]
        assert expected is getattr(output, field.name)
        if field.name == "threshold":
            assert value == expected == 0.0
            continue
        assert len(value) == len(expected) == 1, field.name
        np.testing.assert_array_equal(np.array(value[0]), np.array(expected[0]), err_msg=field.name)
    without = tiny_pipe(picture, threshold=0.0, denoise=False)
    assert without.denoised_image is None and len(without.to_tuple()) == len(values) - 3


def test_results_are_a_list_that_computes_what_is_read(tiny_pipe, picture):
    output = tiny_pipe([picture, picture[:64, :50], picture[::2]], threshold=0.0)
    assert [image.size for image in output.overlay] == [(70, 90), (50, 64), (70, 45)]
    assert output.overlay[-1].size == (70, 45) and [one.shape for one in output.anomaly_map[1:]] == [
        (64, 50),
        (45, 70),
    ]
    assert output.denoised_image[1] is output.denoised_image[1]
    with pytest.raises(IndexError):
        output.overlay[3]


def test_output_types_show_the_same_picture(tiny_pipe, picture):
    pil, array, tensor = (tiny_pipe(picture, threshold=-99.0, output_type=kind) for kind in ("pil", "np", "pt"))
    for name in ("overlay", "denoised_image"):
        expected = getattr(tensor, name)[0]
        assert expected.shape == (3, 90, 70) and expected.min() >= 0 and expected.max() <= 1
        np.testing.assert_array_equal(getattr(array, name)[0], expected.permute(1, 2, 0).numpy())
        np.testing.assert_allclose(np.array(getattr(pil, name)[0]) / 255, getattr(array, name)[0], atol=0.003)
    np.testing.assert_array_equal(array.anomaly_map[0], tensor.anomaly_map[0].numpy())


def test_alpha_weighs_pixel_against_feature_map(tiny_pipe, picture):
    def maps(alpha):
        return tiny_pipe(picture, alpha=alpha, denoise=False)

    np.testing.assert_allclose(maps(1.0).anomaly_map[0], maps(0.5).pixel_map[0], atol=1e-5)
    np.testing.assert_allclose(maps(0.0).anomaly_map[0], maps(0.5).feature_map[0], atol=1e-5)
    mixed = maps(0.3)
    expected = 0.3 * mixed.pixel_map[0] + 0.7 * mixed.feature_map[0]
    np.testing.assert_allclose(mixed.anomaly_map[0], expected, atol=1e-5)


def test_noise_levels_are_averaged_and_independent(tiny_pipe, picture):
    def anomaly(timesteps):
        return tiny_pipe(picture, timesteps=timesteps, denoise=False).anomaly_map[0]

    np.testing.assert_allclose(anomaly([20, 201]), (anomaly([20]) + anomaly([201])) / 2, atol=1e-4)
    np.testing.assert_allclose(anomaly([201, 20]), anomaly([20, 201]), atol=1e-5)


def test_image_score_is_the_mean_of_the_highest_cell(tiny_pipe, picture):
    output = tiny_pipe(picture[:64, :64], denoise=False, output_type="pt")
    cells = output.anomaly_map[0].view(32, 2, 32, 2).mean(dim=(1, 3))
    assert output.image_score[0] == pytest.approx(float(cells.max()), rel=1e-5)


def test_threshold_is_the_limit_of_stored_normal_images(tiny_pipe, picture):
    maps = tiny_pipe.calibration.calibration_maps[:, :4].reshape(6, 2, 2, -1)  # kl, residual
    for alpha, timesteps, levels in ((0.5, [20, 201], [0, 1]), (0.2, [201], [1])):
        fused = (alpha * maps[:, 0] + (1 - alpha) * maps[:, 1])[:, levels].mean(dim=1)
        expected = tiny_pipe.calibration.limit(fused.amax(dim=1).numpy(), 0.05)
        found = tiny_pipe(picture, alpha=alpha, timesteps=timesteps, denoise=False).threshold
        assert found == pytest.approx(float(expected), rel=1e-5)
    assert tiny_pipe(picture, threshold=7.0, denoise=False).threshold == 7.0
    stored = create_tiny_pipeline(threshold=3.5)
    assert stored.threshold == stored(picture, denoise=False).threshold == 3.5
    assert stored(picture, alpha=0.1, denoise=False).threshold != 3.5  # measured for another alpha


def test_a_good_image_comes_out_as_it_went_in(tiny_pipe, picture):
    evaluations = calls(tiny_pipe.unet)
    output = tiny_pipe(picture, threshold=1e9)
    assert output.is_anomalous == [False]
    np.testing.assert_array_equal(np.array(output.denoised_image[0]), picture)
    np.testing.assert_array_equal(np.array(output.overlay[0]), picture)
    assert output.normality_distance == [None] and len(output.intermediates[0]) == 1
    assert len(evaluations) == 1  # nothing was denoised


def test_an_image_that_passes_is_not_repaired_where_single_cells_are_high(tiny_pipe, picture):
    tiny_pipe.calibration.register_to_config(num_top_cells=16)
    judged = tiny_pipe(picture, denoise=False, output_type="pt")
    score, highest = judged.image_score[0], float(tiny_pipe.calibration.pool(judged.anomaly_map[0][None, None]).max())
    assert highest > score + 1e-3
    passed, failed = (tiny_pipe(picture, threshold=score + step, num_denoising_steps=2) for step in (1e-3, -1e-3))
    assert passed.is_anomalous == [False] and passed.normality_distance == [None]
    np.testing.assert_array_equal(np.array(passed.denoised_image[0]), picture)
    assert failed.is_anomalous == [True] and failed.normality_distance != [None]


def test_pixels_outside_the_mask_stay_as_they_were(tiny_pipe, picture):
    tiny_pipe.calibration.calibration_maps.fill_(1e4)  # no growth beyond the threshold
    threshold = tiny_pipe(picture, denoise=False).image_score[0] - 1e-3
    output = tiny_pipe(picture, threshold=threshold, output_type="np")
    scores = tiny_pipe.score(picture)
    fused = tiny_pipe.calibration.fuse(scores.pixel_maps, scores.feature_maps, 0.5)[:, None]
    level = min(threshold, tiny_pipe.calibration.mask_level(tiny_pipe.judgement()))
    seeds = (tiny_pipe.calibration.pool(fused) > threshold).float()
    mask = tiny_pipe.denoiser.defect_mask(seeds, fused, level)
    mask = torch.nn.functional.interpolate(mask, size=(90, 70), mode="bilinear")
    outside = (mask[0, 0] == 0).numpy()
    assert 0.2 < outside.mean() < 1
    np.testing.assert_array_equal(output.denoised_image[0][outside], (picture[outside] / 255).astype(np.float32))
    assert np.abs(output.denoised_image[0][~outside] - picture[~outside] / 255).max() > 0.01


def test_the_loss_falls_at_every_kept_step(tiny_pipe, picture):
    images = tiny_pipe.prepare([tiny_pipe.image_processor.read_image(picture)])
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:40, 16:40] = 1
    noise = tiny_pipe.get_noise([tiny_pipe.scheduler.timestep_of(80)]).expand_as(images)
    steps = tiny_pipe.denoiser.repair(images, mask, noise, tiny_pipe.denoiser.networks(tiny_pipe, None), 20, False)
    losses = [step.distance for step in steps if step.distance is not None][1:]
    assert len(losses) > 3
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < losses[0]


def test_denoising_one_image_does_not_depend_on_its_batch(tiny_pipe, pictures):
    together = tiny_pipe(pictures[:2], threshold=-99.0, output_type="pt", num_denoising_steps=6)
    alone = tiny_pipe(pictures[0], threshold=-99.0, output_type="pt", num_denoising_steps=6)
    torch.testing.assert_close(together.denoised_image[0], alone.denoised_image[0], atol=2e-3, rtol=0)
    assert together.normality_distance[0] == pytest.approx(alone.normality_distance[0], rel=1e-3)


def test_whole_form_changes_the_whole_image(tiny_pipe, picture):
    steps = []
    output = tiny_pipe(
        picture,
        denoise="whole",
        num_denoising_steps=5,
        threshold=1e9,
        output_type="np",
        callback_on_step_end=lambda pipe, step, timestep, values: steps.append(
            (step, timestep, values["image"].shape)
        ),
    )
    assert [step for step, _, _ in steps] == list(range(6))
    assert steps[5][1] == 32 and steps[4][1] == 0  # every fifth step is one of the diffusion model, at 8 of 250
    changed = np.abs(output.denoised_image[0] - picture / 255).max(axis=2) > 1e-3
    assert changed.mean() > 0.9


def test_no_gradient_is_kept(tiny_pipe, picture):
    output = tiny_pipe(picture, threshold=-99.0, output_type="pt")
    assert not output.anomaly_map[0].requires_grad and not output.denoised_image[0].requires_grad
    modules = (tiny_pipe.unet, tiny_pipe.feature_extractor, tiny_pipe.residual)
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())


def test_the_overlay_of_an_average_part_is_the_part_itself(picture):
    original = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    dark = DDADRenderer().overlay(original, torch.full((90, 70), 2.4), threshold=5.0)
    assert torch.equal(dark, original)
    bright = DDADRenderer().overlay(original, torch.full((90, 70), 10.0), threshold=5.0)
    assert (bright - original).abs().mean() > 0.1
    # The scale is fixed: another part of the map does not change the colour here.
    anomaly = torch.full((90, 70), 4.0)
    first = DDADRenderer().overlay(original, anomaly, threshold=5.0)
    anomaly[0, 0] = 1000
    assert torch.equal(DDADRenderer().overlay(original, anomaly, threshold=5.0)[:, 1:], first[:, 1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must lie in \[0, 1\], found 1.5"),
        ({"alpha": float("nan")}, "`alpha` must lie"),
        ({"timesteps": [21]}, r"`timesteps` \[21\] are not calibrated.*\[20, 201\]"),
        ({"timesteps": []}, "one or more different"),
        ({"timesteps": [20, 20]}, "one or more different"),
        ({"denoise": "all"}, "`denoise` must be"),
        ({"num_denoising_steps": 0}, "at least 1"),
        ({"pixel_score": "l2"}, "`pixel_score` must be one of"),
        ({"feature_score": "l2"}, "`feature_score` must be one of"),
        ({"output_type": "latent"}, "`output_type` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"threshold": float("nan")}, "`threshold` must be a number"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tiny_pipe, picture, arguments, message):
    evaluations = calls(tiny_pipe.unet)
    with pytest.raises(ValueError, match=message):
        tiny_pipe(picture, **arguments)
    assert not evaluations


def test_an_uncalibrated_pipeline_says_so(picture):
    pipe = create_tiny_pipeline()
    pipe.calibration.register_to_config(statistics=None)
    with pytest.raises(ValueError, match="not calibrated"):
        pipe(picture)


def test_extreme_shapes_and_levels_work(tiny_pipe):
    generator = np.random.default_rng(0)
    for shape in ((16, 16), (16, 900), (700, 20, 3), (64, 64, 4)):
        image = generator.integers(0, 255, shape, dtype=np.uint8)
        output = tiny_pipe(image, threshold=-99.0, num_denoising_steps=2)
        assert output.anomaly_map[0].shape == shape[:2] and np.isfinite(output.image_score[0])
    for value in (0, 255):
        assert np.isfinite(tiny_pipe(PIL.Image.new("L", (40, 40), value)).image_score[0])


def test_the_noise_of_a_generator_is_one_for_all_batches(tiny_pipe, picture):
    def scores(batch_size):
        generator = torch.Generator().manual_seed(5)
        return tiny_pipe([picture] * 5, batch_size=batch_size, generator=generator, denoise=False).image_score

    assert len({round(one, 4) for one in scores(2)}) == 1
    assert scores(2) == pytest.approx(scores(5), rel=1e-4)


@pytest.mark.parametrize("mode", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad])
def test_the_callers_modes_change_nothing(tiny_pipe, picture, mode):
    expected = tiny_pipe(picture, threshold=-5.0)
    with mode():
        tensor = torch.from_numpy(picture).permute(2, 0, 1)
        found = [tiny_pipe(image, threshold=-5.0) for image in (picture, tensor, tiny_pipe.score(picture))]
    for one in found:
        assert one.image_score == expected.image_score and len(one.intermediates[0]) > 2
        np.testing.assert_array_equal(np.array(one.denoised_image[0]), np.array(expected.denoised_image[0]))


@pytest.mark.slow
def test_a_compiled_network_gives_the_same(tiny_pipe, picture):
    expected = tiny_pipe(picture, threshold=-5.0)
    tiny_pipe.unet = torch.compile(tiny_pipe.unet, backend="eager")
    found = tiny_pipe(picture, threshold=-5.0)
    assert found.image_score == expected.image_score


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_half_precision_stays_close(tiny_pipe, picture, dtype, tolerance):
    expected = tiny_pipe(picture, threshold=-5.0).image_score[0]
    assert tiny_pipe.to(dtype)(picture, threshold=-5.0).image_score[0] == pytest.approx(expected, rel=tolerance)


def test_scores_that_are_given_are_not_contradicted(tiny_pipe, picture):
    scores = tiny_pipe.score(picture)
    same = tiny_pipe(scores, pixel_score="kl", feature_score="residual", denoise=False)
    assert same.image_score == tiny_pipe(picture, denoise=False).image_score
    with pytest.raises(ValueError, match="`feature_score` is 'sum', and the scores given are of 'residual'"):
        tiny_pipe(scores, feature_score="sum")
    with pytest.raises(ValueError, match="`generator` has no use"):
        tiny_pipe(scores, generator=torch.Generator(), denoise=False)


@pytest.mark.slow
def test_two_threads_share_a_pipeline(tiny_pipe, picture):
    pictures = [picture, picture[:40], picture[:, :33], picture[::-1].copy()]
    expected = [tiny_pipe(one, threshold=-5.0).image_score[0] for one in pictures]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda one: tiny_pipe(one, threshold=-5.0).image_score[0], pictures * 3))
    assert found == pytest.approx(expected * 3, abs=1e-5)
