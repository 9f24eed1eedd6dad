"""The tab that watches a line: a camera or a folder in, one large verdict out, and a key for "this was wrong"."""

import html
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from ddad.app.categories import Categories, Category
from ddad.app.compute import QUICK, evaluates_networks, needs_gpu
from ddad.app.examples import OPACITY
from ddad.app.inspection import draw_heatmap, shrink
from ddad.app.many import correct_button
from ddad.app.sources import FOLDERS, is_other_file, open_all, read_folders
from ddad.app.uploads import create_image_input, open_category, output_path
from ddad.app.visits import Judged, Settings, Stopped, Visit, Visits
from ddad.app.words import Words, as_text, refused
from ddad.report.regions import regions_of

EVERY_SECONDS = 0.5  # the browser offers a picture of the camera; what comes too soon is dropped
SIGNS = {"good": "✓ GOOD", "defect": "⚠ DEFECT", "wrong": "✗ WRONG, NOTED", "none": "Waiting for a picture"}


def sign(kind: str, words: str = "") -> str:
    """The large verdict, in a colour of its own and in words: not everybody tells red from green."""
    below = f"<small>{html.escape(words)}</small>" if words else ""
    return f'<div class="line-sign line-{kind}" role="status" aria-live="assertive">{SIGNS[kind]}{below}</div>'


def counters(visit: Visit) -> str:
    """What the line has seen."""
    line = visit.line
    seen = line.good + line.defective
    share = f" ({line.defective / seen:.0%})" if seen else ""
    dropped = f"; {line.dropped} pictures of the camera came too soon and were dropped" if line.dropped else ""
    return (
        f"**{seen} inspected**: {line.good} good, {line.defective} with defects{share}; {line.wrong} verdicts marked"
        f" as wrong{dropped}."
    )


def look(category: Category, path: str, settings: Settings | None) -> tuple[Judged, PIL.Image.Image]:
    """The verdict on a picture, and the picture under its heatmap.

    Raises:
        TypeError, ValueError: if it is none.
    """
    chosen = {} if settings is None else settings.arguments
    original = category.pipe.image_processor.read_image(path)
    scores = category.score(original, pixel_score=None if settings is None else settings.pixel_score)
    scores.images = [shrink(original)]
    result = category.pipe(scores, denoise=False, **chosen)
    picture = draw_heatmap(scores.images[0], result, regions_of(result), OPACITY)
    return Judged(path, result.is_anomalous[0], result.image_score[0], result.threshold), picture


