"""The base network and its children: one U-Net trained on many products, then one of each bundled category.

    python -m tools.base_network pack --output PACK NAME=FOLDER ...   # here: images that train, and those that judge
    python -m tools.base_network train --pack PACK --output FOLDER    # where there is a GPU
    python -m tools.base_network finish --pack PACK --trained FOLDER  # here: checkpoints

Images that calibrate a category train neither its network nor the base. `train` is bounded by time, so that a lent GPU
is used to its end: how many images were seen stands in the records.
"""

import argparse
import dataclasses
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from ddad.calibration.backbone import (
    APPEARANCE_BACKBONE,
    IMAGE_SIZE,
    create_appearance_extractor,
    create_feature_extractor,
)
from ddad.checkpoint.names import BUNDLED_BASE, RECORD_NAME
from ddad.checkpoint.saving import MAX_SHARD_SIZE, library_versions, save_checkpoint
from ddad.datasets.folder import ImageFolder, rotate
from ddad.datasets.layouts import read_dataset
from ddad.datasets.lookalikes import group_lookalikes, split_images
from ddad.features_ddad import DDADFeatureExtractor
from ddad.images_ddad import DDADImageProcessor
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.base_network import load_refiner
from ddad.training.config import PRESETS, TrainConfig
from ddad.training.corruption import Corruption
from ddad.training.loop import create_scheduler
from ddad.training.losses import compute_losses
from ddad.training.run import build_pipeline
from ddad.unet_ddad import DDADUNet2DModel

SIZE = 256
QUALITY = 93
MAX_TIMESTEP, MAX_SNR, PIXEL_WEIGHT, DETAIL_STD = 500, 10.0, 10.0, 0.03
LEVELS = (20, 201, 401)
BATCH = 128
# Steps after which the speed is measured, and until the peak learning rate.
WARM_STEPS, WARM_UP = 30, 200


@dataclasses.dataclass(frozen=True)
class Part:
    """One category: how it is split, and how its own network is trained (`seconds` 0: it is in the base alone)."""

    calibration_fraction: float = 0.15
    rotation_degrees: float = 5.0
    seconds: float = 0.0
    most_images: int = 120_000
    batch: int = 64
    snapshots: tuple[int, ...] = ()


PARTS = {
    "alien": Part(0.3, 5.0, 10, 14_000, 32),
    "cookie": Part(0.3, 15.0),
    "bottle": Part(0.15, 5.0, 34, snapshots=(30_000, 60_000)),
    "magnetic_tile": Part(0.15, 5.0, 34),
    "solar_cell_mono": Part(0.15, 3.0, 28),
    "solar_cell_poly": Part(0.15, 3.0, 28),
}


def split_part(name: str, folder: str) -> tuple[list[Path], list[Path]]:
    """Good images that train and that are held out, as `ddad train` splits them."""
    part = PARTS.get(name, Part())
    paths = read_dataset(folder, "auto").train_paths
    groups = group_lookalikes(ImageFolder(paths, SIZE))
    train, held_out = split_images(paths, groups, round(len(paths) * part.calibration_fraction), 0)
    return list(train), list(held_out)


def pack_images(key: str, store: torch.Tensor, quality: int) -> dict[str, np.ndarray]:
    """The entries of a pack for some images, `[M, C, S, S]` uint8, as WebP; `unpack` reads them."""
    blobs = []
    for image in store:
        picture = PIL.Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=quality)
        blobs.append(np.frombuffer(data.getvalue(), dtype=np.uint8))
    print(f"{key}: {len(blobs)}, {sum(map(len, blobs)) / 2**20:.1f} MB", flush=True)
    return {f"{key}/bytes": np.concatenate(blobs), f"{key}/sizes": np.array([len(blob) for blob in blobs])}


def pack(output: str, folders: dict[str, str]) -> None:
    """Writes the images of all parts as WebP at the model's size into one file."""
    entries: dict[str, np.ndarray] = {}
    for name, folder in folders.items():
        for split, paths in zip(("train", "held_out"), split_part(name, folder), strict=True):
            entries |= pack_images(f"{name}/{split}", ImageFolder(paths, SIZE).load(), QUALITY)
    np.savez(output, **entries)


