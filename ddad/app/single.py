"""The tab that inspects one image: look, see, ask what if. How it looks, and what follows on what."""

import functools
from pathlib import Path

import gradio as gr

from ddad.app import inspection as views
from ddad.app.categories import Categories
from ddad.app.examples import write_examples
from ddad.app.uploads import create_image_input
from ddad.app.work import TALLEST, SingleImage
from ddad.training.saving import load_record

KEEP_SECONDS = 3600
OPACITY = 0.7
PICTURE = {
    "format": "png",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
    "show_label": False,
}


def introduce(checkpoint: Path) -> str:
    """What stands above a category's examples: what its images show, and whose they are."""
    record = load_record(checkpoint)
    return f"Or click an example. {record['config']['data_source'] if record else ''}".rstrip()


def add_single_image(categories: Categories, category: gr.Dropdown, session: gr.State) -> None:
    """Builds the tab."""
    work = SingleImage(categories)
    pipe = categories.get(categories.offered[0]).judge
    found = gr.State(time_to_live=KEEP_SECONDS)

    @functools.cache  # written when a visitor first comes to the category: reading a package takes seconds
    def examples_of(category: str) -> list[tuple[Path, str]]:
        return write_examples(categories.folder / category) if category in categories.offered else []

    def choose_example(category: str, event: gr.SelectData) -> tuple[str, None]:
        return str(examples_of(category)[event.index][0]), None

    def show_examples(category: str) -> tuple[gr.Column, str, list[tuple[Path, str]]]:
        found = examples_of(category)
        return gr.Column(visible=bool(found)), introduce(categories.folder / category) if found else "", found

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
            first = examples_of(categories.offered[0])
            with gr.Column(visible=bool(first)) as samples_place:
                source = gr.Markdown(introduce(categories.folder / categories.offered[0]))
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
                    alpha = gr.Slider(0, 1, pipe.config.alpha, step=0.05, label="Alpha: 0 features, 1 pixels alone")
                    levels = gr.CheckboxGroup(pipe.timesteps, value=pipe.timesteps, label="Noise levels")
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
    category.change(show_examples, category, [samples_place, source, samples], show_progress="hidden", **hidden)
