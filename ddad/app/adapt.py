"""The tab that calibrates a category on a visitor's own good parts: after a change of camera, lamp or batch."""

import logging
import re
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import torch

from ddad.app.categories import OWN_MARK, Categories, label_choices, readable
from ddad.app.compute import LONG, evaluates_networks, give_way, needs_gpu
from ddad.app.many import open_all
from ddad.app.uploads import open_category, output_path, refusal
from ddad.app.visits import Run, Stopped, Visits
from ddad.app.work import MOMENT, SingleImage
from ddad.calibration.calibration import FEW_IMAGES, recalibrate
from ddad.calibration.fitting import CalibrationConfig
from ddad.calibration.progress import Report
from ddad.checkpoint.saving import load_record, save_checkpoint, update_record
from ddad.datasets.folder import ImagesInMemory
from ddad.datasets.names import choose_good, describe_found
from ddad.pipeline import DDADPipeline

logger = logging.getLogger(__name__)

LEAST_IMAGES, MOST_IMAGES = 10, 300
MOST_BYTES = 400 * 2**20
CHECKPOINT_SUFFIXES = (".json", ".safetensors")
NAME_PART = re.compile(r"[\w-][\w.-]{0,95}", flags=re.ASCII)
ZERO_GPU_SECONDS = 180
# How many of the images the category as it was is asked about.
ASKED = 40
TITLE = "These images cannot be used"


