"""Settings of a checkpoint that were changed: said, bounded, and accepted by nobody but the user."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddad import DDADGaussianModel, DDADPipeline
from ddad.cli import main
from tests.conftest import create_tiny_pipeline, sign


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("model_index.json", {"threshold": 9.0}),
        ("unet/config.json", {"sample_size": 32}),
        ("image_processor/scheduler_config.json", {"max_value": 4095}),
    ],
)
def test_changed_settings_are_named_and_accepted_by_refresh_alone(copy, name, settings, capsys):
    change(copy / name, **settings)
    with pytest.raises(OSError, match=rf"{name} was changed since it was saved .*`ddad refresh {copy}`"):
        DDADPipeline.from_pretrained(copy)
    assert main(["refresh", str(copy)]) == 0
    assert "is up to date" in capsys.readouterr().out
    config = DDADPipeline.from_pretrained(copy).config
    assert name != "model_index.json" or config.threshold == 9.0


def test_refresh_accepts_no_changed_weights(copy, capsys):
    path = next((copy / "residual").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["mean"] += 1
    save_file(tensors, path)
    assert main(["refresh", str(copy)]) == 2
    assert "was changed since it was saved" in capsys.readouterr().err


def test_the_settings_of_another_checkpoint_are_refused(copy, tmp_path):
    create_tiny_pipeline(threshold=2.0).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model_index.json", copy / "model_index.json")
    with pytest.raises(OSError, match="model_index.json was changed since it was saved"):
        DDADPipeline.from_pretrained(copy)


def test_a_checkpoint_of_0_2_whose_check_sums_are_of_weights_alone_loads(copy):
    path = copy / "checksums.json"
    sums = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in sums.items() if name.endswith(".safetensors")}))
    change(copy / "model_index.json", threshold=9.0)
    assert DDADPipeline.from_pretrained(copy).threshold == 9.0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model_index.json", {"blur_sigma": 1e9}, "`blur_sigma` of the pipeline must be less than or equal to 64"),
        ("model_index.json", {"alpha": "much"}, "`alpha` of the pipeline must be a valid number, found 'much'"),
        ("model_index.json", {"alpha": True}, "`alpha`"),
        ("model_index.json", {"threshold": float("nan")}, "`threshold`"),
        ("model_index.json", {"category": None}, "`category` of the pipeline must be a valid string"),
        ("scheduler/scheduler_config.json", {"num_inference_steps": 90}, "not among the 90 steps"),
        ("unet/config.json", {"sample_size": "64"}, "`sample_size` of .*unet must be a valid integer, found '64'"),
        ("unet/config.json", {"block_out_channels": []}, "must not be empty, found"),
        ("unet/config.json", {"down_block_types": [3, None]}, "must be a valid string, found 3 .at 0."),
        ("unet/config.json", {"upsample_type": "none"}, r"must be 'conv' or 'resnet', found 'none'"),
        ("scheduler/scheduler_config.json", {"clip_sample": "yes"}, "must be a valid boolean, found 'yes'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 100}, "cannot be larger than"),
        ("calibration/config.json", {"statistics": {}}, "`statistics` must be of .*kl_mean"),
        ("calibration/config.json", {"timesteps": [20]}, "`statistics` need 1 values of kl_mean, found 2"),
        ("calibration/config.json", {"timesteps": [20, 1201]}, "not among the 250 steps"),
        (
            "calibration/config.json",
            {"threshold_quantile": 95},
            "`threshold_quantile` of .* must be less than or equal to 1",
        ),
        ("denoiser/scheduler_config.json", {"inpainting_steps": [900, 3]}, "uses step 900, and there are 250"),
        ("denoiser/scheduler_config.json", {"denoise_every": 0}, "`denoise_every`"),
        ("image_processor/scheduler_config.json", {"max_value": 0}, "`max_value`"),
        ("feature_extractor/config.json", {"image_std": [0, 0, 0]}, "`image_std`"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(copy, name, settings, message):
    change(copy / name, **settings)
    sign(copy)
    with pytest.raises((OSError, ValueError), match=message):
        DDADPipeline.from_pretrained(copy)


def test_components_that_do_not_belong_together_are_refused(tiny_pipe):
    other = DDADGaussianModel(feature_channels=30, num_channels=12)
    with pytest.raises(ValueError, match="do not belong together: their feature channels are"):
        DDADPipeline.from_pipe(tiny_pipe, residual=other)
    with pytest.raises(ValueError, match="The appearance's components do not belong together: channels"):
        DDADPipeline.from_pipe(tiny_pipe, appearance=other)


VALUES = (
    None, True, "", "x", -1, 0, 1, 2, 3, 7, 64, 10**12, 0.5, -3.5, 1e9, 1e-300, float("nan"), float("inf"),
    [], [[]], [0], [1, 2], ["a"], {}, {"a": 1},
)  # fmt: skip


def mutate(folder, chance):
    """Changes one thing of a checkpoint; what it was, for the message of a failure."""
    configs = sorted([folder / "model_index.json", *folder.glob("*/*config.json")])
    kind = chance.choice(("setting", "setting", "setting", "dropped", "bytes", "cut", "tensor", "type", "removed"))
    if kind in ("setting", "dropped"):
        path = chance.choice(configs)
        settings = json.loads(path.read_text())
        key = chance.choice(sorted(settings))
        value = chance.choice(VALUES)
        if kind == "dropped":
            del settings[key]
        elif isinstance(settings[key], list) and settings[key] and chance.random() < 0.5:
            settings[key][chance.randrange(len(settings[key]))] = value
        else:
            settings[key] = value
        path.write_text(json.dumps(settings))
        return f"{path.name} {path.parent.name} {key}: {kind} {value}"
    path = chance.choice(sorted(folder.glob("*/*.safetensors")) if kind in ("tensor", "type") else [*configs, *sorted(
        folder.glob("*/*.safetensors"))])  # fmt: skip
    whole = path.read_bytes()
    if kind == "removed":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(whole[: chance.randrange(len(whole))])
    elif kind == "bytes":
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(min(len(changed), 4000))] = chance.randrange(256)
        path.write_bytes(changed)
    else:
        tensors = load_file(path)
        name = chance.choice(sorted(tensors))
        if kind == "type":
            tensors[name] = tensors[name].to(chance.choice((torch.int32, torch.uint8, torch.bool, torch.float64)))
        else:
            tensors[name] = chance.choice((tensors[name][None], tensors[name] * float("nan"), torch.zeros(0)))
        save_file(tensors, path)
    return f"{path.relative_to(folder)}: {kind}"


def load_and_score(folder, signed):
    """The score of a picture, or the sentence with which the checkpoint was refused."""
    if signed:
        sign(folder)
    try:
        pipe = DDADPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        picture = np.full((64, 64, 3), 127, np.uint8)
        return pipe(picture, threshold=-1e6, num_denoising_steps=1).image_score[0]
    except (OSError, ValueError) as error:
        assert str(error)
        return str(error)


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_checkpoints_load_right_or_are_refused(tiny_checkpoint, tmp_path, count):
    right = load_and_score(tiny_checkpoint, signed=False)
    refused = 0
    for seed in range(count):
        chance = random.Random(seed)
        folder = shutil.copytree(tiny_checkpoint, tmp_path / str(seed))
        changes = [mutate(folder, chance)]
        signed = chance.random() < 0.7
        try:
            result = load_and_score(folder, signed)
        except BaseException as error:
            raise AssertionError(f"{seed}: {changes}, signed {signed}") from error
        shutil.rmtree(folder)
        if isinstance(result, str):
            refused += 1
        else:
            assert signed or result == right, (seed, changes)
            assert np.isfinite(result), (seed, changes)
    assert refused > count / 3
