"""Remembered patches: distances against a loop, radii, folds, and what float16 keeps."""

import dataclasses

import pytest
import torch

from ddad import DDADMemory
from ddad.calibration.factors import Views
from ddad.calibration.patches import RADIUS_WEIGHT, distances_by_others, remember, whiten_pooled


@pytest.fixture
def views():
    """Six images of one view each and a copy, in three folds, `[12, 16, 5]`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, 16, 5, generator=generator) * torch.tensor([4.0, 2, 1, 0.5, 0.1])
    values = (images + 0.05 * torch.randn(6, 2, 16, 5, generator=generator)).flatten(0, 1)
    return Views(values, torch.arange(3).repeat_interleave(4), torch.arange(12) % 2 == 0, turned=True)


def by_hand(memory: DDADMemory, reduced: torch.Tensor) -> torch.Tensor:
    """Every distance to every patch."""
    found = torch.empty(reduced.shape[:2])
    for number, image in enumerate(reduced):
        for place, values in enumerate(image):
            distances = (values @ memory.whitening - memory.patches).norm(dim=1)
            nearest = distances.argmin()
            found[number, place] = distances[nearest] - memory.radius[nearest]
    return found


def test_the_distance_is_that_to_the_nearest_patch_less_its_radius(views):
    memory = remember(views)
    shown = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(memory(shown), by_hand(memory, shown), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(memory.half()(shown), memory(shown))


def test_a_radius_is_half_the_distance_to_another_image(views):
    """A copy of the same image lies nearer, and does not count."""
    assert views.image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    memory = remember(views)
    white = views.values @ memory.whitening
    patch = memory.patches[7]
    at = int((white.flatten(0, 1) - patch).norm(dim=1).argmin())
    others = white[views.image != views.image[at // 16]].flatten(0, 1)
    expected = RADIUS_WEIGHT * (others - patch).norm(dim=1).min()
    assert float(memory.radius[7]) == pytest.approx(float(expected), rel=1e-2)
    alone = remember(views, views.image == 0)  # one image has no others
    assert not alone.radius.any()


def test_distances_count_in_units_of_what_varies_at_a_position(views):
    white = (views.values - views.values.mean(dim=0)) @ whiten_pooled(views.values)
    covariance = torch.einsum("vpi,vpj->ij", white, white) / (12 * 16)
    torch.testing.assert_close(covariance.diagonal()[1:], torch.ones(4), atol=0.05, rtol=0)


def test_nothing_is_judged_by_patches_of_its_own_fold(views):
    """By itself an image lies at no distance; by the others it does."""
    originals = views.values[views.original]
    by_all = remember(views).distance(originals)
    by_others = distances_by_others(views, originals, views.fold[views.original])
    assert by_all.mean() < 0 < by_others.mean()
    first = remember(views, views.image > 1).distance(originals[:2])
    torch.testing.assert_close(by_others[:2], first)


def test_copies_are_remembered_of_turned_parts_alone(views):
    """Under another light or out of focus, they would make bad photographs normal."""
    assert remember(views).config.num_patches == 12 * 16
    lying = remember(dataclasses.replace(views, turned=False))
    assert lying.config.num_patches == 6 * 16
    white = views.values[views.original].flatten(0, 1) @ lying.whitening
    assert torch.cdist(lying.patches, white).min(dim=1).values.max() < 0.02


def test_it_is_saved_and_loaded(views, tmp_path):
    memory = remember(views)
    memory.half().save_pretrained(tmp_path)
    loaded = DDADMemory.from_pretrained(tmp_path)
    assert torch.equal(loaded.distance(views.values), memory.float().distance(views.values))
