"""The denoiser on a toy model: images whose normal version is one grey, and a distance that is their difference."""

import pytest
import torch

from ddad import DDADDenoiser
from tests.conftest import create_tiny_pipeline

GREY = 0.25


@pytest.fixture
def pipe(monkeypatch):
    """A pipeline whose networks are replaced: what is normal is one grey, and the distance is that to it."""
    pipe = create_tiny_pipeline()
    grid = pipe.normality.config.grid_size

    def distance(images, target, weight, gaussian):
        values = torch.nn.functional.adaptive_avg_pool2d((images - target).square().mean(1, keepdim=True), grid)
        return (values * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))

    def noise(timesteps, generator=None):
        return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(timesteps[0]))

    monkeypatch.setattr(pipe, "get_noise", noise)
    monkeypatch.setattr(pipe, "predict_original", lambda x, t: torch.full_like(x, 0.2))  # near the normal grey
    monkeypatch.setattr(pipe, "posterior_mean", lambda x, t: x + 0.1 * (GREY - x))
    monkeypatch.setattr(pipe, "predict_at", lambda x, t, noise: (torch.full_like(x, GREY),))
    monkeypatch.setattr(pipe, "normality_distance", distance)
    statistics = pipe.normality.config.statistics | {"mahalanobis_mean": [1e-5, 1e-5]}
    pipe.normality.register_to_config(statistics=statistics)
    return pipe


@pytest.fixture
def images():
    """Two images with fine grain: one with a dark square, one darker as a whole."""
    grain = 0.02 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.full((2, 3, 32, 32), GREY) + grain
    images[0, :, 8:16, 8:16] = -0.9
    images[1] -= 0.3
    return images


@pytest.fixture
def mask():
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:16, 8:16] = 1
    return mask


def test_repainting_changes_the_mask_alone(pipe, images, mask):
    steps = list(pipe.repaint(images, mask, None))
    assert [timestep for timestep, _ in steps] == [pipe.timestep_of(step) for step in (80, 62, 46, 33, 22, 13, 6)]
    last = steps[-1][1]
    assert torch.equal(last[:, :, :8], images[:, :, :8])
    torch.testing.assert_close(last[:, :, 8:16, 8:16], torch.full((2, 3, 8, 8), 0.2))


def test_a_step_of_repainting_gives_back_the_noise_that_went_in(images, mask):
    noise, alpha_bar = torch.randn(2, 3, 32, 32), torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    noisy = DDADDenoiser.renoise(images, mask, noise, noise, alpha_bar)
    torch.testing.assert_close(noisy, 0.3**0.5 * images + 0.7**0.5 * noise)
    current, inside = DDADDenoiser.repaint_step(images, mask, noisy, images, alpha_bar)
    assert torch.equal(current, images)
    torch.testing.assert_close(inside, noise, atol=1e-5, rtol=1e-5)


def test_grain_of_the_part_is_put_back(images, mask):
    repaired = images * (1 - mask) + 0.2 * mask
    grained = DDADDenoiser.borrow_grain(images, mask, torch.full_like(images, 0.2), repaired)
    assert grained[0, :, 8:16, 8:16].std() > 0.01 and torch.equal(grained[:, :, :8], repaired[:, :, :8])


def test_descent_lowers_the_distance_and_ends_when_it_is_normal(pipe, images, mask):
    *_, (_, last, distance) = pipe.descend(images, mask, 60, None)
    assert (distance < 1e-4).all()
    torch.testing.assert_close(last[:, :, 8:16, 8:16].mean(dim=(2, 3)), torch.full((2, 3), GREY), atol=0.01, rtol=0)
    assert torch.equal(last[:, :, 16:], images[:, :, 16:])


def test_what_repainting_alone_made_normal_is_repaired(pipe, images, mask):
    statistics = pipe.normality.config.statistics | {"mahalanobis_mean": [10.0, 10.0]}
    pipe.normality.register_to_config(statistics=statistics)
    pipe.set_progress_bar_config(disable=True)
    frames, distances = pipe.denoise(images, mask, whole=False, num_steps=60)
    inside, before = frames[0][-1][:, 8:16, 8:16], (images[0, :, 8:16, 8:16] + 1) / 2
    assert (inside - (GREY + 1) / 2).abs().mean() < 0.05 < (before - (GREY + 1) / 2).abs().mean()
    assert distances[0][1] < distances[0][0]


