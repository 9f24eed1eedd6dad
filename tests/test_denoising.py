"""The denoiser on a toy model: images whose normal version is one grey, and a distance that is their difference."""

import pytest
import torch

from ddad import DDADDenoiser, DDADImageProcessor, DDADScheduler

GREY = 0.25


@pytest.fixture
def model():
    scheduler = DDADScheduler(prediction_type="sample")

    def distance(images, target, weight):
        values = torch.nn.functional.adaptive_avg_pool2d((images - target).square().mean(1, keepdim=True), 4)
        return (values * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))

    return DDADDenoiser.model_class(
        process=scheduler,
        get_noise=lambda t: torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(t)),
        predict_original=lambda x, t: torch.full_like(x, 0.2),  # near the normal grey, not there
        posterior_mean=lambda x, t: x + 0.1 * (GREY - x),
        predict_features=lambda x: torch.full_like(x, GREY),
        target_timestep=201,
        distance=distance,
        normal_distance=1e-5,
        grid_size=4,
        blur=DDADImageProcessor.blur,
    )


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


def test_inpainting_changes_the_mask_alone(model, images, mask):
    steps = list(DDADDenoiser().inpaint(model, images, mask))
    assert [timestep for timestep, _ in steps] == [model.timestep(step) for step in (80, 62, 46, 33, 22, 13, 6)]
    last = steps[-1][1]
    assert torch.equal(last[:, :, :8], images[:, :, :8])
    torch.testing.assert_close(last[:, :, 8:16, 8:16], torch.full((2, 3, 8, 8), 0.2))


def test_grain_of_the_part_is_put_back(model, images, mask):
    repaired = images * (1 - mask) + 0.2 * mask
    grained = DDADDenoiser().borrow_grain(model, images, mask, repaired)
    assert grained[0, :, 8:16, 8:16].std() > 0.01 and torch.equal(grained[:, :, :8], repaired[:, :, :8])


def test_descent_lowers_the_distance_and_ends_when_it_is_normal(model, images, mask):
    *_, (_, last, distance) = DDADDenoiser().denoise_masked(model, images, mask, 60)
    assert (distance < 1e-4).all()
    torch.testing.assert_close(last[:, :, 8:16, 8:16].mean(dim=(2, 3)), torch.full((2, 3), GREY), atol=0.01, rtol=0)
    assert torch.equal(last[:, :, 16:], images[:, :, 16:])


def test_settings_are_used(model, images, mask):
    def steps(**settings):
        return list(DDADDenoiser(**settings).denoise_masked(model, images, mask, 12))

    assert len(steps(inpainting_steps=(40, 8))) < len(steps())
    assert [timestep for timestep, _, _ in steps(denoise_every=1)].count(model.timestep(8)) > 3
    assert [timestep for timestep, _, _ in steps(denoise_every=1, denoising_step=4)].count(model.timestep(4)) > 3
    first = next(one for _, one, distance in steps(step_size=1e-4) if distance is not None)
    assert torch.equal(first, images)  # the image as it came is the first that is measured
    assert len(steps(step_size=1e-5)) == 7 + 1 + 1  # after one step it is below the smallest


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


def test_the_paper_form_moves_the_whole_image(model, images):
    steps = list(DDADDenoiser().denoise_whole(model, images, 5))
    assert len(steps) == DDADDenoiser().most_steps(5, whole=True) == 6
    assert [timestep for timestep, _, _ in steps] == [0, 0, 0, 0, 0, model.timestep(8)]
    assert (steps[-1][1] != images).float().mean() > 0.99
