"""A training that starts from a base network instead of from nothing, as the paper's does."""

import dataclasses
import json
import logging
from pathlib import Path

from ddad.checkpoint.loading import find_folder, load_weights
from ddad.checkpoint.names import BUNDLED_BASE
from ddad.refining_ddad import DDADRefiner
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.config import PRESETS, TrainConfig
from ddad.unet_ddad import DDADUNet2DModel

logger = logging.getLogger(__name__)

FEATURE_HEAD = "feature_head."
STEPS_FROM_BASE, STEPS_FROM_RANDOM = 1000, 2000


def choose_base(config: TrainConfig) -> TrainConfig:
    """The settings with `base` and `steps` decided: a folder or repository, or empty for random weights."""
    base = "" if config.base == "none" else config.base
    if base == "auto":
        base = str(BUNDLED_BASE) if (BUNDLED_BASE / "unet").is_dir() and fits(BUNDLED_BASE, config) else ""
        if base:
            logger.info("Starting from checkpoints/base, which is not for commercial use; --base none does without.")
    return dataclasses.replace(
        config, base=base, steps=config.steps or (STEPS_FROM_BASE if base else STEPS_FROM_RANDOM)
    )


def fits(folder: Path, config: TrainConfig) -> bool:
    """Whether a base network is of the preset's shape and predicts what is trained."""
    settings = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    process = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    preset = json.loads(json.dumps(PRESETS[config.preset]))
    same = all(settings.get(name) == value for name, value in preset.items())
    return same and process["prediction_type"] == config.prediction_type


def create_from_base(config: TrainConfig, feature_channels: int) -> DDADUNet2DModel:
    """The U-Net of `config.base` with its weights; the feature head starts anew where its size differs.

    Args:
        config: the settings; `base` is a folder or repository with `unet/` and `scheduler/`, what `ddad convert`
            wrote or any checkpoint.
        feature_channels: channels of the features that are to be predicted.

    Raises:
        OSError: if there is no such base, or it is damaged.
        ValueError: if the base predicts something else than the run trains.
    """
    folder = find_folder(config.base, {})
    for name in ("unet", "scheduler"):
        if not (folder / name).is_dir():
            raise OSError(f"{config.base} is no base network: its folder {name} is missing.")
    predicts = DDADScheduler.from_pretrained(folder / "scheduler").config.prediction_type
    if predicts != config.prediction_type:
        raise ValueError(f"{config.base} predicts {predicts!r}: train with `--prediction-type {predicts}`.")
    base = load_weights(DDADUNet2DModel, folder / "unet")
    settings = {key: value for key, value in base.config.items() if not key.startswith("_")}
    settings |= {"sample_size": config.image_size, "feature_channels": feature_channels}
    unet = DDADUNet2DModel(**settings)
    weights, own = base.float().state_dict(), unet.state_dict()
    weights = {
        name: value
        for name, value in weights.items()
        if not name.startswith(FEATURE_HEAD) or value.shape == own[name].shape
    }
    missing, unexpected = unet.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith(FEATURE_HEAD) for name in missing):
        raise OSError(f"{config.base} is damaged: its weights are not those of its configuration.")
    return unet.requires_grad_(True)


def load_refiner(base: str) -> DDADRefiner | None:
    """What adds detail to repairs, from the base's folder or repository; None where that has none."""
    folder = find_folder(base, {}) / "refiner" if base else Path()
    if not (folder / DDADRefiner.config_name).is_file():
        return None
    return load_weights(DDADRefiner, folder).float().requires_grad_(False).eval()


def describe_base(base: str) -> str:
    """What a record says of the base: a repository's id, or a folder's name without where it lay."""
    return Path(base).name if Path(base).is_dir() else base
