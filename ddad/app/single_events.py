"""What the tab for one image does: inspect, repair, judge anew. Every public method is an event of the page.

One run of one visitor is one call of `inspect_image`: it clears what stood there, shows verdict and heatmap, and then
the normal version. All that it shows passes `Visit.show`, which drops what belongs to no newest run.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from ddad.app import inspection as views
from ddad.app.categories import Categories, Category, readable
from ddad.app.compute import QUICK, evaluates_networks, give_way, needs_gpu
from ddad.app.examples import OPACITY, Example, Examples
from ddad.app.histogram import draw_histogram
from ddad.app.inspection import Finding, Inspection
from ddad.app.places import Places
from ddad.app.uploads import open_category, output_path, read_mask, refusal
from ddad.app.visits import Judged, Run, Settings, Stopped, Visit, Visits
from ddad.app.words import as_text
from ddad.calibration.promise import RATES, promise
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import load_record
from ddad.images_ddad import DDADImageProcessor, open_picture
from ddad.pipeline import DDADPipelineOutput
from ddad.rendering_ddad import DDADRenderer
from ddad.report.drawing import save_animation

TALLEST = 560  # of pictures on the screen, in its pixels
SLOW_PIXELS = 12_000_000
PIXELS_A_SECOND = 4_000_000
# The last input becomes the moment of the click: the server may see two of them in the other order.
MOMENT = "(...inputs) => [...inputs.slice(0, -1), performance.timeOrigin + performance.now()]"
WELCOME = "Drop an image, or click an example. The heatmap takes a second."
NO_EXAMPLES = "There are no examples of *{}* here: drop an image. The heatmap takes a second."
IS_GOOD, IS_DEFECTIVE = "Wrong? This part is good", "Wrong? This part is defective"
FILM, MAPS = "film", "maps"  # places that are filled only for who opens them


def save_picture(picture: PIL.Image.Image, name: str) -> str:
    """A picture as a file whose name says what it is, for the visitor alone."""
    path = output_path(f"{name}.png")
    picture.save(path)
    return str(path)


def unless_overtaken(method: Callable[..., Any]) -> Callable[..., Any]:
    """An event that changes nothing where the browser has asked for something newer meanwhile."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def event(self: "SingleImage", *args: Any, **kwargs: Any) -> Any:
            try:
                yield from method(self, *args, **kwargs)
            except Stopped:
                yield self.places.nothing

        return event

    @functools.wraps(method)
    def quick_event(self: "SingleImage", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Stopped:
            return self.places.nothing

    return quick_event


def show_picture(picture: PIL.Image.Image | Path, name: str) -> gr.Image:
    """A picture for the heatmap's place, no taller than the screen."""
    if isinstance(picture, Path):
        with PIL.Image.open(picture) as stored:
            width, height = stored.size
        return gr.Image(str(picture), height=None if width >= height else TALLEST)
    return gr.Image(save_picture(picture, name), height=None if picture.width >= picture.height else TALLEST)


def introduce(checkpoint: Path) -> str:
    """What stands below a category's examples: what its images show, and whose they are."""
    record = load_record(checkpoint)
    return record["config"]["data_source"] if record else ""


def explain(example: Example) -> str:
    """Of an example of a visitor's own part, what it is."""
    return f"*This is {as_text(example.about)}.*"


def time_needed(path: str) -> str:
    """Of a large image, how long it takes to read; nothing of others, and of what is no image."""
    try:
        with open_picture(path) as picture:
            pixels = picture.width * picture.height
    except Exception:  # the inspection itself will say what is wrong with it
        return ""
    if pixels < SLOW_PIXELS:
        return ""
    return f" It has {pixels / 1e6:.0f} megapixels: this takes about {pixels / PIXELS_A_SECOND:.0f} seconds."


def stem(path: str | None) -> str:
    """What the files that are made of an image are called by."""
    return Path(path).stem[:60] if path else "image"


def nearest(rate: float) -> float | None:
    """Of the rates that are offered that one, if it is one."""
    return next((one for one in RATES if abs(one - rate) < 1e-6), None)


class SingleImage:
    """What the tab does, apart from how it looks.

    Args:
        categories: the categories.
        visits: the visitors.
        examples: the examples of the categories.
    """

    def __init__(self, categories: Categories, visits: Visits, examples: Examples):
        self.categories = categories
        self.visits = visits
        self.examples = examples
        self.look = needs_gpu(evaluates_networks(self._look, QUICK))
        self.repair = needs_gpu(evaluates_networks(self._repair))
        self.places: Places
        self.example_places: list[Any]
        self.moment: gr.Number
        self.opacity: gr.Slider
        self.more: gr.Column  # room for what follows from other tabs

    # ---------------------------------------------------------------------------------------------------- the networks

    def _look(self, path: str, category: str, alpha: float) -> Inspection:
        """Scores an image; the U-Net is evaluated only if its pixel score weighs something."""
        opened = self.open(category)
        try:
            original = opened.pipe.image_processor.read_image(path)
            scores = opened.score(original, pixel_score="kl" if alpha > 0 else None)
        except (TypeError, ValueError) as error:
            raise refusal(str(error).replace(path, Path(path).name)) from None
        shown = replace(scores, images=[views.shrink(original)])
        return Inspection(category, shown, (original.shape[2], original.shape[1]))

    def _repair(self, inspection: Inspection, settings: Settings, run: Run, progress: gr.Progress) -> Inspection:
        """Makes the normal version; returns the inspection with the steps and the last of them."""
        pipe = self.open(inspection.category).pipe
        most = pipe.denoiser.most_steps(pipe.denoiser.gradient_steps(False, pipe.refiner is not None))
        progress(0, desc="Removing the defect")

        def after_step(_: DDADPipeline, step: int, __: int, ___: dict[str, Any]) -> None:
            run.check()
            give_way()
            progress((step + 1, most), desc=f"Removing the defect: step {step + 1} of at most {most}", unit="steps")

        result = pipe(
            inspection.scores,
            **settings.arguments,
            callback_on_step_end=after_step,
        )
        return replace(inspection, frames=result.intermediates[0], normal=result.denoised_image[0])

    # -------------------------------------------------------------------------------------------------------- one run

    @unless_overtaken
    def inspect_image(
        self,
        path: str | None,
        category: str,
        opacity: float,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """A new image: clears, finds, repairs. No image clears alone."""
        visit = self.visits.of(request)
        path = visit.originals.get(Path(path).name, path) if path else None
        run = visit.begin(category, path, moment)
        places = self.places
        start = {places.truth: None, places.shown: run.number}
        if path is None:
            yield visit.show(run, {**places.cleared(WELCOME), **start})
            return
        words = f"Looking at your image as *{as_text(readable(category))}* ...{time_needed(path)}"
        yield visit.show(run, {**places.cleared(words), **start})
        preview = self.preview(visit, path)
        if preview:
            yield visit.show(run, preview)
        yield from self.finish(visit, run, opacity, None, progress)

    def preview(self, visit: Visit, path: str) -> dict[Any, Any]:
        """What the browser can show of a TIFF in place of it; nothing for the formats that browsers know."""
        if Path(path).suffix.lower() not in (".tif", ".tiff"):
            return {}
        processor = DDADImageProcessor()
        try:
            small = DDADRenderer.to_image(views.shrink(processor.read_image(path)), "pil")
        except ValueError:  # the inspection itself will say what is wrong with it
            return {}
        shown = save_picture(small, f"{stem(path)}_preview_{visit.run.number}")
        visit.originals[Path(shown).name] = path
        return {self.places.image: shown}

    @unless_overtaken
    def inspect_file(
        self,
        path: str | None,
        category: str,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """An image that is already here: a row of the table of many."""
        if path is None:
            yield self.places.nothing
            return
        visit = self.visits.of(request)
        run = visit.begin(category, path, moment)
        start = {self.places.image: path, self.places.truth: None, self.places.shown: run.number}
        yield visit.show(run, {**self.places.cleared("Looking at this image ..."), **start})
        yield from self.finish(visit, run, OPACITY, None, progress)

    @unless_overtaken
    def inspect_example(
        self,
        category: str,
        opacity: float,
        moment: float,
        event: gr.SelectData,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """An example: what was found on it is stored, and shown at once where the visitor changed no setting."""
        visit = self.visits.of(request)
        example = self.examples.of(category)[event.index]
        run = visit.begin(category, str(example.path), moment)
        places = self.places
        start = {places.image: str(example.path), places.truth: None, places.shown: run.number}
        if example.finding is not None and category not in visit.settings:
            yield visit.show(run, {**self.show_stored(category, example), **start})
            yield from self.fill_opened(visit, run, progress)
            return
        visit.note = explain(example) if example.about else ""
        yield visit.show(run, {**places.cleared("Looking at the example ..."), **start})
        yield from self.finish(visit, run, opacity, None, progress)

    def finish(
        self,
        visit: Visit,
        run: Run,
        opacity: float,
        truth: str | None,
        progress: gr.Progress,
        asked: bool = False,
    ) -> Iterator[dict[Any, Any]]:
        """From an image to all that is shown of it. The last that is yielded is empty: Gradio sends it twice.

        What seems to be no such part is repaired only where that is asked for: nothing good comes of it.
        """
        places = self.places
        try:
            progress(0.2, desc="Looking for defects")
            inspection = self.ensure_inspected(visit, run)
            view, finding = self.judge_now(visit, run, inspection, opacity, truth, sliders=True)
            yield visit.show(run, view)
            run.check()
            if asked or not finding.is_another_part:
                yield from self.repair_now(visit, run, inspection, progress)
        except Stopped:
            if visit.inspection is None:
                yield visit.show(run, places.cleared("Stopped. *Find defects* looks again."))
        except gr.Error as error:
            yield visit.show(run, places.cleared(f"## ✗ {as_text(error.title)}\n\n{as_text(error.message)}"))
        yield self.places.nothing

    def ensure_repaired(self, visit: Visit, run: Run, inspection: Inspection, progress: gr.Progress) -> Inspection:
        """The normal version with the settings as they are, and its steps.

        Raises:
            Stopped: if another image was given meanwhile, or the visitor stopped it.
        """
        repaired = self.repair(inspection, self.settings_of(visit, inspection.category), run, progress)
        with visit.lock:
            run.check()
            visit.inspection = repaired
        return repaired

    def repair_now(
        self, visit: Visit, run: Run, inspection: Inspection, progress: gr.Progress
    ) -> Iterator[dict[Any, Any]]:
        """Shows the normal version."""
        places, repaired = self.places, self.ensure_repaired(visit, run, inspection, progress)
        original = self.open(inspection.category).judge.renderer.to_image(inspection.scores.images[0], "pil")
        name = stem(visit.path)
        pair = (save_picture(original, f"{name}_original"), save_picture(repaired.normal, f"{name}_normal_version"))
        yield visit.show(run, {places.slider: pair, places.shown: run.number})
        yield from self.fill_opened(visit, run, progress)

    def ensure_inspected(self, visit: Visit, run: Run) -> Inspection:
        """The scores of the run's image, evaluated if they are not there yet (of a stored example, they are not).

        Raises:
            Stopped: if another image was given meanwhile.
        """
        with visit.lock:
            inspection, path, category = visit.inspection, visit.path, visit.category
        alpha = self.settings_of(visit, category).alpha if path is not None else 0.0
        if inspection is None or (alpha > 0 and inspection.scores.pixel_maps is None):
            if path is None:
                raise refusal("Give an image first: there is nothing to judge yet.", "No image yet")
            looked = self.look(path, category, alpha)
            inspection = looked if inspection is None else replace(inspection, scores=looked.scores)
            with visit.lock:
                if run is not visit.run:
                    raise Stopped
                visit.inspection = inspection
        return inspection

    # --------------------------------------------------------------------------------------------------- what is shown

    def open(self, category: str) -> Category:
        """The category, or a refusal."""
        return open_category(self.categories, category)

    def own_settings(self, category: str) -> Settings:
        """The category's own choice."""
        pipe = self.open(category).judge
        return Settings(pipe.config.alpha, tuple(pipe.timesteps), pipe.config.tolerance)

    def settings_of(self, visit: Visit, category: str) -> Settings:
        """What the visitor chose for a category, or its own choice."""
        return visit.settings.get(category) or self.own_settings(category)

    def good_scores(self, category: str, settings: Settings) -> list[float]:
        """The scores of the good parts that the pipeline stores."""
        pipe = self.open(category).judge
        scores = pipe.calibration.held_out_scores(
            pipe.judgement(settings.alpha, settings.timesteps, tolerance=settings.tolerance)
        )
        return [] if scores is None else scores.tolist()

    def histogram_of(self, category: str, settings: Settings, score: float, threshold: float) -> str:
        """The image among them."""
        return draw_histogram(self.good_scores(category, settings), score, threshold)

    def judge_now(
        self, visit: Visit, run: Run, inspection: Inspection, opacity: float, truth: str | None, sliders: bool
    ) -> tuple[dict[Any, Any], Finding]:
        """Verdict, heatmap, histogram, regions and, where opened, maps; with the sliders where they are to move."""
        places, settings = self.places, self.settings_of(visit, inspection.category)
        pipe = self.open(inspection.category).judge
        result = pipe(inspection.scores, **settings.arguments, denoise=False)
        finding = Finding.of(result, inspection.size, inspection.shown_size)
        heatmap = self.draw_heatmap(inspection, result, finding, opacity, truth)
        chosen = settings.threshold is not None
        words = views.verdict(finding, pipe, chosen, settings.false_alarms)
        with visit.lock:
            if run is visit.run and visit.path is not None:
                visit.judged = Judged(visit.path, finding.is_anomalous, finding.image_score, finding.threshold)
        view = {
            places.answer: f"{words}\n\n{visit.note}" if visit.note else words,
            places.doubt: self.doubt(visit, finding),
            places.heatmap: show_picture(heatmap, f"{stem(visit.path)}_heatmap"),
            places.histogram: self.histogram_of(inspection.category, settings, finding.image_score, finding.threshold),
            places.regions: views.region_rows(finding.regions),
            places.shown: run.number,
        }
        if MAPS in visit.opened:
            view[places.maps] = views.draw_maps(result)
        if sliders:
            view |= self.slider_values(pipe, settings, finding.image_score, finding.threshold)
        return view, finding

    def shows_example(self, visit: Visit) -> bool:
        """Whether what is inspected is one of its category's examples."""
        return any(visit.path == str(example.path) for example in self.examples.of(visit.category))

    def doubt(self, visit: Visit, finding: Finding) -> gr.Button:
        """The button that says that the verdict is wrong; of an example one knows what it is."""
        if self.shows_example(visit):
            return gr.Button(visible=False)
        return gr.Button(IS_GOOD if finding.is_anomalous else IS_DEFECTIVE, visible=True)

    @staticmethod
    def draw_heatmap(
        inspection: Inspection, result: DDADPipelineOutput, finding: Finding, opacity: float, truth: str | None
    ) -> PIL.Image.Image:
        """The heatmap; a ground truth of another image is refused, and holds nothing back."""
        image = inspection.scores.images[0]
        if truth is not None:
            try:
                return views.draw_heatmap(image, result, finding.regions, opacity, read_mask(truth))
            except (ValueError, gr.Error) as error:
                reason = error.message if isinstance(error, gr.Error) else str(error)
                gr.Warning(as_text(reason), title="This ground truth cannot be drawn")
        return views.draw_heatmap(image, result, finding.regions, opacity)

    def slider_values(self, pipe: DDADPipeline, settings: Settings, score: float, threshold: float) -> dict[Any, Any]:
        """The what-if controls as they stand for an image."""
        places = self.places
        highest = max(3 * threshold, 1.2 * score, 1.0)
        return {
            places.limit: round(threshold, 2),
            places.threshold: gr.Slider(value=round(threshold, 2), maximum=round(highest, 1)),
            places.alpha: settings.alpha,
            places.levels: gr.CheckboxGroup(choices=pipe.timesteps, value=list(settings.timesteps)),
            places.tolerance: gr.Radio(
                value=settings.tolerance, interactive=len(pipe.calibration.known_tolerances) > 1
            ),
            **self.promised(pipe, settings),
        }

    def promised(self, pipe: DDADPipeline, settings: Settings) -> dict[Any, Any]:
        """How many good parts may fail, and what is promised of it; nothing of a threshold that was typed."""
        judges, places = pipe.calibration.config.num_calibration_images, self.places
        if settings.threshold is not None or pipe.config.threshold is not None or judges < 2:
            return {places.rates: gr.Radio(value=None), places.promise: ""}
        rate = pipe.calibration.false_alarms if settings.false_alarms is None else settings.false_alarms
        return {places.rates: gr.Radio(value=nearest(rate)), places.promise: promise(judges, rate)}

    def stored_values(self, category: str, example: Example) -> dict[str, Any]:
        """What was found on an example when it was made, by the name of its place; no network is evaluated."""
        finding = example.finding
        assert finding is not None
        pipe, settings = self.open(category).judge, self.own_settings(category)
        words = views.verdict(finding, pipe, chosen=False)
        return {
            "answer": f"{words}\n\n{explain(example)}" if example.about else words,
            "heatmap": str(example.heatmap),
            "slider": (str(example.path), str(example.normal)),
            "histogram": self.histogram_of(category, settings, finding.image_score, finding.threshold),
            "regions": views.region_rows(finding.regions),
        }

    def show_stored(self, category: str, example: Example) -> dict[Any, Any]:
        """The same as the page shows it, with its controls."""
        places, finding = self.places, example.finding
        assert finding is not None and example.heatmap is not None
        pipe, settings = self.open(category).judge, self.own_settings(category)
        return {
            **dict.fromkeys((places.film, places.animation, places.maps)),
            places.doubt: gr.Button(visible=False),
            **{getattr(places, name): value for name, value in self.stored_values(category, example).items()},
            places.heatmap: show_picture(example.heatmap, f"{example.path.stem}_heatmap"),
            **self.slider_values(pipe, settings, finding.image_score, finding.threshold),
        }

    def fill_opened(self, visit: Visit, run: Run, progress: gr.Progress) -> Iterator[dict[Any, Any]]:
        """The steps of the denoising and the maps, for a visitor who has opened their places."""
        places = self.places
        if MAPS in visit.opened and visit.view.get(places.maps) is None:
            yield visit.show(run, self.draw_maps(visit, run))
        if FILM in visit.opened:
            inspection = self.ensure_inspected(visit, run)
            if not inspection.frames:
                inspection = self.ensure_repaired(visit, run, inspection, progress)
            captions = ["As it came", *(f"Step {number}" for number in range(1, len(inspection.frames)))]
            film = list(zip(inspection.frames, captions, strict=True))
            animation = None
            if len(inspection.frames) > 1:
                animation = str(save_animation(inspection.frames, output_path(f"{stem(visit.path)}_denoising.gif")))
            yield visit.show(run, {places.film: film, places.animation: animation})

    def draw_maps(self, visit: Visit, run: Run) -> dict[Any, Any]:
        """The maps behind the heatmap."""
        inspection = self.ensure_inspected(visit, run)
        settings = self.settings_of(visit, inspection.category)
        result = self.open(inspection.category).judge(inspection.scores, **settings.arguments, denoise=False)
        return {self.places.maps: views.draw_maps(result)}

    # --------------------------------------------------------------------------------------------------- the controls

    def judge(
        self, visit: Visit, change: Settings | None, opacity: float, truth: str | None, sliders: bool
    ) -> dict[Any, Any]:
        """Judges the image of the newest run with changed settings, which hold for the category from now on."""
        with visit.lock:
            run, category = visit.run, visit.category
            before = visit.settings.get(category)
            if change is not None:
                visit.settings[category] = change
        try:
            inspection = self.ensure_inspected(visit, run)
            return visit.show(run, self.judge_now(visit, run, inspection, opacity, truth, sliders)[0])
        except Stopped:
            return self.places.nothing
        except gr.Error as error:
            gr.Warning(as_text(error.message), title=as_text(error.title))
            return self.places.nothing
        except ValueError as error:
            with visit.lock:
                visit.settings.pop(category, None)
                if before is not None:
                    visit.settings[category] = before
            gr.Warning(as_text(error), title="This setting cannot be used")
            return self.places.nothing

    def redraw(self, opacity: float, truth: str | None, request: gr.Request) -> dict[Any, Any]:
        """Another opacity, or a ground truth."""
        visit = self.visits.of(request)
        if visit.path is None:
            return self.places.nothing
        return self.judge(visit, None, opacity, truth, sliders=False)

    def type_threshold(
        self, threshold: float | None, opacity: float, truth: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        """A threshold that the visitor typed; one above the slider's end widens the slider."""
        if threshold is None:  # while the number is typed
            return self.places.nothing
        view = self.choose_threshold(threshold, opacity, truth, request)
        return {place: value for place, value in view.items() if place is not self.places.limit}

    def drag_threshold(
        self, threshold: float, opacity: float, truth: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        """A threshold that the visitor set with the slider, which stays where it is held."""
        view = self.choose_threshold(threshold, opacity, truth, request)
        return {place: value for place, value in view.items() if place is not self.places.threshold}

    def choose_threshold(
        self, threshold: float, opacity: float, truth: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        """A threshold that the visitor chose, for the category from now on."""
        visit = self.visits.of(request)
        change = replace(self.settings_of(visit, visit.category), threshold=threshold, false_alarms=None)
        return self.judge(visit, change, opacity, truth, sliders=True)

    def choose_rate(
        self, rate: float | None, opacity: float, truth: str | None, request: gr.Request
    ) -> dict[Any, Any]:
        """How many good parts may fail, from which the threshold follows."""
        if rate is None:
            return self.places.nothing
        visit = self.visits.of(request)
        change = replace(self.settings_of(visit, visit.category), threshold=None, false_alarms=rate)
        view = self.judge(visit, change, opacity, truth, sliders=True)
        return {place: value for place, value in view.items() if place is not self.places.rates}

    def choose_weights(
        self,
        alpha: float,
        timesteps: list[int],
        tolerance: str,
        opacity: float,
        truth: str | None,
        request: gr.Request,
    ) -> dict[Any, Any]:
        """Another alpha, noise levels or tolerance, with the threshold that they have on good parts."""
        if not timesteps:
            gr.Warning("Choose at least one noise level.", title="Nothing to combine")
            return self.places.nothing
        visit = self.visits.of(request)
        rate = self.settings_of(visit, visit.category).false_alarms
        change = Settings(alpha, tuple(timesteps), tolerance, false_alarms=rate)
        view = self.judge(visit, change, opacity, truth, sliders=True)
        # What is under the visitor's hand stays as it is by now.
        return {place: value for place, value in view.items() if place not in self.places.weights}

    def choose_default(self, opacity: float, truth: str | None, request: gr.Request) -> dict[Any, Any]:
        """The pipeline's own choice of alpha, noise levels and threshold."""
        visit = self.visits.of(request)
        with visit.lock:
            visit.settings.pop(visit.category, None)
        return self.judge(visit, None, opacity, truth, sliders=True)

    @unless_overtaken
    def repair_again(
        self,
        opacity: float,
        truth: str | None,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """The normal version with the settings as they are now."""
        visit = self.visits.of(request)
        run = visit.again(moment)
        yield visit.show(run, {self.places.slider: None, self.places.shown: run.number})
        yield from self.finish(visit, run, opacity, truth, progress, asked=True)

    def open_place(
        self,
        name: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """The visitor opened a place that is filled only for who looks."""
        visit = self.visits.of(request)
        visit.opened.add(name)
        run = visit.run
        if visit.path is not None and (visit.inspection is None or visit.inspection.frames or name == MAPS):
            with contextlib.suppress(Stopped):
                yield from self.fill_opened(visit, run, progress)
        yield self.places.nothing

    def close_place(self, name: str, request: gr.Request) -> None:
        """The visitor closed it."""
        self.visits.of(request).opened.discard(name)

    def stop(self, request: gr.Request) -> None:
        """Ends the work for the visitor's image; what is shown of it stays."""
        self.visits.of(request).run.stop()

    @unless_overtaken
    def follow(
        self,
        category: str,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        """Another category was chosen: the visitor's own image is judged by it, else its finished example is shown."""
        visit, places = self.visits.of(request), self.places
        if category == visit.category:
            yield places.nothing
            return
        path = visit.path
        if path is None or self.shows_example(visit):
            yield self.welcome(category, request, moment)
            return
        run = visit.begin(category, path, moment)
        words = f"Looking at your image as *{as_text(readable(category))}* ..."
        yield visit.show(run, {**places.cleared(words), places.truth: None, places.shown: run.number})
        yield from self.finish(visit, run, OPACITY, None, progress)

    def welcome(self, category: str, request: gr.Request, moment: float | None = None) -> dict[Any, Any]:
        """What a category opens with: its first example, finished; or the words that say what to do."""
        visit, places = self.visits.of(request), self.places
        moment = visit.moment if moment is None else moment
        first = self.examples.finished(category)
        if first is None:
            words = WELCOME if self.examples.of(category) else NO_EXAMPLES.format(as_text(readable(category)))
            return self.welcome_with(category, words, request, moment)
        run = visit.begin(category, str(first.path), moment)
        view = {**self.show_stored(category, first), places.image: str(first.path), places.shown: run.number}
        return dict(visit.show(run, {**view, places.truth: None}))

    def land(
        self, category: str, words: str, opacity: float, request: gr.Request, progress: gr.Progress
    ) -> Iterator[dict[Any, Any]]:
        """What a visitor sees of a part that was just learnt: its first example, looked at now."""
        visit, places = self.visits.of(request), self.places
        first = next(iter(self.examples.of(category)), None)
        if first is None:
            yield self.welcome_with(category, words, request)
            return
        run = visit.begin(category, str(first.path), visit.moment)
        visit.note = f"{explain(first)}\n\n{words}"
        start = {places.image: str(first.path), places.truth: None, places.shown: run.number}
        yield visit.show(run, {**places.cleared(f"Looking at {as_text(first.about)} ..."), **start})
        yield from self.finish(visit, run, opacity, None, progress)

    def welcome_with(
        self, category: str, words: str, request: gr.Request, moment: float | None = None
    ) -> dict[Any, Any]:
        """Nothing but these words."""
        visit, places = self.visits.of(request), self.places
        run = visit.begin(category, None, visit.moment if moment is None else moment)
        view = {places.image: None, places.truth: None, places.shown: run.number}
        return dict(visit.show(run, {**places.cleared(words), **view}))

    def arrive(self, category: str, request: gr.Request) -> None:
        """Somebody came who sees what the page was built with; what they have begun since stays."""
        visit = self.visits.of(request)
        with visit.lock:
            if visit.category:
                return
            first = self.examples.finished(category)
            visit.begin(category, None if first is None else str(first.path))

    def examples_of(self, category: str) -> tuple[gr.Row, str, list[tuple[Path, str]]]:
        """The category's examples, and whose images they are."""
        examples = self.examples.of(category)
        words = introduce(self.categories.folder / category) if examples else ""
        return (
            gr.Row(visible=bool(examples)),
            as_text(words),
            [(example.path, example.caption) for example in examples],
        )

    def settle(self, shown: int, request: gr.Request) -> dict[Any, Any]:
        """After every run: if something of an older one was under way and came last, shows the newest again."""
        visit = self.visits.of(request)
        with visit.lock:
            return self.places.nothing if shown == visit.run.number or not visit.view else dict(visit.view)
