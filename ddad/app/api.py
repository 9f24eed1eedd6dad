"""The endpoints for programs: the Gradio API and, through their descriptions, MCP tools."""

from typing import Any

import gradio as gr
import PIL.Image

from ddad.app.adapt import add_calibrate
from ddad.app.categories import Categories
from ddad.app.compute import evaluates_networks, give_way, needs_gpu
from ddad.app.inspection import record_of
from ddad.app.uploads import create_image_input, open_category, output_path, refusal


def add_api(categories: Categories) -> None:
    """Adds `/categories`, `/inspect` and `/calibrate`; their components are on the page and not seen."""

    def list_categories() -> list[str]:
        """Lists the categories (kinds of product) that `inspect` knows here. A repository on the Hub is one too.

        Returns:
            Their names.
        """
        return categories.offered

    def inspect(
        image: str, category: str, threshold: float | None, alpha: float | None, normal_version: bool
    ) -> tuple[dict[str, Any], PIL.Image.Image, PIL.Image.Image | None, str]:
        """Finds the defects on the photograph of a product, and makes the same picture without them.

        Args:
            image: the photograph of the part.
            category: the kind of product: a name from `categories`, or a repository (user/name) on the Hub.
            threshold: score above which the part is called defective; empty takes the one measured on good parts.
            alpha: weight of the pixel score against the feature score, 0 to 1; empty takes the category's own.
            normal_version: whether to make the picture without defects, which takes most of the time.

        Returns:
            A report (verdict, score, threshold, and the defect regions as boxes in pixels with their peak scores), the
            picture under its heatmap, the picture without defects (null if not asked for), and the anomaly map as a
            float32 TIFF.
        """
        if image is None:
            raise refusal("Give an image.")
        pipe = open_category(categories, category or categories.offered[0]).pipe
        try:
            result = pipe(
                image,
                threshold=threshold,
                alpha=alpha,
                denoise=bool(normal_version),
                callback_on_step_end=lambda *_: give_way(),
            )
        except (TypeError, ValueError) as error:
            raise refusal(str(error).replace(image, "The file")) from None
        report = {"category": category, **record_of("image", result).to_dict()}
        path = output_path("anomaly_map.tiff")
        PIL.Image.fromarray(result.anomaly_map[0]).save(path)
        denoised = result.denoised_image[0] if result.denoised_image else None
        return report, result.overlay[0], denoised, str(path)

    gr.api(list_categories, api_name="categories")
    with gr.Column(visible=False):
        inputs = [
            create_image_input("The photograph of the part"),
            gr.Textbox(categories.offered[0], label="Category: a name from /categories, or user/name on the Hub"),
            gr.Number(None, label="Threshold; empty for the one measured on good parts"),
            gr.Number(None, label="Alpha, 0 to 1; empty for the category's own"),
            gr.Checkbox(True, label="Make the normal version"),
        ]
        outputs = [
            gr.JSON(label="Report"),
            gr.Image(label="Heatmap", format="png"),
            gr.Image(label="Normal version", format="png"),
            gr.File(label="Anomaly map, float32 TIFF"),
        ]
        gr.Button("Inspect").click(
            needs_gpu(evaluates_networks(inspect)),
            inputs,
            outputs,
            api_name="inspect",
            concurrency_id="denoise",
            concurrency_limit=1,
        )
        add_calibrate(categories)
