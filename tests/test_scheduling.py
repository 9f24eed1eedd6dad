"""The diffusion process against guided-diffusion's values for the 250-step respaced process."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddad import DDADScheduler

REFERENCE = np.load(Path(__file__).parent / "data" / "kl_250.npz")


def reference(name):
    return torch.from_numpy(REFERENCE[name])


def test_respacing_keeps_the_reference_timesteps():
    kept = DDADScheduler().timesteps.flip(0)
    assert kept[REFERENCE["indices"]].tolist() == REFERENCE["real_timesteps"].tolist()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("position", range(len(REFERENCE["indices"])))
def test_posterior_prediction_and_kl_equal_guided_diffusion(position, clip):
    scheduler = DDADScheduler(clip_sample=clip)
    index = int(REFERENCE["indices"][position])
    suffix = f"{index}_{'clipped' if clip else 'unclipped'}"
    timesteps = torch.full((2,), int(REFERENCE["real_timesteps"][position]))
    noisy = scheduler.add_noise(reference("x0"), reference("noise"), timesteps)
    mean, log_variance = scheduler.posterior(reference("x0"), noisy, timesteps)
    output = torch.cat([reference("eps"), reference("v")], dim=1)
    prediction = scheduler.predict(output, noisy, timesteps)
    kl = scheduler.kl_bits(reference("x0"), noisy, prediction, timesteps)

    def close(found, name):
        torch.testing.assert_close(found, reference(name), atol=1e-5, rtol=1e-5)

    close(noisy, f"x_t_{index}")
    close(mean, f"posterior_mean_{index}")
    close(log_variance.expand(2, 3, 16, 16), f"posterior_log_variance_{index}")
    close(prediction.mean, f"mean_{suffix}")
    close(prediction.log_variance, f"log_variance_{suffix}")
    close(kl[:, 0], f"kl_bits_{suffix}")


def test_a_batch_of_mixed_timesteps_equals_its_single_ones():
    scheduler = DDADScheduler()
    output = torch.cat([reference("eps"), reference("v")], dim=1)
    timesteps = torch.tensor([20, 401])
    noisy = scheduler.add_noise(reference("x0"), reference("noise"), timesteps)
    both = scheduler.kl_bits(reference("x0"), noisy, scheduler.predict(output, noisy, timesteps), timesteps)
    for i in range(2):
        one = slice(i, i + 1)
        prediction = scheduler.predict(output[one], noisy[one], timesteps[one])
        single = scheduler.kl_bits(reference("x0")[one], noisy[one], prediction, timesteps[one])
        assert torch.equal(both[one], single)


def test_kl_of_a_perfect_model_is_zero():
    scheduler = DDADScheduler(prediction_type="sample")
    timesteps = torch.tensor([20, 201])
    noisy = scheduler.add_noise(reference("x0"), reference("noise"), timesteps)
    perfect = torch.cat([reference("x0"), -torch.ones_like(reference("x0"))], dim=1)  # v = -1: the posterior variance
    kl = scheduler.kl_bits(reference("x0"), noisy, scheduler.predict(perfect, noisy, timesteps), timesteps)
    assert kl.abs().max() < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_recovers_the_image(prediction_type):
    scheduler = DDADScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([20, 401])
    x0, noise = reference("x0"), reference("noise")
    alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    truth = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0,
    }[prediction_type]
    noisy = scheduler.add_noise(x0, noise, timesteps)
    found = scheduler.predict_original_sample(torch.cat([truth, truth], dim=1), noisy, timesteps)
    torch.testing.assert_close(found, x0.clamp(-1, 1), atol=2e-5, rtol=0)


def test_detail_skip_is_the_best_linear_estimate():
    # x_0 = F + detail; the skip must leave less error than F alone and than the noisy image alone.
    generator = torch.Generator().manual_seed(0)
    smooth = torch.zeros(4, 3, 64, 64)
    x0 = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    noise = torch.randn(smooth.shape, generator=generator)
    output = torch.cat([smooth, smooth], dim=1)
    timesteps = torch.full((4,), 20)
    errors = []
    for detail_std in (0.0, 0.025, 0.05, 0.1, 1.0):
        scheduler = DDADScheduler(prediction_type="sample", detail_std=detail_std)
        noisy = scheduler.add_noise(x0, noise, timesteps)
        errors.append(float((scheduler.predict_original_sample(output, noisy, timesteps) - x0).square().mean()))
    assert errors.index(min(errors)) == 2
    sigma_squared = float((1 - scheduler.alphas_cumprod[20]) / scheduler.alphas_cumprod[20])
    assert errors[2] == pytest.approx(0.05**2 * sigma_squared / (0.05**2 + sigma_squared), rel=0.02)


def test_posterior_of_the_full_process_equals_diffusers_variance():
    scheduler = DDADScheduler().training_process()
    for t in (1, 20, 400, 999):
        _, log_variance = scheduler.posterior(reference("x0"), reference("x0"), torch.full((2,), t))
        assert float(log_variance[0]) == pytest.approx(
            float(scheduler._get_variance(t, None, "fixed_small").log()), abs=2e-3
        )


def test_unknown_timesteps_are_named():
    with pytest.raises(ValueError, match=r"\[21\] are not among the 250 steps"):
        DDADScheduler().alpha_bars(torch.tensor([20, 21]))
    with pytest.raises(ValueError, match=r"\[1000\]"):
        DDADScheduler().alpha_bars(torch.tensor([1000]))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="learned_range"):
        DDADScheduler(variance_type="fixed_small")
    with pytest.raises(ValueError, match="prediction_type"):
        DDADScheduler(prediction_type="noise")
    with pytest.raises(ValueError, match="detail_std"):
        DDADScheduler(prediction_type="epsilon", detail_std=0.1)


def test_save_and_load_keep_the_settings(tmp_path):
    DDADScheduler(prediction_type="sample", detail_std=0.03).save_pretrained(tmp_path)
    loaded = DDADScheduler.from_pretrained(tmp_path)
    assert (loaded.config.prediction_type, loaded.config.detail_std) == ("sample", 0.03)
