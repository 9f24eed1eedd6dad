"""One training run from the folder of images to the saved pipeline."""

import dataclasses
import json
import logging
import os
import platform
import shutil
from pathlib import Path

import diffusers
import timm
import torch

from ddad.datasets.layouts import read_dataset
from ddad.hub.card import write_card
from ddad.pipeline import DDADPipeline
from ddad.training.backbone import create_feature_extractor
from ddad.training.base import describe_base
from ddad.training.calibration import batches, build_pipeline
from ddad.training.config import TrainConfig
from ddad.training.data import ImageFolder, split_images
from ddad.training.loop import create_scheduler, train_unet
from ddad.training.state import read_record, state_folder

logger = logging.getLogger(__name__)

# Plain git refuses files above 10 MB on the Hub; weights are split below that.
MAX_SHARD_SIZE = "9MB"
RECORD_NAME = "training.json"


def save_checkpoint(pipe: DDADPipeline, record: dict, output: str | Path) -> None:
    """Saves pipeline, training record and card in float16; the folder is complete or not there.

    The weights must be exact in float16 (`build_pipeline` sees to it); the given pipeline is float16 afterwards.
    """
    output = Path(output)
    fresh = output / "checkpoint.new"
    shutil.rmtree(fresh, ignore_errors=True)
    for name in ("unet", "feature_extractor", "normality"):
        # diffusers' own `to` warns of modules to keep in float32 where there are none.
        torch.nn.Module.to(getattr(pipe, name), torch.float16)
    pipe.save_pretrained(fresh, max_shard_size=MAX_SHARD_SIZE)
    (fresh / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_card(fresh)
    # The index goes last: a folder without it is no checkpoint.
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == DDADPipeline.config_name):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    fresh.rmdir()


def train(config: TrainConfig) -> None:
    """Trains, fits, calibrates and saves the pipeline of one category; the same call again resumes.

    Raises:
        ValueError: if the data cannot be trained with, or `output` holds a finished checkpoint.
    """
    output = Path(config.output)
    if (output / DDADPipeline.config_name).exists() and read_record(output) is None:
        raise ValueError(f"{output} already holds a finished checkpoint: choose another folder, or delete it.")
    dataset = read_dataset(config.data, config.data_format)
    logger.info(dataset.describe())
    train_paths, calibration_paths = split_images(dataset.train_paths, config.calibration_fraction, config.seed)
    logger.info("%d good images train, %d calibrate.", len(train_paths), len(calibration_paths))
    images = ImageFolder(train_paths, config.image_size)
    features = create_feature_extractor(config.backbone)
    logger.info("Measuring the features of the good images.")
    features.fit(batches(images))
    unet, record = train_unet(config, images, features)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    pipe = build_pipeline(
        config, unet, features, create_scheduler(config), images, ImageFolder(calibration_paths, config.image_size)
    )
    settings = dataclasses.asdict(config)
    # Where the data lay on the machine that trained is nobody's business.
    settings["data"], settings["output"] = Path(config.data).name, output.name
    settings["base"] = describe_base(config.base) if config.base else ""
    record |= {
        "config": settings,
        "training_images": len(train_paths),
        "calibration_images": len(calibration_paths),
        "threshold": pipe.threshold,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "device": str(unet.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "timm": timm.__version__,
        },
    }
    save_checkpoint(pipe, record, output)
    shutil.rmtree(state_folder(output), ignore_errors=True)
    logger.info("Saved to %s.", output)
