"""Moments, shrinkage and likelihood against numpy and closed forms."""

import math

import numpy as np
import pytest
import torch

from ddad.calibration.gaussians import (
    REGULARISATION,
    SHRINKAGES,
    Moments,
    choose_shrinkage,
    log_likelihood,
    principal_components,
    shrink,
)


def draw(count, positions=3, channels=4, seed=0, spread=1.0):
    """Features whose covariance differs by position as much as `spread` says."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(channels, channels, generator=torch.Generator().manual_seed(1))
    own = torch.randn(positions, channels, channels, generator=torch.Generator().manual_seed(2))
    values = torch.randn(count, positions, channels, generator=generator)
    return torch.einsum("npc,pcd->npd", values, common + spread * own) + torch.arange(positions)[None, :, None]


def moments_of(values):
    moments = Moments.empty(*values.shape[1:])
    for batch in values.split(7):
        moments.add(batch)
    return moments


def test_moments_are_those_of_numpy():
    values = draw(50)
    mean, covariance = moments_of(values).gaussian()
    for position in range(3):
        np.testing.assert_allclose(mean[position], values[:, position].numpy().mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(covariance[position], np.cov(values[:, position].numpy().T), rtol=1e-4, atol=1e-5)


def test_a_covariance_needs_two_images():
    with pytest.raises(ValueError, match="at least 2 normal images, found 1"):
        moments_of(draw(50)[:1]).gaussian()


def test_shrinkage_runs_from_the_position_to_the_mean_of_all():
    _, covariance = moments_of(draw(50)).gaussian()
    identity = REGULARISATION * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(shrink(covariance, 0.0), covariance + identity)
    torch.testing.assert_close(shrink(covariance, 1.0), (covariance.mean(dim=0) + identity).expand(3, -1, -1))


def test_likelihood_is_that_of_torch():
    values = draw(50)
    mean, covariance = moments_of(values).gaussian()
    expected = torch.distributions.MultivariateNormal(mean, shrink(covariance, 0.1)).log_prob(values.double()).mean()
    found = log_likelihood(values, mean, shrink(covariance, 0.1)) * 4 - 0.5 * 4 * math.log(2 * math.pi)
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("spread", "count", "most"), [(0.0, 8, False), (3.0, 400, True)])
def test_few_images_of_like_positions_are_shrunk_and_many_of_unlike_ones_are_not(spread, count, most):
    values = draw(count, spread=spread)
    folds = values.split(max(1, count // 4))
    rest = [moments_of(torch.cat([*folds[:place], *folds[place + 1 :]])) for place in range(len(folds))]
    weight, likelihoods = choose_shrinkage(rest, folds)
    assert (weight <= 0.05) if most else (weight >= 0.4)
    assert tuple(likelihoods) == SHRINKAGES and likelihoods[weight] == max(likelihoods.values())


def test_principal_components_are_ordered_and_orthonormal():
    values = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 2.0])
    basis = principal_components(values, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2), atol=1e-5, rtol=0)
    assert basis[:, 0].abs().argmax() == 1 and basis[:, 1].abs().argmax() == 2
