"""The tab that inspects one image: look, see, ask what if."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ddad.app import inspection as views
from ddad.app.categories import Categories, Category, CategoryError, readable
from ddad.app.compute import QUICK, evaluates_networks, give_way, needs_gpu
from ddad.app.examples import write_examples
from ddad.app.inspection import Inspection
from ddad.app.uploads import create_image_input, output_path, read_mask, refusal
from ddad.pipeline import DDADPipeline, DDADPipelineOutput
from ddad.report.drawing import save_animation

KEEP_SECONDS = 3600
OPACITY = 0.7
DENOISING_STEPS = 30
TALLEST = 560  # of pictures on the screen, in its pixels
PICTURE = {
    "format": "png",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
    "show_label": False,
}


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A visitor pressed Stop."""


class Runs:
    """The denoising runs under way, so that Stop ends the work and not only the waiting."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

    @contextmanager
    def run(self, session: str) -> Iterator[threading.Event]:
        """A run of a session; the event is set when it is stopped."""
        event = self._stops[session] = threading.Event()
        try:
            yield event
        finally:
            if self._stops.get(session) is event:
                del self._stops[session]

    def stop(self, session: str) -> None:
        """Stops the session's run, if there is one."""
        if session in self._stops:
            self._stops[session].set()


class SingleImage:
    """What the tab does, apart from how it looks. Every method is an event of the page.

    Args:
        categories: the categories.
    """

    def __init__(self, categories: Categories):
        self.categories = categories
        self.runs = Runs()
        self.look = needs_gpu(evaluates_networks(self._look, QUICK))
        self.denoise = needs_gpu(evaluates_networks(self._denoise))

    def _look(
        self,
        path: str | None,
        category: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Scores an image, one evaluation of the U-Net, and clears what belongs to the image before it."""
        if path is None:
            raise refusal("Choose an image first, or click an example.")
        progress(0.1, desc=f"Opening the category {readable(category)}")
        pipe = self.open(category).pipe
        levels = ", ".join(map(str, pipe.config.timesteps))
        progress(0.4, desc=f"Looking for defects at the noise levels {levels}")
        try:
            original = pipe.read_image(path)
            scores = pipe.score(original)
        except (TypeError, ValueError) as error:
            raise refusal(str(error).replace(path, Path(path).name)) from None
        shown = replace(scores, images=[views.shrink(original)])
        return Inspection(category, shown, (original.shape[2], original.shape[1])), None, None, None, None

    def _denoise(
        self,
        found: Inspection | None,
        alpha: float,
        timesteps: list[int],
        threshold: float | None,
        session: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """Makes the normal version."""
        found = self.require(found)
        pipe = self.open(found.category).pipe
        most = len(pipe.inpainting_steps) + DENOISING_STEPS + 1
        progress(0, desc="Removing the defect")
        with self.runs.run(session) as stopped:

            def after_step(_: DDADPipeline, step: int, __: int, ___: dict[str, Any]) -> None:
                if stopped.is_set():
                    raise Stopped
                give_way()
                progress(
                    (step + 1, most), desc=f"Removing the defect: step {step + 1} of at most {most}", unit="steps"
                )

            try:
                result = pipe(
                    found.scores,
                    alpha=alpha,
                    timesteps=timesteps,
                    threshold=threshold,
                    num_denoising_steps=DENOISING_STEPS,
                    callback_on_step_end=after_step,
                )
            except Stopped:
                return gr.skip(), gr.skip(), gr.skip()
        original = pipe.to_image(found.scores.images[0], "pil")
        found = replace(found, frames=result.intermediates[0])
        captions = ["As it came", *(f"Step {number}" for number in range(1, len(found.frames)))]
        return found, (original, result.denoised_image[0]), list(zip(found.frames, captions, strict=True))

    def open(self, category: str) -> Category:
        """The category, or a refusal."""
        try:
            return self.categories.get(category)
        except CategoryError as error:
            raise refusal(str(error), "This category cannot be opened") from None

    @staticmethod
    def require(found: Inspection | None) -> Inspection:
        """The inspected image, or a refusal."""
        if found is None:
            raise refusal("Give an image first: there is nothing to judge yet.", "No image yet")
        return found

    def recombine(
        self, found: Inspection | None, alpha: float, timesteps: list[int], threshold: float | None
    ) -> DDADPipelineOutput:
        """The verdict that follows from the maps, which are not computed again."""
        found = self.require(found)
        if not timesteps:
            raise refusal("Choose at least one noise level.", "Nothing to combine")
        pipe = self.open(found.category).judge
        return pipe(found.scores, alpha=alpha, timesteps=timesteps, threshold=threshold, denoise=False)

    def show(
        self,
        found: Inspection,
        result: DDADPipelineOutput,
        alpha: float,
        timesteps: list[int],
        opacity: float,
        truth: str | None,
    ) -> tuple[Any, ...]:
        """Verdict, heatmap, histogram, regions and maps."""
        pipe = self.open(found.category).judge
        score, limit = result.image_score[0], result.threshold
        try:
            mask = None if truth is None else read_mask(truth)
            heatmap = views.draw_heatmap(found.scores.images[0], result, opacity, mask)
        except ValueError as error:
            raise refusal(str(error), "This ground truth cannot be drawn") from None
        maps = pipe.normal_maps(alpha, timesteps)
        normal = [] if maps is None else maps.amax(dim=1).tolist()
        return (
            views.verdict(found, score, limit, result.is_anomalous[0], pipe.config.threshold_quantile),
            gr.Image(heatmap, height=None if heatmap.width >= heatmap.height else TALLEST),
            gr.BarPlot(
                views.histogram(normal, score, limit), x_title=f"Score (yours {score:.1f}, threshold {limit:.1f})"
            ),
            views.region_rows(views.regions_of(result)),
            views.draw_maps(result),
        )

    def judge(
        self,
        found: Inspection | None,
        alpha: float,
        timesteps: list[int],
        threshold: float | None,
        opacity: float,
        truth: str | None,
    ) -> tuple[Any, ...]:
        """Shows the image anew, with the settings as they are."""
        result = self.recombine(found, alpha, timesteps, threshold)
        return self.show(found, result, alpha, timesteps, opacity, truth)

    def judge_measured(
        self, found: Inspection | None, alpha: float, timesteps: list[int], opacity: float, truth: str | None
    ) -> tuple[Any, ...]:
        """Another alpha or other noise levels, with the threshold (None) that they have on good parts."""
        result = self.recombine(found, alpha, timesteps, None)
        highest = max(3 * result.threshold, 1.2 * result.image_score[0], 1.0)
        slider = gr.Slider(value=round(result.threshold, 2), maximum=round(highest, 1))
        return None, slider, *self.show(found, result, alpha, timesteps, opacity, truth)

    def judge_by_default(self, found: Inspection | None, opacity: float, truth: str | None) -> tuple[Any, ...]:
        """The pipeline's own choice of alpha, noise levels and threshold, and what follows from it."""
        config = self.open(self.require(found).category).judge.config
        levels = gr.CheckboxGroup(choices=config.timesteps, value=config.timesteps)
        return config.alpha, levels, *self.judge_measured(found, config.alpha, config.timesteps, opacity, truth)

    def judge_chosen(
        self,
        found: Inspection | None,
        alpha: float,
        timesteps: list[int],
        threshold: float,
        opacity: float,
        truth: str | None,
    ) -> tuple[Any, ...]:
        """A threshold that the visitor chose."""
        return threshold, *self.judge(found, alpha, timesteps, threshold, opacity, truth)

    @staticmethod
    def animate(found: Inspection) -> str | None:
        """The denoising steps as an animation."""
        if found is None or len(found.frames) < 2:
            return None
        return str(save_animation(found.frames, output_path("denoising.gif")))


def add_single_image(categories: Categories, category: gr.Dropdown, session: gr.State) -> None:
    """Builds the tab."""
    work = SingleImage(categories)
    config = categories.get(categories.bundled[0]).judge.config
    found = gr.State(time_to_live=KEEP_SECONDS)
    examples = {name: write_examples(name) for name in categories.bundled}

    def choose_example(category: str, event: gr.SelectData) -> tuple[str, None]:
        return str(examples[category][event.index][0]), None

    def show_examples(category: str) -> tuple[gr.Column, list[tuple[Path, str]]]:
        found = examples.get(category, [])
        return gr.Column(visible=bool(found)), found

    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            image = create_image_input(
                "Your image",
                sources=["upload", "clipboard", "webcam"],
                height=300,
                alt_text="The image to inspect",
                elem_id="image",
            )
            with gr.Row():
                find = gr.Button("Find defects", variant="primary")
                stop = gr.Button("Stop", variant="stop")
            first = examples[categories.bundled[0]]
            with gr.Column(visible=bool(first)) as samples_place:
                gr.Markdown("Or click an example (elpv-dataset, CC BY-NC-SA 4.0):")
                samples = gr.Gallery(
                    first, columns=3, height="auto", allow_preview=False, interactive=False, buttons=[],
                    elem_id="examples", label="Examples", show_label=False,
                )  # fmt: skip
            with gr.Accordion("Compare with a ground truth", open=False):
                truth = create_image_input(
                    "Mask of the true defects: every pixel above zero", sources=["upload", "clipboard"], height=200,
                    alt_text="The mask of the true defects", elem_id="truth",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320):
            answer = gr.Markdown("Drop an image, or click an example. The heatmap takes a second.", container=True)
            with gr.Row():
                with gr.Column(min_width=280):
                    gr.Markdown("**Heatmap.** Without colour where the part is like good ones.")
                    heatmap = gr.Image(
                        label="Heatmap",
                        alt_text="Your image under its heatmap, with outlines of the defect regions",
                        **PICTURE,
                    )
                with gr.Column(min_width=280):
                    gr.Markdown("**Normal version.** Drag the line: your image is on the left of it.")
                    slider = gr.ImageSlider(label="Normal version", max_height=TALLEST, **PICTURE)
            opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the heatmap")
            with gr.Row():
                with gr.Column(min_width=280):
                    gr.Markdown("**Where your image lies among good parts.**")
                    scores = gr.BarPlot(
                        x="score", y="images", color="kind", x_title="Score", y_title="Good parts", color_title="",
                        color_map={views.GOOD: "#3b82f6", views.FLAGGED: "#f59e0b", views.THIS: "#dc2626"},
                        height=260, label="Scores of good parts", show_label=False, buttons=[],
                    )  # fmt: skip
                regions = gr.Dataframe(
                    headers=views.REGION_HEADERS, datatype=views.REGION_TYPES, interactive=False, min_width=280,
                    label="Defect regions, numbered as on the heatmap; boxes in pixels", max_height=260, wrap=True,
                    column_widths=["18%", "22%", "26%", "34%"],
                )  # fmt: skip
            with gr.Accordion("What if: other limits and weights", open=False):
                gr.Markdown(
                    "These controls combine the maps that are already there, so they answer at once. *Alpha* weighs"
                    " the pixel score against the feature score; moving it or the noise levels measures the threshold"
                    " anew on good parts."
                )
                with gr.Row():
                    threshold = gr.Slider(
                        0, 10, 3, step=0.01, label="Threshold: score above which a part is defective"
                    )
                    alpha = gr.Slider(0, 1, config.alpha, step=0.05, label="Alpha: 0 features alone, 1 pixels alone")
                    levels = gr.CheckboxGroup(config.timesteps, value=config.timesteps, label="Noise levels")
                with gr.Row():
                    again = gr.Button("Make the normal version with these settings")
                    reset = gr.Button("Back to the pipeline's own choice")
            with gr.Accordion("How the defect was removed, step by step", open=False), gr.Row():
                film = gr.Gallery(
                    label="Denoising steps", show_label=False, columns=6, height="auto", object_fit="contain",
                    format="png", interactive=False, scale=3,
                )  # fmt: skip
                animation = gr.Image(
                    label="Animation of the steps", show_label=False, type="filepath", interactive=False,
                    buttons=["download"], alt_text="The denoising steps, one after the other", scale=1, min_width=200,
                )  # fmt: skip
            with gr.Accordion("Why: the maps behind the heatmap", open=False):
                gr.Markdown(
                    "All on one fixed scale: black like good parts, orange near the threshold, white at twice it and"
                    " more. The *pixel score* says where the picture surprises the diffusion model, the *feature"
                    " score* where it looks unlike good parts; *combined*, by alpha, they decide."
                )
                maps = gr.Gallery(
                    label="Maps", show_label=False, columns=3, height="auto", object_fit="contain", format="png",
                    interactive=False,
                )  # fmt: skip

    # The slider shows a threshold; this is what a visitor chose, or None for the one measured on good parts.
    limit = gr.State(None)
    judged = [answer, heatmap, scores, regions, maps]
    settings = [alpha, levels, limit]
    views_inputs = [opacity, truth]
    hidden = {"api_visibility": "private"}
    fast = {**hidden, "concurrency_id": "judge", "concurrency_limit": 4, "show_progress": "hidden"}
    slow = {**hidden, "concurrency_id": "denoise", "concurrency_limit": 1, "show_progress_on": slider}

    image.input(lambda: None, None, truth, show_progress="hidden", **hidden)
    chosen = samples.select(choose_example, category, [image, truth], show_progress="hidden", **hidden)
    running = []
    for start in (find.click, image.input, chosen.then):
        looked = start(
            work.look, [image, category], [found, limit, slider, film, animation],
            concurrency_id="look", concurrency_limit=2, show_progress_on=heatmap, **hidden,
        )  # fmt: skip
        seen = looked.success(
            work.judge_by_default, [found, *views_inputs], [alpha, levels, limit, threshold, *judged], **fast
        )
        denoised = seen.success(work.denoise, [found, *settings, session], [found, slider, film], **slow)
        running += [looked, seen, denoised, denoised.success(work.animate, found, animation, **fast)]
    repeated = again.click(work.denoise, [found, *settings, session], [found, slider, film], **slow)
    running += [repeated, repeated.success(work.animate, found, animation, **fast)]
    stop.click(work.runs.stop, session, None, queue=False, **hidden)
    stop.click(None, None, None, cancels=running)

    # While a slider moves, the last of its values counts.
    live = {**fast, "trigger_mode": "always_last"}
    threshold.input(work.judge_chosen, [found, alpha, levels, threshold, *views_inputs], [limit, *judged], **live)
    for redraw in (opacity.input, truth.input, truth.clear):
        redraw(work.judge, [found, *settings, *views_inputs], judged, **live)
    for combine in (alpha.input, levels.input):
        combine(work.judge_measured, [found, alpha, levels, *views_inputs], [limit, threshold, *judged], **live)
    reset.click(work.judge_by_default, [found, *views_inputs], [alpha, levels, limit, threshold, *judged], **fast)
    category.change(show_examples, category, [samples_place, samples], show_progress="hidden", **hidden)
