"""What a visitor lands on after learning a part: a defect pasted as a test, and the most unusual of the good parts."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddad.app.examples import OPACITY, Example
from ddad.app.inspection import Finding, draw_heatmap, shrink
from ddad.app.own_parts import Photographs, file_name
from ddad.app.photographs import GoodImages
from ddad.calibration.calibration import held_out_scores
from ddad.calibration.progress import Report
from ddad.calibration.synthetic import DEFECT_TYPES, paste_defect
from ddad.checkpoint.installed import DDADPipeline
from ddad.images_ddad import DDADImageProcessor
from ddad.pipeline import DDADPipelineOutput
from ddad.report.regions import regions_of

STEP = "Looking at test defects"
DEFECT, UNUSUAL = "A test defect", "Most unusual good part"


def read_original(
    photographs: Photographs, given: GoodImages, index: int, processor: DDADImageProcessor
) -> torch.Tensor:
    """One of the photographs at its own size, no larger than the page shows, `[3, H, W]` in [0, 1]."""
    with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
        for source in photographs.open(Path(scratch)):
            if source.path is not None and file_name(source) == given.paths[index]:
                return shrink(processor.read_image(source.path))
    raise FileNotFoundError(given.paths[index])


def paste(
    original: torch.Tensor, seen: torch.Tensor, other: torch.Tensor, kind: str, seed: int
) -> torch.Tensor | None:
    """A photograph with one defect, made at the size that is looked at; None where no such defect shows on it.

    Args:
        original: `[3, H, W]` in [0, 1].
        seen: the same as it is looked at, `[3, S, S]` in [-1, 1].
        other: another one, of the same shape.
        kind: one of `DEFECT_TYPES`.
        seed: of what is random.
    """
    try:
        defective, _ = paste_defect(seen.float(), other.float(), kind, np.random.default_rng(seed))
    except ValueError:
        return None
    change = DDADImageProcessor.resize((defective - seen)[None] / 2, (original.shape[1], original.shape[2]))[0]
    return (original + change).clamp(0, 1)


def held_out_result(pipe: DDADPipeline, index: int, score: float, size: tuple[int, int]) -> DDADPipelineOutput:
    """What was found on one of the good images by the statistics of the others.

    Args:
        pipe: the pipeline, which stores it.
        index: of the image among those that judge.
        score: of it, as `held_out_scores` gives it.
        size: height and width that the map is wanted at.
    """
    cells = pipe.calibration.held_out_maps(pipe.judgement(tolerance="strict"))
    assert cells is not None  # every calibrated pipeline stores some
    side = pipe.calibration.config.calibration_size
    inside = pipe.calibration.inside(side)
    looked_at = torch.ones(1, 1, side, side) if inside is None else inside.cpu()
    small = torch.zeros_like(looked_at).masked_scatter(looked_at > 0, cells[index])
    anomaly_map = DDADImageProcessor.resize(small, size)[0, 0].numpy()
    region = (DDADImageProcessor.resize(looked_at, size) > 0.5)[0, 0].numpy()
    verdict = [score], pipe.threshold, [score > pipe.threshold]
    return DDADPipelineOutput(*verdict, [anomaly_map], None, [anomaly_map], [], None, None, None, [region])


def make_examples(
    pipe: DDADPipeline, photographs: Photographs, given: GoodImages, folder: str, report: Report
) -> list[dict[str, Any]]:
    """Writes the pictures; what is said of them.

    Of eight kinds of test defect the one is shown whose score is the middle one: neither the best found nor the worst.

    Args:
        pipe: what was learnt.
        photographs: that it was learnt from.
        given: what was read of them.
        folder: where pictures are written; it is made.
        report: called with the progress.
    """
    target, processor, seen = Path(folder), pipe.image_processor, given.images
    target.mkdir(parents=True)
    scores = held_out_scores(pipe)
    known = len(scores) == len(given.paths)  # of very many photographs only some judge
    order = np.argsort(scores) if known else np.arange(len(given.paths))
    made = []

    middle = int(order[len(order) // 2])
    original = read_original(photographs, given, middle, processor)
    found = []
    for number, kind in enumerate(DEFECT_TYPES, start=1):
        defective = paste(original, seen[middle], seen[int(order[0])], kind, number)
        if defective is not None:
            found.append((pipe(defective, denoise=False).image_score[0], number, kind, defective))
        report(STEP, number, len(DEFECT_TYPES))
    if found:
        _, _, kind, defective = sorted(found, key=lambda one: one[:2])[len(found) // 2]
        pipe.renderer.to_image(defective, "pil").save(target / "defect.png")
        name = given.names[middle]
        made.append({"name": "defect", "caption": DEFECT, "about": f"a {kind} pasted into {name} as a test"})

    if known:
        unusual = int(order[-1])
        original = read_original(photographs, given, unusual, processor)
        size = (original.shape[1], original.shape[2])
        result = held_out_result(pipe, unusual, float(scores[unusual]), size)
        finding = Finding.of(result, (size[1], size[0]), (size[1], size[0]))
        picture = pipe.renderer.to_image(original, "pil")
        picture.save(target / "unusual.png")
        draw_heatmap(original, result, regions_of(result), OPACITY).save(target / "unusual_heatmap.png")
        # A good part comes out as it went in; one that is called defective by the others is repaired as any other.
        normal = pipe(original).denoised_image[0] if finding.is_anomalous else picture
        normal.save(target / "unusual_normal.png")
        name = given.names[unusual]
        about = f"{name}, the highest score of your good parts, by what was learnt from the others"
        made.append({"name": "unusual", "caption": UNUSUAL, "about": about, "finding": asdict(finding)})
    return made


def read_examples(folder: Path, made: list[dict[str, Any]]) -> list[Example]:
    """What `make_examples` wrote, as the page offers it."""
    return [
        Example(
            folder / f"{one['name']}.png",
            one["caption"],
            Finding.from_dict(one["finding"]) if "finding" in one else None,
            folder / f"{one['name']}_heatmap.png" if "finding" in one else None,
            folder / f"{one['name']}_normal.png" if "finding" in one else None,
            one["about"],
        )
        for one in made
    ]
