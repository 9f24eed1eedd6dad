"""What the tab for one image does: score, denoise, judge anew. Every public method is an event of the page."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ddad.app import inspection as views
from ddad.app.categories import Categories, Category, readable
from ddad.app.compute import QUICK, evaluates_networks, give_way, needs_gpu
from ddad.app.inspection import Inspection
from ddad.app.uploads import open_category, output_path, read_mask, refusal
from ddad.pipeline import DDADPipeline, DDADPipelineOutput
from ddad.report.drawing import save_animation

DENOISING_STEPS = 60
TALLEST = 560  # of pictures on the screen, in its pixels


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
    """What the tab does, apart from how it looks.

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
        levels = ", ".join(map(str, pipe.timesteps))
        progress(0.4, desc=f"Looking for defects at the noise levels {levels}")
        try:
            original = pipe.image_processor.read_image(path)
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
        most = pipe.denoiser.most_steps(DENOISING_STEPS)
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
        original = pipe.image_processor.to_image(found.scores.images[0], "pil")
        found = replace(found, frames=result.intermediates[0])
        captions = ["As it came", *(f"Step {number}" for number in range(1, len(found.frames)))]
        return found, (original, result.denoised_image[0]), list(zip(found.frames, captions, strict=True))

    def open(self, category: str) -> Category:
        """The category, or a refusal."""
        return open_category(self.categories, category)

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
        score, limit, regions = result.image_score[0], result.threshold, views.regions_of(result)
        try:
            mask = None if truth is None else read_mask(truth)
            heatmap = views.draw_heatmap(found.scores.images[0], result, regions, opacity, mask)
        except ValueError as error:
            raise refusal(str(error), "This ground truth cannot be drawn") from None
        maps = pipe.normality.normal_maps(alpha, timesteps)
        normal = []
        if maps is not None:
            normal = pipe.normality.top_cells(maps, pipe.normality.config.num_top_cells).tolist()
        return (
            views.verdict(found, score, limit, result.is_anomalous[0], pipe.normality.config.threshold_quantile),
            gr.Image(heatmap, height=None if heatmap.width >= heatmap.height else TALLEST),
            gr.BarPlot(
                views.histogram(normal, score, limit), x_title=f"Score (yours {score:.1f}, threshold {limit:.1f})"
            ),
            views.region_rows(regions),
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
        pipe = self.open(self.require(found).category).judge
        alpha, timesteps = pipe.config.alpha, pipe.timesteps
        levels = gr.CheckboxGroup(choices=timesteps, value=timesteps)
        return alpha, levels, *self.judge_measured(found, alpha, timesteps, opacity, truth)

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
    def animate(found: Inspection | None) -> str | None:
        """The denoising steps as an animation."""
        if found is None or len(found.frames) < 2:
            return None
        return str(save_animation(found.frames, output_path("denoising.gif")))
