"""The tab that learns a visitor's own part from photographs of good ones, or a category under another lamp."""

import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ddad.app.categories import OWN_MARK, Categories, label_choices, readable
from ddad.app.compute import LONG, evaluates_networks, give_way, needs_gpu
from ddad.app.home import add_home_training
from ddad.app.learning import Folders, calibrate_own, describe, learn_new, read_record
from ddad.app.own_examples import read_examples
from ddad.app.own_parts import OwnPart, OwnParts, Photographs
from ddad.app.photographs import MOST_IMAGES, TITLE, OneBar
from ddad.app.sharing import add_sharing
from ddad.app.single_events import SingleImage
from ddad.app.sources import FOLDERS, read_folders
from ddad.app.uploads import create_image_input, open_category, output_path, refusal, unpack_checkpoint
from ddad.app.visits import Run, Stopped, Visits
from ddad.app.words import Words, as_text, refused
from ddad.calibration.advice import count_of
from ddad.checkpoint.names import BUNDLED_BASE
from ddad.datasets.lookalikes import LEAST_IMAGES

logger = logging.getLogger(__name__)

ZERO_GPU_SECONDS = 180
MOST_SHOWN = 48
HERE = "Your part"  # what the tab is called
ELSEWHERE = "elsewhere"
# Where the visitor is when something is finished: in the browser, which alone knows it.
WHERE = """(...inputs) => [...inputs.slice(0, -1),
    document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim() ?? '']"""
# Goes where images are inspected, if the visitor still is where the part was learnt, and nothing is to be done there
# first, such as looking at suspects.
GO = f"""go => {{
    const tabs = [...document.querySelectorAll('[role=tab]')], named = name => tab => tab.textContent.trim() === name;
    const here = tabs.find(named('{HERE}'))?.getAttribute('aria-selected') === 'true';
    if (go && here) tabs.find(named('One image'))?.click();
}}"""
NEW, SAME = "A new part", "The category above, under another camera, lamp or batch"


class YourPart:
    """What the tab does.

    Args:
        categories: the categories.
        visits: the visitors.
        parts: what visitors have learnt.
    """

    def __init__(self, categories: Categories, visits: Visits, parts: OwnParts):
        self.categories = categories
        self.visits = visits
        self.parts = parts
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
        self, photographs: Photographs, category: str, name: str, run: Run, folders: Folders, progress: gr.Progress
    ) -> dict[str, Any]:
        """Where networks are evaluated; the result comes as folders, since on ZeroGPU this is another process."""
        bar = OneBar(progress)

        def report(what: str, done: int, count: int) -> None:
            run.check()
            give_way(LONG)
            bar.move(what, done, count)

        if not category:
            return learn_new(self.base, photographs, name, self.categories.device, folders, report)
        pipe = open_category(self.categories, category).pipe
        return calibrate_own(pipe, read_record(self.categories, category), photographs, folders, report)

    def learn(
        self, photographs: Photographs, category: str, name: str, run: Run, progress: gr.Progress
    ) -> tuple[str, dict[str, Any], str]:
        """Learns a part, or calibrates a category.

        Args:
            photographs: of good parts.
            category: what is calibrated; empty for a new part.
            name: of a new part.
            run: what the visitor may stop.
            progress: called with the progress.

        Returns:
            The new category's name, what is to be told (`describe` says it in words), and a zip.

        Raises:
            Stopped: if the visitor stopped it.
            gr.Error: for images that cannot be used.
        """
        if not photographs.files:
            raise refusal("Give photographs of good parts, a folder or a zip first.", "No images yet")
        if category:
            name = f"my_{category.partition(OWN_MARK)[0].rpartition('/')[2].removeprefix('my_')}"
        elif not self.learns:
            raise refusal("This page has no base network, which new parts need.", "New parts cannot be learnt here")
        else:
            name = re.sub(r"[^\w-]+", "_", name.strip(), flags=re.ASCII).strip("_")[:40] or "my_part"
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            folders = Folders(str(Path(scratch) / name), str(output_path("examples")))
            progress(0.0, desc="Waiting: other visitors' images come first")
            facts = self.compute(photographs, category, name, run, folders, progress)
            own = self.categories.add_own(category or name, Path(folders.checkpoint))
            archive = shutil.make_archive(str(output_path(name)), "zip", scratch, name)
        examples = read_examples(Path(folders.examples), facts.pop("examples"))
        self.parts.keep(own, OwnPart(photographs, category, name, examples))
        return own, facts, archive

    def look_where(self, category: str, inside: np.ndarray | None) -> str:
        """A version of a category that looks at a part of the picture, `[H, W]` bool, or everywhere; its name.

        What a visitor's own category was learnt from is known of the version too.

        Raises:
            ValueError: if the region is too small.
        """
        new = self.categories.add_region(category, inside)
        if (part := self.parts.get(category)) is not None:
            self.parts.keep(new, part)
        return new

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


