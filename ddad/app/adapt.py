"""The tab that calibrates a category on a visitor's own good parts: after a change of camera, lamp or batch."""

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ddad.app.categories import OWN_MARK, Categories, label_choices
from ddad.app.compute import LONG, evaluates_networks, give_way, needs_gpu
from ddad.app.many import open_all
from ddad.app.uploads import open_category, output_path, refusal
from ddad.app.work import Runs, Stopped
from ddad.pipeline import DDADPipeline
from ddad.training.calibration import FEW_IMAGES, recalibrate
from ddad.training.fitting import CalibrationConfig
from ddad.training.progress import Report
from ddad.training.saving import load_record, save_checkpoint, update_record

LEAST_IMAGES, MOST_IMAGES = 10, 300
ZERO_GPU_SECONDS = 180
# How many of the images the category as it was is asked about.
ASKED = 40
TITLE = "These images cannot be used"


def read_good_images(pipe: DDADPipeline, files: list[str]) -> tuple[list[torch.Tensor], list[str]]:
    """What the networks see of the images among uploaded files, `[3, S, S]` in [-1, 1], and what is wrong with others.

    Raises:
        gr.Error: if there are too few, or too many.
    """
    images, problems = [], []
    with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
        for source in open_all(files, Path(scratch)):
            if len(images) == MOST_IMAGES:
                raise refusal(f"Give at most {MOST_IMAGES} images; `ddad calibrate` has no limit.", TITLE)
            if source.path is None:
                problems.append(f"{source.name}: {source.error}")
                continue
            try:
                images.append(pipe.prepare([pipe.image_processor.read_image(source.path)])[0].cpu())
            except (TypeError, ValueError) as error:
                problems.append(f"{source.name}: {str(error).replace(str(source.path), 'this file')}")
    if len(images) < LEAST_IMAGES:
        problem = f" {len(problems)} files cannot be read; {problems[0]}" if problems else ""
        few = f"{len(images)} good images are too few: {LEAST_IMAGES} are needed at least, a hundred are enough."
        raise refusal(few + problem, TITLE)
    return images, problems


def read_record(categories: Categories, category: str) -> dict[str, Any] | None:
    """How a bundled category was trained; None of others, of which only networks and settings are loaded."""
    return load_record(categories.folder / category) if category in categories.bundled else None


