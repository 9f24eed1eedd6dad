"""A diffusion network of features as one more score: `python -m benchmarks.density CATEGORY --data ... --cache ...`.

The network predicts noise in whitened features of the backbone and so knows neighbours and position; judged is the
residual z - z_0hat under Gaussians with factors, the paper's feature error (section 3.2) in the space of features.
Beside it stand the Gaussians of the features themselves, with and without factors, on the same grid, and sums.

What is read of a category is what `benchmarks.evidence` keeps: views of the good images, the good images that judge,
and the test images.
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.evidence import MOST_HELD_OUT, appearance_of, fit, read_category
from ddad import DDADImageProcessor
from ddad.calibration.factors import Views
from ddad.calibration.growth import standardised
from ddad.calibration.observing import spread
from ddad.calibration.patches import distances_by_others, remember
from ddad.evaluation.evaluate import percent
from ddad.evaluation.metrics import auroc, pixel_curves

ROOT = Path(__file__).parent.parent
LEVELS = (0.2, 0.4, 0.55)
SIZE = 256


class Block(nn.Module):
    """ConvNeXt's block with a norm that the noise level shifts and scales ("DiT", Peebles and Xie, 2023)."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.modulation, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """`[N, w, g, g]` and `[N, w]` -> `[N, w, g, g]`."""
        shift, scale, gate = self.modulation(level)[:, None, None].chunk(3, dim=-1)
        values = self.norm(self.depthwise(hidden).permute(0, 2, 3, 1)) * (1 + scale) + shift
        return hidden + (self.down(F.gelu(self.up(values))) * (1 + gate)).permute(0, 3, 1, 2)


