"""Weights of guided-diffusion in our U-Net give what they give in OpenAI's own program.

The reference values in `data/guided_diffusion.npz` came out of that program, at a fraction of the released width, with
weights made by `weights_by_rule`; `x`, `t` and `y` are its inputs, and every second pixel of the output and every
fourth channel of the features is kept.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddad import DDADScheduler, DDADUNet2DModel
from ddad.cli import main
from ddad.training.guided_diffusion import convert, convert_weights, read_settings, read_weights

DATA = Path(__file__).parent.parent / "data"
LAYOUTS = json.loads((DATA / "guided_diffusion_layouts.json").read_text())
# The released models' heads have 64 channels, those of the reference 16, of 128x128 four heads in both.
HEAD_DIM = {"class_cond_256": 16, "unconditional_256": 16, "class_cond_512": 16, "class_cond_128": None}


def weights_by_rule(layout: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that depend on the name alone: large enough that every tensor matters to the output."""
    state = {}
    for name, shape in layout.items():
        rng = np.random.default_rng(list(name.encode()))
        value = rng.standard_normal(shape)
        value = value / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * value
        value = 1 + value if len(shape) == 1 and name.endswith("weight") else value
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


@pytest.fixture(scope="module")
def reference():
    with np.load(DATA / "guided_diffusion.npz") as file:
        return {name: torch.from_numpy(value) for name, value in file.items()}


@pytest.mark.parametrize("name", HEAD_DIM)
@torch.no_grad()
def test_outputs_equal_those_of_the_original_program(name, reference):
    unet, scheduler = convert(weights_by_rule(LAYOUTS[name]), HEAD_DIM[name])
    assert scheduler.config.prediction_type == "epsilon"
    assert unet.config.sample_size == int(name[-3:])
    unet.feature_head = torch.nn.Identity()  # what it would be given
    output = unet(reference["x"], reference["t"])
    expected = reference[f"{name}_without_class"]
    torch.testing.assert_close(output.sample[..., ::2, ::2], expected, atol=1e-4, rtol=1e-4)
    features = reference[f"{name}_features"]
    assert features.shape[-1] == 16  # of 64 pixels: the paper's 64x64 of 256
    torch.testing.assert_close(output.features[:, ::4], features, atol=1e-4, rtol=1e-4)


def test_the_released_256_model_fits_without_a_rest():
    shapes = {name: torch.Size(shape) for name, shape in LAYOUTS["released_256"].items()}
    settings = read_settings(shapes)
    assert settings["block_out_channels"] == (256, 256, 512, 512, 1024, 1024)
    with torch.device("meta"):  # 2 GB that are not allocated
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        own = DDADUNet2DModel(**settings).unet.state_dict()
    converted = convert_weights(state, settings)
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in own.items()
    }


def test_the_paper_preset_is_the_released_model():
    from ddad.training.config import PRESETS

    settings = read_settings({name: torch.Size(shape) for name, shape in LAYOUTS["released_256"].items()})
    with torch.device("meta"):
        preset = DDADUNet2DModel(**PRESETS["paper"]).state_dict()
        released = DDADUNet2DModel(**settings).state_dict()
    assert {name: value.shape for name, value in preset.items()} == {
        name: value.shape for name, value in released.items()
    }
    assert (settings["feature_block"], settings["feature_layer"]) == (3, 1)


def changed(**changes):
    layout = LAYOUTS["class_cond_128"] | changes
    return {name: torch.zeros(shape) for name, shape in layout.items() if shape is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, "A classifier"),
        (changed(**{"input_blocks.0.0.weight": [32, 6, 3, 3]}), "takes 6 channels. An upsampler"),
        (changed(**{"out.2.weight": [3, 32, 3, 3]}), "learned no variance"),
        (changed(**{"extra.weight": [3]}), "1 tensors have no place in the U-Net, extra.weight"),
        (changed(**{"middle_block.0.in_layers.2.weight": None}), "lacks 1 tensors, mid_block.resnets.0.conv1.weight"),
        (
            changed(**{"middle_block.0.in_layers.2.weight": [3, 3, 3, 3]}),
            "mismatch for mid_block.resnets.0.conv1",
        ),
    ],
)
def test_other_networks_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        convert(state)


def test_the_64_model_is_refused():
    names = [name for name in LAYOUTS["class_cond_128"] if not name.startswith("output_blocks.1")]
    with pytest.raises(ValueError, match="cosine noise schedule|resblock_updown"):
        convert({name: torch.zeros(LAYOUTS["class_cond_128"][name]) for name in names})


def test_files_that_would_run_code_are_refused(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "bomb",))

    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="without running code"):
        read_weights(tmp_path / "weights.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="not a file of weights by name"):
        read_weights(tmp_path / "list.pt")
    assert not (tmp_path / "bomb").exists()


def test_the_command_converts(tmp_path, capsys):
    state = weights_by_rule(LAYOUTS["class_cond_128"])
    torch.save(state, tmp_path / "128x128_diffusion.pt")
    save_file(state, tmp_path / "same.safetensors")
    base = tmp_path / "base"
    assert main(["convert", str(tmp_path / "128x128_diffusion.pt"), "--output", str(base)]) == 0
    assert "ddad train --base" in capsys.readouterr().out
    unet = DDADUNet2DModel.from_pretrained(base / "unet")
    assert torch.equal(unet.state_dict()["unet.conv_in.weight"], state["input_blocks.0.0.weight"])
    assert DDADScheduler.from_pretrained(base / "scheduler").config.prediction_type == "epsilon"
    other = tmp_path / "other"
    assert main(["convert", str(tmp_path / "same.safetensors"), "--output", str(other)]) == 0
    assert torch.equal(
        load_file(next((other / "unet").glob("*.safetensors")))["unet.conv_in.weight"],
        state["input_blocks.0.0.weight"],
    )
    assert main(["convert", str(tmp_path / "nothing.pt"), "--output", str(tmp_path / "x")]) == 2
    assert main(["convert", str(tmp_path / "same.safetensors"), "--output", str(base)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_training_starts_from_a_base(tmp_path):
    from ddad.training.config import TrainConfig
    from ddad.training.loop import create_unet

    base = tmp_path / "base"
    unet, scheduler = convert(weights_by_rule(LAYOUTS["class_cond_128"]))
    unet.save_pretrained(base / "unet")
    with pytest.raises(OSError, match="its folder scheduler is missing"):
        create_unet(TrainConfig(data="d", output="o", base=str(base)), 20)
    scheduler.save_pretrained(base / "scheduler")
    with pytest.raises(ValueError, match="train with `--prediction-type epsilon`"):
        create_unet(TrainConfig(data="d", output="o", base=str(base)), 20)
    config = TrainConfig(data="d", output="o", base=str(base), prediction_type="epsilon", image_size=64)
    started = create_unet(config, 20)
    assert started.config.sample_size == 64
    own = started.state_dict()
    assert own.pop("feature_head.2.weight").shape[0] == 20 != unet.config.feature_channels
    same = {name for name, value in own.items() if not name.startswith("feature_head")}
    assert all(torch.equal(own[name], unet.state_dict()[name]) for name in same)
    assert all(parameter.requires_grad for parameter in started.parameters())
    torch.testing.assert_close(own["feature_head.0.weight"], unet.state_dict()["feature_head.0.weight"])
