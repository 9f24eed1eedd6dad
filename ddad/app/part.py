"""The tab that learns a visitor's own part from photographs of good ones, or a category under another lamp."""

import dataclasses
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ddad.app.categories import OWN_MARK, Categories, label_choices, readable
from ddad.app.compute import LONG, evaluates_networks, give_way, needs_gpu
from ddad.app.home import add_home_training
from ddad.app.many import FOLDERS, read_folders
from ddad.app.photographs import MOST_IMAGES, TITLE, OneBar, read_good_images
from ddad.app.sharing import add_sharing
from ddad.app.uploads import create_image_input, open_category, output_path, refusal, unpack_checkpoint
from ddad.app.visits import Run, Stopped, Visits
from ddad.app.words import Words, as_text, refused
from ddad.app.work import SingleImage
from ddad.calibration.calibration import FEW_IMAGES, recalibrate
from ddad.calibration.fitting import CalibrationConfig
from ddad.calibration.part import LARGEST, Photographs, fit_photographs, load_base
from ddad.calibration.progress import Report
from ddad.checkpoint.names import BUNDLED_BASE
from ddad.checkpoint.saving import load_record, save_checkpoint, update_record
from ddad.datasets.lookalikes import LEAST_IMAGES
from ddad.images_ddad import DDADImageProcessor
from ddad.pipeline import DDADPipeline

logger = logging.getLogger(__name__)

ZERO_GPU_SECONDS = 180
# How many of the images the category as it was is asked about.
ASKED = 40
MOST_SHOWN = 48
HERE = "Your part"  # what the tab is called
ELSEWHERE = "elsewhere"
# Where the visitor is when something is finished: in the browser, which alone knows it.
WHERE = """(...inputs) => [...inputs.slice(0, -1),
    document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim() ?? '']"""
NEW, SAME = "A new part", "The category above, under another camera, lamp or batch"


def read_record(categories: Categories, category: str) -> dict[str, Any] | None:
    """How a bundled category was trained; None of others, of which only networks and settings are loaded."""
    return load_record(categories.folder / category) if category in categories.bundled else None


