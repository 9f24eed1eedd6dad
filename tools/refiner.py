"""The second stage of a repair, trained once for all parts: crops of good photographs, blurred by the parts' networks.

    python -m tools.refiner pack --output PACK NAME=FOLDER ...                      # here
    python -m tools.refiner train --pack PACK --networks FOLDER --output FOLDER     # where there is a GPU

Pictures that calibrate a category judge, and do not train. What is refined is what the pipeline makes: a damaged
picture, repainted at 256 pixels by the part's network and put into the photograph. The loss is that of LaMa
("Resolution-robust Large Mask Inpainting with Fourier Convolutions", Suvorov et al., 2022): a perceptual distance, an
adversary that sees patches, and its features.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ddad.datasets.folder import ImageFolder
from ddad.denoising_ddad import DDADDenoiser
from ddad.refining_ddad import DDADRefiner
from ddad.scheduling_ddad import DDADScheduler
from ddad.training.corruption import Corruption
from ddad.unet_ddad import DDADUNet2DModel
from tools.base_network import DETAIL_STD, assemble, pack_images, prefetch, split_part, standardised, unpack

SIZE = 256
CROP = 192
# The side at which photographs of a part train: their own, as a square.
SIDES = {"bottle": 512, "alien": 512, "cookie": 512, "magnetic_tile": 320, "circuit_board": 512}
SIDE = 300
TIMESTEPS = (321, 133, 25)  # of the repainting's steps the first, one in the middle and the last
CONTENTS = ("fill", "grey", "other", "brightness")
BATCH = 32


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
    """Crops of photographs with a region that a part's network repainted."""

    def __init__(self, store: torch.Tensor, unet: DDADUNet2DModel, corruption: Corruption, seed: int):
        self.store, self.unet, self.corruption = store, unet, corruption
        self.scheduler = DDADScheduler(prediction_type="sample", detail_std=DETAIL_STD).training_process()
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def repaint(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the pipeline makes of a damaged picture, in fewer steps."""
        noise = torch.randn_like(images[:1]).expand_as(images)
        inside, current = noise, images
        for timestep in TIMESTEPS:
            levels = torch.full((len(images),), timestep)
            alpha_bar, _ = self.scheduler.alpha_bars(levels)
            alpha_bar = alpha_bar.to(images.device)
            noisy = DDADDenoiser.renoise(current, mask, inside, noise, alpha_bar)
            with torch.autocast(images.device.type, torch.bfloat16):
                output = self.unet(noisy.contiguous(memory_format=torch.channels_last), levels.to(images.device))
            clean = self.scheduler.predict_original_sample(output.sample.float(), noisy, levels)
            current, inside = DDADDenoiser.repaint_step(images, mask, noisy, clean, alpha_bar)
        return current

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whole photographs, damaged, with the repaired region, and the region: at the photographs' size."""
        generator, device = self.generator, self.store.device
        chosen = torch.randint(len(self.store), (count,), generator=generator).to(device)
        photographs = self.store[chosen].float() / 127.5 - 1
        turn, mirrored = torch.randint(4, (2,), generator=generator).tolist()
        small = F.interpolate(photographs, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        place = self.corruption.draw_masks(count, generator)
        kind = CONTENTS[int(torch.randint(len(CONTENTS), (1,), generator=generator))]
        damaged = small + place * (self.corruption.content(kind, small, place, generator) - small)
        mask = F.avg_pool2d(
            F.max_pool2d(place, 17, stride=1, padding=8), 9, stride=1, padding=4, count_include_pad=False
        )
        repaired = self.repaint(damaged.clamp(-1, 1), mask)
        size = photographs.shape[-2:]
        repaired, mask, damaged = (
            F.interpolate(value, size=size, mode="bilinear", align_corners=False)
            for value in (repaired, mask, damaged)
        )
        merged = photographs + mask * (repaired.clamp(-1, 1) - photographs)
        values = (photographs, photographs + (mask > 0) * (damaged - photographs), merged, mask)
        if mirrored % 2:
            values = tuple(value.flip(3) for value in values)
        return tuple(torch.rot90(value, turn, dims=(2, 3)) for value in values)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Crops of photographs, with a repaired region, and the region; where most of the region is."""
        photographs, _, merged, mask = self.draw(BATCH)
        side, device = photographs.shape[-1], photographs.device
        places = torch.randint(0, side - CROP + 1, (len(mask), 8, 2), generator=self.generator).to(device)
        weights = F.avg_pool2d(mask, CROP, stride=1)[:, 0]  # [N, side - CROP + 1, ...]
        count = torch.arange(len(mask), device=device)
        found = weights[count[:, None], places[..., 0], places[..., 1]].argmax(dim=1)
        top, left = places[count, found].T
        rows = (top[:, None] + torch.arange(CROP, device=device))[:, :, None]
        columns = (left[:, None] + torch.arange(CROP, device=device))[:, None, :]
        crops = torch.cat([photographs, merged, mask], dim=1).permute(0, 2, 3, 1)[count[:, None, None], rows, columns]
        photographs, merged, mask = crops.permute(0, 3, 1, 2).split((3, 3, 1), dim=1)
        return photographs, merged, mask


def energy_in(images: torch.Tensor, mask: torch.Tensor) -> float:
    """Gradient energy of grey values inside a mask."""
    grey = images.mean(dim=1, keepdim=True)
    inside = (mask[..., :-1, :-1] > 0.5).float()
    energy = grey.diff(dim=2)[..., :-1].square() + grey.diff(dim=3)[..., :-1, :].square()
    return float((energy * inside).sum() / inside.sum().clamp(min=1))


@torch.no_grad()
def judge(refiner: DDADRefiner, held_out: dict[str, Repairs], sheet: Path | None) -> dict[str, list[float]]:
    """By part: gradient energy in the region against the photograph's, before and after; and a contact sheet."""
    values, rows = {}, []
    for name, repairs in held_out.items():
        repairs.generator.manual_seed(5)
        torch.manual_seed(5)
        photographs, damaged, merged, mask = repairs.draw(8)
        refined = refiner(merged, mask, torch.randn_like(mask)).clamp(-1, 1)
        truth = energy_in(photographs, mask)
        values[name] = [round(energy_in(images, mask) / truth, 3) for images in (merged, refined)]
        if sheet is not None:
            shown = [F.interpolate(x[:4], size=(320, 320), mode="bilinear", antialias=True) for x in
                     (damaged, merged, refined, photographs)]  # fmt: skip
            rows.append(torch.cat([torch.cat(list(x), dim=2) for x in shown], dim=1))
    if sheet is not None:
        picture = ((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
        PIL.Image.fromarray(picture).save(sheet, quality=80)
    return values


def train(path: str, networks: Path, backbone: str, output: Path, seconds: float) -> None:
    """Trains the refiner for so many seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    started = time.monotonic()
    corruption = Corruption(SIZE, device, 1)
    statistics = json.loads((networks / "base.json").read_text())["features"]
    features = standardised(backbone, statistics).to(device, memory_format=torch.channels_last)
    sources, held_out = [], {}
    for number, (name, one) in enumerate(unpack(path).items()):
        own = name if (networks / f"{name}.json").exists() else "base"
        unet = assemble(networks, own)[0].to(device, memory_format=torch.channels_last)
        sources.append((name, Repairs(one["train"].to(device), unet, corruption, number)))
        held_out[name] = Repairs(one["held_out"].to(device), unet, corruption, 0)
    torch.manual_seed(0)
    refiner = DDADRefiner(image_size=max(SIDES.values())).to(device, memory_format=torch.channels_last)
    averaged = copy.deepcopy(refiner).requires_grad_(False)
    adversary = Adversary().to(device, memory_format=torch.channels_last)
    optimizers = [
        torch.optim.AdamW(refiner.parameters(), lr=4e-4, betas=(0.5, 0.99), weight_decay=0.01),
        torch.optim.AdamW(adversary.parameters(), lr=4e-4, betas=(0.5, 0.99), weight_decay=0.01),
    ]
    chances = torch.tensor([len(source.store) for _, source in sources]).double().sqrt()
    chooser = torch.Generator().manual_seed(0)

    def draw() -> tuple[torch.Tensor, ...]:
        return sources[int(torch.multinomial(chances, 1, generator=chooser))][1]()

    source = prefetch(draw)
    record: dict = {"losses": [], "sharpness": []}
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
    started, step, judged = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - started) < seconds:
        rate = min(1.0, (step + 1) / 100) * min(1.0, 0.02 + (1 - spent / seconds) / 0.3)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 4e-4 * rate
        photographs, merged, mask = (x.contiguous(memory_format=torch.channels_last) for x in next(source))
        noise = torch.randn_like(mask)
        with torch.autocast(device.type, torch.bfloat16):
            refined = refiner(merged, mask, noise)
        refined = refined.float()
        # The adversary learns: what was photographed, and of a refined picture what lies outside the region, is real.
        with torch.autocast(device.type, torch.bfloat16):
            real, _ = adversary(photographs, mask)
            fake, _ = adversary(refined.detach(), mask)
        where = F.interpolate(mask, size=fake.shape[-2:], mode="area")
        real, fake = real.float(), fake.float()
        inside = where.sum().clamp(min=1)
        loss_d = (F.relu(1 - real) * where).sum() / inside + (F.relu(1 + fake) * where).sum() / inside
        loss_d.backward()
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
        coarse = (F.avg_pool2d(refined - photographs, 8).abs()).mean() / share
        fine = (refined - photographs).abs().mean() / share
        perceptual = (seen.float() - target.float()).abs().mean() / share
        matching = sum((a.float() - b.float()).abs().mean() for a, b in zip(kept, wanted, strict=True)) / share
        fooling = -(fake.float() * where).sum() / inside
        warm = min(1.0, step / 300)
        loss = 4 * coarse + 1 * fine + 0.5 * perceptual + warm * (2 * matching + 0.3 * fooling)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        adversary.requires_grad_(True)
        step += 1
        with torch.no_grad():
            decay = min(0.998, step / (step + 10))
            for mine, other in zip(averaged.parameters(), refiner.parameters(), strict=True):
                mine.lerp_(other, 1 - decay)
        if step % 100 == 0:
            names = ("coarse", "fine", "perceptual", "matching", "fooling", "adversary")
            values = dict(zip(names, (coarse, fine, perceptual, matching, fooling, loss_d), strict=True))
            record["losses"].append({"step": step, **{name: round(float(value), 4) for name, value in values.items()}})
        if spent - judged > seconds / 6:
            judged = spent
            record["sharpness"].append({"step": step, **judge(averaged, held_out, None)})
            print(f"{spent:.0f} s", json.dumps(record["losses"][-1:]), json.dumps(record["sharpness"][-1]), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    record["sharpness"].append({"step": step, **judge(averaged, held_out, output / "sheet.jpg")})
    record |= {"steps": step, "batch_size": BATCH, "seconds": round(seconds)}
    print(json.dumps(record["losses"][-1]), json.dumps(record["sharpness"][-1]), step, flush=True)
    save_file(
        {n: v.half().cpu().contiguous() for n, v in averaged.state_dict().items()}, output / "refiner.safetensors"
    )
    (output / "refiner.json").write_text(json.dumps(record))


def main() -> None:
    """The commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--output", required=True)
    packing.add_argument("--quality", type=int, default=90)
    packing.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    training = commands.add_parser("train")
    training.add_argument("--pack", required=True)
    training.add_argument("--networks", type=Path, required=True, help="folder that `tools.base_network train` wrote")
    training.add_argument("--backbone", required=True, help="folder of a feature extractor")
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--seconds", type=float, default=240)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.output, dict(one.split("=", 1) for one in arguments.folders), arguments.quality)
    else:
        train(arguments.pack, arguments.networks, arguments.backbone, arguments.output, arguments.seconds)


if __name__ == "__main__":
    main()
