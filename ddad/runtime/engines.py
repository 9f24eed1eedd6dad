"""What evaluates a graph: onnxruntime or OpenVINO, whichever is installed and the folder has a graph for."""

import importlib
import importlib.util
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# A graph by the engine that reads it.
GRAPHS = {"openvino": ("verdict.xml", "verdict.onnx"), "onnx": ("verdict.onnx",)}
MODULES = {"openvino": "openvino", "onnx": "onnxruntime"}
TIMED = 3

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def installed() -> list[str]:
    """The engines that are installed."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]


def create(folder: Path, engine: str | None, threads: int | None) -> tuple[str, Evaluate]:
    """The engine's name, and what maps pixels `[N, 3, H, W]` in [0, 1] to maps `[N, S, S]` and scores `[N]`.

    Args:
        folder: of an exported category.
        engine: `"onnx"` or `"openvino"`; None takes the one that is faster here: which it is depends on the processor.
        threads: at most so many; None leaves it to the engine.

    Raises:
        ImportError: if the engine, or any, is not installed.
        OSError: if the folder has no graph for it.
    """
    if engine is not None and engine not in MODULES:
        raise ValueError(f"`engine` must be one of {tuple(MODULES)}, found {engine!r}.")
    names = [engine] if engine is not None else installed()
    if not names or importlib.util.find_spec(MODULES[names[0]]) is None:
        wanted = MODULES[engine] if engine is not None else "onnxruntime or openvino"
        raise ImportError(f"An exported category needs {wanted}: `pip install {wanted.split()[0]}`.")
    graphs = {name: [folder / graph for graph in GRAPHS[name] if (folder / graph).is_file()] for name in names}
    found = {
        name: {"onnx": with_onnxruntime, "openvino": with_openvino}[name](readable[0], threads)
        for name, readable in graphs.items()
        if readable
    }
    if not found:
        raise OSError(f"{folder} has no graph for {names[0]}: export it with `ddad export --format {names[0]}`.")
    image = np.zeros((1, 3, 256, 256), np.float32)
    name = next(iter(found)) if len(found) == 1 else min(found, key=lambda name: shortest(lambda: found[name](image)))
    return name, found[name]


def shortest(work: Callable[[], object], before_each: Callable[[], object] = lambda: None) -> float:
    """Seconds that something takes once it is warm; what is done before each time does not count."""
    times = []
    for _ in range(1 + TIMED):
        before_each()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def with_onnxruntime(path: Path, threads: int | None) -> Evaluate:
    """Evaluates by onnxruntime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def evaluate(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        anomaly_map, image_score = session.run(["anomaly_map", "image_score"], {"images": images})
        return anomaly_map, image_score

    return evaluate


def with_openvino(path: Path, threads: int | None, precision: str = "f32") -> Evaluate:
    """Evaluates by OpenVINO on the CPU, in float32: a lower precision moves maps by whole standard deviations.

    Threads wait for each other: a compiled model has one set of tensors, which the next evaluation overwrites.
    """
    openvino = importlib.import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": precision} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled, turn = openvino.Core().compile_model(str(path), "CPU", settings), threading.Lock()

    def evaluate(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with turn:
            found = compiled(images)
            return found["anomaly_map"].copy(), found["image_score"].copy()

    return evaluate
