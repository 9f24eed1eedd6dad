"""What visitors give: images and names of categories, read with messages that are for them."""

import secrets
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from gradio.components.image import ImageData
from gradio.utils import get_upload_folder

from ddad.app.categories import Categories, Category, CategoryError

UNREADABLE = "This file is not an image that can be read: give a PNG, JPEG, TIFF or BMP."


def refusal(message: str, title: str = "This image cannot be inspected") -> gr.Error:
    """What a visitor is told of an image that cannot be inspected."""
    return gr.Error(message, title=title, print_exception=False)


def open_category(categories: Categories, name: str) -> Category:
    """A category, or what a visitor is told of one that cannot be opened."""
    try:
        return categories.get(name)
    except CategoryError as error:
        raise refusal(str(error), "This category cannot be opened") from None


def create_image_input(label: str, **options: Any) -> gr.Image:
    """An image input that passes files on as they are, and says so when one is no image."""
    component = gr.Image(type="filepath", image_mode=None, label=label, **options)
    preprocess = component.preprocess

    def preprocess_or_refuse(payload: ImageData | None) -> Any:
        try:
            return preprocess(payload)
        except (OSError, PIL.Image.DecompressionBombError):
            raise refusal(UNREADABLE) from None

    # A subclass would need a front end of its own.
    component.preprocess = preprocess_or_refuse  # type: ignore[method-assign]
    return component


def read_mask(path: str) -> PIL.Image.Image:
    """A ground-truth mask.

    Raises:
        gr.Error: if the file is no image.
    """
    try:
        with PIL.Image.open(path) as picture:
            return picture.convert("L")
    except (OSError, PIL.Image.DecompressionBombError):
        raise refusal(UNREADABLE, "This ground truth cannot be drawn") from None


def output_path(name: str) -> Path:
    """A file for a visitor alone, in the folder whose files the page deletes after its stated time."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder / name
