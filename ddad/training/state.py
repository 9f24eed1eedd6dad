"""The state of an unfinished training run on disk: safetensors and JSON, written whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

from ddad.checkpoint.names import AVERAGE_NAME, PROGRESS_NAME, STATE_FOLDER
from ddad.unet_ddad import DDADUNet2DModel

STATE_NAME, RECORD_NAME = "state.safetensors", "state.json"


def state_folder(output: str | Path) -> Path:
    """Where the state of the run that writes to `output` lies while it is unfinished."""
    return Path(output) / STATE_FOLDER


class DamagedStateError(ValueError):
    """A saved state that cannot be gone on from; its message says why, and what to do."""

    def __init__(self, output: str | Path, reason: str):
        super().__init__(
            f"The saved state of the unfinished run in {output} cannot be gone on from: {reason}. Begin anew with"
            " --restart, which deletes it."
        )


def describe_images(paths: Sequence[Path]) -> str:
    """Which images a run trains on, in a word: their names and sizes."""
    listed = sorted((path.parent.name, path.name, path.stat().st_size) for path in paths)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(
    output: str | Path,
    step: int,
    unet: DDADUNet2DModel,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Saves weights, their average (as a network too), the optimiser's moments and the record after `step` steps.

    The new state is written beside the old one and then takes its place, so that a kill at any moment leaves one.

    Raises:
        OSError: if it cannot be written; the last state is kept.
    """
    folder = state_folder(output)
    fresh = folder.with_name(STATE_FOLDER + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    tensors = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    tensors |= {f"ema.{index}": value for index, value in enumerate(ema.shadow_params)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    try:
        fresh.mkdir(parents=True)
        weights = fresh / STATE_NAME
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, weights)
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
        unet.save_pretrained(fresh / AVERAGE_NAME)
        ema.restore(unet.parameters())
        values = {"step": step, "checksum": checksum(weights), **record}
        (fresh / RECORD_NAME).write_text(json.dumps(values, indent=2), encoding="utf-8")
    except Exception as error:  # of the system, or of safetensors
        shutil.rmtree(fresh, ignore_errors=True)
        raise OSError(
            f"The state after step {step} cannot be saved to {folder} ({error}). The last saved state is kept: make"
            " room and give the same command again."
        ) from error
    old = folder.with_name(STATE_FOLDER + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_state(output: str | Path) -> None:
    """Deletes what an unfinished run has saved, if there is one."""
    for ending in ("", ".new", ".old"):
        shutil.rmtree(state_folder(output).with_name(STATE_FOLDER + ending), ignore_errors=True)
    (Path(output) / PROGRESS_NAME).unlink(missing_ok=True)


def read_record(output: str | Path) -> dict[str, Any] | None:
    """The record of an unfinished run, or None if there is none.

    Raises:
        DamagedStateError: if the state is not whole.
    """
    folder = state_folder(output)
    old = folder.with_name(STATE_FOLDER + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not folder.exists():
        return None
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        expected, whole = record.pop("checksum"), checksum(folder / STATE_NAME)
    except FileNotFoundError as error:
        raise DamagedStateError(output, f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise DamagedStateError(output, f"{RECORD_NAME} is damaged, or of an older version") from None
    if expected != whole:
        raise DamagedStateError(output, f"{STATE_NAME} is damaged or cut off")
    if not isinstance(record, dict) or not {"step", "config", "images", "losses", "seconds"} <= record.keys():
        raise DamagedStateError(output, f"{RECORD_NAME} is damaged, or of an older version")
    return record


def load_state(output: str | Path, unet: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer) -> None:
    """Puts a saved state into the given objects.

    Raises:
        RuntimeError: if the state is of another model.
    """
    tensors = load_file(state_folder(output) / STATE_NAME)
    unet.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("unet.")})
    device = next(unet.parameters()).device
    ema.shadow_params = [tensors[f"ema.{index}"].to(device) for index in range(len(ema.shadow_params))]
    parameters = list(unet.parameters())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            # A fused optimiser walks through memory: moments must lie there as their weights do.
            like = parameters[int(index)]
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
