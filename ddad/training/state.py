"""The state of an unfinished training run on disk: safetensors and JSON, written whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = "training_state"


def state_folder(output: str | Path) -> Path:
    """Where the state of the run that writes to `output` lies while it is unfinished."""
    return Path(output) / FOLDER


def save_state(
    output: str | Path,
    step: int,
    unet: nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Saves weights, their average, the optimiser's moments and the record after `step` steps.

    The new state is written beside the old one and then takes its place, so that a kill at any moment leaves one.
    """
    folder = state_folder(output)
    fresh = folder.with_name(FOLDER + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    tensors |= {f"ema.{index}": value for index, value in enumerate(ema.shadow_params)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, fresh / "state.safetensors"
    )
    (fresh / "state.json").write_text(json.dumps({"step": step, **record}, indent=2))
    old = folder.with_name(FOLDER + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_record(output: str | Path) -> dict[str, Any] | None:
    """The record of an unfinished run, or None if there is none."""
    folder = state_folder(output)
    old = folder.with_name(FOLDER + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else None


def load_state(output: str | Path, unet: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer) -> None:
    """Puts a saved state into the given objects.

    Raises:
        RuntimeError: if the state is of another model.
    """
    tensors = load_file(state_folder(output) / "state.safetensors")
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
