"""The tab that explains the method, and what is true of the category that is chosen."""

import re
from pathlib import Path

import gradio as gr

from ddad.app.categories import Categories, readable
from ddad.app.uploads import open_category
from ddad.app.words import Words, as_text, refused
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import load_record
from ddad.features_ddad import DDADFeatureExtractor
from ddad.report.size import looked_size

TEXT = Path(__file__).parent / "about.md"
LEAST_SEEN = 2  # pixels of what a network looks at


def name_of_backbone(extractor: DDADFeatureExtractor) -> str:
    """`tf_efficientnet_lite2` as it is written."""
    return str(extractor.config.backbone).removeprefix("tf_").replace("efficientnet_lite", "EfficientNet-Lite")


def describe_verdict(pipe: DDADPipeline) -> str:
    """What decides the verdicts of a category, and how small a defect may be."""
    alpha, size = pipe.config.alpha, pipe.unet.config.sample_size
    by_looks = pipe.config.feature_score != "residual"
    extractor = pipe.appearance_extractor if by_looks else pipe.feature_extractor
    looked = looked_size(pipe)
    what = {
        "sum": "how the part looks and what the diffusion model expects to see (scores 2 and 3)",
        "residual": "what the diffusion model expects to see (score 2)",
    }.get(pipe.config.feature_score, "how the part looks (score 3)")
    pixels = f", and to {alpha:.0%} by what surprises the diffusion model (score 1, {size}x{size})" if alpha else ""
    return (
        f"Its verdict is made by {what}, at {looked}x{looked} pixels with {as_text(name_of_backbone(extractor))}"
        f"{pixels}."
        f" A defect smaller than about {LEAST_SEEN / looked:.1%} of the picture's width is not seen. The threshold,"
        f" {pipe.threshold:.1f}, is meant to let {pipe.calibration.config.threshold_quantile:.0%} of good parts pass."
        f" Normal versions are made at {size}x{size} pixels, and put into your image where the defect was."
    )


def describe_category(categories: Categories, name: str) -> str:
    """What is true of one category."""
    try:
        pipe = open_category(categories, name).judge
    except gr.Error as error:
        return refused(error)
    lines = [f"### The category that is chosen: {as_text(readable(name))}", describe_verdict(pipe)]
    record = load_record(categories.folder / name) if name in categories.bundled else None
    if record is not None:
        config = record["config"]
        lines.append(f"{as_text(config['data_source'])} Licence of the checkpoint: {as_text(config['license'])}.")
    elif categories.holds(name):
        lines.append("It was learnt from your own photographs, and is for you alone.")
    return "\n\n".join(lines)


def add_about(categories: Categories, category: gr.Dropdown) -> None:
    """Builds the tab from `about.md`; its pictures are lines of their own."""
    facts = Words(describe_category(categories, categories.offered[0]), elem_id="facts")
    category.change(
        lambda name: describe_category(categories, name), category, facts, api_visibility="private",
        show_progress="hidden", concurrency_limit=None,
    )  # fmt: skip
    parts = re.split(r"^!\[(.+?)\]\((.+?)\)$", TEXT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    gr.Markdown(parts[0])
    for alt_text, picture, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        gr.Image(
            TEXT.parent / picture, interactive=False, label=alt_text, show_label=False, alt_text=alt_text,
            buttons=["fullscreen"],
        )  # fmt: skip
        gr.Markdown(text)
