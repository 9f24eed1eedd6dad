"""How fast ddad is beside others, as ratios taken in one process: `python -m benchmarks.speed --checkpoint C`."""

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.methods import backbone_input, judged_by
from benchmarks.rivals import FeatureRival, Padim, Patchcore
from ddad import DDADPipeline
from ddad.runtime.engines import create, installed
from ddad.serving.export import write_graph
from ddad.serving.graphs import Verdict
from ddad.training.config import TrainConfig
from ddad.training.corruption import Corruption
from ddad.training.loop import create_scheduler, create_unet, load_batch
from ddad.training.losses import compute_losses

REPEATS = 5
GRADIENT_STEPS = 20
AUTHORS_STEPS = 500
BATCH = 8
# What a rival costs to score depends on how many patches it keeps, and these are chosen among as many as 50,000.
FEW = 16


class ImagesInMemory:
    """Random images where `Images` of the benchmark reads files: for time they do."""

    def __init__(self, count: int, size: int):
        self.images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def looks(self):
        """All images, `[N, 3, L, L]` in [-1, 1]."""
        return self.images.split(BATCH)


def take_turns(work: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """The median seconds of each, taken in turns so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()  # warm
    for _ in range(repeats):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def fitted(rival):
    """A rival that has seen a few images: what it costs to score does not depend on what it saw."""
    rival.fit(ImagesInMemory(FEW, judged_by(rival.pipe).config.image_size))
    return rival


class WidePatchcore(Patchcore):
    """PatchCore as its authors have it, on WideResNet-50 (random weights do for time)."""

    def create(self) -> nn.Module:
        """Layers 2 and 3."""
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        return PatchcoreModel(["layer2", "layer3"], "wide_resnet50_2", pre_trained=False)


class Exportable(nn.Module):
    """A rival's network under the names that the runtime's engines know."""

    def __init__(self, rival: FeatureRival):
        super().__init__()
        self.network, self.extractor = rival.model, judged_by(rival.pipe)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, 3, L, L]` in [0, 1] -> maps `[N, L, L]` and scores `[N]`."""
        output = self.network(backbone_input(self.extractor, images * 2 - 1))
        return output.anomaly_map[:, 0], output.pred_score.flatten()


def exported(network: nn.Module, image: np.ndarray, folder: Path) -> dict[str, Callable[[], object]]:
    """A network as an ONNX graph, by every engine that is installed, for images of one size."""
    folder.mkdir()
    given = {"images": (torch.from_numpy(image), ())}
    write_graph(network.eval(), given, ["anomaly_map", "image_score"], folder / "verdict.onnx")
    threads = torch.get_num_threads()
    graphs = {name: create(folder, name, threads)[1] for name in installed()}
    return {name: (lambda one=one: one(image)) for name, one in graphs.items()}


def time_maps(pipe: DDADPipeline) -> dict[str, float]:
    """Seconds for the verdict on one image of the size that is looked at, by PyTorch and exported, beside rivals."""
    size = judged_by(pipe).config.image_size
    picture = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    image = picture[None].numpy()
    rivals = {
        "PaDiM, same backbone": fitted(Padim(pipe)),
        "PatchCore, same backbone": fitted(Patchcore(pipe)),
        "PatchCore, WideResNet-50": fitted(WidePatchcore(pipe)),
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        work: dict[str, Callable[[], object]] = {
            "ddad, verdict on an image": lambda: pipe.score(picture),
            "of it the backbone": lambda: pipe.extract_appearance(picture[None] * 2 - 1),
        }
        for engine, run in exported(Verdict(pipe), image, Path(folder) / "ddad").items():
            work[f"ddad, exported, {engine}"] = run
        for number, (name, one) in enumerate(rivals.items()):
            work[f"{name} (anomalib)"] = lambda one=one: one.score([picture])
            for engine, run in exported(Exportable(one), image, Path(folder) / str(number)).items():
                work[f"{name}, exported, {engine}"] = run
        return take_turns(work)


def time_normal_versions(pipe: DDADPipeline) -> dict[str, float]:
    """Seconds for the normal version of an image that is defective everywhere, and of the authors' algorithm."""
    picture = (ImagesInMemory(1, pipe.unet.config.sample_size).images[0] + 1) / 2
    scores = pipe.score(picture)
    work = {
        "ddad, normal version of an image": lambda: pipe(scores, threshold=-1e3),
        "authors": lambda: pipe(scores, threshold=-1e3, denoise="whole", num_denoising_steps=GRADIENT_STEPS),
    }
    times = take_turns(work, repeats=1)
    scaled = times.pop("authors") * AUTHORS_STEPS / GRADIENT_STEPS
    return times | {f"the authors' {AUTHORS_STEPS} steps (from {GRADIENT_STEPS} of them)": scaled}


def time_training(pipe: DDADPipeline) -> dict[str, float]:
    """Seconds of one training step of eight images, and of forward and backward of its U-Net alone."""
    config = TrainConfig(data="", output="", base="", image_size=pipe.unet.config.sample_size)
    features, scheduler = pipe.feature_extractor, create_scheduler(config).training_process()
    unet = create_unet(config, features.feature_channels).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    store = ((ImagesInMemory(32, config.image_size).images + 1) * 127.5).to(torch.uint8)
    corruption = Corruption(config.image_size, torch.device("cpu"), 0)
    noisy = torch.randn(BATCH, 3, config.image_size, config.image_size)
    levels = torch.arange(BATCH) * 50

    def bare() -> None:
        output = unet(noisy, levels)
        (output.sample.square().mean() + output.features.square().mean()).backward()
        optimizer.zero_grad()

    def step() -> None:
        generator = torch.Generator().manual_seed(0)
        clean, damaged = load_batch(store, torch.arange(BATCH), corruption, config, generator)
        losses = compute_losses(unet, features, scheduler, clean, damaged, noisy, levels, config.max_snr)
        (losses.pixel + losses.variance + losses.feature).backward()
        optimizer.step()
        optimizer.zero_grad()

    return take_turns({"ddad, training step of 8 images": step, "of it the U-Net, forward and backward": bare})


def time_loading(checkpoint: Path) -> dict[str, float]:
    """Seconds from a folder to a pipeline, check sums included."""
    return take_turns({"ddad, loading a checkpoint": lambda: DDADPipeline.from_pretrained(checkpoint)})


def main(argv: list[str] | None = None) -> int:
    """Prints a table: each group's first row is ours and the unit of the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path)
    checkpoint = parser.parse_args(argv).checkpoint
    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    print(f"| {torch.get_num_threads()} threads | ms | ratio |\n|---|---|---|")
    groups = (time_maps, time_normal_versions, time_training)
    for group in (*(functools.partial(group, pipe) for group in groups), functools.partial(time_loading, checkpoint)):
        times = group()
        unit = next(iter(times.values()))
        for name, seconds in times.items():
            print(f"| {name} | {1000 * seconds:,.0f} | {seconds / unit:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