def calibrate_own(
    pipe: DDADPipeline,
    record: dict[str, Any] | None,
    files: list[str],
    folder: str,
    report: Report,
    folders: Sequence[str] = (),
) -> dict[str, Any]:
    """Calibrates a category on uploaded images of good parts and saves it.

    Returns:
        What a visitor is told: `images`, `problems`, `alarms_before` of `asked` images, `threshold_before`,
        `threshold`, `judges` and `choice`.
    """
    sizes = [pipe.unet.config.sample_size]
    if pipe.appearance is not None:
        sizes.append(pipe.appearance_extractor.config.image_size)
    kept, _, problems = read_good_images(pipe.image_processor, sizes, files, report, folders)
    images, large = kept[0], kept[1] if len(kept) > 1 else None
    asked = kept[-1][:: max(1, len(images) // ASKED)]
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


def learn_new(
    base: Path, files: list[str], name: str, device: str, folder: str, report: Report, folders: Sequence[str] = ()
) -> dict[str, Any]:
    """Fits a part that no network has seen on uploaded images, and saves it.

    Returns:
        What a visitor is told: that of `PartReport`, `problems`, and all of it in words.
    """
    parts, processor = load_base(base), DDADImageProcessor()
    size = parts["unet"].config.sample_size
    (small, large), names, problems = read_good_images(processor, (size, LARGEST), files, report, folders)
    photographs = Photographs(small, large, names, processor)
    pipe, record, told = fit_photographs(photographs, parts, name, base, device=device, report=report)
    save_checkpoint(pipe, record, folder)
    return {
        **dataclasses.asdict(told),
        "found": {str(count): found for count, found in told.found.items()},  # JSON has no other keys
        "works": told.works,
        "words": told.sentences(),
        "problems": problems,
        "headline": told.headline(readable(name)),
        "suspects": told.suspects,
    }


def describe(facts: dict[str, Any], quantile: float) -> str:
    """What a visitor reads when it is done."""
    if "words" in facts:
        lines = [
            f"## {as_text(facts['headline'])}",
            *map(as_text, facts["words"]),
            "**Now give a good photograph that it has not seen**, then a defective one. The normal version comes from"
            " a network that never saw this part: judge by the heatmap.",
        ]
    else:
        choice = facts["choice"]
        lines = [
            "## ✓ Calibrated on your good parts",
            f"**{facts['images']} images.** As it was, the category called {facts['alarms_before']} of"
            f" {facts['asked']} of them defective. The new threshold, {facts['threshold']:.1f} (before:"
            f" {facts['threshold_before']:.1f}), lets {quantile:.0%} of good parts pass, measured on"
            f" {facts['judges']} of your images, each under statistics that had not seen it.",
            f"On synthetic defects pasted into your images it now finds {choice['image_auroc']:.0f} % (image AUROC).",
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


class YourPart:
    """What the tab does.

    Args:
        categories: the categories.
        visits: the visitors.
    """

    def __init__(self, categories: Categories, visits: Visits):
        self.categories = categories
        self.visits = visits
        own = categories.folder / "base"
        self.base = own if (own / "feature_extractor").is_dir() else BUNDLED_BASE
        self.compute = needs_gpu(evaluates_networks(self._compute, LONG), ZERO_GPU_SECONDS)

    @property
    def learns(self) -> bool:
        """Whether new parts can be learnt here: that needs a base network."""
        return (self.base / "feature_extractor").is_dir()

    @property
    def choices(self) -> list[str]:
        """What can be learnt here."""
        return [NEW, SAME] if self.learns else [SAME]

    def _compute(
        self,
        files: list[str],
        folders: Sequence[str],
        category: str,
        name: str,
        run: Run,
        folder: str,
        progress: gr.Progress,
    ) -> dict[str, Any]:
        """Where networks are evaluated; the result comes as a folder, since on ZeroGPU this is another process."""
        bar = OneBar(progress)

        def report(what: str, done: int, count: int) -> None:
            run.check()
            give_way(LONG)
            bar.move(what, done, count)

        if not category:
            return learn_new(self.base, files, name, self.categories.device, folder, report, folders)
        pipe = open_category(self.categories, category).pipe
        return calibrate_own(pipe, read_record(self.categories, category), files, folder, report, folders)

    def learn(
        self,
        files: list[str] | None,
        category: str,
        name: str,
        run: Run,
        progress: gr.Progress,
        folders: Sequence[str] = (),
    ) -> tuple[str, dict[str, Any], str, str]:
        """Learns a part, or calibrates a category.

        Args:
            files: images and zips of them.
            category: what is calibrated; empty for a new part.
            name: of a new part.
            run: what the visitor may stop.
            progress: told of the progress.
            folders: the files' paths in the visitor's folder; see `read_good_images`.

        Returns:
            The new category's name, what is to be told, the same in words, and a zip.

        Raises:
            Stopped: if the visitor stopped it.
            gr.Error: for images that cannot be used.
        """
        if not files:
            raise refusal("Give photographs of good parts, a folder or a zip first.", "No images yet")
        if category:
            name = f"my_{category.partition(OWN_MARK)[0].rpartition('/')[2]}"
        elif not self.learns:
            raise refusal("This page has no base network, which new parts need.", "New parts cannot be learnt here")
        else:
            name = re.sub(r"[^\w-]+", "_", name.strip(), flags=re.ASCII).strip("_")[:40] or "my_part"
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            checkpoint = Path(scratch) / name
            progress(0.0, desc="Waiting: other visitors' images come first")
            facts = self.compute(files, folders, category, name, run, str(checkpoint), progress)
            own = self.categories.add_own(category or name, checkpoint)
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

    def add_shown(self, files: list[str] | None, request: gr.Request) -> list[str]:
        """The image that is shown under One image teaches too: somebody knows that it is good.

        Raises:
            gr.Error: if none is shown.
        """
        path = self.visits.of(request).path
        if path is None:
            raise refusal("Show an image under One image first.", "No image yet")
        return [*(files or []), path]

    def stop(self, request: gr.Request) -> None:
        """Ends the learning under way."""
        self.visits.of(request).other.stop()


def add_photograph(photograph: str | None, files: list[str] | None) -> tuple[Any, ...]:
    """One more photograph of the device's camera."""
    if photograph is None:
        return gr.skip(), gr.skip(), gr.skip()
    # Cameras call all of them alike, and what is unlike the rest is told by name.
    own = output_path(f"photograph_{len(files or []) + 1}{Path(photograph).suffix}")
    taken = [*(files or []), shutil.copy(photograph, own)]
    return taken, None, f"{len(taken)} photographs so far."


def contact_sheet(files: Sequence[str] | None, unlike: Sequence[str]) -> list[tuple[str, str]]:
    """Photographs with their captions, those that are unlike the rest first; what lies in zips is not shown."""
    shown = [path for path in files or [] if not path.lower().endswith(".zip")]
    shown.sort(key=lambda path: Path(path).name not in unlike)
    return [
        (path, f"⚠ unlike the rest: {Path(path).name}" if Path(path).name in unlike else Path(path).name)
        for path in shown[:MOST_SHOWN]
    ]


def without(files: list[str] | None, names: list[str]) -> list[str]:
    """The files that are not among these names."""
    return [path for path in files or [] if Path(path).name not in names]


def choose(name: str, known: list[str], here: str) -> tuple[gr.Dropdown, str]:
    """The new category in the list; chosen where the visitor still waits for it.

    A visitor who has gone elsewhere meanwhile stays there, with the category that they work with.
    """
    if not name:
        return gr.skip(), ""
    if here != HERE:
        return gr.Dropdown(choices=label_choices(known)), ELSEWHERE
    return gr.Dropdown(choices=label_choices(known), value=name), name


def add_your_part(
    page: gr.Blocks,
    categories: Categories,
    visits: Visits,
    category: gr.Dropdown,
    known: gr.State,
    own: gr.BrowserState,
    single: SingleImage,
    tabs: gr.Tabs,
) -> None:
    """Builds the tab.

    Args:
        page: it.
        categories: the categories.
        visits: the visitors.
        category: the page's choice, which the new category becomes.
        known: the names in it.
        own: the names of the visitor's own ones, kept in their browser.
        single: the tab that shows one image.
        tabs: where it is.
    """
    work = YourPart(categories, visits)

    def offer(new: str, text: str, known: list[str], own: list[str] | None) -> dict[Any, Any]:
        """The visitor's new category is known, and kept in their browser; `land` puts it into the list."""
        names = [*known, new]
        return {
            known_place: names,
            own_place: [*(own or []), new],
            told: text,
            learnt: new,
        }

    def learn(
        files: list[str] | None,
        folders: str,
        what: str,
        name: str,
        category: str,
        known: list[str],
        own: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict[Any, Any]:
        run = visits.of(request).begin_other()
        try:
            new, facts, text, archive = work.learn(
                files, "" if what == NEW else category, name, run, progress, read_folders(folders)
            )
        except Stopped:
            return {told: "Stopped: nothing was changed.", learnt: ""}
        except gr.Error as error:  # stays where it was asked, longer than a message that fades
            return {told: refused(error), learnt: ""}
        suspects = facts.get("suspects", [])
        return {
            **offer(new, text, known, own),
            download: gr.File(archive, visible=True),
            unlike: suspects,
            sheet: gr.Gallery(contact_sheet(files, suspects), visible=True),
            leave_out: gr.Button(visible=bool(suspects)),
        }

    def land(landed: str, text: str, request: gr.Request) -> dict[Any, Any]:
        """Shows what was learnt where images are inspected."""
        if landed in ("", ELSEWHERE):
            return {told: f"{text}\n\nIt stands in the list of categories above." if landed else gr.skip()}
        return {**single.welcome_with(landed, text, request), tabs: gr.Tabs(selected="one")}

    def give_back(path: str, known: list[str], own: list[str] | None) -> dict[Any, Any]:
        try:
            name = work.take(path)
        except gr.Error as error:
            return {told: refused(error), learnt: ""}
        return offer(name, f"**{as_text(readable(name))}** is open again, for you alone.", known, own)

    known_place, own_place = known, own
    gr.Markdown(
        f"**Does it work on your part?** Give {LEAST_IMAGES} to {MOST_IMAGES} photographs of *good* parts, twenty are"
        " a start: the part in the same place, the same distance and light, nothing else in the picture. After a"
        " minute it finds what is unlike them. Nothing is trained, and nobody else sees it."
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            files = gr.File(
                file_count="multiple", label="Photographs of good parts, or zips of them: drop them here", height=180
            )
            with gr.Accordion("Take photographs here", open=False):
                camera = create_image_input(sources=["webcam"], label="One good part after the other", height=260)
                counter = Words()
        with gr.Column(scale=2, min_width=260):
            what = gr.Radio(work.choices, value=work.choices[0], label="What is it?")
            name = gr.Textbox("my part", label="What is the part called?", max_lines=1, visible=work.learns)
            with gr.Row():
                start = gr.Button("Learn", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=80)
            folder = gr.UploadButton("Choose a whole folder", file_count="directory", size="sm")
            correct = gr.Button("The image under One image is good: add it and learn again", size="sm")
            back = gr.UploadButton("Open a zip that you downloaded here", file_types=[".zip"], size="sm")
    told = Words("Nothing learnt yet.", container=True)
    leave_out = gr.Button("Leave out what is unlike the rest, and learn again", visible=False)
    download = gr.File(label="The checkpoint", interactive=False, visible=False)
    sheet = gr.Gallery(
        label="What it learnt from", columns=8, height=260, object_fit="cover", interactive=False, visible=False
    )
    learnt, unlike = gr.State(""), gr.State([])
    folders, here = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
    add_sharing(download)
    trained = add_home_training(
        page, categories, visits, (learnt, files), (known, own), offer, [known, own, told, learnt]
    )
    landed = gr.State("")

    def follow(event: Any) -> None:
        """What comes after something was learnt, trained or given back."""
        options: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        chosen = event.success(choose, [learnt, known, here], [category, landed], js=WHERE, **options)
        chosen.then(land, [landed, told], [*single.places.all, tabs, told], **options)

    follow(trained)
    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    options: dict[str, Any] = {**hidden, "show_progress_on": told}
    outputs = [known, own, told, download, learnt, unlike, leave_out, sheet]
    settings = [what, name, category, known, own]
    what.change(lambda chosen: gr.Textbox(visible=chosen == NEW), what, name, queue=False, **hidden)
    camera.input(add_photograph, [camera, files], [files, camera, counter], **hidden)
    added = correct.click(work.add_shown, files, files, **hidden)
    reduced = leave_out.click(without, [files, unlike], files, **hidden)
    for event, source, browser in (
        (start.click, files, {}),
        (folder.upload, folder, {"js": FOLDERS}),
        (added.success, files, {}),
        (reduced.success, files, {}),
    ):
        follow(event(learn, [source, folders, *settings], outputs, **options, **browser))
    follow(back.upload(give_back, [back, known, own], outputs, **options))
    stop.click(work.stop, None, None, queue=False, **hidden)


def add_fit(categories: Categories, visits: Visits) -> None:
    """Adds the endpoint `/fit` and its components."""
    work = YourPart(categories, visits)

    def fit(
        images: str,
        name: str = "my_part",
        category: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Learns a part from photographs of good ones in about a minute, without training; or calibrates a category.

        Args:
            images: a zip of photographs of good parts, 4 to 300 of them.
            name: what a new part is called.
            category: a name that `categories` lists, to be fitted to these photographs; empty for a new part.
            progress: told of the progress.

        Returns:
            A report (its category is the name under which `inspect` knows it for as long as the page keeps it; the
            threshold; for a new part, how many test defects are found and what to expect, in words), and the
            checkpoint as a zip.
        """
        if images is None or not zipfile.is_zipfile(images):
            raise refusal("Give a zip of photographs of good parts; this file is none.", TITLE)
        own, facts, _, archive = work.learn([images], category, name, Run(), progress)
        return {"category": own, **facts}, archive

    inputs = [
        gr.File(label="Photographs of good parts in a zip"),
        gr.Textbox("my_part", label="Name of a new part"),
        gr.Textbox("", label="Category to calibrate; empty for a new part"),
    ]
    outputs = [gr.JSON(label="Report"), gr.File(label="The checkpoint as a zip")]
    gr.Button("Fit").click(fit, inputs, outputs, api_name="fit", concurrency_limit=None)
