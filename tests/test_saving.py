"""Saving and loading: nothing changes, with this package or without it, and damage is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import ddad
from ddad import DDADPipeline
from tests.conftest import create_tiny_pipeline
from tests.helpers import run_without_package
from tests.hub.server import running_hub

# The tiny pipeline judges no appearance.
COMPONENTS = [name for name in DDADPipeline.component_classes if name not in DDADPipeline._optional_components]


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (folder / "checksums.json").unlink()  # as 0.1 saved it: what else is checked comes to light
    return folder


def score(pipe, picture):
    pipe.set_progress_bar_config(disable=True)
    return pipe(picture, denoise=False)


def test_save_and_load_change_nothing(tiny_checkpoint, picture):
    original, loaded = create_tiny_pipeline(), DDADPipeline.from_pretrained(tiny_checkpoint)
    assert loaded.timesteps == [20, 201]
    for name in COMPONENTS:
        before, after = (dict(getattr(pipe, name).config) for pipe in (original, loaded))
        assert all(
            list(after[key]) == list(value) if isinstance(value, tuple) else after[key] == value
            for key, value in before.items()
            if not key.startswith("_")
        )
    for name in ("unet", "feature_extractor", "residual", "appearance", "calibration"):
        weights = getattr(loaded, name).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(original, name).state_dict().items())
    assert score(loaded, picture).image_score[0] == pytest.approx(score(original, picture).image_score[0], rel=1e-5)


def test_the_folder_holds_the_code_byte_for_byte_and_no_path(tiny_checkpoint):
    package = Path(ddad.__file__).parent
    assert (tiny_checkpoint / "pipeline.py").read_bytes() == (package / "pipeline.py").read_bytes()
    for name in COMPONENTS:
        module, _ = DDADPipeline.component_classes[name]
        assert (tiny_checkpoint / name / f"{module}.py").read_bytes() == (package / f"{module}.py").read_bytes()
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "DDADPipeline"]
    assert index["unet"] == ["unet_ddad", "DDADUNet2DModel"]
    assert not list(tiny_checkpoint.rglob("*.bin")) and not list(tiny_checkpoint.rglob("*.pt"))
    for path in tiny_checkpoint.rglob("*.json"):
        assert "_name_or_path" not in path.read_text() and str(tiny_checkpoint.parent) not in path.read_text()


@pytest.mark.slow
def test_loads_from_a_hub_where_the_package_is_not_installed(tiny_checkpoint, tmp_path, picture):
    with running_hub() as hub:
        hub.add("factory/tiny", tiny_checkpoint, ["ddad"])
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        (found,) = run_without_package(picture, "factory/tiny", home=tmp_path, **environment)
    assert found[0] == pytest.approx(
        score(DDADPipeline.from_pretrained(tiny_checkpoint), picture).image_score[0], rel=1e-4
    )


def test_loads_and_runs_where_the_package_is_not_installed(copy, tmp_path, picture):
    other = tmp_path / "other"
    create_tiny_pipeline(seed=1).save_pretrained(other)
    results = run_without_package(picture, copy, other, home=tmp_path)
    for folder, (image_score, total, size) in zip((copy, other), results, strict=True):
        expected = score(DDADPipeline.from_pretrained(folder), picture)
        assert image_score == pytest.approx(expected.image_score[0], rel=1e-4)
        assert total == pytest.approx(float(abs(expected.anomaly_map[0]).sum()), rel=1e-3)
        assert size == [70, 90]
        # What a remote pipeline saves is whole again: the code went along.
        again = Path(f"{folder}_again")
        assert (again / "pipeline.py").read_bytes() == (folder / "pipeline.py").read_bytes()
        assert (again / "unet" / "unet_ddad.py").read_bytes() == (folder / "unet" / "unet_ddad.py").read_bytes()
        reloaded = score(DDADPipeline.from_pretrained(again), picture)
        assert reloaded.image_score[0] == pytest.approx(expected.image_score[0], rel=1e-5)


TWO_VERSIONS = """
    import sys
    sys.modules["ddad"] = None
    import json
    import numpy as np
    from diffusers import DiffusionPipeline

    pipes = [DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[2:]]
    picture = np.load(sys.argv[1])
    print(json.dumps([pipe(picture, denoise=False).image_score[0] for pipe in (*pipes, pipes[0])]))
