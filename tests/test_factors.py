"""Factors against numpy, and that they take off what images have in common and leave what they have not."""

import numpy as np
import pytest
import torch

from ddad import DDADGaussianModel
from ddad.calibration.factors import Views, candidates, cross_fit, fit_factors, unexplained
from ddad.calibration.fitting import fit_statistics


def draw(count, common=3, seed=0, strength=3.0):
    """Images `[N, P, C]` of noise and a few patterns that all positions share."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(common, 16 * 5, generator=torch.Generator().manual_seed(99))
    mixed = strength * torch.randn(count, common, generator=generator) @ patterns
    return (mixed + torch.randn(count, 80, generator=generator) + 2).view(count, 16, 5)


def views_of(values, folds=4):
    count = len(values)
    fold = torch.arange(count) % folds
    return Views(values, fold, torch.ones(count, dtype=torch.bool))


def test_factors_are_the_singular_vectors():
    values = draw(40)
    found = fit_factors(values, 4)
    flat = values.flatten(1).numpy()
    _, _, expected = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.basis.numpy().T @ expected[:4].T), np.eye(4), atol=5e-3)
    torch.testing.assert_close(found.mean, values.mean(dim=0))
    left = found.unexplained(values).flatten(1)
    assert float((left @ found.basis).abs().max()) < 0.05
    assert fit_factors(values[:3], 9).basis.shape == (80, 2)


def test_what_is_common_is_taken_off_and_what_is_not_stays():
    found = fit_factors(draw(200), 3)
    new = draw(50, seed=1)
    defective = new.clone()
    defective[:, 7] += 20
    before, after = (values.square().mean(dim=2) for values in (new - found.mean, found.unexplained(new)))
    assert float(after.mean()) < 1.3 < 5 < float(before.mean())
    marked = found.unexplained(defective).square().mean(dim=2)
    assert (marked.argmax(dim=1) == 7).all()


def test_images_are_judged_by_factors_of_others():
    """With as many factors as images, an image that was seen has nothing left."""
    views = views_of(draw(12, common=0))
    left = unexplained(views, cross_fit(views, 11), 8)
    seen = fit_factors(views.values, 11).unexplained(views.values)
    assert float(seen.square().mean()) < 1e-4 and float(left.square().mean()) > 0.5


def test_the_likelihood_of_others_finds_how_many_there_are(monkeypatch):
    monkeypatch.setattr("ddad.calibration.factors.NUM_FACTORS", (0, 3, 16))
    assert candidates(11) == [0] and candidates(64) == [0, 3, 16]
    fit = fit_statistics(views_of(draw(120, common=3)))
    assert fit.num_factors == 3 and fit.log_likelihoods[3] > fit.log_likelihoods[0] + 0.1
    assert fit_statistics(views_of(draw(120, common=0))).num_factors == 0


def test_the_stored_model_measures_what_the_factors_leave():
    values = draw(60)
    model = DDADGaussianModel(feature_channels=5, num_channels=5, grid_size=4, num_factors=6)
    model.basis.copy_(torch.eye(5))
    found = fit_factors(values, 3)
    model.set_gaussian(found.mean, torch.eye(5).expand(16, -1, -1), found.basis)
    maps = values.transpose(1, 2).unflatten(2, (4, 4))
    expected = found.unexplained(values).norm(dim=2).view(-1, 1, 4, 4)
    torch.testing.assert_close(model(maps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folds", [2, 4])
def test_what_judges_a_fold_has_seen_nothing_of_it(monkeypatch, folds):
    """Another picture in a fold changes what judges it in no number; what judges the others changes."""
    monkeypatch.setattr("ddad.calibration.factors.NUM_FACTORS", (3,) if folds > 2 else (0,))
    monkeypatch.setattr("ddad.calibration.gaussians.SHRINKAGES", (0.1,))
    values = draw(48)
    before = fit_statistics(views_of(values, folds))
    changed = values.clone()
    changed[views_of(values, folds).fold == 1] += draw(48 // folds, common=5, seed=7, strength=9.0)
    after = fit_statistics(views_of(changed, folds))
    for name in ("mean", "covariance", "factors", "whitening"):
        one, other = (getattr(fit.of_others(1), name) for fit in (before, after))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.allclose(before.of_others(0).covariance, after.of_others(0).covariance)
