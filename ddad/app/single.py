"""The tab that inspects one image: look, see, ask what if. How it looks, and what follows on what."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr

from ddad.app import inspection as views
from ddad.app.categories import Categories
from ddad.app.examples import OPACITY, Example, Examples
from ddad.app.places import Places
from ddad.app.single_events import FILM, MAPS, MOMENT, TALLEST, WELCOME, SingleImage, introduce, nearest
from ddad.app.uploads import create_image_input
from ddad.app.visits import Visits
from ddad.app.words import Words, as_text
from ddad.calibration.promise import RATES, promise

KEEP_SECONDS = 3600
PICTURE = {
    "format": "png",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
    "show_label": False,
}
# Who inspects waits for the networks in the model's thread, which does the quick jobs first: so many may wait there,
# and as many before the door. What evaluates no network waits for nobody.
MOST_WAITING = 64
WAITING = {"concurrency_limit": None, "api_visibility": "private"}
# In the browser, at once: what stood there goes with the image that it belongs to. Then the server clears once more.
CLEAR = """() => ['Your image is on its way ...', {__type__: 'update', visible: false}, null, null, '',
    {headers: [], data: []}, null, null, null]"""
MOVE_LINE = "place => ({__type__: 'update', slider_position: place})"
# On a narrow screen the verdict lies below what was clicked.
SCROLL = """() => { if (window.innerWidth < 760)
    document.getElementById('verdict').scrollIntoView({behavior: 'smooth', block: 'start'}) }"""

# What the threshold makes room for; see `DDADJudgement`.
TOLERANCES = [("photographs as they are now", "strict"), ("other light, focus and position too", "tolerant")]


def create_samples(shown: list[Example]) -> tuple[gr.Row, gr.Gallery]:
    """The row of examples, and where it stands."""
    with gr.Row(visible=bool(shown)) as place:
        samples = gr.Gallery(
            [(example.path, example.caption) for example in shown],
            columns=3, height="auto", allow_preview=False, interactive=False,
            buttons=[], elem_id="examples", label="Examples", show_label=False, object_fit="cover", container=False,
        )  # fmt: skip
    return place, samples


def create_input(first: str | None) -> tuple[Any, ...]:
    """What takes images: image and buttons."""
    image = create_image_input(
        first,
        label="Your image",
        sources=["upload", "clipboard", "webcam"],
        height=280,
        alt_text="The image to inspect",
        elem_id="image",
    )
    with gr.Row():
        find = gr.Button("Find defects", variant="primary", min_width=120)
        stop = gr.Button("Stop", variant="stop", min_width=80)
    return image, find, stop


def create_small_print(words: str) -> tuple[Any, ...]:
    """What stands below: the ground truth, and whose images the examples are."""
    with gr.Accordion("Compare with a ground truth", open=False):
        truth = create_image_input(
            label="Mask of the true defects: every pixel above zero", sources=["upload", "clipboard"], height=200,
            alt_text="The mask of the true defects", elem_id="truth",
        )  # fmt: skip
    source = Words(as_text(words), elem_id="source")
    return truth, source


def create_results(values: dict[str, Any]) -> tuple[Any, ...]:
    """The column that shows what was found, down to its regions; at first what the page opens with."""
    answer = Words(values.get("answer", WELCOME), container=True, elem_id="verdict")
    doubt = gr.Button(visible=False, size="sm", elem_id="doubt")
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("**Heatmap.** Without colour where the part is like good ones.")
            heatmap = gr.Image(
                values.get("heatmap"),
                label="Heatmap",
                alt_text="Your image under its heatmap, with outlines of the defect regions",
                elem_id="heatmap",
                **PICTURE,
            )
        with gr.Column(min_width=280):
            gr.Markdown("**Normal version.** Drag the line: your image is on the left of it.")
            slider = gr.ImageSlider(
                values.get("slider"), label="Normal version", max_height=TALLEST, elem_id="compare", **PICTURE
            )
    with gr.Row():
        opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the heatmap", buttons=[], min_width=280)
        # The line over the pictures cannot be reached with the keyboard; this can.
        line = gr.Slider(
            0, 100, 50, step=5, label="Line between your image and the normal version", buttons=[], min_width=280
        )
        line.input(None, line, slider, js=MOVE_LINE, show_progress="hidden", api_visibility="private")
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("**Where your image lies among good parts.**")
            histogram = gr.HTML(values.get("histogram", ""), elem_id="histogram")
        regions = gr.Dataframe(
            values.get("regions"), headers=views.REGION_HEADERS, datatype=views.REGION_TYPES, interactive=False,
            min_width=280, max_height=260, wrap=True,
            label="Defect regions, numbered as on the heatmap; boxes in pixels",
            column_widths=["18%", "22%", "26%", "34%"],
        )  # fmt: skip
    return answer, doubt, heatmap, slider, opacity, histogram, regions


def create_controls(categories: Categories) -> tuple[Any, ...]:
    """The places that are closed at first: what if, the steps, the maps."""
    pipe = categories.get(categories.offered[0]).judge
    with gr.Accordion("What if: other limits and weights", open=False):
        gr.Markdown(
            "These controls combine the maps that are already there, so they answer at once, and hold for this"
            " category in all tabs until you leave the page. *Alpha* weighs the pixel score against the feature score;"
            " moving it or the noise levels measures the threshold anew on good parts. More room means fewer good"
            " parts called defective when lamp, focus or position change, and more small defects missed."
        )
        with gr.Row():
            limit = gr.Number(
                pipe.threshold, minimum=0, precision=2, label="Threshold: score above which a part is defective",
                min_width=160,
            )  # fmt: skip
            threshold = gr.Slider(0, 10, 3, step=0.01, label="The same, to drag", buttons=[], elem_id="threshold")
            alpha = gr.Slider(
                0, 1, pipe.config.alpha, step=0.05, label="Alpha: 0 features, 1 pixels alone", buttons=[]
            )
            levels = gr.CheckboxGroup(pipe.timesteps, value=pipe.timesteps, label="Noise levels")
            tolerance = gr.Radio(
                TOLERANCES, value=pipe.config.tolerance, label="The threshold has room for", elem_id="tolerance",
                interactive=len(pipe.calibration.known_tolerances) > 1,
            )  # fmt: skip
        rates = gr.Radio(
            [(f"{100 * rate:g} %", rate) for rate in RATES], value=nearest(pipe.calibration.false_alarms),
            label="Good parts that may be called defective", elem_id="rates",
        )  # fmt: skip
        judges = max(2, pipe.calibration.config.num_calibration_images)
        promised = Words(promise(judges, pipe.calibration.false_alarms), elem_id="promise")
        with gr.Row():
            again = gr.Button("Make the normal version with these settings")
            reset = gr.Button("Back to the pipeline's own choice")
    film_place = gr.Accordion("How the defect was removed, step by step", open=False)
    with film_place, gr.Row():
        film = gr.Gallery(
            label="Denoising steps", show_label=False, elem_id="film", columns=6, height="auto", object_fit="contain",
            format="png", interactive=False, scale=3,
        )  # fmt: skip
        animation = gr.Image(
            label="Animation of the steps", show_label=False, type="filepath", interactive=False,
            buttons=["download"], alt_text="The denoising steps, one after the other", scale=1, min_width=200,
        )  # fmt: skip
    maps_place = gr.Accordion("Why: the maps behind the heatmap", open=False)
    with maps_place:
        gr.Markdown(
            "All on one fixed scale: black like good parts, orange near the threshold, white at twice it and"
            " more. The *pixel score* says where the picture surprises the diffusion model, the *feature"
            " score* where it looks unlike good parts; *combined*, by alpha, they decide."
        )
        maps = gr.Gallery(
            label="Maps", show_label=False, elem_id="maps", columns=3, height="auto", object_fit="contain",
            format="png", interactive=False,
        )  # fmt: skip
    what_if = (limit, threshold, alpha, levels, tolerance, rates, promised, again, reset)
    return *what_if, film_place, film, animation, maps_place, maps


def add_single_image(categories: Categories, visits: Visits, examples: Examples, category: gr.Dropdown) -> SingleImage:
    """Builds the tab; returns what it does, for the page's other events."""
    work = SingleImage(categories, visits, examples)
    shown, moment = gr.State(0), gr.Number(0, visible=False)
    work.moment = moment
    first = examples.of(categories.offered[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            image, find, stop = create_input(str(first[0].path) if first else None)
            samples_place, samples = create_samples(first)
            truth, source = create_small_print(introduce(categories.folder / categories.offered[0]) if first else "")
        with gr.Column(scale=3, min_width=320):
            finished = examples.finished(categories.offered[0])
            values = {} if finished is None else work.stored_values(categories.offered[0], finished)
            answer, doubt, heatmap, slider, opacity, histogram, regions = create_results(values)
            (
                limit, threshold, alpha, levels, tolerance, rates, promised, again, reset,
                film_place, film, animation, maps_place, maps,
            ) = create_controls(categories)  # fmt: skip
            work.more = gr.Column()
    places = work.places = Places(
        image,
        truth,
        answer,
        doubt,
        heatmap,
        slider,
        histogram,
        regions,
        limit,
        threshold,
        alpha,
        levels,
        tolerance,
        rates,
        promised,
        film,
        animation,
        maps,
        shown,
    )
    work.opacity = opacity
    results, views_inputs = places.all, [opacity, truth]
    hidden = {**WAITING, "show_progress": "hidden"}

    work.example_places = [samples_place, source, samples]

    # An image that is given, or taken away: a run of its own. None is held back because another is under way.
    image.input(None, None, places.results, js=CLEAR, **hidden)
    given, timed = [image, category, opacity, moment], {"js": MOMENT, **run_options(heatmap)}
    starts = [
        find.click(work.inspect_image, given, results, **timed),
        image.input(work.inspect_image, given, results, **timed),
        samples.select(work.inspect_example, given[1:], results, **timed),
        again.click(work.repair_again, [*views_inputs, moment], results, js=MOMENT, **run_options(slider)),
    ]
    gr.on([samples.select, image.input, find.click], None, None, None, js=SCROLL, **hidden)
    for start in starts:
        start.then(work.settle, shown, results, **hidden)
    stop.click(work.stop, None, None, queue=False, **hidden)
    category.change(work.examples_of, category, work.example_places, **hidden)
    # Nothing is cleared in the browser: leaving the list with the same choice is an input too.
    followed = category.input(work.follow, [category, moment], results, js=MOMENT, **run_options(heatmap))
    followed.then(work.settle, shown, results, **hidden)

    # While a slider moves, the last of its values counts.
    live = {**hidden, "trigger_mode": "always_last"}
    limit.input(work.type_threshold, [limit, *views_inputs], results, **live)
    threshold.input(work.drag_threshold, [threshold, *views_inputs], results, **live)
    for redraw in (opacity.input, truth.input, truth.clear):
        redraw(work.redraw, views_inputs, results, **live)
    for combine in (alpha.input, levels.input, tolerance.input):
        combine(work.choose_weights, [*places.weights, *views_inputs], results, **live)
    rates.input(work.choose_rate, [rates, *views_inputs], results, **live)
    reset.click(work.choose_default, views_inputs, results, **live)
    for place, name, target in ((film_place, FILM, film), (maps_place, MAPS, maps)):
        place.expand(bind(work.open_place, name), None, results, **run_options(target))
        place.collapse(bind(work.close_place, name), None, None, queue=False, **hidden)
    return work


def run_options(place: Any) -> dict[str, Any]:
    """Of an event that may take seconds: progress is shown in the place that it fills, and a second one may start."""
    waiting = {**WAITING, "concurrency_id": "networks", "concurrency_limit": MOST_WAITING}
    return {**waiting, "trigger_mode": "multiple", "show_progress": "full", "show_progress_on": place}


def bind(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A method with its first argument given, as Gradio must see it: with the other arguments' types."""
    bound = functools.partial(method, name)
    signature = inspect.signature(method)
    rest = list(signature.parameters.values())[1:]

    if inspect.isgeneratorfunction(method):

        def event(*args: Any):
            yield from bound(*args)
    else:

        def event(*args: Any):
            return bound(*args)

    event.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    event.__annotations__ = {key: value for key, value in method.__annotations__.items() if key != "name"}
    event.__name__ = f"{method.__name__}_{name}"
    return event