"""


@pytest.mark.slow
def test_two_checkpoints_of_different_code_do_not_disturb_each_other(copy, tmp_path, picture):
    other = shutil.copytree(copy, tmp_path / "other")
    twice = "    def double(self, maps):\n        return [2 * one for one in self.image_score(maps).tolist()]\n\n"
    for path, old, new in (
        (
            "pipeline.py",
            "self.calibration.image_score(anomaly_maps).tolist()",
            "self.calibration.double(anomaly_maps)",
        ),
        ("calibration/calibration_ddad.py", "    def pool(self", f"{twice}    def pool(self"),
    ):
        source = (other / path).read_text()
        assert source.count(old) == 1
        (other / path).write_text(source.replace(old, new))
    first, second, again = run_without_package(picture, copy, other, home=tmp_path, code=TWO_VERSIONS)
    assert first == again and second == 2 * first


def test_a_link_to_code_is_kept_or_replaced_and_never_written_through(tiny_checkpoint, tmp_path):
    package, pipe = Path(ddad.__file__).parent, DDADPipeline.from_pretrained(tiny_checkpoint)
    folder, elsewhere = tmp_path / "linked", tmp_path / "mine.py"
    shutil.copytree(tiny_checkpoint, folder)
    elsewhere.write_text("my = 'own'")
    for name, target in (("pipeline.py", package / "pipeline.py"), ("unet/unet_ddad.py", elsewhere)):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    pipe.save_pretrained(folder)
    assert (folder / "pipeline.py").is_symlink() and not (folder / "unet" / "unet_ddad.py").is_symlink()
    assert elsewhere.read_text() == "my = 'own'"
    assert (folder / "unet" / "unet_ddad.py").read_bytes() == (package / "unet_ddad.py").read_bytes()


def test_no_code_runs_without_trust(copy):
    (copy / "pipeline.py").write_text("raise SystemExit('code of the repository was run')")
    with pytest.raises(ValueError, match="custom code"):
        DiffusionPipeline.from_pretrained(copy, trust_remote_code=False)
    assert DDADPipeline.from_pretrained(copy).config.category == "tiny"  # its own classes, not the folder's


def test_types_and_replacements(tiny_checkpoint, picture):
    half = DDADPipeline.from_pretrained(
        tiny_checkpoint, torch_dtype={"unet": torch.bfloat16, "default": torch.float32}
    )
    assert half.unet.dtype == torch.bfloat16 and half.calibration.dtype == torch.float32
    full = DDADPipeline.from_pretrained(tiny_checkpoint)
    assert score(half, picture).image_score[0] == pytest.approx(score(full, picture).image_score[0], rel=0.1)
    assert DDADPipeline.from_pretrained(tiny_checkpoint, alpha=0.1).config.alpha == 0.1
    assert DDADPipeline.from_pretrained(tiny_checkpoint, unet=full.unet).unet is full.unet
    with pytest.raises(TypeError, match="takes no argument 'variant'; it takes dtype"):
        DDADPipeline.from_pretrained(tiny_checkpoint, variant="fp16")


def test_files_are_split_and_put_together_again(tiny_checkpoint, tmp_path, picture):
    pipe = DDADPipeline.from_pretrained(tiny_checkpoint)
    pipe.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    again = DDADPipeline.from_pretrained(tmp_path)
    assert score(again, picture).image_score[0] == pytest.approx(score(pipe, picture).image_score[0], rel=1e-5)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def weights(folder, component):
    return folder / component / "diffusion_pytorch_model.safetensors"


def test_missing_files_are_named(copy):
    weights(copy, "unet").unlink()
    with pytest.raises(OSError, match="unet cannot be loaded.*diffusion_pytorch_model"):
        DDADPipeline.from_pretrained(copy)
    shutil.rmtree(copy / "residual")
    shutil.copy(weights(copy, "feature_extractor"), weights(copy, "unet"))
    with pytest.raises(OSError, match="unet"):
        DDADPipeline.from_pretrained(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(OSError, match=r"holds no checkpoint: model_index\.json is missing"):
        DDADPipeline.from_pretrained(copy)


def test_missing_folders_are_named(copy):
    shutil.rmtree(copy / "residual")
    with pytest.raises(OSError, match="incomplete: residual/config.json is missing"):
        DDADPipeline.from_pretrained(copy)
    with pytest.raises(OSError, match="neither a folder nor the id"):
        DDADPipeline.from_pretrained("no/such/folder")


@pytest.mark.parametrize("component", ["unet", "feature_extractor", "residual", "calibration"])
def test_missing_and_wrong_weights_are_found(copy, component):
    path = weights(copy, component)
    name = sorted(load_file(path))[-1]
    rewrite(path, lambda tensors: tensors.pop(name))
    with pytest.raises((OSError, ValueError), match="missing key|lacks the weight"):
        DDADPipeline.from_pretrained(copy)


def test_a_missing_buffer_is_found(copy):
    path = weights(copy, "feature_extractor")
    name = next(key for key in load_file(path) if key.endswith("running_var"))
    rewrite(path, lambda tensors: tensors.pop(name))
    with pytest.raises(OSError, match="missing keys"):
        DDADPipeline.from_pretrained(copy)


def test_truncated_wrongly_shaped_and_infinite_weights_are_found(copy):
    path = weights(copy, "unet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"unet.*safetensors is damaged .*download it again"):
        DDADPipeline.from_pretrained(copy)
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors.update({"unet.conv_in.bias": torch.zeros(16, dtype=torch.int32)}))
    with pytest.raises(OSError, match=r"unet.conv_in.bias is of type I32; weights are F16"):
        DDADPipeline.from_pretrained(copy)
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors.update({"unet.conv_in.bias": torch.zeros(3)}))
    with pytest.raises(OSError, match="unet cannot be loaded"):
        DDADPipeline.from_pretrained(copy)
    path.write_bytes(whole)
    rewrite(path, lambda tensors: tensors["unet.conv_in.bias"].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"'unet.conv_in.bias' of `unet` is not finite"):
        DDADPipeline.from_pretrained(copy)


def test_a_damaged_or_foreign_index_is_named(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text("{")
    with pytest.raises(OSError, match=r"model_index\.json is damaged"):
        DDADPipeline.from_pretrained(copy)
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="StableDiffusionPipeline"):
        DDADPipeline.from_pretrained(copy)
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "system"]}))
    with pytest.raises(ValueError, match=r"`unet` must be \['unet_ddad', 'DDADUNet2DModel'\]"):
        DDADPipeline.from_pretrained(copy)