def unpack(path: str) -> dict[str, dict[str, torch.Tensor]]:
    """`[M, 3, S, S]` uint8 by part and split."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(path) as entries:
        for key in entries.files:
            name, split, kind = key.split("/")
            if kind == "bytes":
                ends = np.cumsum(entries[f"{name}/{split}/sizes"])
                blobs = np.split(entries[key], ends[:-1])
                images = [np.array(PIL.Image.open(io.BytesIO(blob.tobytes())).convert("RGB")) for blob in blobs]
                parts.setdefault(name, {})[split] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return parts


def prefetch(make: Callable[[], Any], depth: int = 4) -> Iterator[Any]:
    """Makes batches in a thread of its own while the network trains."""
    queue: Queue = Queue(depth)

    def work() -> None:
        stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        while True:
            if stream is None:
                queue.put(make())
                continue
            with torch.cuda.stream(stream):
                batch = make()
            stream.synchronize()
            queue.put(batch)

    threading.Thread(target=work, daemon=True).start()
    while True:
        batch = queue.get()
        for tensor in batch:
            if tensor.is_cuda:  # its memory must not go back to the other stream while this one reads it
                tensor.record_stream(torch.cuda.current_stream())
        yield batch


class Batches:
    """Random batches of some parts, turned and damaged.

    Args:
        stores: `[M, 3, S, S]` uint8 on the device, one for each part.
        size: images a batch.
        degrees: largest small rotation.
        orientations: whether quarter turns and mirroring are drawn too, for the base.
        corruption: what damages.
        seed: of everything random.
    """

    def __init__(
        self,
        stores: list[torch.Tensor],
        size: int,
        degrees: float,
        orientations: bool,
        corruption: Corruption,
        seed: int,
    ):
        self.stores, self.size, self.degrees, self.orientations = stores, size, degrees, orientations
        self.corruption = corruption
        self.generator = torch.Generator().manual_seed(seed)
        weights = torch.tensor([len(store) for store in stores]).sqrt()
        self.weights = weights / weights.sum()
        self.device = stores[0].device

    def __call__(self) -> tuple[torch.Tensor, ...]:
        """Clean and damaged images, noise and timesteps (on the CPU)."""
        generator = self.generator
        chosen = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        images = []
        for number, store in enumerate(self.stores):
            count = int((chosen == number).sum())
            if count:
                images.append(store[torch.randint(len(store), (count,), generator=generator).to(self.device)])
        clean = torch.cat(images).float() / 127.5 - 1
        if self.orientations:
            turns, mirrored = torch.randint(4, (4,), generator=generator), torch.rand(4, generator=generator) < 0.5
            clean = torch.cat(
                [
                    torch.rot90(part.flip(3) if flip else part, int(turn), dims=(2, 3))
                    for part, turn, flip in zip(
                        clean[torch.randperm(len(clean), generator=generator)].chunk(4), turns, mirrored, strict=True
                    )
                ]
            )
        degrees = (2 * torch.rand(len(clean), generator=generator) - 1) * self.degrees
        clean = rotate(clean, degrees.to(self.device))
        damaged = self.corruption(clean, 0.7, generator)
        noise = torch.randn(clean.shape, device=self.device)
        offsets = torch.randperm(len(clean), generator=generator) + torch.rand(len(clean), generator=generator)
        timesteps = (offsets / len(clean) * MAX_TIMESTEP).long()
        return clean, damaged, noise, timesteps


def gradient_energy(images: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels."""
    return images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()


@torch.no_grad()
def judge(
    unet: DDADUNet2DModel, features: DDADFeatureExtractor, scheduler: DDADScheduler, images: torch.Tensor
) -> dict[str, float]:
    """Held-out images: squared error and sharpness of x0_hat, unexplained part of the features, at each level."""
    values: dict[str, float] = {}
    generator = torch.Generator(images.device).manual_seed(0)
    images = images.float() / 127.5 - 1
    with torch.autocast(images.device.type, torch.bfloat16):
        target = features(images).float()
    variance = (target - target.mean(dim=0, keepdim=True)).square().mean()
    for level in LEVELS:
        timesteps = torch.full((len(images),), level)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        noisy = scheduler.add_noise(images, noise, timesteps)
        with torch.autocast(images.device.type, torch.bfloat16):
            output = unet(noisy.to(memory_format=torch.channels_last), timesteps.to(images.device))
        clean = scheduler.predict_original_sample(output.sample.float(), noisy, timesteps)
        values[f"x0_error_{level}"] = float((clean - images).square().mean())
        values[f"sharpness_{level}"] = float(gradient_energy(clean) / gradient_energy(images))
        predicted = F.interpolate(
            output.features.float(), size=target.shape[-2:], mode="bilinear", align_corners=False
        )
        values[f"unexplained_{level}"] = float((predicted - target).square().mean() / variance)
    return {name: round(value, 5) for name, value in values.items()}


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step, which is known only once the speed was measured."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min((step - WARM_UP) / max(1, steps - WARM_UP), 1.0)))


