"""The tab that inspects many images: files, a folder or a zip in; a table that fills and a zip of results out."""

import base64
import datetime
import html
import io
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import PIL.Image

from ddad.app.categories import OWN_MARK, Categories, Category, readable
from ddad.app.compute import evaluates_networks, give_way, needs_gpu
from ddad.app.single_events import MOMENT, SingleImage
from ddad.app.sources import FOLDERS, Source, count_files, is_other_file, open_all, read_folders
from ddad.app.uploads import open_category, output_path
from ddad.app.visits import Judged, Run, Settings, Stopped, Visits
from ddad.app.words import Words, as_text, refused
from ddad.calibration.advice import count_of
from ddad.pipeline import DDADPipelineOutput
from ddad.report.export import ResultsArchive, record_of
from ddad.runtime.html import SIDE, write_report
from ddad.runtime.records import Record
from ddad.runtime.results import Kept

MOST_IMAGES = 200
THUMBNAIL = 72
REFRESH_SECONDS = 0.7
# On a phone the first four are seen without scrolling.
HEADERS = ["No.", "Picture", "Verdict", "Score", "Wrong?", "File", "Regions", "Note"]
DATATYPES = ["number", "html", "str", "number", "str", "str", "number", "str"]
WIDTHS = ["52px", "92px", "108px", "76px", "130px", "220px", "90px", "420px"]
WRONG = HEADERS.index("Wrong?")
ORDERS = ("As they came", "Highest score first", "Lowest score first")


def inspect_source(
    category: Category, source: Source, denoise: bool, settings: Settings | None = None, run: Run | None = None
) -> tuple[Record, DDADPipelineOutput | None]:
    """One image's record and result; an image that cannot be inspected gives a record with the reason.

    Args:
        category: the category.
        source: the image.
        denoise: whether to make the normal version; one that is under way when the visitor stops is left out.
        settings: what the visitor chose for the category.
        run: the batch.
    """
    if source.path is None:
        return Record(source.name, error=source.error), None

    def after_step(*_: Any) -> None:
        if run is not None:
            run.check()
        give_way()

    chosen = {} if settings is None else settings.arguments
    try:
        scores = category.score(source.path, pixel_score=None if settings is None else settings.pixel_score)
        try:
            result = category.pipe(scores, denoise=denoise, callback_on_step_end=after_step, **chosen)
        except Stopped:
            result = category.pipe(scores, denoise=False, **chosen)
    except (TypeError, ValueError) as error:
        return Record(source.name, error=str(error).replace(str(source.path), "This file")), None
    return record_of(source.name, result, scores.images[0]), result


def kept_small(
    record: Record, category: str, pictures: Sequence[PIL.Image.Image | None] = (None, None), stem: Path | None = None
) -> Kept:
    """A result for the report, with heatmap and normal version as small files that begin with `stem`."""
    paths = []
    for kind, picture in zip(("heatmap", "normal"), pictures, strict=True):
        if picture is None or stem is None:
            paths.append(None)
            continue
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        paths.append(stem.with_name(f"{stem.name}_{kind}.jpg"))
        small.save(paths[-1], quality=85)
    return Kept(datetime.datetime.now(), record, category.partition(OWN_MARK)[0], *paths)


def table_row(number: int, record: Record, overlay: PIL.Image.Image | None) -> list[Any]:
    """One row of the table."""
    picture = ""
    if overlay is not None:
        small = overlay.copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        small.save(data, format="JPEG", quality=80)
        code = base64.b64encode(data.getvalue()).decode()
        picture = f'<img alt="Heatmap of {html.escape(record.image)}" src="data:image/jpeg;base64,{code}">'
    verdict = {True: "⚠ defect", False: "✓ good", None: "✗ not inspected"}[record.is_anomalous]
    score = None if record.image_score is None else round(record.image_score, 2)
    regions = None if record.is_anomalous is None else len(record.regions)
    wrong = "" if record.is_anomalous is None else mark(record.is_anomalous, False)
    return [number, picture, verdict, score, wrong, record.image, regions, record.error or ""]


def mark(is_anomalous: bool, is_wrong: bool) -> str:
    """What stands where a verdict can be marked as wrong."""
    return f"{'☑' if is_wrong else '☐'} {'is good' if is_anomalous else 'is defective'}"


def sort_rows(rows: list[list[Any]], order: str) -> list[list[Any]]:
    """The rows in one of `ORDERS`; what could not be inspected comes last."""
    if order == ORDERS[0]:
        return sorted(rows, key=lambda row: row[0])
    sign = -1 if order == ORDERS[1] else 1
    return sorted(rows, key=lambda row: (row[3] is None, sign * (row[3] or 0), row[0]))


