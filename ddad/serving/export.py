"""A checkpoint as a folder that needs no PyTorch, and the proof that it says the same."""

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import nn

import ddad
from ddad.calibration.promise import RATES
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import check_output, library_versions
from ddad.pipeline import ImageInput
from ddad.runtime import load
from ddad.runtime.inspector import FORMAT, METADATA_NAME, READING, REGION_NAME
from ddad.serving.graphs import NoisyToClean, Verdict

Format = Literal["onnx", "openvino"]
OPSET = 18
# By how much 99 % of a map may differ, in standard deviations of good images: two orders below what anybody sees.
# Where two remembered patches lie equally near, rounding decides which is taken, and their radii differ: so a place
# may differ by more, and a score by its share of that.
TOLERANCE, SCORE_TOLERANCE, PLACE_TOLERANCE = 0.01, 0.05, 0.5


def export_pipeline(
    pipe: DDADPipeline, output: str | Path, form: Format = "onnx", with_networks: bool = False
) -> Path:
    """Writes the verdict as one graph, its threshold and what it rests on.

    Args:
        pipe: the pipeline, on the CPU in float32.
        output: a folder that is not there yet.
        form: `"onnx"`, or `"openvino"` beside it.
        with_networks: whether the normal version's networks are written too, `unet.onnx` and `refiner.onnx`.

    Returns:
        The folder.

    Raises:
        ImportError: if `onnx` and `onnxscript`, or `openvino`, are not installed.
        OSError: if the folder holds something.
        ValueError: if the pipeline is not calibrated.
    """
    check_output(output)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    verdict = Verdict(pipe).eval().requires_grad_(False)
    picture = torch.rand(2, 3, 96, 112)
    write_graph(verdict, {"images": (picture, (0, 2, 3))}, ["anomaly_map", "image_score"], folder / "verdict.onnx")
    if with_networks:
        size = pipe.unet.config.sample_size
        noisy, levels = torch.randn(2, 3, size, size), torch.tensor([20, 201])
        write_graph(
            NoisyToClean(pipe.unet),
            {"noisy": (noisy, (0,)), "timesteps": (levels, (0,))},
            ["output", "features"],
            folder / "unet.onnx",
        )
        if pipe.refiner is not None:
            parts = {
                "images": (noisy, (0, 2, 3)),
                "mask": (noisy[:, :1], (0, 2, 3)),
                "noise": (noisy[:, :1], (0, 2, 3)),
            }
            write_graph(pipe.refiner, parts, ["detailed"], folder / "refiner.onnx")
    if verdict.inside is not None:
        inside = (255 * verdict.inside[0, 0]).to(torch.uint8).numpy()
        PIL.Image.fromarray(inside).save(folder / REGION_NAME)
    if form == "openvino":
        import openvino

        openvino.save_model(
            openvino.convert_model(folder / "verdict.onnx"), folder / "verdict.xml", compress_to_fp16=False
        )
    (folder / METADATA_NAME).write_text(json.dumps(describe(pipe, folder), indent=2) + "\n", encoding="utf-8")
    return folder


def write_graph(
    network: nn.Module, inputs: dict[str, tuple[torch.Tensor, Sequence[int]]], outputs: Sequence[str], path: Path
) -> None:
    """Writes a network as ONNX.

    Args:
        network: on the CPU in float32.
        inputs: by name an example, and the axes whose length may be another.
        outputs: their names.
        path: of the file.
    """
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("onnxscript", "onnx_ir"):  # a line for every node that they remove
            logging.getLogger(name).setLevel(logging.WARNING)
        torch.onnx.export(
            network,
            tuple(example for example, _ in inputs.values()),
            str(path),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict.fromkeys(axes, free) for _, axes in inputs.values()),
            opset_version=OPSET,
            external_data=False,
        )