def choose(name: str, known: list[str], settled: bool, here: str) -> tuple[gr.Dropdown, str, str]:
    """The new category in the list; chosen where the visitor still waits for it.

    A visitor who has gone elsewhere meanwhile stays there, with the category that they work with.
    """
    if not name:
        return gr.skip(), "", ""
    if here != HERE:
        return gr.Dropdown(choices=label_choices(known)), ELSEWHERE, ""
    return gr.Dropdown(choices=label_choices(known), value=name), name, "go" if settled else ""


def create_landing(single: SingleImage, summary: Words) -> Callable[..., Iterator[dict[Any, Any]]]:
    """The event that shows what was learnt where images are inspected; `GO` goes there."""

    def land(
        landed: str,
        text: str,
        opacity: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        if landed in ("", ELSEWHERE):
            yield {summary: f"{text}\n\nIt stands in the list of categories above." if landed else gr.skip()}
            return
        headline = text.partition("\n")[0].strip("#* ")
        words = f"**{headline}.** What was understood, and the download, stand under *{HERE}*."
        yield from single.land(landed, words, opacity, request, progress)

    return land


def add_your_part(
    page: gr.Blocks,
    categories: Categories,
    visits: Visits,
    category: gr.Dropdown,
    known: gr.State,
    own: gr.BrowserState,
    single: SingleImage,
    parts: OwnParts,
) -> tuple[YourPart, gr.File]:
    """Builds the tab; returns what it does, and where photographs are given.

    Args:
        page: it.
        categories: the categories.
        visits: the visitors.
        category: the page's choice, which the new category becomes.
        known: the names in it.
        own: the names of the visitor's own ones, kept in their browser.
        single: the tab that shows one image.
        parts: what visitors have learnt.
    """
    work = YourPart(categories, visits, parts)

    def offer(new: str, text: str, known: list[str], own: list[str] | None) -> dict[Any, Any]:
        """The visitor's new category is known, and kept in their browser; `land` puts it into the list."""
        names = [*known, new]
        return {
            known_place: names,
            own_place: [*(own or []), new],
            summary: text,
            learnt: new,
            settled: True,
        }

    def learn(
        files: list[str] | None,
        folders: str,
        what: str,
        name: str,
        category: str,
        known: list[str],
        own: list[str] | None,
        left_out: list[str],
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict[Any, Any]:
        run = visits.of(request).begin_other()
        photographs = Photographs(files or [], read_folders(folders), frozenset(left_out))
        try:
            new, facts, archive = work.learn(photographs, "" if what == NEW else category, name, run, progress)
        except Stopped:
            return {summary: "Stopped: nothing was changed.", learnt: ""}
        except gr.Error as error:  # stays where it was asked, longer than a message that fades
            return {summary: refused(error), learnt: ""}
        suspects = facts.get("suspects", [])
        text = describe(facts, categories.get(new).judge.calibration.config.threshold_quantile)
        if left_out:
            text += f"\n\n{count_of(len(left_out), 'photograph')} left out: {as_text(', '.join(left_out))}."
        return {
            **offer(new, text, known, own),
            download: gr.File(archive, visible=True),
            unlike: suspects,
            settled: facts.get("state", "learnt") in ("few", "learnt"),
            sheet: gr.Gallery(contact_sheet(files, suspects), visible=True),
            leave_out: gr.Button(
                f"Leave out {count_of(len(suspects), 'photograph')} and learn again", visible=bool(suspects)
            ),
        }

    def give_back(path: str, known: list[str], own: list[str] | None) -> dict[Any, Any]:
        try:
            name = work.take(path)
        except gr.Error as error:
            return {summary: refused(error), learnt: ""}
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
            back = gr.UploadButton("Open a zip that you downloaded here", file_types=[".zip"], size="sm")
    summary = Words("Nothing learnt yet.", container=True)
    leave_out = gr.Button("Leave out what is unlike the rest, and learn again", visible=False, elem_id="leave-out")
    download = gr.File(label="The checkpoint", interactive=False, visible=False)
    sheet = gr.Gallery(
        label="What it learnt from", columns=8, height=260, object_fit="cover", interactive=False, visible=False
    )
    learnt, unlike, left_out, settled = gr.State(""), gr.State([]), gr.State([]), gr.State(True)
    folders, here = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
    add_sharing(download)
    trained = add_home_training(
        page, categories, visits, (learnt, files), (known, own), offer, [known, own, summary, learnt, settled]
    )
    landed, land = gr.State(""), create_landing(single, summary)
    go = gr.Textbox("", visible=False)  # states do not reach the browser

    def follow(event: Any) -> None:
        """What comes after something was learnt, trained or given back."""
        options: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        chosen = event.success(choose, [learnt, known, settled, here], [category, landed, go], js=WHERE, **options)
        chosen.then(None, go, None, js=GO, **options)
        landing = chosen.then(land, [landed, summary, single.opacity], [*single.places.all, summary], **options)
        landing.then(single.settle, single.places.shown, single.places.all, **options)

    follow(trained)
    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    options: dict[str, Any] = {**hidden, "show_progress_on": summary}
    outputs = [known, own, summary, download, learnt, unlike, leave_out, sheet, settled]
    settings = [what, name, category, known, own]
    what.change(lambda chosen: gr.Textbox(visible=chosen == NEW), what, name, queue=False, **hidden)
    camera.input(add_photograph, [camera, files], [files, camera, counter], **hidden)
    reduced = leave_out.click(lambda names, more: [*names, *more], [left_out, unlike], left_out, **hidden)
    # Other photographs: what was left out of the last ones is none of theirs.
    gr.on([files.upload, files.clear, folder.upload], list, None, left_out, queue=False, **hidden)
    for event, source, without, browser in (
        (start.click, files, left_out, {}),
        (folder.upload, folder, gr.State([]), {"js": FOLDERS}),
        (reduced.success, files, left_out, {}),
    ):
        follow(event(learn, [source, folders, *settings, without], outputs, **options, **browser))
    follow(back.upload(give_back, [back, known, own], outputs, **options))
    stop.click(work.stop, None, None, queue=False, **hidden)
    return work, files


def add_fit(categories: Categories, visits: Visits) -> None:
    """Adds the endpoint `/fit` and its components."""
    work = YourPart(categories, visits, OwnParts())

    def fit(
        images: str,
        name: str = "my_part",
        category: str = "",
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Learns a part from photographs of good ones in a minute or two, without training; or calibrates a category.

        Args:
            images: a zip of photographs of good parts, 4 to 300 of them.
            name: what a new part is called.
            category: a name that `categories` lists, to be fitted to these photographs; empty for a new part.
            progress: called with the progress.

        Returns:
            A report (its category is the name under which `inspect` knows it for as long as the page keeps it; the
            threshold; for a new part, how many test defects are found and what to expect, in words), and the
            checkpoint as a zip.
        """
        if images is None or not zipfile.is_zipfile(images):
            raise refusal("Give a zip of photographs of good parts; this file is none.", TITLE)
        own, facts, archive = work.learn(Photographs([images]), category, name, Run(), progress)
        return {"category": own, **facts}, archive

    inputs = [
        gr.File(label="Photographs of good parts in a zip"),
        gr.Textbox("my_part", label="Name of a new part"),
        gr.Textbox("", label="Category to calibrate; empty for a new part"),
    ]
    outputs = [gr.JSON(label="Report"), gr.File(label="The checkpoint as a zip")]
    gr.Button("Fit").click(fit, inputs, outputs, api_name="fit", concurrency_limit=None)
