"""Repositories that are broken or mean harm: refused before anything of them runs, with the reason."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddad import DDADPipeline
from tests.conftest import sign


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def load(hub, run):
    """Loads a repository of the Hub in a process of its own and gives its last error line."""

    def load_repository(name: str = "evil/part", **options) -> str:
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code = f"from ddad import DDADPipeline; DDADPipeline.from_pretrained({name!r}{arguments})"
        return run(code=code, status=1).strip().splitlines()[-1]

    return load_repository


def test_code_is_not_run_without_the_users_word(hub, run, checkpoint, tmp_path, load):
    for path in ("pipeline.py", "unet/unet_ddad.py"):
        (checkpoint / path).write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'bomb')!r}).touch()\n")
    hub.add("evil/part", checkpoint, [])
    code = "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained('evil/part')"
    assert "custom code" in run(code=code, status=1)
    run(code="from ddad import DDADPipeline; DDADPipeline.from_pretrained('evil/part')")  # and needs none of it
    assert not any(request.endswith(".py") and "GET" in request for request in hub.requests[-20:])
    assert not (tmp_path / "bomb").exists()


def test_pickled_weights_are_neither_fetched_nor_read(hub, checkpoint, tmp_path, load):
    for path in [*checkpoint.rglob("*.safetensors")]:
        path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb(tmp_path / "bomb")))
        path.unlink()
    hub.add("evil/part", checkpoint, [])
    assert "is missing. Get that file again" in load()
    (checkpoint / "checksums.json").unlink()
    hub.add("evil/other", checkpoint, [])
    assert "unet cannot be loaded" in load("evil/other")
    assert not any(".bin" in request for request in hub.requests)
    with pytest.raises(OSError, match="unet cannot be loaded"):
        DDADPipeline.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="safetensors only"):
        DDADPipeline.from_pretrained(checkpoint, use_safetensors=False)
    assert not (tmp_path / "bomb").exists()


@pytest.mark.slow
def test_names_that_lead_out_of_the_repository_are_refused(hub, checkpoint, tmp_path, load):
    repository = hub.add("evil/part", checkpoint, [])
    commit = repository.branches["main"]
    for name in ("../../../../escaped.json", "unet/../../../../../escaped.json"):
        repository.commits[commit][name] = b"{}"
        assert "cannot contain a '..' path segment" in load()
        del repository.commits[commit][name]
    assert not list(tmp_path.rglob("escaped.json"))


def test_an_index_that_names_files_elsewhere_is_refused(checkpoint, tmp_path):
    secret = tmp_path / "secret.safetensors"
    save_file({"unet.conv_in.weight": torch.zeros(1)}, secret)
    index = {"metadata": {}, "weight_map": {"unet.conv_in.weight": "../../../secret.safetensors"}}
    (checkpoint / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="refused: it names weights outside its folder"):
        DDADPipeline.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "checksums.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "' + "x" * 9_000_000 + '"}', "which no such file needs"),
        ("[" * 100_000, "is damaged"),
        ("[1]", "holds no table of values"),
        ("\x00\x01", "is damaged"),
    ],
)
def test_files_made_to_exhaust_or_confuse_are_refused(checkpoint, name, content, message):
    (checkpoint / name).write_text(content)
    with pytest.raises(OSError, match=message):
        DDADPipeline.from_pretrained(checkpoint)


def test_networks_of_absurd_size_are_refused_without_being_built(checkpoint):
    path = checkpoint / "calibration" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_calibration_images": 10**9}))  # 16 TB
    sign(checkpoint)
    with pytest.raises(ValueError, match="`num_calibration_images` of .*calibration must be less than or equal to"):
        DDADPipeline.from_pretrained(checkpoint)
    path.write_text(json.dumps(config | {"num_calibration_images": 10**6}))  # 32 GB
    sign(checkpoint)
    with pytest.raises(OSError, match="calibration"):
        DDADPipeline.from_pretrained(checkpoint)
    path.write_text(json.dumps(config))
    path = checkpoint / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [8192, 8192]}))
    sign(checkpoint)
    with pytest.raises(OSError, match="unet"):
        DDADPipeline.from_pretrained(checkpoint)


@pytest.mark.parametrize("backbone", ["hf-hub:evil/backbone", "local-dir:/etc", "/etc/passwd", "no_such_network"])
def test_a_backbone_from_elsewhere_is_refused(checkpoint, backbone):
    path = checkpoint / "feature_extractor" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": backbone}))
    sign(checkpoint)
    with pytest.raises(OSError, match="must be the name of a model that timm has"):
        DDADPipeline.from_pretrained(checkpoint)


def test_wrong_shapes_and_settings_of_another_version_are_named(checkpoint):
    path = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    tensors["unet.conv_in.weight"] = torch.zeros(3, 3, 3, 3)
    save_file(tensors, path)
    with pytest.raises(OSError, match="was changed since it was saved"):
        DDADPipeline.from_pretrained(checkpoint)
    (checkpoint / "checksums.json").unlink()
    with pytest.raises(OSError, match=r"unet cannot be loaded.*conv_in"):
        DDADPipeline.from_pretrained(checkpoint)
    path.write_bytes(whole)
    index = json.loads((checkpoint / "model_index.json").read_text())
    (checkpoint / "model_index.json").write_text(json.dumps(index | {"magic": 3}))
    with pytest.raises(ValueError, match="settings of another version: magic"):
        DDADPipeline.from_pretrained(checkpoint)


def test_a_checkpoint_of_a_later_version_says_so(checkpoint, caplog):
    versions = json.loads((checkpoint / "versions.json").read_text())
    assert {"ddad", "torch", "diffusers", "timm"} <= versions.keys()
    DDADPipeline.from_pretrained(checkpoint)
    assert "was saved by ddad" not in caplog.text
    (checkpoint / "versions.json").write_text(json.dumps(versions | {"ddad": "99.1"}))
    DDADPipeline.from_pretrained(checkpoint)
    assert "was saved by ddad 99.1" in caplog.text


@pytest.mark.slow
def test_a_private_repository_needs_its_token(hub, run, checkpoint):
    hub.add("factory/secret", checkpoint, [], private=True)
    code = "from ddad import DDADPipeline; DDADPipeline.from_pretrained('factory/secret', token={!r})"
    assert "RepositoryNotFound" in run(code=code.format(False), status=1)
    run(code=code.format("hf_test"), HF_TOKEN=None)


def test_a_folder_that_is_copied_without_its_code_still_loads(checkpoint, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.py"))
    assert DDADPipeline.from_pretrained(bare).config.category == "tiny"
