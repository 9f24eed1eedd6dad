"""The model card of a checkpoint, written from the checkpoint's own records."""

import json
from pathlib import Path
from string import Template
from typing import Any

TEMPLATE = Path(__file__).with_name("card.md")
EVALUATION_NAME = "evaluation.json"


def results_table(evaluation: dict[str, Any]) -> str:
    """The measured image AUROC of every score, as a Markdown table."""
    lines = ["| score | image AUROC |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in evaluation["image_auroc"].items()]
    return "\n".join(lines)


def denoising_sentence(report: dict[str, Any]) -> str:
    """What was measured of the normal versions."""
    return (
        f"Normal versions of {report['defective_images']} defective images: {report['found']} were found defective,"
        f" and {report['normal_after']} of these score below the threshold once the defect is removed; their median"
        f" score falls from {report['score_before']} to {report['score_after']}, the distance that denoising lowers"
        f" from {report['distance_before']} to {report['distance_after']} (good images: {report['distance_normal']})."
        f" Gradient energy in the repaired region is {report['sharpness']} times that of good images there."
        f" {report['good_unchanged']} of {report['good_images']} good images come out exactly as they went in."
    )


def write_card(folder: str | Path) -> None:
    """Writes `README.md` into a checkpoint's folder, from `training.json` and, if it is there, `evaluation.json`."""
    folder = Path(folder)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = record["config"]
    evaluation_path = folder / EVALUATION_NAME
    results = "Not evaluated on defective images."
    if evaluation_path.exists():
        evaluation = json.loads(evaluation_path.read_text(encoding="utf-8"))
        results = (
            f"{evaluation['good_images']} good images, none of which trained or calibrated the model, against"
            f" {evaluation['defective_images']} defective ones; no score was tuned on them.\n\n"
            f"{results_table(evaluation)}\n\n"
            f"At the stored threshold {evaluation['false_alarms']} of the good images are called defective and"
            f" {evaluation['detected']} of the defective ones are found."
        )
        if "denoising" in evaluation:
            results += f"\n\n{denoising_sentence(evaluation['denoising'])}"
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        license=config["license"] or "other",
        category=config["category"],
        data_source=config["data_source"] or "Images of good parts only.",
        training_images=record["training_images"],
        calibration_images=record["calibration_images"],
        steps=config["steps"],
        images_seen=record["images_seen"],
        minutes=round(record["seconds"] / 60),
        device=record["device"],
        parameters=round(record["parameters"] / 1e6, 1),
        threshold=f"{record['threshold']:.2f}",
        quantile=f"{100 * config['threshold_quantile']:.0f}",
        results=results,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