def summary(records: list[Record], others: int, state: str, category: str = "") -> str:
    """The state of a batch in words."""
    counts = {verdict: sum(record.is_anomalous is verdict for record in records) for verdict in (True, False, None)}
    text = (
        f"**{len(records)} inspected**: {counts[True]} with defects, {counts[False]} good, {counts[None]} that"
        " cannot be read."
    )
    left_out = f" {others} other files were left out." if others else ""
    judged = f" Inspected as *{as_text(readable(category))}*." if category else ""
    return f"{text}{left_out}{judged} {state}".strip()


class ManyImages:
    """What the tab does.

    Args:
        categories: the categories.
        visits: the visitors, whose settings hold here too.
    """

    def __init__(self, categories: Categories, visits: Visits):
        self.categories = categories
        self.visits = visits
        self.inspect_one = needs_gpu(evaluates_networks(inspect_source))

    def inspect_all(
        self,
        files: list[str] | None,
        category: str,
        denoise: bool,
        order: str,
        request: gr.Request | None,
        folders: Sequence[str] = (),
    ) -> Iterator[tuple[str, list[list[Any]], str | None]]:
        """Inspects the images one after the other, until all are done or the visitor stops.

        Yields:
            The summary, the table so far, and in the end the zip of results.
        """
        if not files:
            yield "**No images yet.** Choose images, a folder or a zip first.", [], None
            return
        try:
            opened = open_category(self.categories, category)
        except gr.Error as error:
            yield refused(error), [], None
            return
        visit = self.visits.of(request)
        run, settings = visit.begin_other(), visit.settings.get(category)
        visit.batch.clear()
        visit.results.clear()
        visit.corrected.clear()
        rows: list[list[Any]] = []
        visit.rows = rows
        archive = ResultsArchive(output_path("ddad_results.zip"), category.partition(OWN_MARK)[0])
        others, state = 0, ""
        kept = output_path("batch")
        kept.mkdir()
        shown = 0.0
        count = min(count_files(files), MOST_IMAGES)
        yield f"Starting with {count} files, as *{as_text(readable(category))}* ...", rows, None
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            for source in open_all(files, Path(scratch), folders):
                try:
                    run.check()
                except Stopped:
                    state = "Stopped: what is done is kept."
                    break
                if is_other_file(source):
                    others += 1
                    continue
                if len(rows) == MOST_IMAGES:
                    state = (
                        f"At most {MOST_IMAGES} images at a time: the rest was left out. `ddad predict` has no limit."
                    )
                    break
                number = len(rows) + 1
                record, result = self.inspect_one(opened, source, denoise, settings, run)
                if result is None:
                    archive.add(record)
                    visit.results.append(kept_small(record, category))
                    rows.append(table_row(number, record, None))
                else:
                    assert source.path is not None
                    name = PurePosixPath(source.name.replace("\\", "/")).name or "image"
                    copied = str(shutil.copy(source.path, kept / f"{number:04d}_{name[-80:]}"))
                    visit.batch[number] = Judged(
                        copied, result.is_anomalous[0], result.image_score[0], result.threshold
                    )
                    denoised = None if result.denoised_image is None else result.denoised_image[0]
                    archive.add(record, result.anomaly_map[0], result.overlay[0], denoised)
                    pictures = (result.overlay[0], denoised) if record.is_anomalous else (None, None)
                    visit.results.append(kept_small(record, category, pictures, kept / f"{number:04d}"))
                    rows.append(table_row(number, record, result.overlay[0]))
                if time.monotonic() - shown > REFRESH_SECONDS:
                    shown = time.monotonic()
                    done = f"{len(rows)} of at most {max(count - others, len(rows))}, more are coming ..."
                    yield summary(archive.records, others, done, category), rows, None
        if not rows:
            archive.close().unlink()
            yield f"**No images found.** {state or 'There is no image in what you gave.'}", rows, None
            return
        yield summary(archive.records, others, state, category), sort_rows(rows, order), str(archive.close())

    def report(self, category: str, request: gr.Request) -> gr.File:
        """The batch as one file of HTML, for who was not there."""
        results = list(self.visits.of(request).results)
        if not results:
            gr.Warning("Inspect some images first.", title="Nothing to report")
            return gr.File(visible=False)
        path = output_path("report.html")
        write_report(results, path, f"{readable(category)}: {len(results)} images")
        return gr.File(str(path), visible=True)

    def stop(self, request: gr.Request) -> None:
        """Ends the batch after the image under way; what is done is kept."""
        self.visits.of(request).other.stop()

    def sort(self, order: str, request: gr.Request) -> list[list[Any]]:
        """The table in another order."""
        return sort_rows(self.visits.of(request).rows, order)

    def choose_row(
        self, order: str, event: gr.SelectData, request: gr.Request
    ) -> tuple[gr.Tabs, str | None, Any, gr.Button]:
        """A row was chosen: its image, for the tab that shows one; or, where that was chosen, its verdict is wrong."""
        visit, number = self.visits.of(request), int(event.row_value[0])
        judged = visit.batch.get(number)
        if judged is None or not Path(judged.path).is_file():
            return gr.skip(), None, gr.skip(), gr.skip()
        if event.index[1] != WRONG:
            return gr.Tabs(selected="one"), judged.path, gr.skip(), gr.skip()
        is_wrong = visit.toggle_wrong(judged)
        for row in visit.rows:
            if row[0] == number:
                row[WRONG] = mark(judged.is_anomalous, is_wrong)
        return gr.skip(), None, sort_rows(visit.rows, order), correct_button(len(visit.corrected))


