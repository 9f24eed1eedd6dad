"""A calibrated pipeline becomes a folder: weights in float16, the record of how it was made, the card."""

import copy
import hashlib
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import diffusers
import timm
import torch

from ddad.checkpoint.card import write_card
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.loading import read_json
from ddad.checkpoint.names import CHECKSUMS_NAME, INDEX_NAME, RECORD_NAME, UNFINISHED_NAME
from ddad.datasets.layouts import check_empty

# Plain git refuses files above 10 MB on the Hub; weights are split below that.
MAX_SHARD_SIZE = "9MB"


def check_output(folder: str | Path) -> None:
    """Raises a ValueError if a folder for a new checkpoint holds more than what a saving that was killed left."""
    names = {path.name for path in Path(folder).iterdir()} if Path(folder).exists() else set()
    if UNFINISHED_NAME not in names or INDEX_NAME in names:
        check_empty(folder)


def save_checkpoint(pipe: Any, record: dict[str, Any] | None, output: str | Path) -> None:
    """Saves a pipeline and, if there is a record, that and the card; the folder is complete or not there.

    The weights must be exact in float16 (`training.calibration` sees to it). The pipeline stays as it is.
    """
    output = Path(output)
    fresh = output / UNFINISHED_NAME
    shutil.rmtree(fresh, ignore_errors=True)
    halves = {
        # diffusers' own `to` warns of modules to keep in float32 where there are none.
        name: torch.nn.Module.to(copy.deepcopy(network), torch.float16)
        for name, network in pipe.components.items()
        if isinstance(network, torch.nn.Module)
    }
    DDADPipeline.from_pipe(pipe, **halves).save_pretrained(fresh, max_shard_size=MAX_SHARD_SIZE)
    if record is not None:
        (fresh / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        write_card(fresh)
    for name in DDADPipeline.component_classes:  # of a fitted part whose place it takes, and which had more
        if not (fresh / name).is_dir():
            shutil.rmtree(output / name, ignore_errors=True)
    # The index goes last: a folder without it is no checkpoint.
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == INDEX_NAME):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    fresh.rmdir()


def describe_state(folder: Path) -> str:
    """What results of a checkpoint follow from, in a word: its settings and the check sums of its weights."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*.json")):
        if path.name in (CHECKSUMS_NAME, INDEX_NAME, "config.json", "scheduler_config.json"):
            # A setting that nobody has made is none, and which library wrote it changes nothing.
            values = {
                key: value for key, value in read_json(path).items() if value is not None and not key.startswith("_")
            }
            if path.name == CHECKSUMS_NAME:
                values = {key: value for key, value in values.items() if key.endswith(".safetensors")}
            state.update(f"{path.relative_to(folder).as_posix()} {json.dumps(values, sort_keys=True)}".encode())
    return state.hexdigest()


def library_versions() -> dict[str, str]:
    """With what a network was trained or a part fitted, for the record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "timm": timm.__version__,
    }


def load_record(checkpoint: Path) -> dict[str, Any] | None:
    """How a checkpoint was trained; None if its folder does not say."""
    path = checkpoint / RECORD_NAME
    return read_json(path) if path.is_file() else None


def update_record(
    record: dict[str, Any], pipe: Any, calibration: dict[str, Any], data: str, images: int
) -> dict[str, Any]:
    """The record of a pipeline that was calibrated anew: what was trained stays, what was measured is replaced."""
    return record | {
        "calibration": calibration | {"data": data, "images": images},
        "calibration_images": pipe.calibration.config.num_calibration_images,
        "threshold": pipe.threshold,
    }
