"""The endpoints for programs: the Gradio API and, through their descriptions, MCP tools."""

import math
from typing import Any

import gradio as gr
import PIL.Image

from ddad.app.categories import Categories
from ddad.app.compute import evaluates_networks, give_way, needs_gpu
from ddad.app.part import add_fit
from ddad.app.uploads import create_image_input, open_category, output_path, refusal
from ddad.app.visits import Visits
from ddad.report.export import record_of


def check_number(name: str, value: Any) -> float | None:
    """A number or None.

    Raises:
        ValueError: for anything else; programs send what they like.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number, or null for the category's own, found {value!r}.")
    return float(value)


def create_optional_number(label: str) -> gr.Number:
    """A number that a program may leave out or give as null, and whose schema says so."""
    component = gr.Number(None, label=label)
    schema = {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}
    component.api_info = lambda: schema  # type: ignore[method-assign]
    component.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return component


def create_report() -> gr.JSON:
    """A JSON output whose value is what an assistant reads, too."""
    component = gr.JSON(label="Report")
    component.postprocess = lambda value: value  # type: ignore[method-assign]
    return component


def add_api(known: Categories, visits: Visits) -> None:
    """Adds `/categories`, `/inspect` and `/fit`; their components are on the page and not seen."""

    def categories() -> list[str]:
        """Lists the categories (kinds of product) that `inspect` knows here. A repository on the Hub is one too.

        Returns:
            Their names.
        """
        return known.offered

    def inspect(
        image: str,
        category: str = "",
        threshold: float | None = None,
        alpha: float | None = None,
        normal_version: bool = True,
        request: gr.Request | None = None,
    ) -> tuple[dict[str, Any], PIL.Image.Image, PIL.Image.Image | None, str | None]:
        """Finds the defects on the photograph of a product, and makes the same picture without them.

        Args:
            image: the photograph of the part.
            category: a name that `categories` lists, or a repository (user/name) on the Hub; empty for the first.
            threshold: score above which the part is called defective; left out or null: as measured on good parts.
            alpha: weight of the pixel score against the feature score, 0 to 1; left out or null: the category's own.
            normal_version: whether to make the picture without defects, which takes most of the time.
            request: who asks.

        Returns:
            A report (verdict, score, threshold, and the defect regions as boxes in pixels with their peak scores), the
            picture under its heatmap, the picture without defects (null if not asked for), and the anomaly map as a
            float32 TIFF (null for assistants, who would be sent it as text).
        """
        if image is None:
            raise refusal("Give an image.")
        category = category or known.offered[0]
        opened = open_category(known, category)
        try:
            weight = check_number("alpha", alpha)
            result = opened.pipe(
                opened.score(image, "kl" if weight else None),
                threshold=check_number("threshold", threshold),
                alpha=weight,
                denoise=bool(normal_version),
                callback_on_step_end=lambda *_: give_way(),
            )
        except (TypeError, ValueError) as error:
            raise refusal(str(error).replace(image, "The file")) from None
        report = {"category": category, **record_of("image", result).to_dict()}
        path = None
        if request is None or "/mcp" not in str(request.url):
            path = str(output_path("anomaly_map.tiff"))
            PIL.Image.fromarray(result.anomaly_map[0]).save(path)
        denoised = result.denoised_image[0] if result.denoised_image else None
        return report, result.overlay[0], denoised, path

    gr.api(categories, api_name="categories")
    with gr.Column(visible=False):
        inputs = [
            create_image_input(label="The photograph of the part"),
            gr.Textbox(known.offered[0], label="Category: a name from /categories, or user/name on the Hub"),
            create_optional_number("Threshold; null for the one measured on good parts"),
            create_optional_number("Alpha, 0 to 1; null for the category's own"),
            gr.Checkbox(True, label="Make the normal version"),
        ]
        outputs = [
            create_report(),
            gr.Image(label="Heatmap", format="png"),
            gr.Image(label="Normal version", format="png"),
            gr.File(label="Anomaly map, float32 TIFF"),
        ]
        gr.Button("Inspect").click(
            needs_gpu(evaluates_networks(inspect)),
            inputs,
            outputs,
            api_name="inspect",
            # The model's thread is the queue. Gradio's own would hide the pictures from assistants: of a queued event
            # it sends all outputs as one text.
            queue=False,
        )
        add_fit(known, visits)
