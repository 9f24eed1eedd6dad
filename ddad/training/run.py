"""One training run from the folder of images to the saved pipeline."""

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddad.calibration.backbone import IMAGE_SIZE, create_appearance_extractor, create_feature_extractor
from ddad.calibration.calibration import calibrate, empty_components, round_to_half
from ddad.calibration.observing import CalibrationConfig
from ddad.calibration.progress import Journal
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.names import PROGRESS_NAME
from ddad.checkpoint.saving import library_versions, load_record, save_checkpoint
from ddad.datasets.folder import ImageFolder, measure_max_value
from ddad.datasets.layouts import read_dataset
from ddad.datasets.lookalikes import group_lookalikes, split_images
from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.rendering_ddad import DDADRenderer
from ddad.training.base_network import choose_base, describe_base, load_refiner
from ddad.training.config import TrainConfig
from ddad.training.loop import create_scheduler, train_unet
from ddad.training.state import read_record, state_folder

logger = logging.getLogger(__name__)

# Two states of weights, average and two moments in float32 for 11 million parameters, and the checkpoint.
LEAST_ROOM = 450_000_000


def nearest_timesteps(config: TrainConfig) -> tuple[int, ...]:
    """The noise levels of the respaced process, in which scores are measured, that lie nearest to those asked for.

    Raises:
        ValueError: if two of them are the same.
    """
    scheduler = create_scheduler(config)
    nearest = tuple(min(scheduler.timesteps.tolist(), key=lambda step: abs(step - t)) for t in config.timesteps)
    if len(set(nearest)) != len(nearest):
        raise ValueError(f"`timesteps` {config.timesteps} are too close together: the nearest steps are {nearest}.")
    if nearest != config.timesteps:
        logger.info(
            "Noise levels %s: the nearest steps of %d are %s.", config.timesteps, len(scheduler.timesteps), nearest
        )
    return nearest


def check_writable(output: Path) -> None:
    """Finds out before hours of training whether the result can be written.

    Raises:
        OSError: if it cannot, or there is too little room.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OSError(f"{output} cannot be written to ({error.strerror or error}): choose another --output.") from None
    free = shutil.disk_usage(output).free
    if free < LEAST_ROOM:
        raise OSError(
            f"{output} has {free / 1e6:.0f} MB of room; training needs {LEAST_ROOM / 1e6:.0f} MB for its saved states"
            " and the checkpoint."
        )


def is_fitted(folder: Path) -> bool:
    """Whether a checkpoint was fitted and no network trained: one of its own may take the base's place."""
    record = load_record(folder)
    return record is not None and "fitted" in record


def train(config: TrainConfig) -> None:
    """Trains, fits, calibrates and saves the pipeline of one category; the same call again resumes.

    Raises:
        ValueError: if the data cannot be trained with, or `output` holds a finished checkpoint.
    """
    output = Path(config.output)
    config = choose_base(dataclasses.replace(config, timesteps=nearest_timesteps(config)))
    if (output / DDADPipeline.config_name).exists() and read_record(output) is None and not is_fitted(output):
        raise ValueError(f"{output} already holds a finished checkpoint: choose another folder, or delete it.")
    dataset = read_dataset(config.data, config.data_format, config.good)
    held_out_count = round(len(dataset.require_training()) * config.calibration_fraction)
    processor = DDADImageProcessor(max_value=measure_max_value(dataset.train_paths))
    if config.region:  # what is wrong with it is said before the training
        processor.read_region(config.region, tuple(processor.read_image(dataset.train_paths[0]).shape[1:]))
    groups = group_lookalikes(ImageFolder(dataset.train_paths, config.image_size, processor))
    train_paths, calibration_paths = split_images(dataset.train_paths, groups, held_out_count, config.seed)
    logger.info(
        "%d good images train, %d calibrate; together they seem to show %d different parts.",
        len(train_paths),
        len(calibration_paths),
        len(set(groups)),
    )
    images = ImageFolder(train_paths, config.image_size, processor)
    features = create_feature_extractor(config.backbone)
    logger.info("Measuring the features of the good images.")
    features.fit(images[index][None] for index in range(len(images)))
    unet, record = train_unet(config, images, features)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    size = config.appearance_size or IMAGE_SIZE
    extractor = create_appearance_extractor(
        size, features, config.appearance_backbone, config.backbone_weights, config.strides
    )
    large = ImageFolder([*train_paths, *calibration_paths], size, processor)
    held_out = list(range(len(train_paths), len(large)))
    networks = {
        "unet": unet,
        "scheduler": create_scheduler(config),
        "feature_extractor": features,
        "image_processor": processor,
        "refiner": load_refiner(config.base),
    }
    pipe, calibration = build_pipeline(config, networks, extractor, large, held_out)
    settings = dataclasses.asdict(config)
    settings["backbone_weights"] = Path(config.backbone_weights).name if config.backbone_weights else None
    # Where the data lay on the machine that trained is nobody's business.
    settings["data"], settings["output"] = Path(config.data).name, output.name
    settings["base"] = describe_base(config.base)
    settings["region"] = Path(config.region).name
    record |= {
        "config": settings,
        "training_images": len(train_paths),
        "calibration_images": len(calibration_paths),
        "calibration": calibration,
        "threshold": pipe.threshold,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "device": str(unet.device),
        "versions": library_versions(),
    }
    save_checkpoint(pipe, record, output)
    shutil.rmtree(state_folder(output), ignore_errors=True)
    (output / PROGRESS_NAME).unlink(missing_ok=True)
    logger.info("Saved to %s.", output)


def build_pipeline(
    config: TrainConfig,
    networks: dict[str, Any],
    extractor: DDADFeatureExtractor,
    images: ImageFolder,
    held_out: Sequence[int],
) -> tuple[DDADPipeline, dict[str, Any]]:
    """Fits, calibrates and assembles the pipeline of a run; all weights are exact in float16.

    Args:
        config: the settings.
        networks: what was trained, what it predicts, and other components of the pipeline.
        extractor: what appearance is judged by.
        images: good, at its size.
        held_out: the numbers of those that did not train.

    Returns:
        The pipeline, and what was chosen.
    """
    for network in (networks["unet"], networks["feature_extractor"], extractor):
        network.to(networks["unet"].device, memory_format=torch.contiguous_format)
    trained = set(range(len(images))) - set(held_out)
    extractor.fit(images[index][None].to(extractor.device) for index in sorted(trained))
    everything = networks | empty_components(
        networks["feature_extractor"], extractor, config.timesteps, config.threshold_quantile
    )
    for network in everything.values():
        if isinstance(network, torch.nn.Module):
            round_to_half(network)
    pipe = DDADPipeline(
        **everything,
        denoiser=DDADDenoiser(),
        renderer=DDADRenderer(),
        category=config.category,
    ).to(networks["unet"].device)
    if config.region:
        pipe = pipe.with_region(config.region)
    calibration = CalibrationConfig(
        config.rotation_degrees, config.seed, nuisance=config.nuisance, tolerance=config.tolerance
    )
    return calibrate(pipe, images, held_out, calibration, Journal(Path(config.output) / PROGRESS_NAME))