class Density(nn.Module):
    """epsilon(z_t, t) of whitened features."""

    def __init__(self, channels: int, grid: int, width: int, depth: int):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.place = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -8, 32)) * 1000)

    def forward(self, noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """`[N, c, g, g]` and `[N]` in [0, 1] -> `[N, c, g, g]`."""
        angles = level[:, None] * self.frequencies
        embedded = F.silu(self.level(torch.cat([angles.sin(), angles.cos()], dim=1)))
        hidden = self.first(noisy) + self.place
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.last(hidden)


def alpha_bar(level: torch.Tensor) -> torch.Tensor:
    """The cosine schedule (Nichol and Dhariwal, 2021), `[N]` -> `[N, 1, 1, 1]`."""
    return (torch.cos((level + 0.008) / 1.008 * math.pi / 2) ** 2).view(-1, 1, 1, 1)


def train(values: torch.Tensor, width: int, depth: int, steps: int) -> Iterator[tuple[int, nn.Module]]:
    """The averaged network, after a quarter, half and all of the steps; batches of 8."""
    torch.manual_seed(0)
    grid = values.shape[-1]
    network, average = (Density(values.shape[1], grid, width, depth) for _ in range(2))
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        clean = values[torch.randint(len(values), (8,))]
        level = torch.rand(8) * 0.98 + 0.005
        noise = torch.randn_like(clean)
        signal = alpha_bar(level)
        loss = F.mse_loss(network(signal.sqrt() * clean + (1 - signal).sqrt() * noise, level), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.995, (step + 1) / (step + 10))
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
    yield steps, average.eval()


@torch.no_grad()
def residual(network: nn.Module, values: torch.Tensor, level: float, noises: torch.Tensor) -> torch.Tensor:
    """Z - z_0hat at a noise level, mean over noises `[M, c, g, g]`; `[N, c, g, g]`."""
    signal, found = alpha_bar(torch.tensor(level)), []
    for batch in values.split(32):
        total = torch.zeros_like(batch)
        for noise in noises:
            noisy = signal.sqrt() * batch + (1 - signal).sqrt() * noise
            error = network(noisy, torch.full((len(batch),), level))
            total += batch - (noisy - (1 - signal).sqrt() * error) / signal.sqrt()
        found.append(total / len(noises))
    return torch.cat(found)


def flat(values: torch.Tensor) -> torch.Tensor:
    """`[N, c, g, g]` -> `[N, P, c]`."""
    return values.flatten(2).transpose(1, 2).contiguous()


def square(values: torch.Tensor, grid: int) -> torch.Tensor:
    """`[N, P, c]` -> `[N, c, grid, grid]`, averaged where the grid is coarser."""
    side = round(values.shape[1] ** 0.5)
    return F.adaptive_avg_pool2d(values.transpose(1, 2).unflatten(2, (side, side)), grid)


def distances(
    views: Views, judges: torch.Tensor, folds: torch.Tensor, test: torch.Tensor, most_factors: bool = True
) -> torch.Tensor:
    """Of the good images that judge by statistics of others, then of test images by all, `[N, 1, g, g]`."""
    statistics = fit(views, most_factors)
    good = statistics.distances(judges[:, None], folds)[:, 0]
    found = torch.cat([good, statistics.of_all().distance(test)])
    side = round(found.shape[1] ** 0.5)
    return found.view(-1, 1, side, side)


def figures(
    maps: list[torch.Tensor], good: int, defective: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | int]:
    """What the mean of standardised maps measures: the best cells of 1, 4, 16 are the same for all scores: 4."""
    fine = []
    for one in maps:
        blurred = DDADImageProcessor.blur(DDADImageProcessor.resize(one, (SIZE, SIZE)), 2.0)
        fine.append(standardised(blurred, good)[good:])
    fused = torch.stack(fine).mean(dim=0)
    scores = F.adaptive_avg_pool2d(fused, 32).flatten(1).topk(4, dim=1).values.mean(dim=1).numpy()
    row: dict[str, float | int] = {
        "image_auroc": percent(auroc(scores[~defective], scores[defective])),
        "pixel_auroc": float("nan"),
        "pro": float("nan"),
    }
    if masks is not None:
        known = masks.any(axis=(1, 2)) | ~defective
        curves = pixel_curves(F.adaptive_avg_pool2d(fused, 64).numpy()[known], masks[known])
        row |= {"pixel_auroc": percent(curves.auroc), "pro": percent(curves.pro())}
    return row


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a category."""
    name = arguments.category
    _, _, defective, masks = read_category(name, arguments.data)
    views, (judges, _, test) = appearance_of(name, arguments.data, arguments.features, arguments.cache)
    judges, test = judges[:, 0], test[:, 0]
    images = int(views.original.sum())
    own = views.fold[views.original][spread(images, MOST_HELD_OUT)]
    grid, count = arguments.grid, len(judges)

    def row(score: str, steps: int, seconds: float, *maps: torch.Tensor) -> dict[str, Any]:
        shared = {"category": name, "grid": grid, "width": arguments.width, "score": score, "steps": steps}
        return shared | {"seconds": round(seconds)} | figures(list(maps), count, defective, masks)

    fine = distances(views, judges, own, test)
    nearest = torch.cat([distances_by_others(views, judges, own), remember(views).distance(test)])
    appearance = [fine, fine, nearest.view(fine.shape)]  # two thirds and one third, as the product
    yield row("Gaussians with factors, fine grid", 0, 0, fine)
    yield row("appearance", 0, 0, *appearance)
    pooled = {part: square(values, grid) for part, values in (("v", views.values), ("j", judges), ("t", test))}
    sample = flat(pooled["v"]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(sample.T.double()))
    whitening = (vectors / values.clamp(min=1e-6).sqrt()).float()
    mean = sample.mean(dim=0)
    white = {
        part: ((flat(one) - mean) @ whitening).transpose(1, 2).unflatten(2, (grid, grid)).contiguous()
        for part, one in pooled.items()
    }

    def gaussians(of: dict[str, torch.Tensor], most_factors: bool = True) -> torch.Tensor:
        coarse = Views(flat(of["v"]), views.fold, views.original)
        return distances(coarse, flat(of["j"]), own, flat(of["t"]), most_factors)

    yield row("Gaussians without factors", 0, 0, gaussians(white, False))
    coarse = gaussians(white)
    yield row("Gaussians with factors", 0, 0, coarse)
    noises = torch.randn(3, 1, white["v"].shape[1], grid, grid, generator=torch.Generator().manual_seed(1))
    started = time.monotonic()
    for steps, network in train(white["v"], arguments.width, arguments.depth, arguments.steps):
        seconds = time.monotonic() - started
        for level in LEVELS:
            left = {part: residual(network, one, level, noises) for part, one in white.items()}
            judged = gaussians(left)
            yield row(f"residual at {level}", steps, seconds, judged)
            yield row(f"appearance, a quarter residual at {level}", steps, seconds, *appearance, judged)
            yield row(f"appearance, 40 % residual at {level}", steps, seconds, *appearance, judged, judged)
            if level == 0.4:
                yield row(f"residual at {level} without factors", steps, seconds, gaussians(left, False))


def main() -> None:
    """Runs a category and appends its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("category")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the backbone sees of images")
    parser.add_argument("--features", default="tf_efficientnet_lite2-512")
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "density.csv")
    arguments = parser.parse_args()
    for row in run(arguments):
        fresh = not arguments.output.is_file()
        with arguments.output.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