def read_good_images(
    pipe: DDADPipeline, files: list[str]
) -> tuple[list[torch.Tensor], ImagesInMemory | None, list[str]]:
    """What the networks see of the images among uploaded files, and what is wrong with others.

    Returns:
        Images `[3, S, S]` in [-1, 1], the same as appearance is judged by where it is, and the problems.

    Raises:
        gr.Error: if there are too few, or too many.
    """
    images, problems, names = [], [], []
    large = None if pipe.appearance is None else ImagesInMemory()
    with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
        for source in open_all(files, Path(scratch)):
            if len(images) == MOST_IMAGES:
                raise refusal(f"Give at most {MOST_IMAGES} images; `ddad calibrate` has no limit.", TITLE)
            if source.path is None:
                problems.append(f"{source.name}: {source.error}")
                continue
            names.append(PurePosixPath(source.name.replace("\\", "/")))
            try:
                original = pipe.image_processor.read_image(source.path)
                images.append(pipe.prepare([original])[0].cpu())
                if large is not None:
                    large.append(pipe.prepare_appearance([original])[0].cpu())
            except (TypeError, ValueError) as error:
                problems.append(f"{source.name}: {str(error).replace(str(source.path), 'this file')}")
    try:
        choice = choose_good(names)
    except ValueError:
        described = describe_found(names)
        raise refusal(
            f"It is not clear which images show good parts: {described}. Give the good ones alone.", TITLE
        ) from None
    if choice.defective or choice.masks:
        raise refusal(f"Give images of good parts alone. Found: {describe_found(names)}.", TITLE)
    if len(images) < LEAST_IMAGES:
        problem = f" {len(problems)} files cannot be read; {problems[0]}" if problems else ""
        few = f"{len(images)} good images are too few: {LEAST_IMAGES} are needed at least, a hundred are enough."
        raise refusal(few + problem, TITLE)
    return images, large, problems


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
    images, large, problems = read_good_images(pipe, files)
    asked = (images if large is None else large)[:: max(1, len(images) // ASKED)]
    alarms = []
    for number, image in enumerate(asked, start=1):
        alarms += pipe((image + 1) / 2, denoise=False).is_anomalous
        report("Asking the category as it is", number, len(asked))
    adapted, calibration = recalibrate(pipe, images, CalibrationConfig.of(record), report, large)
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
        visits: the visitors.
    """

    def __init__(self, categories: Categories, visits: Visits):
        self.categories = categories
        self.visits = visits
        self.compute = needs_gpu(evaluates_networks(self._compute, LONG), ZERO_GPU_SECONDS)

    def _compute(
        self, files: list[str], category: str, run: Run, folder: str, progress: gr.Progress
    ) -> dict[str, Any]:
        """Where networks are evaluated; the result comes as a folder, since on ZeroGPU this is another process."""
        pipe = open_category(self.categories, category).pipe

        def report(what: str, done: int, count: int) -> None:
            run.check()
            give_way(LONG)
            progress((done, count), desc=what, unit="steps")

        return calibrate_own(pipe, read_record(self.categories, category), files, folder, report)

    def adapt(
        self, files: list[str] | None, category: str, run: Run, progress: gr.Progress
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
            facts = self.compute(files, category, run, str(checkpoint), progress)
            own = self.categories.add_own(category, checkpoint)
            archive = shutil.make_archive(str(output_path(name)), "zip", scratch, name)
        quantile = self.categories.get(own).judge.normality.config.threshold_quantile
        return own, facts, describe(facts, quantile), archive

    def take(self, path: str) -> str:
        """Opens a checkpoint's zip as a category of the visitor alone; returns its name.

        Raises:
            gr.Error: if it is no such zip, or the checkpoint is damaged.
        """
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            checkpoint = unpack_checkpoint(path, Path(scratch))
            try:
                return self.categories.add_own(checkpoint.name.removeprefix("my_"), checkpoint)
            except Exception as error:
                logger.info("A visitor's checkpoint cannot be loaded: %s", error)
                raise refusal(
                    "It holds no ddad checkpoint of this version, or a file of it is damaged.",
                    "This zip cannot be opened",
                ) from None

    def stop(self, request: gr.Request) -> None:
        """Ends the calibration under way."""
        self.visits.of(request).other.stop()


def unpack_checkpoint(path: str, folder: Path) -> Path:
    """The settings and weights of a checkpoint's zip, and nothing else of it, below `folder`.

    Raises:
        gr.Error: if it is no such zip.
    """
    title = "This zip cannot be opened"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member for member in archive.infolist() if PurePosixPath(member.filename).suffix in CHECKPOINT_SUFFIXES
            ]
            roots = {PurePosixPath(member.filename).parts[0] for member in members}
            if len(roots) != 1 or sum(member.file_size for member in members) > MOST_BYTES:
                raise refusal("Give a zip as this page makes it: one checkpoint in one folder.", title)
            for member in members:
                parts = PurePosixPath(member.filename).parts
                if not 2 <= len(parts) <= 3 or not all(NAME_PART.fullmatch(part) for part in parts):
                    raise refusal("Give a zip as this page makes it: one checkpoint in one folder.", title)
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
    except gr.Error:
        raise
    except Exception:  # decompressors raise what they like
        raise refusal("This zip is damaged or none.", title) from None
    return folder / roots.pop()


def add_own_parts(
    categories: Categories,
    visits: Visits,
    category: gr.Dropdown,
    known: gr.State,
    own: gr.BrowserState,
    single: SingleImage,
) -> None:
    """Builds the tab.

    Args:
        categories: the categories.
        visits: the visitors.
        category: the page's choice, which the new category becomes.
        known: the names in it.
        own: the names of the visitor's own ones, kept in their browser.
        single: the tab that shows one image.
    """
    work = OwnParts(categories, visits)

    def adapt(
        files: list[str] | None,
        category: str,
        known: list[str],
        own: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        run = visits.of(request).begin_other()
        try:
            name, _, text, archive = work.adapt(files, category, run, progress)
        except Stopped:
            return gr.skip(), gr.skip(), gr.skip(), "Stopped: nothing was changed.", None
        except gr.Error as error:  # stays where it was asked, longer than a message that fades
            return gr.skip(), gr.skip(), gr.skip(), f"**{error.title}.** {error.message}", None
        names = [*known, name]
        return gr.Dropdown(choices=label_choices(names), value=name), names, [*(own or []), name], text, archive

    def give_back(path: str, known: list[str], own: list[str] | None) -> tuple[Any, ...]:
        try:
            name = work.take(path)
        except gr.Error as error:
            return gr.skip(), gr.skip(), gr.skip(), f"**{error.title}.** {error.message}"
        names = [*known, name]
        told = f"**{readable(name)}** is open again and chosen above, for you alone."
        return gr.Dropdown(choices=label_choices(names), value=name), names, [*(own or []), name], told

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
            back = gr.UploadButton("Open a zip that you downloaded here", file_types=[".zip"])
    told = gr.Markdown("Nothing calibrated yet.", container=True)
    download = gr.File(label="The calibrated checkpoint", interactive=False)
    hidden = {"api_visibility": "private", "concurrency_limit": None}
    options = {**hidden, "show_progress_on": told}
    outputs, chosen = [category, known, own, told, download], [category, single.moment]
    for start_event, source in ((start.click, files), (folder.upload, folder)):
        calibrated = start_event(adapt, [source, category, known, own], outputs, **options)
        calibrated.success(single.follow, chosen, single.places.all, js=MOMENT, **hidden)
    opened = back.upload(give_back, [back, known, own], [category, known, own, told], **options)
    opened.success(single.follow, chosen, single.places.all, js=MOMENT, **hidden)
    stop.click(work.stop, None, None, queue=False, **hidden)


def add_calibrate(categories: Categories, visits: Visits) -> None:
    """Adds the endpoint `/calibrate` and its components."""
    work = OwnParts(categories, visits)

    def calibrate(
        images: str,
        category: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Fits a category's statistics, settings and threshold to images of good parts, without training: minutes.

        Args:
            images: a zip of photographs of good parts, 10 to 300 of them.
            category: a name that `categories` lists, or a repository (user/name) on the Hub; empty for the first.
            progress: told of the progress.

        Returns:
            A report (the name under which `inspect` knows the new category for as long as the page keeps it, the
            threshold before and after, how many of the images were called defective before), and the checkpoint as a
            zip.
        """
        if images is None:
            raise refusal("Give a zip of photographs of good parts.", TITLE)
        own, facts, _, archive = work.adapt([images], category or categories.offered[0], Run(), progress)
        return {"category": own, **facts}, archive

    inputs = [
        gr.File(label="Photographs of good parts in a zip"),
        gr.Textbox(categories.offered[0], label="Category: a name from /categories, or user/name on the Hub"),
    ]
    outputs = [gr.JSON(label="Report"), gr.File(label="The checkpoint as a zip")]
    gr.Button("Calibrate").click(calibrate, inputs, outputs, api_name="calibrate", concurrency_limit=None)
