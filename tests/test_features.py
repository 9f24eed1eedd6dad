from pathlib import Path

import gradio
import pytest
import timm
import torch

from ddad import DDADFeatureExtractor, DDADImageProcessor
from ddad.calibration.backbone import create_feature_extractor, load_packaged_weights

PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"


def photograph(name):
    return DDADImageProcessor().preprocess(DDADImageProcessor().read_image(PHOTOGRAPHS / name), 256)


@pytest.mark.parametrize(("name", "imagenet_class"), [("lion.jpg", 291), ("cheetah1.jpg", 293)])
@torch.no_grad()
def test_packaged_weights_know_what_they_see(name, imagenet_class):
    model = load_packaged_weights("tf_efficientnet_lite0").eval()
    assert int(model(photograph(name)).argmax()) == imagenet_class


@torch.no_grad()
def test_features_are_those_of_the_whole_network():
    extractor = create_feature_extractor("tf_efficientnet_lite0")
    whole = load_packaged_weights("tf_efficientnet_lite0").eval()
    x = photograph("lion.jpg")
    expected = whole.forward_intermediates(x, indices=[1, 2, 3], intermediates_only=True)  # mean and std are 0.5
    for found, value in zip(extractor.network((x + 1) / 2 * 2 - 1), expected, strict=True):
        torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-4)


def test_grid_channels_and_normalisation_are_asked_of_timm():
    extractor = DDADFeatureExtractor(backbone="test_resnet", strides=(4, 16), grid_size=8)
    info = timm.create_model("test_resnet", features_only=True).feature_info
    channels = dict(zip(info.reduction(), info.channels(), strict=True))
    assert extractor.feature_channels == channels[4] + channels[16]
    assert extractor(torch.zeros(2, 3, 64, 64)).shape == (2, extractor.feature_channels, 8, 8)
    assert extractor.config.image_mean == timm.get_pretrained_cfg("test_resnet").mean


@torch.no_grad()
def test_input_is_normalised_as_the_backbone_was_trained():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    extractor = DDADFeatureExtractor(
        "test_efficientnet", (4,), grid_size=16, neighborhood=1, image_mean=mean, image_std=std
    )
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    normalised = ((x + 1) / 2 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(extractor.extract(x), extractor.network(normalised)[0])


@torch.no_grad()
def test_neighbourhood_average():
    extractor = DDADFeatureExtractor("test_efficientnet", (4,), grid_size=16, neighborhood=3)
    plain = DDADFeatureExtractor("test_efficientnet", (4,), grid_size=16, neighborhood=1)
    plain.load_state_dict(extractor.state_dict())
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    averaged, features = extractor.extract(x), plain.extract(x)
    torch.testing.assert_close(averaged[0, :, 5, 7], features[0, :, 4:7, 6:9].mean(dim=(1, 2)))
    torch.testing.assert_close(averaged[0, :, 0, 0], features[0, :, :2, :2].mean(dim=(1, 2)))  # no zeros from outside


@torch.no_grad()
def test_fitted_features_are_standardised():
    extractor = create_feature_extractor("tf_efficientnet_lite0")
    batches = [photograph("lion.jpg"), photograph("cheetah1.jpg"), photograph("bus.png")]
    extractor.fit(batches)
    features = extractor(torch.cat(batches))
    assert features.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (features.std(dim=(0, 2, 3)) - 1).abs().median() < 1e-3


def test_stays_frozen_and_is_differentiable_in_the_image():
    extractor = DDADFeatureExtractor("test_efficientnet", (4,), grid_size=16).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    extractor(x).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"\[5\] are not among those of test_efficientnet"):
        DDADFeatureExtractor("test_efficientnet", (4, 5))
    with pytest.raises(ValueError, match="odd"):
        DDADFeatureExtractor("test_efficientnet", (4,), neighborhood=2)
    with pytest.raises(ValueError, match="empty"):
        DDADFeatureExtractor("test_efficientnet", (4,)).fit([])


def test_save_and_load_change_nothing(tmp_path):
    extractor = DDADFeatureExtractor("test_efficientnet", (4, 8), grid_size=16)
    extractor.fit([torch.rand(2, 3, 64, 64) * 2 - 1])
    extractor.save_pretrained(tmp_path)
    loaded = DDADFeatureExtractor.from_pretrained(tmp_path)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(extractor(x), loaded(x))


@pytest.mark.parametrize(
    ("backbone", "strides", "channels"),
    [("test_vit", (16, 16), 128), ("swin_tiny_patch4_window7_224", (4, 8), 96 + 192)],
)
def test_transformers_give_levels_on_the_grid(backbone, strides, channels, tmp_path):
    extractor = DDADFeatureExtractor(
        backbone, strides=strides, image_size=96 if "vit" in backbone else 224, grid_size=6
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = extractor(images)
    assert features.shape == (2, channels, 6, 6) and extractor.feature_channels == channels
    assert not torch.equal(features[0], features[1])
    extractor.save_pretrained(tmp_path)
    assert torch.equal(DDADFeatureExtractor.from_pretrained(tmp_path)(images), features)


def test_a_file_of_weights_is_read_or_refused(tmp_path):
    import timm
    from safetensors.torch import save_file

    from ddad.calibration.backbone import create_feature_extractor

    model = timm.create_model("test_efficientnet")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        extractor = create_feature_extractor("test_efficientnet", tmp_path / name, strides=(4, 8))
        own = extractor.network.model.state_dict()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in own.items())
    with pytest.raises(ValueError, match="does not hold the weights of this backbone"):
        create_feature_extractor("test_resnet", tmp_path / "weights.pth", strides=(4, 8))
