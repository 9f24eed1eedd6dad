"""Publishing to a Hub and loading from it, each in a process of its own, over its real protocol."""

import hashlib
import json
import shutil

import PIL.Image
import pytest

from ddad import DDADPipeline
from ddad.cli import main
from tests.conftest import ROOT
from tests.hub.conftest import RECORD
from tests.hub.server import Repository

LOAD = """
    import sys
    import numpy as np
    from ddad import DDADPipeline
    pipe = DDADPipeline.from_pretrained(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None)
    pipe.set_progress_bar_config(disable=True)
    y, x = np.mgrid[0:90, 0:70]
    picture = np.repeat((127 + 60 * np.sin(x / 9) * np.cos(y / 13))[..., None], 3, axis=2).astype(np.uint8)
    result = pipe(picture, denoise=False)
    print(result.image_score[0].hex(), result.anomaly_map[0].tobytes().hex()[:4000])
"""


def dry_run(checkpoint, tmp_path, *arguments):
    """What would be published, as a folder."""
    folder = tmp_path / "dry"
    assert main(["publish", str(checkpoint), "factory/tiny", "--dry-run", str(folder), *map(str, arguments)]) == 0
    return folder


def published(hub, name="factory/tiny", branch="main"):
    repository = hub.repositories[name]
    return repository.commits[repository.branches[branch]]


@pytest.mark.slow
def test_what_is_published_loads_and_is_the_same_to_the_bit(hub, run, checkpoint):
    assert hub.url in run("publish", checkpoint, "factory/tiny")
    files = published(hub)
    assert "notes.txt" not in files and not any("training_state" in name for name in files)
    for path in checkpoint.rglob("*"):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in ("README.md", "notes.txt") and "state" not in name:
            assert hashlib.sha256(files[name]).digest() == hashlib.sha256(path.read_bytes()).digest(), name
    assert run("factory/tiny", code=LOAD) == run(checkpoint, code=LOAD)
    assert "factory/tiny" in run("list")


def test_the_card_says_what_it_is(checkpoint, picture, tmp_path):
    PIL.Image.fromarray(picture).save(tmp_path / "part.png")
    look = dry_run(checkpoint, tmp_path, "--example", tmp_path / "part.png")
    card = (look / "README.md").read_text()
    metadata = Repository().card({"README.md": card.encode()})
    assert {"ddad", "anomaly-detection", "diffusers", "tiny"} <= set(metadata["tags"])
    assert metadata["library_name"] == "diffusers" and metadata["license"] == "apache-2.0"
    assert 'from_pretrained("factory/tiny")' in card and "figure.webp" in card and "$" not in card
    assert "Not evaluated" in card and "model-index" not in metadata
    assert PIL.Image.open(look / "figure.webp").width > 900


def test_measured_results_are_in_the_metadata(checkpoint, tmp_path):
    evaluation = {
        "data": "bolts", "good_images": 10, "defective_images": 20, "threshold": 3.0,
        "scores": {"combined": {"image_auroc": 95.3, "pixel_auroc": 90.1, "pro": 80.2}},
        "at_threshold": {"false_alarms": 1, "detected": 15, "recall": 75.0, "false_alarm_rate": 10.0},
    }  # fmt: skip
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation))
    card = (dry_run(checkpoint, tmp_path) / "README.md").read_bytes()
    assert "| combined | 95.3 | 90.1 | 80.2 |" in card.decode()
    (model,) = Repository().card({"README.md": card})["model-index"]
    metrics = {one["name"]: one["value"] for result in model["results"] for one in result["metrics"]}
    assert metrics["Image AUROC, combined"] == 95.3 and metrics["PRO to 0.3, combined"] == 80.2
    assert metrics["Defective images found at the stored threshold, %"] == 75.0


def test_an_evaluation_of_an_earlier_version_is_not_taken_for_one_of_this(checkpoint, tmp_path):
    (checkpoint / "evaluation.json").write_text(json.dumps({"good_images": 3, "image_auroc": {"combined": 95.0}}))
    card = (dry_run(checkpoint, tmp_path) / "README.md").read_text()
    assert "run `ddad evaluate` again" in card and "model-index" not in card


@pytest.mark.slow
def test_publishing_again_sends_only_what_changed(hub, run, checkpoint):
    run("publish", checkpoint, "factory/tiny")
    first, sent = published(hub), len(hub.uploaded)
    hub.requests.clear()
    run("publish", checkpoint, "factory/tiny")
    assert published(hub) == first and not any(path.startswith("PUT") for path in hub.requests)
    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.calibration.calibration_maps.mul_(2)
    pipe.save_pretrained(checkpoint)
    run("publish", checkpoint, "factory/tiny")
    changed = {name for name, data in published(hub).items() if first.get(name) != data}
    assert changed == {"calibration/diffusion_pytorch_model.safetensors", "checksums.json"}
    assert len(hub.uploaded) == sent + 1


