"""`python -m benchmarks --data D --checkpoint C`: every method on the same images, one process each.

Results are appended to a JSON file as they arrive; a run that is cut off continues with the methods that are missing.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.methods import Images, Method, judged_by
from benchmarks.neighbours import Spade
from benchmarks.ours import AnoDDPM, AuthorsProgram, Ours
from benchmarks.rivals import Dfm, Padim, Patchcore
from benchmarks.tables import RESULTS
from benchmarks.trained import CFlow, CutPaste, Stfpm
from ddad import DDADPipeline
from ddad.datasets.layouts import Sample, read_dataset
from ddad.evaluation.baselines import Baselines
from ddad.evaluation.evaluate import measure, read_masks
from ddad.evaluation.scoring import score_images
from ddad.images_ddad import DDADImageProcessor

SLOW_SAMPLES = 60
PARTS = "parts"
ORDER = (
    "combined", PARTS, "padim_anomalib", "patchcore_anomalib", "dfm_anomalib", "spade", "authors",
    "anoddpm", "stfpm_anomalib", "cflow_anomalib", "cutpaste",
)  # fmt: skip
NOTES = {
    "kl": "the paper's pixel score, calibrated",
    "appearance": "the features themselves, at a size of their own: two thirds Gaussians, one third memory",
    "gaussians": "factors and a Gaussian at every position of them",
    "memory": "distance to the nearest remembered patch, less its radius",
    "sum": "the mean of appearance and feature residual",
    "residual": "feature residual under factors and Gaussians",
    "mse": "feature residual squared: the paper's feature score, calibrated",
    "rgb": "squared error of the one-step prediction, calibrated",
}


def create_methods(pipe: DDADPipeline, checkpoint: Path, seconds: float) -> dict[str, Callable[[], Method]]:
    """The methods by the names that `--methods` takes."""
    return {
        "combined": lambda: Ours(pipe, checkpoint, f"alpha {pipe.config.alpha}, blur {pipe.config.blur_sigma}"),
        "authors": lambda: AuthorsProgram(pipe),
        "anoddpm": lambda: AnoDDPM(pipe),
        "padim_anomalib": lambda: Padim(pipe),
        "patchcore_anomalib": lambda: Patchcore(pipe),
        "dfm_anomalib": lambda: Dfm(pipe),
        "stfpm_anomalib": lambda: Stfpm(pipe, seconds),
        "cflow_anomalib": lambda: CFlow(pipe, seconds),
        "cutpaste": lambda: CutPaste(pipe, seconds),
        "spade": lambda: Spade(pipe),
    }


def some(samples: list[Sample], count: int) -> list[Sample]:
    """About `count` of the test images, evenly, every kind among them."""
    step = max(1, len(samples) // count)
    return samples[::step]


def resize_maps(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps of any size, `[N, s, s]` -> `[N, size, size]`, as all are compared with the masks."""
    return DDADImageProcessor.resize(torch.from_numpy(maps)[:, None], (size, size))[:, 0].numpy()


def run_method(name: str, checkpoint: Path, data: Path, seconds: float) -> dict[str, Any]:
    """Fits one method and measures it; in a process of its own, whose peak memory it reports."""
    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    dataset = read_dataset(data)
    method = create_methods(pipe, checkpoint, seconds)[name]()
    samples = dataset.select("test")
    if method.slow:
        samples = some(samples, SLOW_SAMPLES)
    started = time.perf_counter()
    method.fit(Images(pipe, dataset.train_paths))
    trained = time.perf_counter() - started
    maps, scores, spent = [], [], 0.0
    for batch in Images(pipe, [one.path for one in samples]).batches():
        started = time.perf_counter()
        found, image_scores = method.score(batch)
        spent += time.perf_counter() - started
        maps.append(None if found is None else resize_maps(found, pipe.unet.config.sample_size))
        scores.append(image_scores)
    masks = None if maps[0] is None else read_masks(samples, pipe.unet.config.sample_size)
    measured = measure(None if masks is None else np.concatenate(maps), np.concatenate(scores), samples, masks)
    return {
        "name": method.name,
        "note": method.note,
        "test_images": len(samples),
        **measured,
        "fit_seconds": round(trained, 1),
        "seconds_an_image": round(spent / len(samples), 4),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "size_mb": round(method.size() / 1e6, 1),
    }


def run_parts(checkpoint: Path, data: Path) -> dict[str, Any]:
    """The parts of our score and the baselines inside the same model, from one evaluation of the networks an image."""
    pipe = DDADPipeline.from_pretrained(checkpoint)
    dataset = read_dataset(data)
    samples = dataset.select("test")
    masks = read_masks(samples, pipe.unet.config.sample_size)
    scored = score_images(pipe, [one.path for one in samples], Baselines.of(pipe, dataset.train_paths))
    return {
        form: {"name": f"ddad: {form}", "note": NOTES[form], "test_images": len(samples)}
        | measure(scored.maps[form], scored.scores[form], samples, masks)
        for form in scored.scores
        if form != "combined"
    }


def describe_looks(pipe: DDADPipeline) -> str:
    """Backbone and picture size of our verdict and of its rivals."""
    config = judged_by(pipe).config
    size = config.image_size or pipe.unet.config.sample_size
    return f"{config.backbone} at {size}x{size} pixels"


def describe_machine() -> dict[str, Any]:
    """The kind of machine, for the table's caption."""
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        flags = info.read_text()
    features = [name for name in ("avx2", "avx512f", "amx_tile") if name in flags]
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "features": features,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def create_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of one category, in any layout of ddad")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder of a checkpoint trained on it")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/DATA.json)")
    parser.add_argument("--minutes", type=float, default=10, help="training time of the methods that are trained here")
    parser.add_argument("--methods", nargs="+", help="run these alone (default: all that have no result yet)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing, a process each."""
    arguments = create_parser().parse_args(argv)
    seconds = 60 * arguments.minutes
    if arguments.one == PARTS:
        print(json.dumps(run_parts(arguments.checkpoint, arguments.data)))
        return 0
    if arguments.one:
        print(json.dumps(run_method(arguments.one, arguments.checkpoint, arguments.data, seconds)))
        return 0
    dataset = read_dataset(arguments.data)
    output = arguments.output or RESULTS / f"{dataset.name}.json"
    results: dict[str, Any]
    if output.is_file():
        results = json.loads(output.read_text(encoding="utf-8"))
    else:
        results = {
            "data": dataset.describe(),
            "looked_at": describe_looks(DDADPipeline.from_pretrained(arguments.checkpoint)),
            "machine": describe_machine(),
            "methods": {},
        }
    done = set(results["methods"]) | ({PARTS} if "kl" in results["methods"] else set())
    for name in arguments.methods or [one for one in ORDER if one not in done]:
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", "benchmarks", "--one", name, "--data", str(arguments.data)]
        command += ["--checkpoint", str(arguments.checkpoint), "--minutes", str(arguments.minutes)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if process.returncode:
            print(f"{name} failed; it is tried again by the next run.", flush=True)
            continue
        found = json.loads(process.stdout.splitlines()[-1])
        results["methods"] |= found if name == PARTS else {name: found}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
