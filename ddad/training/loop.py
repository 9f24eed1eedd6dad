"""The training loop."""

import dataclasses
import json
import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ddad.calibration.progress import Journal
from ddad.checkpoint.names import PROGRESS_NAME
from ddad.datasets.folder import ImageFolder, rotate
from ddad.features_ddad import DDADFeatureExtractor
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.base_network import create_from_base, describe_base
from ddad.training.config import PRESETS, TrainConfig
from ddad.training.corruption import Corruption
from ddad.training.losses import compute_losses
from ddad.training.state import DamagedStateError, describe_images, load_state, read_record, save_state
from ddad.unet_ddad import DDADUNet2DModel

logger = logging.getLogger(__name__)


def create_unet(config: TrainConfig, feature_channels: int) -> DDADUNet2DModel:
    """The U-Net of a run before its first step."""
    torch.manual_seed(config.seed)
    if config.base:
        return create_from_base(config, feature_channels)
    return DDADUNet2DModel(sample_size=config.image_size, feature_channels=feature_channels, **PRESETS[config.preset])


def create_scheduler(config: TrainConfig) -> DDADScheduler:
    """The diffusion process of a run."""
    detail_std = config.detail_std if config.prediction_type == "sample" else 0.0
    return DDADScheduler(prediction_type=config.prediction_type, detail_std=detail_std)


def choose_precision(asked: str) -> str:
    """`auto` as bf16 where convolutions are computed in it (1.5 times as fast on AVX512-BF16), else float32."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "no"


def image_indices(first: int, count: int, size: int, seed: int) -> torch.Tensor:
    """Which images are number `first` and the following of an endless stream; every epoch comes in another order.

    It depends on the seed and the number alone, so that a resumed run sees what an uninterrupted one does.
    """
    epochs = range(first // size, (first + count - 1) // size + 1)
    orders = [torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch)) for epoch in epochs]
    return torch.cat(orders)[first - epochs[0] * size :][:count]


def load_batch(
    store: torch.Tensor, indices: torch.Tensor, corruption: Corruption, config: TrainConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of the store, rotated at random, and copies of which some are damaged; `[N, 3, S, S]` in [-1, 1] each."""
    images = store[indices.to(store.device)].float() / 127.5 - 1
    images = images.expand(-1, 3, -1, -1)
    degrees = (2 * torch.rand(len(images), generator=generator) - 1) * config.rotation_degrees
    images = rotate(images, degrees.to(images.device))
    return images, corruption(images, config.corruption_probability, generator)


class Interruption:
    """Takes note of Ctrl-C and of a request to terminate, so that the step under way is finished and saved.

    A second one ends the program at once. In another than the main thread there is nothing to take note of.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take_note)

    def _take_note(self, *_: Any) -> None:
        self.asked = True
        logger.info("Interrupted: saving after this step.")
        self.restore()

    def restore(self) -> None:
        """Back to what the signals did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def train_unet(
    config: TrainConfig, images: ImageFolder, features: DDADFeatureExtractor
) -> tuple[DDADUNet2DModel, dict]:
    """Trains the U-Net on normal images, resuming an interrupted run with the same settings.

    Args:
        config: the settings.
        images: the normal images that train.
        features: the feature extractor with fitted statistics.

    Returns:
        The U-Net with averaged weights, and the record of the run: losses, seconds and images seen.

    Raises:
        ValueError: if the output folder holds an unfinished run with other settings.
    """
    accelerator = Accelerator(mixed_precision=choose_precision(config.mixed_precision))
    device = accelerator.device
    features = features.to(device, memory_format=torch.channels_last)
    scheduler = create_scheduler(config).training_process()
    unet = create_unet(config, features.feature_channels).to(device, memory_format=torch.channels_last)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay)
    if config.memory == "low":
        unet.enable_gradient_checkpointing()
    # Fused: one kernel for all weights, three times faster on a CPU as well.
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)

    described = describe_images(images.paths)
    settings = dataclasses.asdict(config) | {"base": describe_base(config.base)}
    record = {"config": settings, "images": described, "seconds": 0.0, "losses": []}
    step = 0
    saved = read_record(config.output)
    if saved is not None:
        settings = json.loads(json.dumps(settings))
        changed = sorted(key for key in settings if saved["config"].get(key) != settings[key])
        if changed:
            raise ValueError(
                f"{Path(config.output)} holds an unfinished run with other settings ({', '.join(changed)}). Repeat its"
                " command to finish it, choose another output folder, or begin anew with --restart."
            )
        if saved["images"] != described:
            raise DamagedStateError(config.output, "the images in --data are no longer those that it began with")
        load_state(config.output, unet, ema, optimizer)
        step = saved.pop("step")
        ema.optimization_step = step
        record = saved
        logger.info("Resuming after step %d of %d.", step, config.steps)

    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate  # what a schedule that begins in the middle asks for
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps, last_epoch=step - 1)
    model, optimizer = accelerator.prepare(unet, optimizer)
    store = images.load().to(device)
    corruption = Corruption(config.image_size, device, config.seed)
    unet.train()
    interruption = Interruption()
    started = time.monotonic() - record["seconds"]
    journal = Journal(Path(config.output) / PROGRESS_NAME)
    progress = tqdm(
        total=config.steps, initial=step, desc="Training", disable=not accelerator.is_main_process, mininterval=1
    )
    while step < config.steps:
        # Every process draws the whole batch and takes its part: several see what one would.
        total = config.batch_size * accelerator.num_processes
        own = slice(config.batch_size * accelerator.process_index, config.batch_size * (accelerator.process_index + 1))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        device_generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
        indices = image_indices(step * total, total, len(store), config.seed)
        clean, damaged = (images[own] for images in load_batch(store, indices, corruption, config, generator))
        noise = torch.randn((total, *clean.shape[1:]), generator=device_generator, device=device)[own]
        # One t from each of N equal parts of the range: as uniform as independent draws, with less variance.
        offsets = torch.arange(total) + torch.rand(total, generator=generator)
        timesteps = (offsets / total * config.max_timestep).long()[own].to(device)
        with accelerator.autocast():
            losses = compute_losses(model, features, scheduler, clean, damaged, noise, timesteps, config.max_snr)
            loss = config.pixel_weight * losses.pixel + losses.variance + losses.feature
        if not torch.isfinite(loss):
            raise RuntimeError(f"The loss is no longer finite at step {step}: lower `learning_rate` and train again.")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(unet.parameters())
        step += 1
        together = accelerator.reduce({name: value.detach() for name, value in vars(losses).items()}, "mean")
        values = {name: round(value.item(), 5) for name, value in together.items()}
        progress.update()
        progress.set_postfix(values)
        if accelerator.is_main_process:
            journal("Training", step, config.steps, **values)
        if step % 10 == 0 or step == config.steps:
            record["losses"].append({"step": step, **values})
        record["seconds"] = round(time.monotonic() - started, 1)
        due = step % config.save_every == 0 or step == config.steps or interruption.asked
        if accelerator.is_main_process and due:
            save_state(config.output, step, unet, ema, optimizer, record)
        if interruption.asked:
            progress.close()
            raise KeyboardInterrupt(f"saved after step {step} of {config.steps}; the same command goes on from there")
    interruption.restore()
    progress.close()
    accelerator.wait_for_everyone()
    ema.copy_to(unet.parameters())
    # In mixed precision accelerate has put a wrapper around `forward` that knows no outputs but tuples.
    unet = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval().requires_grad_(False)
    record["images_seen"] = config.steps * config.batch_size * accelerator.num_processes
    return unet, record
