import copy

import numpy as np
import pytest
import torch

from ddad import DDADFeatureExtractor, DDADGaussianModel
from ddad.calibration.fitting import Gaussian
from ddad.calibration.gaussians import principal_components
from tests.conftest import fit_gaussian

CHANNELS = [0, 2, 3, 5, 7, 8]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 10, generator=generator)
    values = torch.randn(60, 8, 8, 10, generator=generator) @ mixing + torch.randn(8, 8, 10, generator=generator)
    return values.permute(0, 3, 1, 2)


def fitted(features):
    model = DDADGaussianModel(feature_channels=10, num_channels=6, grid_size=4)
    model.basis.copy_(torch.eye(10)[:, CHANNELS])
    fit_gaussian(model, features)
    return model


def test_distance_equals_numpy_with_the_inverse_covariance(features):
    model = fitted(features)
    pooled = features.double().reshape(60, 10, 4, 2, 4, 2).mean(dim=(3, 5)).numpy()[:, CHANNELS]
    new = torch.randn(3, 10, 8, 8)
    new_pooled = new.double().reshape(3, 10, 4, 2, 4, 2).mean(dim=(3, 5)).numpy()[:, CHANNELS]
    found = model(new)
    for y, x in ((0, 0), (2, 3)):
        mean = pooled[:, :, y, x].mean(axis=0)
        inverse = np.linalg.inv(np.cov(pooled[:, :, y, x], rowvar=False) + 0.01 * np.eye(6))
        for n in range(3):
            difference = new_pooled[n, :, y, x] - mean
            assert float(found[n, 0, y, x]) == pytest.approx(np.sqrt(difference @ inverse @ difference), rel=1e-4)


def test_normal_features_lie_at_the_root_of_the_dimension(features):
    distance = fitted(features)(features)
    assert float(distance.square().mean()) == pytest.approx(6, rel=0.05)
    assert fitted(features)(features + 20).min() > 3 * distance.max()


def test_gradient_is_that_of_finite_differences(features):
    model = fitted(features).double()
    x = features[:1].clone().requires_grad_(True)
    model(x).sum().backward()
    channel = CHANNELS[0]
    step = torch.zeros_like(x)
    step[0, channel, 3, 5] = 1e-2
    with torch.no_grad():
        slope = (model(x + step).sum() - model(x - step).sum()) / 2e-2
    assert float(x.grad[0, channel, 3, 5]) == pytest.approx(float(slope), rel=0.02, abs=1e-3)


def test_float16_weights_still_compute_in_float32(features):
    model = fitted(features)
    distance = model(features[:4])
    half = model.to(torch.float16)(features[:4])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, distance, rtol=0.02, atol=0.02)


def test_what_is_made_of_the_weights_follows_them(features):
    """Weights that are changed, cast, or copied: nothing of what was made of the old ones is used."""
    model = fitted(features)
    before = model(features[:4])
    assert model.unpacked()[1] is model.unpacked()[1]
    model.mean.add_(1)
    assert not torch.allclose(model(features[:4]), before)
    model.mean.sub_(1)
    torch.testing.assert_close(model(features[:4]), before, rtol=1e-4, atol=1e-4)
    twin = copy.deepcopy(model)
    assert twin._kept is None and torch.equal(twin(features[:4]), model(features[:4]))
    rounded = model.half().float()
    fresh = DDADGaussianModel(**{key: value for key, value in rounded.config.items() if not key.startswith("_")})
    fresh.load_state_dict(rounded.state_dict())
    assert torch.equal(rounded(features[:4]), fresh(features[:4]))
    with torch.inference_mode():
        inside = copy.deepcopy(fresh)
        assert torch.equal(inside(features[:4]), fresh(features[:4]))


def test_only_the_triangle_is_stored(features, tmp_path):
    model = fitted(features)
    assert [part.shape for part in model.whitening] == [(16, 10), (16, 11)]
    model.save_pretrained(tmp_path)
    assert torch.equal(DDADGaussianModel.from_pretrained(tmp_path)(features), model(features))


def test_principal_components_keep_what_varies(features):
    model = DDADGaussianModel(feature_channels=10, num_channels=10, grid_size=4)
    pooled = torch.nn.functional.adaptive_avg_pool2d(features, 4).flatten(2).transpose(1, 2)
    model.basis.copy_(principal_components(pooled, 10))
    fit_gaussian(model, features)
    whole = DDADGaussianModel(feature_channels=10, num_channels=10, grid_size=4)
    whole.basis.copy_(torch.eye(10))
    fit_gaussian(whole, features)
    # All components are a rotation, which no distance notices.
    torch.testing.assert_close(model(features), whole(features), rtol=1e-3, atol=1e-3)


def test_what_factors_explain_is_no_distance(features):
    """Against numpy: projected off mean and factors, then whitened; of fewer factors than there is room for."""
    model = DDADGaussianModel(feature_channels=10, num_channels=6, grid_size=4, num_factors=40)
    model.basis.copy_(torch.eye(10)[:, CHANNELS])
    generator = torch.Generator().manual_seed(3)
    factors = torch.linalg.qr(torch.randn(96, 35, generator=generator)).Q  # more than one part of the file
    mean = torch.randn(16, 6, generator=generator)
    root = torch.randn(16, 6, 6, generator=generator)
    covariance = root @ root.transpose(1, 2) + torch.eye(6)
    model.set_gaussian(mean, covariance, factors)
    assert [part.shape[1] for part in model.factors] == [32, 8]
    found, reduced = model(features[:3]), model.reduce(features[:3]).double().numpy()
    basis = factors.double().numpy()
    for n in range(3):
        centred = (reduced[n] - mean.double().numpy()).reshape(-1)
        left = (centred - basis @ (basis.T @ centred)).reshape(16, 6)
        for position in (0, 7, 15):
            inverse = np.linalg.inv(covariance[position].double().numpy())
            expected = np.sqrt(left[position] @ inverse @ left[position])
            assert float(found[n].flatten()[position]) == pytest.approx(expected, rel=1e-3)
    gaussian = Gaussian(mean, covariance, factors, DDADGaussianModel.whiten(covariance))
    torch.testing.assert_close(gaussian.distance(model.reduce(features[:3])), found.flatten(1), rtol=1e-4, atol=1e-4)


def test_files_of_a_checkpoint_stay_small():
    with torch.device("meta"):
        extractor = DDADFeatureExtractor("tf_efficientnet_lite2", image_size=512, grid_size=32)
        whole = DDADGaussianModel(extractor.feature_channels, 64, grid_size=32, num_factors=96)
    assert 2 * sum(one.numel() for one in whole.parameters()) < 25e6
    assert max(2 * one.numel() for one in whole.parameters()) < 9e6  # files are split between parameters


def test_too_many_channels_are_refused():
    with pytest.raises(ValueError, match="at most 10"):
        DDADGaussianModel(feature_channels=10, num_channels=11)
