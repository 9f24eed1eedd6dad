"""The page: an image in; verdict, heatmap and the part without its defect out."""

import logging
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import torch
from gradio.components.image import ImageData

from ddad.app.examples import write_examples
from ddad.pipeline import DDADPipeline

logger = logging.getLogger(__name__)

TITLE = "ddad: find the defect, see the part without it"
PAPER = (
    "https://openaccess.thecvf.com/content/ICCV2023/html/"
    "Lu_Removing_Anomalies_as_Noises_for_Industrial_Defect_Localization_ICCV_2023_paper.html"
)
INTRODUCTION = f"""# {TITLE}
A diffusion model that has seen **good parts only** marks what is not normal on your image, and shows the same part as
it would look without the defect. Method: [Lu et al., ICCV 2023]({PAPER})."""
DELETE_AFTER_SECONDS = 3600


def create_image_input() -> gr.Image:
    """An image input that passes files on as they are, and says so when one is no image."""
    component = gr.Image(
        type="filepath", image_mode=None, label="Your image", sources=["upload", "clipboard", "webcam"]
    )
    preprocess = component.preprocess

    def preprocess_or_refuse(payload: ImageData | None) -> Any:
        try:
            return preprocess(payload)
        except (OSError, PIL.Image.DecompressionBombError):
            raise refusal("This file is not an image that can be read: give a PNG, JPEG, TIFF or BMP.") from None

    # A subclass would need a front end of its own.
    component.preprocess = preprocess_or_refuse  # type: ignore[method-assign]
    return component


def refusal(message: str) -> gr.Error:
    """What a visitor is told of an image that cannot be inspected."""
    return gr.Error(message, title="This image cannot be inspected", print_exception=False)


def find_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    checkpoints = sorted(path.parent for path in Path(folder).glob(f"*/{DDADPipeline.config_name}"))
    if not checkpoints:
        raise FileNotFoundError(f"{folder} holds no checkpoint. Train one with `ddad train --output {folder}/NAME`.")
    return checkpoints


def verdict(score: float, threshold: float, is_anomalous: bool) -> str:
    """The result in words."""
    found = "## Defect found" if is_anomalous else "## No defect found"
    relation = "above" if is_anomalous else "not above"
    return (
        f"{found}\nScore **{score:.1f}**, {relation} the threshold of {threshold:.1f}. The score is the distance from"
        " good parts, in their standard deviations, at the most unusual place."
    )


def create_page(checkpoints: str | Path) -> gr.Blocks:
    """Loads the checkpoints in a folder, on the GPU where there is one, and builds the page.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipelines = {}
    for path in find_checkpoints(checkpoints):
        pipelines[path.name] = DDADPipeline.from_pretrained(path).to(device)
        pipelines[path.name].set_progress_bar_config(disable=True)
    categories = list(pipelines)

    def inspect(image: str | None, category: str, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """Finds the defects of a product image and makes the image without them.

        Args:
            image: the image of the part.
            category: the kind of product.
            progress: filled in by the page.

        Returns:
            The verdict in words, the image under the heatmap, the image without defects, the denoising steps.
        """
        if image is None:
            raise refusal("Choose an image first, or click an example.")
        progress(0, desc="Looking for defects")

        def show_progress(_: DDADPipeline, step: int, __: int, ___: dict[str, Any]) -> None:
            progress((step + 1, None), desc=f"Removing the defect, step {step + 1}", unit="steps")

        try:
            result = pipelines[category](image, callback_on_step_end=show_progress)
        except (TypeError, ValueError) as error:
            raise refusal(str(error).replace(image, Path(image).name)) from None
        return (
            verdict(result.image_score[0], result.threshold, result.is_anomalous[0]),
            result.overlay[0],
            result.denoised_image[0],
            result.intermediates[0],
        )

    def inspect_example(image: str, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        return inspect(image, categories[0], progress)

    with gr.Blocks(
        title=TITLE,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(DELETE_AFTER_SECONDS, DELETE_AFTER_SECONDS),
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1):
                category = gr.Dropdown(
                    categories, value=categories[0], label="Product", visible=len(categories) > 1, interactive=True
                )
                image = create_image_input()
                button = gr.Button("Find defects", variant="primary")
                examples_place = gr.Column()
            with gr.Column(scale=2):
                answer = gr.Markdown("Choose an image, or click an example below your image.", label="Verdict")
                with gr.Row():
                    shown = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
                    heatmap = gr.Image(label="Anomaly heatmap", **shown)
                    denoised = gr.Image(label="Normal version", **shown)
                with gr.Accordion("How the defect was removed, step by step", open=False):
                    steps = gr.Gallery(label="Denoising steps", columns=6, format="png", interactive=False)
        inputs, outputs = [image, category], [answer, heatmap, denoised, steps]
        options = {"show_progress_on": [heatmap, denoised]}
        button.click(inspect, inputs, outputs, api_name="inspect", **options)
        image.upload(inspect, inputs, outputs, api_visibility="private", **options)
        examples = write_examples(categories[0])
        if examples:
            with examples_place:
                gr.Examples(
                    [str(path) for path in examples],
                    image,
                    outputs,
                    fn=inspect_example,
                    run_on_click=True,
                    cache_examples=False,
                    label=f"Examples: {categories[0]} (elpv-dataset, CC BY-NC-SA 4.0)",
                )
    return page
