"""The second stage of a repair, trained once for all: crops of good photographs, repaired by the parts' networks.

    python -m tools.refiner pack --output PACK NAME=FOLDER ...
    python -m tools.refiner train --pack PACK --output FOLDER NAME=CHECKPOINT ...
    python -m tools.refiner finish FOLDER                                            # into checkpoints/base

Pictures that calibrate a category judge, and do not train. What is refined is what the pipelines make: a damaged
picture, repainted at 256 pixels and put into the photograph. The loss is that of LaMa ("Resolution-robust Large Mask
Inpainting with Fourier Convolutions", Suvorov et al., 2022), a perceptual distance, an adversary that sees patches and
its features; and how much of each frequency there is ("Watch Your Up-Convolution", Durall et al., 2020), since an
adversary alone lets patterns and too much grain pass.
"""

import argparse
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ddad import DDADPipeline
from ddad.checkpoint.names import BUNDLED_BASE, RECORD_NAME
from ddad.checkpoint.saving import MAX_SHARD_SIZE, library_versions
from ddad.datasets.folder import ImageFolder
from ddad.denoising_ddad import DDADDenoiser
from ddad.features_ddad import DDADFeatureExtractor
from ddad.refining_ddad import DDADRefiner
from ddad.training.corruption import Corruption
from tools.base_network import pack_images, pair, prefetch, split_part, unpack

SIZE = 256
CROP = 192
# The side at which photographs of a part train: their own, as a square.
SIDES = {"bottle": 512, "alien": 512, "cookie": 512, "magnetic_tile": 320}
SIDE = 300
INPAINTING_STEPS = (80, 33, 6)  # of a pipeline's the first, one in the middle and the last
CONTENTS = ("fill", "grey", "other", "brightness")
# Of a batch so many photographs are repaired anew; the others were before, and are cut and turned differently.
NEW = 2
POOL = 96  # repaired photographs that are kept, of each part
PATCH = 32  # side of the patches whose frequencies are compared
WARM_UP = 100
PEAK_RATE = 2e-4
WEIGHTS = {"coarse": 4.0, "fine": 1.0, "perceptual": 0.5, "matching": 2.0, "fooling": 0.3, "power": 0.5}
POWER_FLOOR = 0.02  # power below which nobody sees a frequency: noise with a standard deviation of 0.01


def pack(output: str, folders: dict[str, str], quality: int) -> None:
    """Writes the photographs of all parts as WebP at their own size, made square, into one file."""
    entries: dict[str, np.ndarray] = {}
    for name, folder in folders.items():
        for split, paths in zip(("train", "held_out"), split_part(name, folder), strict=True):
            chosen = paths[:400] if split == "train" else paths[:24]
            store = ImageFolder(chosen, SIDES.get(name, SIDE)).load()
            entries |= pack_images(f"{name}/{split}", store, quality)
    np.savez(output, **entries)