def describe(pipe: DDADPipeline, folder: Path) -> dict[str, Any]:
    """What stands beside the graphs."""
    judgement = pipe.judgement()
    scores = pipe.calibration.held_out_scores(judgement)
    assert scores is not None and pipe.threshold is not None
    held_out = np.sort(scores.numpy().astype(np.float64))
    return {
        "format": FORMAT,
        "category": pipe.config.category,
        "threshold": pipe.threshold,
        "tolerance": judgement.tolerance,
        "false_alarms": pipe.calibration.false_alarms,
        "thresholds": {
            "rates": sorted(RATES),
            "thresholds": [pipe.calibration.threshold(judgement, rate) for rate in sorted(RATES)],
        },
        "held_out_scores": [round(float(score), 4) for score in held_out],
        "judged_by": {"feature_score": judgement.feature_score, "alpha": judgement.alpha},
        "sizes": {"looked_at": pipe.appearance_extractor.config.image_size, "map": pipe.unet.config.sample_size},
        **{name: getattr(pipe.image_processor.config, name) for name in READING},
        "opacity": pipe.renderer.config.opacity,
        "opset": OPSET,
        "versions": {"ddad": ddad.__version__, **library_versions()},
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())
            if path.name != METADATA_NAME
        },
    }


@dataclass(frozen=True)
class Agreement:
    """How far an exported category and its pipeline are apart on some images.

    Attributes:
        images: how many.
        map_difference: what 99 % of the pixels of every map stay below, in standard deviations of good images.
        place_difference: the largest of any pixel.
        score_difference: the largest of the scores.
        changed_verdicts: images that one calls defective and the other does not.
    """

    images: int
    map_difference: float
    place_difference: float
    score_difference: float
    changed_verdicts: int

    @property
    def holds(self) -> bool:
        """Whether nobody will see a difference."""
        pairs = (
            (self.map_difference, TOLERANCE),
            (self.place_difference, PLACE_TOLERANCE),
            (self.score_difference, SCORE_TOLERANCE),
        )
        return all(found <= limit for found, limit in pairs) and self.changed_verdicts == 0

    def __str__(self) -> str:
        return (
            f"{self.images} images: maps differ by {self.map_difference:.2g} (99 % of pixels; at one place"
            f" {self.place_difference:.2g}) and scores by {self.score_difference:.2g} at most, in standard deviations"
            f" of good images; {self.changed_verdicts} verdicts changed."
        )


def compare(
    pipe: DDADPipeline, folder: str | Path, images: Sequence[ImageInput], engine: str | None = None
) -> Agreement:
    """Inspects images by both.

    Args:
        pipe: the pipeline.
        folder: that was exported from it.
        images: any.
        engine: what evaluates the graph.
    """
    inspector = load(folder, engine)
    maps, places, scores, changed = 0.0, 0.0, 0.0, 0
    for image in images:
        expected = pipe(image, denoise=False, output_type="np")
        found = inspector.inspect(image)
        difference = np.abs(expected.anomaly_map[0] - found.anomaly_map)
        maps, places = max(maps, float(np.quantile(difference, 0.99))), max(places, float(difference.max()))
        scores = max(scores, abs(expected.image_score[0] - found.image_score))
        changed += expected.is_anomalous[0] != found.is_anomalous
    return Agreement(len(images), maps, places, scores, changed)


def pictures_to_compare(checkpoint: Path) -> list[ImageInput]:
    """The checkpoint's examples; of one that has none drawn ones, of several sizes."""
    folder = checkpoint / "examples"
    examples = sorted(path for path in folder.glob("*.webp") if path.stem.count("_") == 1) if folder.is_dir() else []
    if examples:
        return list(examples)
    random, sizes = np.random.default_rng(0), ((256, 256), (480, 640), (90, 300))
    shades = [np.linspace(60, 255, width)[None, :, None] * np.ones((height, 1, 1)) for height, width in sizes]
    return [(random.random((1, 1, 3)) * shade).astype(np.uint8) for shade in shades]