def test_before_detail_is_added_the_last_step_removes_what_gradients_drew(pipe, images, mask, monkeypatch):
    plain = [timestep for timestep, _, _ in pipe.descend(images, mask, 3, None)]
    monkeypatch.setattr(pipe, "refiner", torch.nn.Identity())
    seen = []
    monkeypatch.setattr(pipe, "predict_clean", lambda x, t: seen.append(x) or torch.full_like(x, GREY))
    steps = list(pipe.descend(images, mask, 3, None))
    assert plain[-1] == 0 and steps[-1][0] == pipe.timestep_of(pipe.denoiser.config.denoising_step)
    (before,), (_, last, distance) = seen, steps[-1]
    assert torch.equal(before, steps[-2][1]) and torch.equal(last[:, :, 16:], images[:, :, 16:])
    assert (last[:, :, 8:16, 8:16] == GREY).all() and (distance < 1e-12).all()
    pipe.set_progress_bar_config(disable=True)
    frames, _ = pipe.denoise(images, mask, whole=False, num_steps=3)
    assert torch.equal(frames[0][-1], (last[0] + 1) / 2) and not torch.equal(frames[0][-2], frames[0][-1])
    assert len(steps) <= pipe.denoiser.most_steps(3)


def test_a_step_that_raises_the_distance_is_refused(images):
    denoiser = DDADDenoiser()
    gradient = torch.ones_like(images)
    near, far = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    first, second = (denoiser.measured(images + i, one, gradient * i) for i, one in enumerate((near, far)))
    state = denoiser.begin([first, second], normal_distance=0.5)
    assert torch.equal(state.images[0], images[0]) and torch.equal(state.images[1], images[1] + 1)
    assert state.distance.tolist() == [1.0, 2.0] and state.active.all()
    candidate = denoiser.measured(images * 0, torch.tensor([0.4, 5.0]), gradient)
    denoiser.accept(state, torch.tensor([0, 1]), candidate, gradient, denoised=False, normal_distance=0.5)
    assert not state.images[0].any() and torch.equal(state.images[1], images[1] + 1)
    assert state.active.tolist() == [False, True]  # the first is normal now
    assert state.step_size.tolist() == pytest.approx([0.02 * 1.2, 0.02 * 0.4])


def test_settings_are_used(pipe, images, mask):
    def steps(**settings):
        pipe.denoiser = DDADDenoiser(**settings)
        return list(pipe.descend(images, mask, 12, None))

    assert len(steps(inpainting_steps=(40, 8))) < len(steps())
    assert [timestep for timestep, _, _ in steps(denoise_every=1)].count(pipe.timestep_of(8)) > 3
    assert [timestep for timestep, _, _ in steps(denoise_every=1, denoising_step=4)].count(pipe.timestep_of(4)) > 3
    first = next(one for _, one, distance in steps(step_size=1e-4) if distance is not None)
    assert torch.equal(first, images)  # the image as it came is the first that is measured
    assert len(steps(step_size=1e-5)) == 7 + 2 + 1  # after one step it is below the smallest


def test_the_mask_grows_from_seeds_and_is_empty_without_them():
    maps = torch.zeros(2, 1, 32, 32)
    maps[:, :, 4:12, 4:20] = 2.0
    seeds = torch.zeros(2, 1, 8, 8)
    seeds[0, 0, 2, 2] = 1
    mask = DDADDenoiser.defect_mask(seeds, maps, 1.0)
    assert (mask[0, 0, 4:12, 4:20] == 1).all() and mask[0, 0, 31, 31] == 0
    assert not mask[1].any()
    small = DDADDenoiser.defect_mask(seeds, torch.zeros(2, 1, 32, 32), 1.0)
    assert 0 < small[0].sum() < mask[0].sum()


def test_the_paper_form_moves_the_whole_image(pipe, images):
    steps = list(pipe.descend_whole(images, 5))
    assert len(steps) == DDADDenoiser().most_steps(5, whole=True) == 6
    assert [timestep for timestep, _, _ in steps] == [0, 0, 0, 0, 0, pipe.timestep_of(8)]
    assert (steps[-1][1] != images).float().mean() > 0.99
