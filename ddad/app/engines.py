"""Verdicts by an exported graph, where the page runs on the CPU and an engine is installed and faster than PyTorch."""

import functools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ddad.app.compute import LONG, give_way, model_thread
from ddad.checkpoint.installed import DDADPipeline
from ddad.pipeline import DDADScores
from ddad.runtime import load
from ddad.runtime.engines import installed, shortest
from ddad.runtime.inspector import Inspector

logger = logging.getLogger(__name__)

# Exporting traces the networks for a minute: in a process of its own, behind whatever the page has to do.
EXPORT = """
import os, sys
os.nice(10)
from ddad.serving.cached import exported
print(exported(sys.argv[1]))
"""


def rests_on_looks(pipe: DDADPipeline) -> bool:
    """Whether a pipeline's own verdict is made of maps that no noise level and no U-Net has a part in."""
    measured = set().union(*map(pipe.calibration.weights, pipe.judgement().scores))
    return measured <= set(pipe.calibration.look_scores)


def score_by(inspector: Inspector, pipe: DDADPipeline, image: torch.Tensor) -> DDADScores:
    """What `pipe.score` gives of an image `[3, H, W]` in [0, 1], by its graph.

    Args:
        inspector: the exported pipeline.
        pipe: the pipeline, which `rests_on_looks`.
        image: as the pipeline reads it.
    """
    maps = torch.from_numpy(inspector.evaluate(image[None].numpy())[0])
    judgement = pipe.judgement()
    levels = maps[:, None].expand(-1, len(judgement.timesteps), -1, -1)
    kind = judgement.feature_score
    return DDADScores([image], None, None, levels, list(judgement.timesteps), kind, pipe.inside)


def faster_graph(pipe: DDADPipeline, checkpoint: str) -> Inspector | None:
    """The pipeline's graph if it is faster here; None where it is not, or cannot be had.

    Args:
        pipe: the pipeline, on the CPU.
        checkpoint: what it was loaded from.
    """
    if not installed() or not rests_on_looks(pipe):
        return None
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", EXPORT, checkpoint]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        logger.warning("%s stays with PyTorch: %s", checkpoint, (done.stderr.strip().splitlines() or [""])[-1])
        return None
    inspector = load(Path(done.stdout.splitlines()[-1]))
    side = pipe.appearance_extractor.config.image_size
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))

    def compare() -> tuple[float, float]:
        visitors = functools.partial(give_way, LONG)  # who waits goes between
        both = (lambda: pipe.score(image)), (lambda: score_by(inspector, pipe, image))
        before, after = (shortest(work, visitors) for work in both)
        return before, after

    before, after = model_thread().run(LONG, compare)
    logger.info(
        "%s: a verdict takes %.0f ms by PyTorch and %.0f ms by %s.",
        checkpoint, 1000 * before, 1000 * after, inspector.engine,
    )  # fmt: skip
    return inspector if after < before else None


def prepare(pipe: DDADPipeline, checkpoint: str, found: Callable[[Inspector], None]) -> threading.Thread:
    """Looks for a faster graph beside all other work, and hands it over."""

    def work() -> None:
        inspector = faster_graph(pipe, checkpoint)
        if inspector is not None:
            found(inspector)

    thread = threading.Thread(target=work, name="export", daemon=True)
    thread.start()
    return thread