class Line:
    """What the tab does.

    Args:
        categories: the categories.
        visits: the visitors, whose settings hold here too.
    """

    def __init__(self, categories: Categories, visits: Visits):
        self.categories, self.visits = categories, visits
        self.look = needs_gpu(evaluates_networks(look, QUICK))

    def inspect(self, visit: Visit, path: str, category: str) -> tuple[str, Any, str]:
        """One picture: the sign, the picture under its heatmap, and the counters.

        Raises:
            gr.Error: if the category cannot be opened.
        """
        opened = open_category(self.categories, category)
        try:
            judged, picture = self.look(opened, path, visit.settings.get(category))
        except (TypeError, ValueError) as error:
            return sign("none", str(error).replace(path, "This picture")), None, counters(visit)
        line = visit.line
        if line.last is not None and line.last.path not in visit.corrected:
            Path(line.last.path).unlink(missing_ok=True)  # nobody asks for it again
        line.last = judged
        if judged.is_anomalous:
            line.defective += 1
        else:
            line.good += 1
        shown = output_path("line.webp")
        picture.save(shown, quality=85)
        words = f"score {judged.image_score:.1f}, threshold {judged.threshold:.1f}"
        return sign("defect" if judged.is_anomalous else "good", words), str(shown), counters(visit)

    def take_frame(self, path: str | None, category: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """A picture of the camera: looked at if none is looked at now, else dropped. None ever waits."""
        visit = self.visits.of(request)
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        if not visit.line.busy.acquire(blocking=False):
            visit.line.dropped += 1
            Path(path).unlink(missing_ok=True)
            return gr.skip(), gr.skip(), gr.skip()
        try:
            return self.inspect(visit, path, category)
        except gr.Error as error:
            return sign("none"), None, refused(error)
        finally:
            visit.line.busy.release()

    def play(
        self, files: list[str] | None, folders: str, seconds: float, category: str, request: gr.Request
    ) -> Iterator[tuple[Any, Any, Any]]:
        """The pictures of a folder, one after the other, each shown for so many seconds at least."""
        visit = self.visits.of(request)
        run = visit.begin_other()
        if not files:
            yield sign("none"), None, "**No pictures yet.** Choose a folder first."
            return
        names = read_folders(folders)
        if len(names) == len(files):  # a browser tells a folder's files in no order
            names, files = (list(one) for one in zip(*sorted(zip(names, files, strict=True)), strict=True))
        kept = output_path("line")
        kept.mkdir()
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            for number, source in enumerate(open_all(files, Path(scratch), names), start=1):
                if source.path is None or is_other_file(source):
                    continue
                started = time.monotonic()
                path = kept / f"{number:05d}{source.path.suffix.lower()}"
                shutil.copy(source.path, path)
                try:
                    run.check()
                    shown, picture, words = self.inspect(visit, str(path), category)
                    yield shown, picture, f"{words} {as_text(source.name)}"
                    while time.monotonic() - started < seconds:
                        run.check()
                        time.sleep(0.05)
                except Stopped:
                    return
                except gr.Error as error:
                    yield sign("none"), None, refused(error)
                    return

    def say_wrong(self, request: gr.Request) -> tuple[Any, str, gr.Button]:
        """The newest verdict was wrong; said twice, it was right."""
        visit = self.visits.of(request)
        last = visit.line.last
        if last is None:
            return gr.skip(), counters(visit), gr.skip()
        if visit.toggle_wrong(last):
            visit.line.wrong += 1
            shown = sign("wrong", "is good" if last.is_anomalous else "is defective")
        else:
            visit.line.wrong -= 1
            shown = sign("defect" if last.is_anomalous else "good")
        return shown, counters(visit), correct_button(len(visit.corrected))

    def stop(self, request: gr.Request) -> None:
        """Ends the folder that is played."""
        self.visits.of(request).other.stop()


def add_line(categories: Categories, visits: Visits, category: gr.Dropdown) -> tuple[gr.Button, Words]:
    """Builds the tab; returns the button that takes in what was marked as wrong, and where words stand."""
    work = Line(categories, visits)
    gr.Markdown(
        "Watch a line: start your camera, or play a folder of pictures. Each gets one large verdict; the space bar"
        " says *this was wrong*. The camera is yours: its pictures are looked at one by one, and those that come"
        " meanwhile are dropped."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            camera = create_image_input(
                sources=["webcam"], streaming=True, label="Camera", height=240, elem_id="line-camera"
            )
            folder = gr.UploadButton("Play a folder", file_count="directory", size="sm")
            seconds = gr.Slider(0, 10, 2, step=0.5, label="Seconds for each picture of a folder", buttons=[])
            with gr.Row():
                wrong = gr.Button("Wrong (space bar)", elem_id="line-wrong", min_width=160)
                stop = gr.Button("Stop", variant="stop", min_width=80)
            words = Words(counters(Visit()))
            correct, corrected = gr.Button(visible=False), Words()
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(sign("none"), elem_id="line-sign")
            heatmap = gr.Image(
                label="Heatmap", show_label=False, interactive=False, buttons=["fullscreen"], height=520,
                alt_text="The picture under its heatmap", elem_id="line-heatmap",
            )  # fmt: skip
    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    outputs = [shown, heatmap, words]
    camera.stream(work.take_frame, [camera, category], outputs, stream_every=EVERY_SECONDS, **hidden)
    folder.upload(work.play, [folder, gr.Textbox("", visible=False), seconds, category], outputs, js=FOLDERS, **hidden)
    wrong.click(work.say_wrong, None, [shown, words, correct], queue=False, **hidden)
    stop.click(work.stop, None, None, queue=False, **hidden)
    return correct, corrected
