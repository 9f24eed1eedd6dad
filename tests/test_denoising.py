"""The denoiser on a toy model: images whose normal version is one grey, and a distance that is their difference."""

from types import SimpleNamespace

import pytest
import torch

from ddad import DDADDenoiser
from ddad.denoising_ddad import DDADMeasured
from tests.conftest import create_tiny_pipeline

GREY = 0.25


def create_networks(**changed) -> SimpleNamespace:
    """What is normal is one grey, which prediction nearly finds, and the distance is that to it."""

    def distance(images, target, mask):
        values = (images - target).square().mean(1, keepdim=True)
        return (values * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))

    functions = {
        "normal_distance": 1e-5,
        "predict_original": lambda x, step: torch.full_like(x, 0.2),
        "posterior_mean": lambda x, step: x + 0.1 * (GREY - x),
        "alpha_bar": lambda step: torch.full((1, 1, 1, 1), 1 - step / 100, dtype=torch.float64),
        "predict_features": lambda x: torch.full_like(x, GREY),
        "distance": distance,
        "smooth": lambda gradient: gradient,
    }
    return SimpleNamespace(**functions | changed)


def repair(images, mask, num_steps, refined=False, networks=None, denoiser=None):
    """All steps of a repair."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    chosen = denoiser or DDADDenoiser()
    return list(chosen.repair(images, mask, noise, networks or create_networks(), num_steps, refined))


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


def test_repainting_changes_the_mask_alone(images, mask):
    steps = list(DDADDenoiser().repaint(images, mask, torch.randn(images.shape), create_networks()))
    assert [(step.kind, step.step) for step in steps] == [("repaint", step) for step in (80, 62, 46, 33, 22, 13, 6)]
    last = steps[-1].images
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


def test_descent_lowers_the_distance_and_ends_when_it_is_normal(images, mask):
    steps = repair(images, mask, 60)
    last = steps[-1]
    assert (last.distance < 1e-4).all() and len(steps) < 60
    inside = last.images[:, :, 8:16, 8:16].mean(dim=(2, 3))
    torch.testing.assert_close(inside, torch.full((2, 3), GREY), atol=0.01, rtol=0)
    assert torch.equal(last.images[:, :, 16:], images[:, :, 16:])


def test_what_was_yielded_does_not_change_afterwards(images, mask):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    seen = []
    for step in DDADDenoiser().repair(images, mask, noise, create_networks(), 12, False):
        seen.append((step, step.images.clone(), None if step.distance is None else step.distance.clone()))
    for step, now, distance in seen:
        assert torch.equal(step.images, now) and (distance is None or torch.equal(step.distance, distance))


def test_what_repainting_alone_made_normal_is_repaired(images, mask, monkeypatch):
    pipe = create_tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipe.denoiser, "networks", lambda *_: create_networks(normal_distance=10.0))
    monkeypatch.setattr(pipe, "get_noise", lambda *_: torch.randn(1, 3, 32, 32))
    frames, distances = pipe.denoise(images, mask, whole=False, num_steps=60)
    inside, before = frames[0][-1][:, 8:16, 8:16], (images[0, :, 8:16, 8:16] + 1) / 2
    assert (inside - (GREY + 1) / 2).abs().mean() < 0.05 < (before - (GREY + 1) / 2).abs().mean()
    assert distances[0][1] < distances[0][0]


def test_before_detail_is_added_the_last_step_removes_what_gradients_drew(images, mask):
    assert repair(images, mask, 3)[-1].kind == "gradient"
    seen = []

    def predict_original(x, step):
        seen.append((x, step))
        return torch.full_like(x, 0.2 if len(seen) <= 7 else GREY)

    steps = repair(images, mask, 3, refined=True, networks=create_networks(predict_original=predict_original))
    before, last = steps[-2:]
    step = DDADDenoiser().config.denoising_step
    assert (last.kind, last.step, seen[-1][1]) == ("denoise", step, step)
    torch.testing.assert_close(seen[-1][0], (1 - step / 100) ** 0.5 * before.images)  # no noise is added
    assert torch.equal(last.images[:, :, 16:], images[:, :, 16:])
    assert (last.images[:, :, 8:16, 8:16] - GREY).abs().max() < 1e-6 and (last.distance < 1e-12).all()
    assert len(steps) <= DDADDenoiser().most_steps(3)


def test_a_step_that_raises_the_distance_is_refused(images):
    denoiser = DDADDenoiser()
    gradient = torch.ones_like(images)
    near, far = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    first, second = (DDADMeasured(images + i, one, gradient * i) for i, one in enumerate((near, far)))
    state = denoiser.begin([first, second], normal_distance=0.5)
    assert torch.equal(state.images[0], images[0]) and torch.equal(state.images[1], images[1] + 1)
    assert state.distance.tolist() == [1.0, 2.0] and state.active.all()
    candidate = DDADMeasured(images * 0, torch.tensor([0.4, 5.0]), gradient)
    before = state
    state = denoiser.accept(before, torch.tensor([0, 1]), candidate, gradient, denoised=False, normal_distance=0.5)
    assert torch.equal(before.images[0], images[0]) and before.distance.tolist() == [1.0, 2.0]  # a new state
    assert not state.images[0].any() and torch.equal(state.images[1], images[1] + 1)
    assert state.active.tolist() == [False, True]  # the first is normal now
    assert state.step_size.tolist() == pytest.approx([0.02 * 1.2, 0.02 * 0.4])


def test_settings_are_used(images, mask):
    def steps(**settings):
        return repair(images, mask, 12, denoiser=DDADDenoiser(**settings))

    assert len(steps(inpainting_steps=(40, 8))) < len(steps())
    assert [step.step for step in steps(denoise_every=1)].count(8) > 3
    assert [step.step for step in steps(denoise_every=1, denoising_step=4)].count(4) > 3
    first = next(step for step in steps(step_size=1e-4) if step.distance is not None)
    assert first.kind == "target" and torch.equal(first.images, images)  # the first that is measured, as it came
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


def test_the_paper_form_moves_the_whole_image(images):
    steps = list(DDADDenoiser().repair_whole(images, create_networks(), 5))
    assert len(steps) == DDADDenoiser().most_steps(5, whole=True) == 6
    assert [step.kind for step in steps] == ["target", *["gradient"] * 4, "denoise"]
    assert (steps[-1].images != images).float().mean() > 0.99
