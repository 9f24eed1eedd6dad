import pytest
import torch
import torch.nn.functional as F

from ddad import DDADUNet2DModel
from ddad.training.config import PRESETS


def small_unet(**settings):
    torch.manual_seed(0)
    defaults = {
        "sample_size": 64,
        "patch_size": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "feature_channels": 20,
        "feature_block": 1,
    }
    return DDADUNet2DModel(**(defaults | settings)).eval()


def paper_like_unet(**settings):
    """The paper's kind of blocks, at a fraction of its width."""
    paper = PRESETS["paper"] | {"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "attention_head_dim": 8}
    paper |= {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2,
        "feature_block": 1,
    }
    torch.manual_seed(0)
    return DDADUNet2DModel(sample_size=64, feature_channels=20, **paper, **settings).eval()


@pytest.mark.parametrize("patch_size", [1, 4, 8])
def test_one_evaluation_gives_prediction_variance_and_features(patch_size):
    output = small_unet(patch_size=patch_size)(torch.zeros(2, 3, 64, 64), torch.tensor([20, 201]))
    assert output.sample.shape == (2, 6, 64, 64)
    assert output.features.shape == (2, 20, 64 // patch_size, 64 // patch_size)


@pytest.mark.parametrize("create", [small_unet, paper_like_unet])
@torch.no_grad()
def test_prediction_equals_that_of_the_unet_inside(create):
    # The feature head takes its activation from inside a block, which therefore runs in our own code.
    model = create()
    x, t = torch.randn(2, 3, 64, 64), torch.tensor([20, 401])
    for block in range(len(model.unet.up_blocks)):
        model.register_to_config(feature_block=block)
        patch = model.config.patch_size
        expected = F.pixel_shuffle(model.unet(F.pixel_unshuffle(x, patch), t).sample, patch)
        model.feature_head = torch.nn.Identity()
        torch.testing.assert_close(model(x, t).sample, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_features_come_from_the_configured_layer():
    model = paper_like_unet()
    seen = {}
    block = model.unet.up_blocks[model.config.feature_block]
    last = block.attentions[model.config.feature_layer]
    last.register_forward_hook(lambda module, inputs, output: seen.update(activation=output))
    output = model(torch.randn(1, 3, 64, 64), 20)
    torch.testing.assert_close(output.features, model.feature_head(seen["activation"]))


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    model = small_unet()
    x = torch.randn(3, 3, 64, 64)
    t = torch.tensor([20, 201, 401])
    together = model(x, t)
    for i in range(3):
        alone = model(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(together.sample[i : i + 1], alone.sample, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.features[i : i + 1], alone.features, atol=1e-5, rtol=1e-4)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        small_unet(sample_size=60)


def test_presets_have_the_documented_sizes():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in DDADUNet2DModel(**preset).parameters()) / 1e6
            for name, preset in PRESETS.items()
        }
        features = DDADUNet2DModel(**PRESETS["paper"])(torch.zeros(1, 3, 256, 256), 20).features
    assert 10 < sizes["cpu"] < 12
    assert 540 < sizes["paper"] < 570  # guided-diffusion's 256x256 model has 554 M
    assert features.shape[-2:] == (64, 64)  # where the paper predicts features


def test_save_and_load_change_nothing(tmp_path):
    model = small_unet()
    model.save_pretrained(tmp_path)
    loaded, info = DDADUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # the last bit depends on how weights lie in memory
        torch.testing.assert_close(model(x, 20).sample, loaded.eval()(x, 20).sample, atol=1e-6, rtol=1e-5)


def test_dict_equals_tuple():
    model = small_unet()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        sample, features = model(x, 20, return_dict=False)
        output = model(x, 20)
    assert torch.equal(sample, output.sample) and torch.equal(features, output.features)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = small_unet().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(torch.ones(1, 3, 64, 64), 20)
        (output.sample.square().mean() + output.features.square().mean()).backward()
        gradients.append(model.unet.conv_in.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
