"""`kill -9` at any moment: nothing is lost, and the same command goes on to the same result."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.conftest import create_tiny_pipeline
from tests.hub.conftest import RECORD
from tests.hub.server import TOKEN, running_hub

pytestmark = pytest.mark.slow

TRAIN = "--image-size 64 --steps 40 --batch-size 2 --save-every 3 --warmup-steps 2 --calibration-fraction 0.4"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Good striped parts."""
    folder = tmp_path_factory.mktemp("parts") / "good"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for index in range(24):
        grey = 127 + 60 * np.sin(np.arange(80) / 5 + chance.normal(0, 0.1))[None] + chance.normal(0, 4, (80, 80))
        PIL.Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    create_tiny_pipeline().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(RECORD))
    return folder


def start(arguments, environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "ddad.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(arguments, environment) -> float:
    """Runs a command to its end; the seconds that it took."""
    began = time.monotonic()
    process = start(arguments, environment)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-2000:]
    return time.monotonic() - began


def kill_and_go_on(arguments, environment, seconds: float, chance: random.Random, result: Path | None = None) -> None:
    """Kills a command at a moment between its start and its end, as it was measured, and runs it again.

    Not if it was killed after its end: `result`, a folder, then holds the whole checkpoint.
    """
    process = start(arguments, environment)
    time.sleep(seconds * chance.uniform(0.35, 1.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if result is None or not (result / "model_index.json").exists() or (result / "training_state").exists():
        finish(arguments, environment)


def contents(folder: Path, *patterns: str) -> dict[str, str]:
    """The files that matter, by their check sums."""
    paths = sorted(path for pattern in patterns for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("seed", range(7))
def test_training(parts, tmp_path, seed):
    def command(name):
        return ["train", "--data", parts, "--output", tmp_path / name / "part", *TRAIN.split()]

    seconds = finish(command("whole"), {})
    kill_and_go_on(command("killed"), {}, seconds, random.Random(seed), tmp_path / "killed" / "part")
    whole, killed = (
        contents(tmp_path / name / "part", "*.safetensors", "model_index.json") for name in ("whole", "killed")
    )
    assert whole and killed == whole
    assert not (tmp_path / "killed" / "part" / "checkpoint.new").exists()


@pytest.mark.parametrize("seed", range(6))
def test_calibrating(parts, checkpoint, tmp_path, seed):
    before = contents(checkpoint, "*")

    def command(name):
        return ["calibrate", "--checkpoint", checkpoint, "--data", parts, "--output", tmp_path / name]

    seconds = finish(command("whole"), {})
    kill_and_go_on(command("killed"), {}, seconds, random.Random(seed), tmp_path / "killed")
    assert contents(tmp_path / "killed", "*.safetensors", "model_index.json") == contents(
        tmp_path / "whole", "*.safetensors", "model_index.json"
    )
    assert contents(checkpoint, "*") == before


@pytest.mark.parametrize("seed", range(6))
def test_predicting(parts, checkpoint, tmp_path, seed):
    def command(name):
        return ["predict", parts, "--checkpoint", checkpoint, "--output", tmp_path / name, "--threshold", "-9"]

    seconds = finish(command("whole"), {})
    kill_and_go_on(command("killed"), {}, seconds, random.Random(seed))
    whole, killed = (contents(tmp_path / name, "*.png", "*.tiff") for name in ("whole", "killed"))
    assert len(whole) == 3 * 24 and killed == whole


@pytest.mark.parametrize("seed", range(6))
def test_publishing(checkpoint, tmp_path, seed):
    with running_hub() as hub:
        home = str(tmp_path / "home")
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": home}
        environment["HF_TOKEN"] = TOKEN
        hub.delay = 0.1
        seconds = finish(["publish", checkpoint, "factory/whole"], environment)
        kill_and_go_on(["publish", checkpoint, "factory/killed"], environment, seconds, random.Random(seed))
        published = [
            {
                path: data
                for path, data in hub.repositories[name].commits[hub.repositories[name].branches["main"]].items()
                if not path.endswith(".md")
            }
            for name in ("factory/whole", "factory/killed")
        ]
        assert published[0] and published[0] == published[1]
