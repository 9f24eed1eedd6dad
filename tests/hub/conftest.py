"""A Hub of the tests, a checkpoint to publish, and processes of their own that speak to it."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import create_tiny_pipeline
from tests.hub.server import TOKEN, running_hub

RECORD = {
    "config": {"category": "tiny", "license": "apache-2.0", "data_source": "", "steps": 4, "threshold_quantile": 0.95},
    "training_images": 7, "calibration_images": 5, "images_seen": 8, "seconds": 60, "device": "a processor",
    "parameters": 1e6, "threshold": 3.0, "losses": [{"step": 4, "pixel": 0.1, "variance": 0.01, "feature": 0.9}],
}  # fmt: skip


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "somewhere" / "tiny"
    create_tiny_pipeline().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(RECORD))
    (folder / "notes.txt").write_text("not for others")
    (folder / "training_state").mkdir()
    (folder / "training_state" / "optimizer.safetensors.bak").write_text("not for others")
    return folder


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python code or a command of ddad, with the Hub of the tests."""
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }  # fmt: skip

    def run_process(*arguments, code: str | None = None, status: int = 0, **variables) -> str:
        command = ["-c", textwrap.dedent(code)] if code else ["-m", "ddad.cli"]
        process = subprocess.run(
            [sys.executable, *command, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={key: value for key, value in (os.environ | environment | variables).items() if value is not None},
            timeout=300,
        )
        assert process.returncode == status, process.stderr[-3000:]
        return process.stdout if status == 0 else process.stderr

    return run_process