def correct_button(count: int) -> gr.Button:
    """The button that takes in what was marked as wrong."""
    return gr.Button(f"Correct {count_of(count, 'verdict')} that I marked as wrong", visible=count > 0)


def add_many_images(
    categories: Categories, visits: Visits, category: gr.Dropdown, tabs: gr.Tabs, single: SingleImage
) -> tuple[gr.Button, Words]:
    """Builds the tab; returns the button that takes in what was marked as wrong, and where words stand."""
    work = ManyImages(categories, visits)
    gr.Markdown(
        f"Give up to {MOST_IMAGES} images, or a zip of them. A file that cannot be read becomes a row that says why,"
        " and the others go on. Click a row to see its image in full; where a verdict is wrong, click that in its row."
    )
    with gr.Row():
        files = gr.File(
            file_count="multiple", label="Images or zips: drop them here", height=160, scale=3, min_width=280
        )
        with gr.Column(scale=1, min_width=220):
            folder = gr.UploadButton("Choose a whole folder", file_count="directory")
            denoise = gr.Checkbox(label="Make normal versions too (ten times slower)")
            with gr.Row():
                start = gr.Button("Inspect all", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=80)
    progress = Words("Nothing inspected yet.", container=True)
    correct, corrected = gr.Button(visible=False), Words()
    order = gr.Radio(ORDERS, value=ORDERS[0], show_label=False, label="Order of the table", container=False)
    table = gr.Dataframe(
        headers=HEADERS, datatype=DATATYPES, interactive=False, label="Results", max_height=700,
        column_widths=WIDTHS, wrap=True, show_search="search",
    )  # fmt: skip
    download = gr.File(
        label="Results: heatmaps, maps, normal versions, tables of images and regions in one zip", interactive=False
    )
    with gr.Row():
        reporting = gr.Button("Report for who was not there: one page to send or print", size="sm")
        report = gr.File(visible=False, label="The report", interactive=False)
    chosen, folder_names = gr.State(None), gr.Textbox("", visible=False)

    def inspect_given(
        files: list[str] | None, category: str, denoise: bool, order: str, folder_names: str, request: gr.Request
    ) -> Iterator[tuple[str, list[list[Any]], str | None]]:
        yield from work.inspect_all(files, category, denoise, order, request, read_folders(folder_names))

    hidden = {"api_visibility": "private", "concurrency_limit": None}
    options = {**hidden, "show_progress": "minimal", "show_progress_on": progress}
    outputs = [progress, table, download]
    start.click(inspect_given, [files, category, denoise, order, folder_names], outputs, **options)
    # A folder waits for the button, as files do; the names of its folders are kept for the results.
    folder.upload(
        lambda paths, folder_names: (paths, folder_names),
        [folder, folder_names],
        [files, folder_names],
        js=FOLDERS,
        **hidden,
    )
    gr.on([files.upload, files.clear], lambda: "", None, folder_names, **hidden)
    order.input(work.sort, order, table, **hidden)
    stop.click(work.stop, None, None, queue=False, **hidden)
    reporting.click(work.report, category, report, **hidden)
    places = single.places
    start.click(lambda: (correct_button(0), ""), None, [correct, corrected], queue=False, **hidden)
    selected = table.select(work.choose_row, order, [tabs, chosen, table, correct], show_progress="hidden", **hidden)
    selected.then(
        single.inspect_file, [chosen, category, single.moment], places.all, js=MOMENT, trigger_mode="multiple",
        show_progress_on=places.heatmap, **hidden,
    )  # fmt: skip
    return correct, corrected