def calibrate_own(
    pipe: DDADPipeline, record: dict[str, Any] | None, files: list[str], folder: str, report: Report
) -> dict[str, Any]:
    """Calibrates a pipeline on uploaded images of good parts and saves it.

    Returns:
        What a visitor is told: `images`, `problems`, `alarms_before` of `asked` images, `threshold_before`,
        `threshold`, `judges` and `choice`.
    """
    images, problems = read_good_images(pipe, files)
    asked = images[:: max(1, len(images) // ASKED)]
    alarms = []
    for number, image in enumerate(asked, start=1):
        alarms += pipe((image + 1) / 2, denoise=False).is_anomalous
        report("Asking the category as it is", number, len(asked))
    adapted, calibration = recalibrate(pipe, images, CalibrationConfig.of(record), report)
    if record is not None:
        record = update_record(record, adapted, calibration, "a visitor's good parts", len(images))
    save_checkpoint(adapted, record, folder)
    return {
        "images": len(images),
        "problems": problems,
        "alarms_before": sum(alarms),
        "asked": len(asked),
        "threshold_before": pipe.threshold,
        "threshold": adapted.threshold,
        "judges": adapted.normality.config.num_calibration_images,
        "choice": calibration["choice"],
    }


def describe(facts: dict[str, Any], quantile: float) -> str:
    """What a visitor reads when it is done."""
    choice = facts["choice"]
    lines = [
        "## ✓ Calibrated on your good parts",
        f"**{facts['images']} images.** As it was, the category called {facts['alarms_before']} of {facts['asked']} of"
        f" them defective. The new threshold, {facts['threshold']:.1f} (before: {facts['threshold_before']:.1f}), lets"
        f" {quantile:.0%} of good parts pass, measured on {facts['judges']} of your images, each under statistics that"
        " had not seen it.",
        f"On synthetic defects pasted into your images it now finds {choice['image_auroc']:.0f} % (image AUROC) with"
        f" alpha {choice['alpha']:g} and a blur of {choice['blur_sigma']:g} pixels, chosen for that.",
        "It is chosen above, for you alone: go to *One image* or *Many images*. Download it to keep it: unpacked, it"
        " is a checkpoint for Python (`DDADPipeline.from_pretrained`), the command line, and a page of your own.",
    ]
    if facts["images"] < FEW_IMAGES:
        lines.insert(2, "These are few images: the threshold will let more or fewer good parts pass than it should.")
    if facts["problems"]:
        shown = "; ".join(facts["problems"][:3])
        lines.append(f"{len(facts['problems'])} files were left out. {shown}")
    return "\n\n".join(lines)


class OwnParts:
    """What the tab does.

    Args:
        categories: the categories.
    """

    def __init__(self, categories: Categories):
        self.categories = categories
        self.runs = Runs()
        self.compute = needs_gpu(evaluates_networks(self._compute, LONG), ZERO_GPU_SECONDS)

    def _compute(
        self, files: list[str], category: str, session: str, folder: str, progress: gr.Progress
    ) -> dict[str, Any]:
        """Where networks are evaluated; the result comes as a folder, since on ZeroGPU this is another process."""
        pipe = open_category(self.categories, category).pipe
        with self.runs.run(session) as stopped:

            def report(what: str, done: int, count: int) -> None:
                if stopped.is_set():
                    raise Stopped
                give_way(LONG)
                progress((done, count), desc=what, unit="steps")

            return calibrate_own(pipe, read_record(self.categories, category), files, folder, report)

    def adapt(
        self, files: list[str] | None, category: str, session: str, progress: gr.Progress
    ) -> tuple[str, dict[str, Any], str, str]:
        """Calibrates; returns the new category's name, what is to be told, the same in words, and a zip.

        Raises:
            Stopped: if the visitor stopped it.
            gr.Error: for images that cannot be used.
        """
        if not files:
            raise refusal("Choose images of good parts, a folder or a zip first.", "No images yet")
        name = f"my_{category.partition(OWN_MARK)[0].rpartition('/')[2]}"
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            checkpoint = Path(scratch) / name
            facts = self.compute(files, category, session, str(checkpoint), progress)
            own = self.categories.add_own(category, checkpoint)
            archive = shutil.make_archive(str(output_path(name)), "zip", scratch, name)
        quantile = self.categories.get(own).judge.normality.config.threshold_quantile
        return own, facts, describe(facts, quantile), archive


def add_own_parts(categories: Categories, category: gr.Dropdown, known: gr.State, session: gr.State) -> None:
    """Builds the tab.

    Args:
        categories: the categories.
        category: the page's choice, which the new category becomes.
        known: the names in it.
        session: the visitor's secret.
    """
    work = OwnParts(categories)

    def adapt(
        files: list[str] | None,
        category: str,
        session: str,
        known: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        try:
            own, _, text, archive = work.adapt(files, category, session, progress)
        except Stopped:
            return gr.skip(), gr.skip(), "Stopped: nothing was changed.", None
        names = [*known, own]
        return gr.Dropdown(choices=label_choices(names), value=own), names, text, archive

    gr.Markdown(
        "The same kind of part, but **another camera, lamp or batch**, so that good parts are called defective? Choose"
        f" the category above and give {LEAST_IMAGES} to {MOST_IMAGES} images of good parts; a hundred are enough."
        " What is normal, the threshold and the settings are measured anew on them. No network is trained, so it takes"
        " some minutes (about five on two CPU cores). **Another kind of part** needs `ddad train`."
    )
    with gr.Row():
        files = gr.File(
            file_count="multiple", label="Good parts, or zips of them: drop them here", height=160, scale=3,
            min_width=280,
        )  # fmt: skip
        with gr.Column(scale=1, min_width=220):
            folder = gr.UploadButton("Choose a whole folder", file_count="directory")
            with gr.Row():
                start = gr.Button("Calibrate", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=80)
    told = gr.Markdown("Nothing calibrated yet.", container=True)
    download = gr.File(label="The calibrated checkpoint", interactive=False)
    options = {
        "concurrency_id": "calibrate", "concurrency_limit": 1, "api_visibility": "private", "show_progress_on": told,
    }  # fmt: skip
    outputs = [category, known, told, download]
    running = [
        start.click(adapt, [files, category, session, known], outputs, **options),
        folder.upload(adapt, [folder, category, session, known], outputs, **options),
    ]
    stop.click(work.runs.stop, session, None, queue=False, api_visibility="private")
    stop.click(None, None, None, cancels=running)


def add_calibrate(categories: Categories) -> None:
    """Adds the endpoint `/calibrate` and its components."""
    work = OwnParts(categories)

    def calibrate(
        images: list[str],
        category: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Fits a category's statistics, settings and threshold to images of good parts, without training: minutes.

        Args:
            images: photographs of good parts, 10 to 300 of them, or zips of such.
            category: the kind of product: a name from `categories`, or a repository (user/name) on the Hub.
            progress: told of the progress.

        Returns:
            A report (the name under which `inspect` knows the new category for as long as the page keeps it, the
            threshold before and after, how many of the images were called defective before), and the checkpoint as a
            zip.
        """
        own, facts, _, archive = work.adapt(images, category or categories.offered[0], secrets.token_hex(16), progress)
        return {"category": own, **facts}, archive

    inputs = [
        gr.File(file_count="multiple", label="Photographs of good parts, or zips of them"),
        gr.Textbox(categories.offered[0], label="Category: a name from /categories, or user/name on the Hub"),
    ]
    outputs = [gr.JSON(label="Report"), gr.File(label="The checkpoint as a zip")]
    gr.Button("Calibrate").click(
        calibrate, inputs, outputs, api_name="calibrate", concurrency_id="calibrate", concurrency_limit=1
    )