def fit_network(
    unet: DDADUNet2DModel,
    features: DDADFeatureExtractor,
    batches: Batches,
    held_out: torch.Tensor,
    seconds: float,
    most_images: int,
    learning_rate: float,
    ema_decay: float,
    keep_best: bool,
    told: str,
    snapshots: tuple[int, ...] = (),
    on_snapshot: Callable[[int, dict[str, torch.Tensor]], None] = lambda *_: None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Trains for so many seconds or images; returns the averaged weights and the record.

    Args: `keep_best` keeps the averaged weights whose held-out loss was lowest, for parts of few images; once so many
        images as `snapshots` says were seen, `on_snapshot` is told that number and the averaged weights.
    """
    device = batches.device
    scheduler = DDADScheduler(prediction_type="sample", detail_std=DETAIL_STD).training_process()
    ema = EMAModel(unet.parameters(), decay=ema_decay, foreach=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    source = prefetch(batches)
    record: dict[str, Any] = {"losses": [], "held_out": []}
    steps, warm, best, kept = 10**9, WARM_STEPS, math.inf, None
    started = measured = time.monotonic()
    step, judged_at = 0, 0
    unet.train()
    while step < steps:
        clean, damaged, noise, timesteps = next(source)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor(step, steps)
        with torch.autocast(device.type, torch.bfloat16):
            losses = compute_losses(
                unet, features, scheduler,
                clean.contiguous(memory_format=torch.channels_last),
                damaged.contiguous(memory_format=torch.channels_last),
                noise.contiguous(memory_format=torch.channels_last), timesteps, MAX_SNR,
            )  # fmt: skip
            loss = PIXEL_WEIGHT * losses.pixel + losses.variance + losses.feature
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(unet.parameters())
        step += 1
        reached = step * batches.size
        if any(reached - batches.size < images <= reached for images in snapshots):
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            on_snapshot(reached, unet.state_dict())
            ema.restore(unet.parameters())
        if step == warm:
            torch.cuda.synchronize() if device.type == "cuda" else None
            measured = time.monotonic()
        if step == 2 * warm:
            torch.cuda.synchronize() if device.type == "cuda" else None
            rate = warm / (time.monotonic() - measured)
            left = seconds - (time.monotonic() - started)
            steps = min(step + max(10, int(left * rate * 0.93)), most_images // batches.size)
            print(f"{told}: {rate * batches.size:.0f} images a second, {steps} steps", flush=True)
        if step % 50 == 0 or step == steps:
            values = {name: round(float(value), 5) for name, value in vars(losses).items()}
            if not math.isfinite(sum(values.values())):
                raise RuntimeError(f"{told}: the loss is no longer finite at step {step}: {values}")
            record["losses"].append({"step": step, **values})
        if steps < 10**9 and (step - judged_at >= max(40, steps // 12) or step == steps):
            judged_at = step
            ema.store(unet.parameters())
            ema.copy_to(unet.parameters())
            unet.eval()
            seen = judge(unet, features, scheduler, held_out)
            total = sum(PIXEL_WEIGHT * seen[f"x0_error_{t}"] + seen[f"unexplained_{t}"] for t in LEVELS)
            record["held_out"].append(
                {"images": step * batches.size, "seconds": round(time.monotonic() - started, 1), **seen}
            )
            if total < best or not keep_best:
                best = min(best, total)
                record["kept_images"] = step * batches.size
                kept = {name: value.detach().clone() for name, value in unet.state_dict().items()}
            ema.restore(unet.parameters())
            unet.train()
    record["seconds"] = round(time.monotonic() - started, 1)
    record["images_seen"] = step * batches.size
    record["steps"], record["batch_size"], record["learning_rate"] = step, batches.size, learning_rate
    print(
        told,
        json.dumps(record["held_out"][-1]),
        "kept",
        record["kept_images"],
        "of",
        record["images_seen"],
        flush=True,
    )
    assert kept is not None
    return kept, record


def write(
    folder: Path, weights: dict[str, torch.Tensor], features: DDADFeatureExtractor, record: dict[str, Any]
) -> None:
    """The network in float16, the statistics of its features, and the record, in files that are easily carried."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half().cpu().contiguous() for name, value in weights.items()}
    names = sorted(halves)
    cut = len(names) // 2
    while sum(halves[name].nbytes for name in names[:cut]) > sum(halves[name].nbytes for name in names[cut:]):
        cut -= 1
    for number, chosen in enumerate((names[:cut], names[cut:])):
        save_file({name: halves[name] for name in chosen}, folder.with_suffix(f".{number}.safetensors"))
    statistics = {"mean": features.feature_mean.cpu().tolist(), "std": features.feature_std.cpu().tolist()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record |= {
        "device": device,
        "features": statistics,
        "versions": library_versions(),
    }  # fmt: skip
    folder.with_suffix(".json").write_text(json.dumps(record))


def train(path: str, backbone: str, output: str, seconds: float, scale: float, only: list[str] | None) -> None:
    """Trains the base for so many seconds, then each part for its own times `scale`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False  # the sizes of what is damaged change at every step
    started = time.monotonic()
    parts = {name: {split: images.to(device) for split, images in one.items()} for name, one in unpack(path).items()}
    features = DDADFeatureExtractor.from_pretrained(backbone).float().to(device, memory_format=torch.channels_last)
    corruption = Corruption(SIZE, device, 0)
    print(
        f"ready after {time.monotonic() - started:.0f} s",
        {name: len(one["train"]) for name, one in parts.items()},
        flush=True,
    )

    def fit_features(stores: list[torch.Tensor]) -> None:
        features.fit((chunk.float() / 127.5 - 1) for store in stores for chunk in store.split(64))

    def create() -> DDADUNet2DModel:
        torch.manual_seed(0)
        unet = DDADUNet2DModel(sample_size=SIZE, feature_channels=features.feature_channels, **PRESETS["cpu"])
        return unet.to(device, memory_format=torch.channels_last)

    base_file = Path(output) / "base.pt"
    base_file.parent.mkdir(parents=True, exist_ok=True)
    if base_file.exists():
        weights = torch.load(base_file, map_location=device, weights_only=True)
    else:
        stores = [one["train"] for one in parts.values()]
        fit_features(stores)
        held_out = torch.cat([one["held_out"][:24] for one in parts.values()])
        batches = Batches(stores, BATCH, 5.0, True, corruption, 0)
        weights, record = fit_network(
            create(), features, batches, held_out, seconds, 10**8, 1e-3, 0.999, False, "base"
        )
        torch.save(weights, base_file)
        record["parts"] = {name: len(one["train"]) for name, one in parts.items()}
        write(Path(output) / "base", weights, features, record)
    for name in only or list(PARTS):
        part = PARTS[name]
        if name not in parts or not part.seconds or (Path(output) / f"{name}.json").exists():
            continue
        store, held_out = parts[name]["train"], parts[name]["held_out"][:48]
        fit_features([store])
        unet = create()
        unet.load_state_dict(weights)
        batches = Batches([store], part.batch, part.rotation_degrees, False, corruption, 1)

        def keep(images: int, weights: dict[str, torch.Tensor], name: str = name) -> None:
            write(Path(output) / f"{name}-{images}", weights, features, {"images_seen": images})

        tuned, record = fit_network(
            unet, features, batches, held_out, part.seconds * scale, part.most_images, 5e-4, 0.998, True, name,
            part.snapshots, keep,
        )  # fmt: skip
        write(Path(output) / name, tuned, features, record)


def assemble(folder: Path, name: str) -> tuple[DDADUNet2DModel, dict[str, Any]]:
    """A network that `train` wrote, and its record."""
    record = json.loads((folder / f"{name}.json").read_text())
    unet = DDADUNet2DModel(sample_size=SIZE, feature_channels=len(record["features"]["mean"]), **PRESETS["cpu"])
    unet.load_state_dict(load_file(folder / f"{name}.0.safetensors") | load_file(folder / f"{name}.1.safetensors"))
    return unet.eval().requires_grad_(False), record


def standardised(backbone: str, statistics: dict[str, list[float]]) -> DDADFeatureExtractor:
    """The backbone whose features a network predicts, as it was standardised then."""
    features = DDADFeatureExtractor.from_pretrained(backbone).float()
    features.feature_mean.copy_(torch.tensor(statistics["mean"]))
    features.feature_std.copy_(torch.tensor(statistics["std"]))
    return features


def finish_base(trained: Path, backbone: str, output: Path) -> None:
    """The base as `ddad train` and `ddad fit` take it: U-Net, process, extractors, what it saw; not its refiner."""
    unet, record = assemble(trained, "base")
    features = standardised(backbone, record.pop("features"))
    features.half().save_pretrained(output / "feature_extractor", max_shard_size=MAX_SHARD_SIZE)
    create_feature_extractor(APPEARANCE_BACKBONE).half().save_pretrained(output / "appearance_extractor")
    unet.half().save_pretrained(output / "unet", max_shard_size=MAX_SHARD_SIZE)
    DDADScheduler(prediction_type="sample", detail_std=DETAIL_STD).save_pretrained(output / "scheduler")
    (output / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def finish_part(trained: Path, name: str, data: str, source: str, backbone: str, output: Path) -> None:
    """A part's network becomes a checkpoint: statistics, settings and threshold from its good images."""
    unet, trained_record = assemble(trained, name)
    features = standardised(backbone, trained_record.pop("features"))
    part = PARTS[name]
    config = TrainConfig(
        data=data, output=str(output), category=name, license="cc-by-nc-sa-4.0", data_source=source, base="base",
        steps=trained_record["steps"], batch_size=trained_record["batch_size"], ema_decay=0.998, warmup_steps=200,
        learning_rate=trained_record["learning_rate"], rotation_degrees=part.rotation_degrees,
        calibration_fraction=part.calibration_fraction, mixed_precision="bf16",
    )  # fmt: skip
    train_paths, held_out = split_part(name, data)
    extractor = create_appearance_extractor(IMAGE_SIZE, features)
    networks = {
        "unet": unet,
        "scheduler": create_scheduler(config),
        "feature_extractor": features,
        "image_processor": DDADImageProcessor(),
        "refiner": load_refiner(str(BUNDLED_BASE)),
    }
    large = ImageFolder([*train_paths, *held_out], IMAGE_SIZE)
    pipe, calibration = build_pipeline(config, networks, extractor, large, range(len(train_paths), len(large)))
    settings = dataclasses.asdict(config) | {"data": Path(data).name, "output": name}
    record = trained_record | {
        "config": settings,
        "training_images": len(train_paths),
        "calibration_images": len(held_out),
        "calibration": calibration,
        "threshold": pipe.threshold,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
    }
    save_checkpoint(pipe, record, output)


def pair(text: str) -> tuple[str, str]:
    """NAME=FOLDER."""
    name, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"NAME=FOLDER is meant, found {text!r}")
    return name, folder


def main() -> None:
    """The commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--output", required=True)
    packing.add_argument("folders", nargs="+", type=pair, metavar="NAME=FOLDER")
    training = commands.add_parser("train")
    training.add_argument("--pack", required=True)
    training.add_argument("--backbone", required=True, help="folder of a feature extractor")
    training.add_argument("--output", required=True)
    training.add_argument("--seconds", type=float, default=300)
    training.add_argument("--scale", type=float, default=1.0)
    training.add_argument("--only", nargs="+")
    finishing = commands.add_parser("finish")
    finishing.add_argument("--trained", type=Path, required=True, help="folder that `train` wrote")
    finishing.add_argument("--backbone", required=True, help="folder of a feature extractor")
    finishing.add_argument("--output", type=Path, required=True)
    finishing.add_argument("--name", required=True, choices=("base", *PARTS))
    finishing.add_argument("--data", help="folder of the part's data set")
    finishing.add_argument("--source", default="", help="a sentence on the images, for the card")
    arguments = parser.parse_args()
    if arguments.command == "finish" and arguments.name == "base":
        finish_base(arguments.trained, arguments.backbone, arguments.output)
    elif arguments.command == "finish":
        finish_part(
            arguments.trained, arguments.name, arguments.data, arguments.source, arguments.backbone, arguments.output
        )
    elif arguments.command == "pack":
        pack(arguments.output, dict(arguments.folders))
    else:
        train(arguments.pack, arguments.backbone, arguments.output, arguments.seconds, arguments.scale, arguments.only)


if __name__ == "__main__":
    main()
