"""The model card of a checkpoint, written from the checkpoint's own records."""

import json
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ddad.checkpoint.curve import draw_losses
from ddad.checkpoint.loading import read_json
from ddad.checkpoint.names import CURVE_NAME, EVALUATION_NAME, FIGURE_NAME, RECORD_NAME, TAGS
from ddad.evaluation.nuisance import describe_nuisances
from ddad.report.markdown import table

TEMPLATE = Path(__file__).with_name("card.md")
CURVE = f"![The terms of the loss over the steps of the training]({CURVE_NAME})"
FIGURE = f"![From left to right: a part, its heatmap, and the same part without its defects]({FIGURE_NAME})"


METRICS = {
    "image_auroc": ("Image AUROC", "roc_auc"),
    "pixel_auroc": ("Pixel AUROC", "roc_auc"),
    "pro": ("PRO to 0.3", "pro"),
    "aupimo": ("AUPIMO", "aupimo"),
}


def results_table(evaluation: dict[str, Any]) -> str:
    """What was measured of every score, as a Markdown table."""
    columns = [name for name in METRICS if name in evaluation["scores"]["combined"]]
    rows = [[form, *(f"{values[name]:.1f}" for name in columns)] for form, values in evaluation["scores"].items()]
    return table(["score, in %", *(METRICS[name][0] for name in columns)], rows)


def denoising_sentence(report: dict[str, Any]) -> str:
    """What was measured of the normal versions."""
    if not report["found"]:
        return f"None of {report['defective_images']} defective images was found, so nothing was repaired."
    covered = (
        f" In the median the repaired region covers {report['covered']} % of the defect's mask."
        if report.get("covered") is not None
        else ""
    )
    sharpness = (
        f" Gradient energy in the repaired region is {report['sharpness']} times that of good images there."
        if report["sharpness"] is not None
        else ""
    )
    return (
        f"Normal versions of {report['defective_images']} defective images: {report['found']} were found defective,"
        f" and {report['normal_after']} of these score below the threshold once the defect is removed; their median"
        f" score falls from {report['score_before']} to {report['score_after']}, the distance that denoising lowers"
        f" from {report['distance_before']} to {report['distance_after']} (good images: {report['distance_normal']})."
        f"{covered}{sharpness}"
        f" {report['good_unchanged']} of {report['good_images']} good images come out exactly as they went in."
    )


def front_matter(config: dict[str, Any], evaluation: dict[str, Any] | None, repository: str) -> str:
    """The card's metadata: licence, the tags that the page and `ddad list` search by, and results that were measured.

    Args:
        config: the settings of the training run.
        evaluation: what `ddad evaluate` measured, if anything.
        repository: the name of the model.
    """
    results = []
    if evaluation is not None:
        measured = [
            (f"{title}, {form}", kind, values[name])
            for form, values in evaluation["scores"].items()
            for name, (title, kind) in METRICS.items()
            if name in values
        ]
        at = evaluation["at_threshold"]
        measured += [
            ("Defective images found at the stored threshold, %", "recall", at["recall"]),
            ("Good images called defective at the stored threshold, %", "false_positive_rate", at["false_alarm_rate"]),
        ]
        results = [
            EvalResult(
                task_type="image-segmentation",
                task_name="Anomaly detection",
                dataset_type=config["category"],
                dataset_name=f"{evaluation['data']}, held-out test images",
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for name, kind, value in measured
        ]
    data = ModelCardData(
        library_name="diffusers",
        license=config["license"] or "other",
        pipeline_tag="image-segmentation",
        tags=[*TAGS, config["category"]],
        model_name=repository if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()


def describe_sight(folder: Path) -> str:
    """At which sizes a checkpoint looks at images, and what it does not see."""
    small = read_json(folder / "unet" / "config.json").get("sample_size", 256)
    settings = read_json(folder / "appearance_extractor" / "config.json")
    size = settings["image_size"]
    return (
        f"The U-Net sees images at {small}x{small} pixels; appearance is judged by {settings['backbone']} at"
        f" {size}x{size}. A defect that is smaller than two of {size} pixels is not seen."
    )


def describe_making(record: dict[str, Any]) -> str:
    """How a checkpoint was trained, or that it was not."""
    if "fitted" in record:
        fitted = record["fitted"]
        return (
            f"**No network was trained on this part.** Statistics and threshold were fitted to {fitted['images']} good"
            f" images in {fitted['seconds']:.0f} seconds on {record['device']}; normal versions come from the network"
            f" `{record['config']['base']}`, which saw other products. `training.json` has the settings."
        )
    return (
        f"{record['training_images']} images trained the model and {record['calibration_images']} calibrated it:"
        f" {record['config']['steps']} steps, {record['images_seen']} images seen, {round(record['seconds'] / 60)}"
        f" minutes on {record['device']}, {record['parameters'] / 1e6:.1f} million parameters in the U-Net. The"
        " settings and the loss at every tenth step are in `training.json`."
    )


def write_card(folder: str | Path, repository: str = "PATH_OR_REPOSITORY") -> None:
    """Writes `README.md` and the picture of the training log into a checkpoint's folder, from what lies there.

    That is `training.json` and, if they are there, `evaluation.json` and the figure.

    Args:
        folder: the checkpoint.
        repository: what the examples load.
    """
    folder = Path(folder)
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    config = record["config"]
    evaluation_path = folder / EVALUATION_NAME
    results, evaluation = "Not evaluated on defective images.", None
    if evaluation_path.exists():
        evaluation = json.loads(evaluation_path.read_text(encoding="utf-8"))
    if evaluation is not None and "scores" not in evaluation:
        results, evaluation = "Evaluated by an earlier version: run `ddad evaluate` again.", None
    if evaluation is not None:
        at = evaluation["at_threshold"]
        results = (
            f"{evaluation['good_images']} good images, none of which trained or calibrated the model, against"
            f" {evaluation['defective_images']} defective ones; no score was tuned on them.\n\n"
            f"{results_table(evaluation)}\n\n"
            f"At the stored threshold {at['false_alarms']} of the good images are called defective and"
            f" {at['detected']} of the defective ones are found."
        )
        if evaluation.get("good_images_seen"):
            results += (
                f" Of the good ones {evaluation['good_images_seen']} seem to show a part of which another image"
                " trained: on parts never seen, false alarms are more."
            )
        if "nuisances" in evaluation:
            results += f"\n\n{describe_nuisances(evaluation['nuisances'])}"
        if "denoising" in evaluation:
            results += f"\n\n{denoising_sentence(evaluation['denoising'])}"
    if record["losses"]:
        draw_losses(record["losses"]).save(folder / CURVE_NAME, quality=90)
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        front_matter=front_matter(config, evaluation, repository),
        repository=repository,
        figure=f"\n{FIGURE}\n" if (folder / FIGURE_NAME).exists() else "",
        curve=f"\n{CURVE}\n" if record["losses"] else "",
        category=config["category"],
        data_source=config["data_source"] or "Images of good parts only.",
        made=describe_making(record),
        threshold=f"{record['threshold']:.2f}",
        quantile=f"{100 * config['threshold_quantile']:.0f}",
        results=results,
        sight=describe_sight(folder),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