class Adversary(nn.Module):
    """Tells refined patches from photographed ones: four convolutions, one judgement of every 8x8 pixels."""

    def __init__(self, channels: int = 48):
        super().__init__()
        widths = (4, channels, 2 * channels, 4 * channels)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.last = spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
        self.judge = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Judgements `[N, 1, h, w]`, high for photographs, and the activations on the way."""
        values, kept = torch.cat([images, mask], dim=1), []
        for layer in [*self.layers, self.last]:
            values = F.leaky_relu(layer(values), 0.2)
            kept.append(values)
        return self.judge(values), kept


class Repairs:
    """Photographs of a part with a region that a pipeline repainted.

    Args:
        store: the photographs, `[M, 3, H, W]` uint8.
        pipe: the pipeline, whose network knows the part.
        corruption: what damages.
        seed: of everything random.
    """

    def __init__(self, store: torch.Tensor, pipe: DDADPipeline, corruption: Corruption, seed: int):
        self.store, self.corruption = store, corruption
        self.pipe = DDADPipeline.from_pipe(pipe, denoiser=DDADDenoiser(inpainting_steps=INPAINTING_STEPS))
        self.generator = torch.Generator().manual_seed(seed)
        self.pool: deque[torch.Tensor] = deque(maxlen=POOL)

    @torch.no_grad()
    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whole photographs, damaged, with the repaired region, and the region: at the photographs' size."""
        generator, device = self.generator, self.store.device
        chosen = torch.randint(len(self.store), (count,), generator=generator).to(device)
        photographs = self.store[chosen].float() / 127.5 - 1
        small = F.interpolate(photographs, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        place = self.corruption.draw_masks(count, generator)
        kind = CONTENTS[int(torch.randint(len(CONTENTS), (1,), generator=generator))]
        damaged = small + place * (self.corruption.content(kind, small, place, generator) - small)
        mask = DDADDenoiser.defect_mask(place, torch.zeros_like(place), 1.0)
        with torch.autocast(device.type, torch.bfloat16):
            images, denoiser = damaged.clamp(-1, 1), self.pipe.denoiser
            first = self.pipe.scheduler.timestep_of(denoiser.config.inpainting_steps[0])
            noise = self.pipe.get_noise([first], generator).expand_as(images)
            *_, last = denoiser.repaint(images, mask, noise, denoiser.networks(self.pipe, generator))
            repaired = last.images
        size = photographs.shape[-2:]
        repaired, mask, damaged = (
            F.interpolate(value.float(), size=size, mode="bilinear", align_corners=False)
            for value in (repaired, mask, damaged)
        )
        merged = photographs + mask * (repaired.clamp(-1, 1) - photographs)
        return photographs, photographs + (mask > 0) * (damaged - photographs), merged, mask

    def crops(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Photographs, with a repaired region, and the region: cut where most of it is, `[count, ., CROP, CROP]`."""
        generator = self.generator
        photographs, _, merged, mask = self.draw(NEW if self.pool else count)
        self.pool.extend(torch.cat([photographs, merged, mask], dim=1).half())
        latest = list(range(len(self.pool) - len(mask), len(self.pool)))
        chosen = latest + torch.randint(len(self.pool), (count - len(mask),), generator=generator).tolist()
        cut = []
        for one in (self.pool[number].float() for number in chosen):
            places = torch.randint(0, one.shape[-1] - CROP + 1, (8, 2), generator=generator)
            candidates = [one[:, top : top + CROP, left : left + CROP] for top, left in places.tolist()]
            crop = max(candidates, key=lambda candidate: float(candidate[6].mean()))
            turn, mirrored = torch.randint(4, (2,), generator=generator).tolist()
            cut.append(torch.rot90(crop.flip(2) if mirrored % 2 else crop, turn, dims=(1, 2)))
        photographs, merged, mask = torch.stack(cut).split((3, 3, 1), dim=1)
        return photographs, merged, mask


def power(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logarithm of each frequency's mean power in a region, of windowed patches, `[N, 3, PATCH, PATCH // 2 + 1]`."""
    window = torch.hann_window(PATCH, periodic=False, device=images.device)
    patches = images.unfold(2, PATCH, PATCH // 2).unfold(3, PATCH, PATCH // 2)  # [N, 3, a, b, PATCH, PATCH]
    patches = (patches - patches.mean(dim=(4, 5), keepdim=True)) * window * window[:, None]
    weights = F.avg_pool2d(mask, PATCH, stride=PATCH // 2)[..., None, None]
    found = (torch.fft.rfft2(patches).abs().square() * weights).sum(dim=(2, 3))
    return (found / weights.sum(dim=(2, 3)).clamp(min=1e-3) + POWER_FLOOR).log()


def energy_in(images: torch.Tensor, mask: torch.Tensor) -> float:
    """Gradient energy of grey values inside a mask."""
    grey = images.mean(dim=1, keepdim=True)
    inside = (mask[..., :-1, :-1] > 0.5).float()
    energy = grey.diff(dim=2)[..., :-1].square() + grey.diff(dim=3)[..., :-1, :].square()
    return float((energy * inside).sum() / inside.sum().clamp(min=1))


@torch.no_grad()
def judge(refiner: DDADRefiner, held_out: dict[str, list[torch.Tensor]], sheet: Path) -> dict[str, list[float]]:
    """How photographs that do not train are refined, by part; draws a contact sheet.

    Returns:
        Gradient energy in the region against the photograph's, then distance of the frequencies, before and after.
    """
    values, rows = {}, []
    for name, (photographs, damaged, merged, mask) in held_out.items():
        noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(5)).to(mask)
        refined = refiner(merged, mask, noise).clamp(-1, 1)
        truth, wanted = energy_in(photographs, mask), power(photographs, mask)
        values[name] = [round(energy_in(images, mask) / truth, 3) for images in (merged, refined)]
        values[name] += [round(float((power(x, mask) - wanted).abs().mean()), 3) for x in (merged, refined)]
        shown = [F.interpolate(x, size=(320, 320), mode="bilinear", antialias=True) for x in
                 (damaged, merged, refined, photographs)]  # fmt: skip
        rows.append(torch.cat([torch.cat(list(x), dim=2) for x in shown], dim=1))
    picture = ((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
    PIL.Image.fromarray(picture).save(sheet, quality=80)
    return values


def train(path: str, checkpoints: list[tuple[str, str]], start: str, output: Path, seconds: float, batch: int) -> None:
    """Trains the refiner for so many seconds; what it has become so far is written six times on the way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    corruption = Corruption(SIZE, device, 1)
    stores = unpack(path)
    sources, held_out = [], {}
    for number, (name, folder) in enumerate(checkpoints):
        pipe = DDADPipeline.from_pretrained(folder).to(device)
        pipe.unet.to(memory_format=torch.channels_last)
        sources.append(Repairs(stores[name]["train"].to(device), pipe, corruption, number))
        judging = Repairs(stores[name]["held_out"].to(device), pipe, corruption, 1000)
        held_out[f"{name} by {Path(folder).name}"] = list(judging.draw(4))
    folder = str(Path(start).parent / "appearance_extractor")
    features = DDADFeatureExtractor.from_pretrained(folder).float().to(device, memory_format=torch.channels_last)
    refiner = DDADRefiner.from_pretrained(start).float().to(device, memory_format=torch.channels_last).train()
    averaged = DDADRefiner.from_pretrained(start).float().to(device).requires_grad_(False)
    ema = EMAModel(refiner.parameters(), decay=0.998, foreach=True)
    adversary = Adversary().to(device, memory_format=torch.channels_last)
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, betas=(0.5, 0.99), weight_decay=0.01)
        for network in (refiner, adversary)
    ]
    chances = torch.tensor([len(source.store) for source in sources]).double().sqrt()
    chooser = torch.Generator().manual_seed(0)
    source = prefetch(lambda: sources[int(torch.multinomial(chances, 1, generator=chooser))].crops(batch))
    record: dict[str, Any] = {"losses": [], "judged": []}
    started, step, due = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - started) < seconds:
        rate = min(1.0, (step + 1) / WARM_UP) * min(1.0, 0.02 + (1 - spent / seconds) / 0.3)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * rate
        photographs, merged, mask = (x.contiguous(memory_format=torch.channels_last) for x in next(source))
        with torch.autocast(device.type, torch.bfloat16):
            refined = refiner(merged, mask, torch.randn_like(mask))
        refined = refined.float()
        # The adversary learns: what was photographed is real, what lies in the region of a refined picture is not.
        with torch.autocast(device.type, torch.bfloat16):
            real, _ = adversary(photographs, mask)
            fake, _ = adversary(refined.detach(), mask)
        where = F.interpolate(mask, size=fake.shape[-2:], mode="area")
        real, fake = real.float(), fake.float()
        inside = where.sum().clamp(min=1)
        losses = {"adversary": (F.relu(1 - real) * where).sum() / inside + (F.relu(1 + fake) * where).sum() / inside}
        losses["adversary"].backward()
        optimizers[1].step()
        optimizers[1].zero_grad(set_to_none=True)
        # The refiner learns.
        adversary.requires_grad_(False)
        with torch.autocast(device.type, torch.bfloat16):
            fake, kept = adversary(refined, mask)
            with torch.no_grad():
                _, wanted = adversary(photographs, mask)
                target = features(photographs)
            seen = features(refined)
        share = mask.mean().clamp(min=0.01)
        losses["coarse"] = F.avg_pool2d(refined - photographs, 8).abs().mean() / share
        losses["fine"] = (refined - photographs).abs().mean() / share
        losses["perceptual"] = (seen.float() - target.float()).abs().mean() / share
        losses["matching"] = (
            sum((a.float() - b.float()).abs().mean() for a, b in zip(kept, wanted, strict=True)) / share
        )
        losses["fooling"] = -(fake.float() * where).sum() / inside
        losses["power"] = (power(refined, mask) - power(photographs, mask)).abs().mean()
        warm = min(1.0, step / WARM_UP)  # until then the adversary knows nothing
        factors = WEIGHTS | {"matching": warm * WEIGHTS["matching"], "fooling": warm * WEIGHTS["fooling"]}
        sum(factor * losses[name] for name, factor in factors.items()).backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        adversary.requires_grad_(True)
        ema.step(refiner.parameters())
        step += 1
        if step % 50 == 0:
            record["losses"].append({"step": step, **{name: round(float(x), 4) for name, x in losses.items()}})
            print(f"{spent:.0f} s", json.dumps(record["losses"][-1]), flush=True)
        last = time.monotonic() - started >= seconds
        if last or spent >= due:
            due = spent + seconds / 6
            ema.copy_to(averaged.parameters())
            record["judged"].append({"step": step, **judge(averaged, held_out, output / "sheet.jpg")})
            record |= {
                "steps": step,
                "batch_size": batch,
                "seconds": round(spent),
                "learning_rate": PEAK_RATE,
                "versions": library_versions(),
            }
            averaged.save_pretrained(output / "refiner", max_shard_size=MAX_SHARD_SIZE)
            (output / RECORD_NAME).write_text(json.dumps(record))
            print(json.dumps(record["judged"][-1]), flush=True)


def finish(trained: Path) -> None:
    """Puts a trained refiner into the base, in float16: `ddad train` and `ddad fit` take it from there.

    Its record is added to those of the runs that it went on from.
    """
    learnt = DDADRefiner.from_pretrained(trained / "refiner")
    refiner = DDADRefiner(**{key: value for key, value in learnt.config.items() if not key.startswith("_")})
    refiner.load_state_dict(learnt.state_dict())
    refiner.half().save_pretrained(BUNDLED_BASE / "refiner")
    path = BUNDLED_BASE / RECORD_NAME
    record = json.loads(path.read_text(encoding="utf-8"))
    record["refiner"] = [*record["refiner"], json.loads((trained / RECORD_NAME).read_text(encoding="utf-8"))]
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--output", required=True)
    packing.add_argument("--quality", type=int, default=90)
    packing.add_argument("folders", nargs="+", type=pair, metavar="NAME=FOLDER")
    training = commands.add_parser("train")
    training.add_argument("--pack", required=True)
    training.add_argument("--start", default="checkpoints/base/refiner", help="folder of the refiner that learns more")
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--seconds", type=float, default=3600)
    training.add_argument("--batch", type=int, default=8)
    training.add_argument(
        "checkpoints",
        nargs="+",
        type=pair,
        metavar="NAME=CHECKPOINT",
        help="of a packed part; more than one may know it",
    )
    finishing = commands.add_parser("finish")
    finishing.add_argument("trained", type=Path, help="folder that `train` wrote")
    arguments = parser.parse_args()
    if arguments.command == "finish":
        finish(arguments.trained)
    elif arguments.command == "pack":
        pack(arguments.output, dict(arguments.folders), arguments.quality)
    else:
        train(
            arguments.pack,
            arguments.checkpoints,
            arguments.start,
            arguments.output,
            arguments.seconds,
            arguments.batch,
        )


if __name__ == "__main__":
    main()
