"""What lower precision costs an exported verdict: `python -m benchmarks.precision CATEGORY ... --data FOLDER`.

Each bundled category is exported; its graph then judges test images in float32, in bfloat16 (OpenVINO's hint) and in
INT8 (convolutions quantised with onnxruntime's static calibration on good training images). Beside the time stand the
largest difference of maps from the pipeline's float32 graph and the verdicts that change: only what changes none could
be offered.
"""

import argparse
import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence import read_category
from benchmarks.speed import take_turns
from ddad import DDADImageProcessor, DDADPipeline
from ddad.calibration.observing import spread
from ddad.report.markdown import table
from ddad.runtime.engines import Evaluate, with_onnxruntime, with_openvino
from ddad.serving.export import export_pipeline

ROOT = Path(__file__).parent.parent
MOST_CALIBRATION, MOST_TEST = 32, 60


class Reader:
    """Good images one after the other, as onnxruntime's calibration asks for them."""

    def __init__(self, images: list[np.ndarray]):
        self.rest: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one; None after the last."""
        image = next(self.rest, None)
        return None if image is None else {"images": image[None]}


def quantise(graph: Path, output: Path, good: list[np.ndarray]) -> None:
    """Convolutions in INT8, everything else as it was."""
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_static(
        str(graph), str(output), Reader(good), op_types_to_quantize=["Conv"], per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
    )  # fmt: skip


def compare(name: str, data: Path, threads: int) -> list[list[Any]]:
    """A row for each engine and precision."""
    pipe = DDADPipeline.from_pretrained(ROOT / "checkpoints" / name)
    pipe.set_progress_bar_config(disable=True)
    train, test, *_ = read_category(name, data)
    size = pipe.appearance_extractor.config.image_size

    def read(sources: list[Any], most: int) -> list[np.ndarray]:
        images = (DDADImageProcessor().read_image(sources[place])[None] for place in spread(len(sources), most))
        return [DDADImageProcessor.resize(image, (size, size))[0].clamp(0, 1).numpy() for image in images]

    shown = read(test, MOST_TEST)
    with tempfile.TemporaryDirectory() as folder:
        graph = export_pipeline(pipe, Path(folder) / "exported", "onnx") / "verdict.onnx"
        small = Path(folder) / "int8.onnx"
        quantise(graph, small, read(train, MOST_CALIBRATION))
        evaluators: dict[str, Evaluate] = {
            "onnxruntime, float32": with_onnxruntime(graph, threads),
            "onnxruntime, INT8": with_onnxruntime(small, threads),
            "OpenVINO, float32": with_openvino(graph, threads),
            "OpenVINO, bfloat16": with_openvino(graph, threads, "bf16"),
            "OpenVINO, INT8": with_openvino(small, threads),
        }
        found = {
            key: [tuple(part[0] for part in evaluate(image[None])) for image in shown]
            for key, evaluate in evaluators.items()
        }
        work: dict[str, Callable[[], object]] = {
            key: (lambda one=one: one(shown[0][None])) for key, one in evaluators.items()
        }
        picture = torch.from_numpy(shown[0])
        times = take_turns({"the pipeline": lambda: pipe.score(picture)} | work)
    exact = found["onnxruntime, float32"]
    rows: list[list[Any]] = [[name, "the pipeline", f"{1000 * times['the pipeline']:.0f}", "", ""]]
    for key, judged in found.items():
        apart = max(float(np.abs(one[0] - other[0]).max()) for one, other in zip(judged, exact, strict=True))
        changed = sum(
            (one[1] > pipe.threshold) != (other[1] > pipe.threshold) for one, other in zip(judged, exact, strict=True)
        )
        rows.append([name, key, f"{1000 * times[key]:.0f}", f"{apart:.3f}", f"{changed} of {len(shown)}"])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[list[Any]] = []
    for name in arguments.categories:
        rows += compare(name, arguments.data, arguments.threads)
        print(table(["", "", "ms", "maps differ by", "verdicts changed"], rows), flush=True)


if __name__ == "__main__":
    main()
