"""Where to look, painted on the picture: a visitor's own version of the category that a part of it decides."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from ddad.app.categories import OWN_MARK, label_choices
from ddad.app.corrections import Lists
from ddad.app.inspection import shrink
from ddad.app.learning import read_record
from ddad.app.part import YourPart
from ddad.app.places import Places
from ddad.app.single_events import MOMENT, SingleImage, unless_overtaken
from ddad.app.uploads import output_path, refusal
from ddad.app.words import Words, refused
from ddad.checkpoint.saving import save_checkpoint
from ddad.images_ddad import decoding, open_picture

IGNORE, ONLY = "Ignore what I paint", "Look only at what I paint"
TITLE = "Nothing was changed"
LONGEST = 900  # side of the picture that is painted on
EXPLAINED = (
    "Paint over what must not decide: a label, a serial number, a reflection, the background. *Ignore* adds to what is"
    " ignored already, *Look only* replaces it. The threshold is measured anew on the good parts inside, at once."
    " Features see a sixteenth of the picture far, so leave a margin around what must not decide."
)


class Painting(gr.ImageEditor):
    """A picture to paint on; what comes back is where was painted, `[H, W]` bool, and nothing of the picture."""

    is_template = True  # for the browser it is an editor of images

    def convert_and_format_image(self, file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
        """A layer's opacity; the picture below and what both make together are not opened."""
        if file is None or flatten_on_white:
            return None
        try:
            with decoding("The painting"), open_picture(getattr(file, "path", file)) as picture:
                return np.asarray(picture.convert("RGBA"))[..., 3] > 0
        except ValueError as error:
            raise refusal(str(error), TITLE) from None

    def preprocess(self, payload: Any) -> np.ndarray | None:
        """Where was painted; None where nothing was."""
        value = super().preprocess(payload)
        layers: list[np.ndarray] = value["layers"] if value is not None else []
        layers = [layer for layer in layers if layer.shape == layers[0].shape]
        return np.any(layers, axis=0) if layers and np.any(layers) else None


class WhereToLook:
    """What the place does.

    Args:
        part: what keeps visitors' own categories.
        single: the tab that shows one image.
        lists: what changes beside it.
    """

    def __init__(self, part: YourPart, single: SingleImage, lists: Lists):
        self.part, self.single, self.lists = part, single, lists
        self.words: Words

    @property
    def places(self) -> Places:
        """The components that show an inspection."""
        return self.single.places

    def show_picture(self, request: gr.Request) -> Any:
        """The visitor's image, to paint on."""
        visit = self.single.visits.of(request)
        if visit.path is None:
            return None
        judge = self.single.open(visit.category).judge
        try:
            image = shrink(judge.image_processor.read_image(visit.path))
        except ValueError:  # the inspection has said what is wrong with it
            return None
        picture = judge.renderer.to_image(image, "pil")
        picture.thumbnail((LONGEST, LONGEST))
        return picture

    def narrow(self, category: str, painted: np.ndarray | None, mode: str) -> str:
        """A version of the category that looks where it was painted, or elsewhere; its name.

        Raises:
            gr.Error: if nothing was painted, or too little is left.
        """
        if painted is None:
            raise refusal("Paint on the picture first.", TITLE)
        inside = painted if mode == ONLY else ~painted
        before = self.single.open(category).judge.inside
        if mode == IGNORE and before is not None:
            kept = torch.nn.functional.interpolate(before, size=inside.shape, mode="bilinear")[0, 0].numpy() > 0.5
            inside = inside & kept
        return self.version(category, inside)

    def version(self, category: str, inside: np.ndarray | None) -> str:
        """A version of the category with a region, or without any; its name.

        Raises:
            gr.Error: if too little of the picture is left.
        """
        try:
            return self.part.look_where(category, inside)
        except ValueError as error:
            raise refusal(str(error), TITLE) from None

    @unless_overtaken
    def look_where(
        self,
        painted: np.ndarray | None,
        mode: str | None,
        category: str,
        known: list[str],
        own: list[str] | None,
        opacity: float,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """Looks at the visitor's image by the category with another region; a `mode` of None looks everywhere."""
        single, places, lists = self.single, self.places, self.lists
        visit = single.visits.of(request)
        try:
            new = self.version(category, None) if mode is None else self.narrow(category, painted, mode)
        except gr.Error as error:
            yield {self.words: refused(error)}
            return
        names = [new if name == category and OWN_MARK in name else name for name in known]
        names += [] if new in names else [new]
        visit.settings.pop(category, None)
        before, after = (single.open(name).judge for name in (category, new))
        inside = after.inside
        share = "All of the picture" if inside is None else f"{float(inside.mean()):.0%} of the picture"
        words = (
            f"**{share} is looked at now.** The threshold was {before.threshold:.1f} and is {after.threshold:.1f}."
            " This version stands in the list of categories above, for you alone, and holds in all tabs."
        )
        run = visit.begin(new, visit.path, moment)
        yield visit.show(run, {places.shown: run.number}) | {
            self.words: words,
            lists.known: names,
            lists.own: [*(name for name in own or [] if name != category), new],
            lists.category: gr.Dropdown(choices=label_choices(names), value=new),
        }
        if visit.path is not None:
            yield from single.finish(visit, run, opacity, None, progress)

    def download(self, category: str) -> gr.File:
        """The category as it looks now, as a zip that this page, Python and the command line read."""
        pipe, name = self.single.open(category).judge, f"my_{category.partition(OWN_MARK)[0].rpartition('/')[2]}"
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            save_checkpoint(pipe, read_record(self.single.categories, category), str(Path(scratch) / name))
            return gr.File(shutil.make_archive(str(output_path(name)), "zip", scratch, name), visible=True)


def add_where_to_look(work: WhereToLook) -> None:
    """Builds the place in the tab for one image."""
    single, places, lists = work.single, work.places, work.lists
    with gr.Accordion("Where to look: paint what must not decide", open=False, elem_id="where") as place:
        gr.Markdown(EXPLAINED)
        editor = Painting(
            sources=(), transforms=(), layers=False, eraser=gr.Eraser(), type="numpy", elem_id="painting",
            brush=gr.Brush(default_size=40, colors=["#d01c8b"], color_mode="fixed"), label="Your image, to paint on",
            canvas_size=(LONGEST, LONGEST), buttons=["fullscreen"], height=560,
        )  # fmt: skip
        mode = gr.Radio([IGNORE, ONLY], value=IGNORE, show_label=False, container=False)
        with gr.Row():
            use = gr.Button("Look so", variant="primary")
            everywhere = gr.Button("Look everywhere")
            download = gr.Button("Download the category")
        work.words, archive = Words(elem_id="where-words"), gr.File(visible=False, label="The category")
    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    place.expand(work.show_picture, None, editor, **hidden)
    shared = [lists.category, lists.known, lists.own, single.opacity, single.moment]
    outputs = [*places.all, work.words, lists.known, lists.own, lists.category]
    nothing = gr.State(None)
    for button, inputs in ((use, [editor, mode, *shared]), (everywhere, [nothing, nothing, *shared])):
        looked = button.click(
            work.look_where,
            inputs,
            outputs,
            js=MOMENT,
            show_progress_on=places.heatmap,
            trigger_mode="multiple",
            **hidden,
        )
        looked.then(single.settle, places.shown, places.all, show_progress="hidden", **hidden)
    download.click(work.download, lists.category, archive, **hidden)