@pytest.mark.slow  # half a minute of process starts
def test_private_revision_and_pull_request(hub, run, checkpoint):
    assert "does not accept your token" in run("publish", checkpoint, "factory/other", status=2, HF_TOKEN="hf_wrong")
    run("publish", checkpoint, "factory/secret", "--private")
    assert hub.repositories["factory/secret"].private
    run("factory/secret", code=LOAD)
    assert "RepositoryNotFound" in run(
        "factory/secret", code=LOAD, status=1, HF_TOKEN="hf_other", HF_HOME="/nonexistent/x"
    )
    run("publish", checkpoint, "factory/tiny", "--revision", "v2")
    assert "model_index.json" in published(hub, branch="v2") and "model_index.json" not in published(hub)
    run("factory/tiny", "v2", code=LOAD)
    assert "discussions/1" in run("publish", checkpoint, "factory/tiny", "--create-pr")
    assert "model_index.json" in published(hub, branch="refs/pr/1") and "model_index.json" not in published(hub)


def test_a_dry_run_writes_and_sends_nothing(checkpoint, tmp_path, capsys):
    look = dry_run(checkpoint, tmp_path)  # no Hub is there to send to
    listing = capsys.readouterr().out
    assert "model_index.json" in listing and "notes.txt" not in listing
    assert DDADPipeline.from_pretrained(look).config.category == "tiny"


def test_what_must_not_be_published_is_refused(checkpoint, tmp_path, capsys):
    def refused(folder=checkpoint) -> str:
        assert main(["publish", str(folder), "factory/tiny", "--dry-run", str(tmp_path / "look")]) == 2
        assert not (tmp_path / "look").exists()
        return capsys.readouterr().err

    record = checkpoint / "training.json"
    record.write_text(json.dumps(RECORD | {"data": str(checkpoint.parent / "images")}))
    assert "names a folder of this machine" in refused()
    record.write_text(json.dumps(RECORD))
    code = checkpoint / "unet" / "unet_ddad.py"
    code.write_text(code.read_text() + "# changed")
    assert "run `ddad refresh" in refused()
    assert main(["refresh", str(checkpoint)]) == 0
    dry_run(checkpoint, tmp_path)
    assert "not the folder of a checkpoint" in refused(tmp_path / "nowhere")


@pytest.mark.slow
def test_faults_of_the_hub(hub, run, checkpoint, tmp_path):
    hub.faults += [("/upload/", 503), ("/upload/", 500)]
    run("publish", checkpoint, "factory/tiny")  # tried again
    expected = run(checkpoint, code=LOAD)
    hub.faults += [("resolve", 500)]
    assert "500" in run("factory/tiny", code=LOAD, status=1)
    hub.faults += [("diffusion_pytorch_model.safetensors", 0)]
    assert run("factory/tiny", code=LOAD) == expected  # a cut off body is completed
    hub.faults = [("/", 500)] * 200
    assert run("factory/tiny", code=LOAD) == expected  # broken after caching
    assert run("factory/tiny", code=LOAD, HF_HUB_OFFLINE="1") == expected
    assert run("factory/tiny", code=LOAD, HF_ENDPOINT="http://127.0.0.1:9") == expected  # not there at all


def test_flipped_missing_and_foreign_weights_are_found(checkpoint, tmp_path):
    def damaged(name: str):
        return shutil.copytree(checkpoint, tmp_path / name)

    flipped = damaged("flipped")
    weights = flipped / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(OSError, match=r"unet.*was changed since it was saved \(its sha256 differs\)"):
        DDADPipeline.from_pretrained(flipped)
    missing = damaged("missing")
    (missing / "residual" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match=r"residual/diffusion_pytorch_model.safetensors is missing"):
        DDADPipeline.from_pretrained(missing)
    foreign = damaged("foreign")
    shutil.copy(weights, foreign / "unet" / "other.safetensors")
    with pytest.raises(OSError, match=r"other.safetensors does not belong to the checkpoint"):
        DDADPipeline.from_pretrained(foreign)
    unreadable = damaged("unreadable")
    (unreadable / "checksums.json").write_text("{")
    with pytest.raises(OSError, match=r"checksums.json is damaged"):
        DDADPipeline.from_pretrained(unreadable)


PUSH = """
    import sys
    from diffusers import DiffusionPipeline
    if sys.argv[3] == "without":
        sys.modules["ddad"] = None
        pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    else:
        from ddad import DDADPipeline
        pipe = DDADPipeline.from_pretrained(sys.argv[1])
    pipe.push_to_hub(sys.argv[2])
"""


@pytest.mark.parametrize("package", [pytest.param("with", marks=pytest.mark.slow), "without"])
@pytest.mark.slow  # twice a whole repository
def test_push_to_hub_gives_a_whole_repository_that_is_found(package, hub, run, checkpoint):
    run(checkpoint, "factory/pushed", package, code=PUSH)
    files = published(hub, "factory/pushed")
    metadata = Repository().card(files)
    assert {"ddad", "anomaly-detection", "tiny"} <= set(metadata["tags"])
    assert "factory/pushed" in run("list")
    assert run("factory/pushed", code=LOAD) == run(checkpoint, code=LOAD)
    assert files["pipeline.py"] == (checkpoint / "pipeline.py").read_bytes()


@pytest.mark.slow
def test_the_example_that_shares_runs_as_it_stands(hub, run):
    code = (ROOT / "docs" / "examples" / "share.py").read_text()
    output = run("factory/cells", code=code).splitlines()
    assert output == ["solar_cell_mono: threshold 6.0", "diffusers_modules: threshold 6.0"]
    assert "model_index.json" in published(hub, "factory/cells")
