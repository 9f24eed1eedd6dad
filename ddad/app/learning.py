"""What a visitor's photographs of good parts become: a part that is learnt, or a category calibrated on them."""

import dataclasses
from pathlib import Path
from typing import Any

from ddad.app.categories import Categories, readable
from ddad.app.own_examples import make_examples
from ddad.app.own_parts import Photographs
from ddad.app.photographs import read_good_images
from ddad.app.words import as_text
from ddad.calibration.backbone import IMAGE_SIZE
from ddad.calibration.calibration import FEW_IMAGES, recalibrate
from ddad.calibration.observing import CalibrationConfig
from ddad.calibration.part import Photographs as SeenPhotographs
from ddad.calibration.part import fit_photographs, load_base
from ddad.calibration.progress import Report
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import load_record, save_checkpoint, update_record
from ddad.images_ddad import DDADImageProcessor

# How many of the images the category as it was is asked about.
ASKED = 40


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where what is learnt is written.

    Attributes:
        checkpoint: the checkpoint, which the visitor may take home and publish.
        examples: pictures of the visitor's photographs, which stay here.
    """

    checkpoint: str
    examples: str


def read_record(categories: Categories, category: str) -> dict[str, Any] | None:
    """How a bundled category was trained; None of others, of which only networks and settings are loaded."""
    return load_record(categories.folder / category) if category in categories.bundled else None


def calibrate_own(
    pipe: DDADPipeline, record: dict[str, Any] | None, photographs: Photographs, folders: Folders, report: Report
) -> dict[str, Any]:
    """Calibrates a category on uploaded images of good parts and saves it.

    Returns:
        What a visitor is told: `images`, `problems`, `alarms_before` of `asked` images, `threshold_before`,
        `threshold`, `judges`, `image_auroc` and `examples`.
    """
    size = pipe.appearance_extractor.config.image_size
    given = read_good_images(pipe.image_processor, size, photographs, report)
    images = given.images
    asked = images[:: max(1, len(images) // ASKED)]
    alarms = []
    for number, image in enumerate(asked, start=1):
        alarms += pipe((image + 1) / 2, denoise=False).is_anomalous
        report("Asking the category as it is", number, len(asked))
    adapted, calibration = recalibrate(pipe, images, CalibrationConfig.of(record), report)
    if record is not None:
        record = update_record(record, adapted, calibration, "a visitor's good parts", len(images))
    save_checkpoint(adapted, record, folders.checkpoint)
    return {
        "images": len(images),
        "problems": given.problems,
        "alarms_before": sum(alarms),
        "asked": len(asked),
        "threshold_before": pipe.threshold,
        "threshold": adapted.threshold,
        "judges": adapted.calibration.config.num_calibration_images,
        "image_auroc": calibration["synthetic"]["image_auroc"],
        "examples": make_examples(adapted, photographs, given, folders.examples, report),
    }


def learn_new(
    base: Path, photographs: Photographs, name: str, device: str, folders: Folders, report: Report
) -> dict[str, Any]:
    """Fits a part that no network has seen on uploaded images, and saves it.

    Returns:
        What a visitor is told: that of `PartReport`, `problems`, `examples`, and all of it in words.
    """
    parts, processor = load_base(base), DDADImageProcessor()
    given = read_good_images(processor, IMAGE_SIZE, photographs, report)
    seen = SeenPhotographs(given.images, given.names, processor)
    pipe, record, part_report = fit_photographs(seen, parts, name, base, device=device, report=report)
    save_checkpoint(pipe, record, folders.checkpoint)
    return {
        **dataclasses.asdict(part_report),
        "found": {str(count): found for count, found in part_report.found.items()},  # JSON has no other keys
        "works": part_report.works,
        "state": part_report.state,
        "words": part_report.sentences(),
        "problems": given.problems,
        "headline": part_report.headline(readable(name)),
        "suspects": part_report.suspects,
        "examples": make_examples(pipe, photographs, given, folders.examples, report),
    }


def describe(facts: dict[str, Any], quantile: float) -> str:
    """What a visitor reads when it is done."""
    if "words" in facts:
        lines = [
            f"## {as_text(facts['headline'])}",
            *map(as_text, facts["words"]),
            "**Now give a good photograph that it has not seen**, then a defective one, under *One image*. The normal"
            " version comes from a network that never saw this part: judge by the heatmap.",
        ]
    else:
        lines = [
            "## ✓ Calibrated on your good parts",
            f"**{facts['images']} images.** As it was, the category called {facts['alarms_before']} of"
            f" {facts['asked']} of them defective. The new threshold, {facts['threshold']:.1f} (before:"
            f" {facts['threshold_before']:.1f}), lets {quantile:.0%} of good parts pass, measured on"
            f" {facts['judges']} of your images, each under statistics that had not seen it.",
            f"On synthetic defects pasted into your images it now finds {facts['image_auroc']:.0f} % (image AUROC).",
        ]
        if facts["images"] < FEW_IMAGES:
            lines.append("These are few images: the threshold will let more or fewer good parts pass than it should.")
    lines.append(
        "It is for you alone, for as long as this page keeps it. **Download it to keep it**: unpacked, it is a"
        " checkpoint for Python, the command line, a page of your own and the Hub; or give the zip back here."
    )
    if facts["problems"]:
        shown = as_text("; ".join(facts["problems"][:3]))
        lines.append(f"{len(facts['problems'])} files were left out. {shown}")
    return "\n\n".join(lines)
