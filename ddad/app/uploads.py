"""What visitors give: images and names of categories, read with messages that are for them."""

import secrets
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from gradio.components.image import ImageData
from gradio.utils import get_upload_folder

from ddad.app.categories import Categories, Category, CategoryError
from ddad.images_ddad import DDADImageProcessor, decoding, open_picture

UNREADABLE = "This file is damaged or cut off and cannot be read: save it again as PNG or JPEG."
UNREADABLE_TITLE = "This image cannot be inspected"


def refusal(message: str, title: str = UNREADABLE_TITLE) -> gr.Error:
    """What a visitor is told of an image that cannot be inspected."""
    return gr.Error(message, title=title, print_exception=False)


def open_category(categories: Categories, name: str) -> Category:
    """A category, or what a visitor is told of one that cannot be opened."""
    try:
        return categories.get(name)
    except CategoryError as error:
        raise refusal(str(error), "This category cannot be opened") from None


def check_picture(path: str, title: str) -> None:
    """Refuses a file that is no image of the formats that are read, or one that is too large; decodes nothing.

    Raises:
        gr.Error: under the given title.
    """
    try:
        DDADImageProcessor().open_file(path).close()
    except ValueError as error:
        raise refusal(str(error).replace(path, "This file"), title) from None


def create_image_input(label: str, **options: Any) -> gr.Image:
    """An image input that passes files on as they are, and says so when one is no image."""
    component = gr.Image(type="filepath", image_mode=None, label=label, **options)
    preprocess = component.preprocess

    def preprocess_or_refuse(payload: ImageData | None) -> Any:
        # Gradio opens what it is given with every decoder that Pillow has: it gets to see what we have recognised.
        if payload is not None and payload.path:
            check_picture(payload.path, UNREADABLE_TITLE)
        try:
            return preprocess(payload)
        except Exception:  # decoders raise what they like
            raise refusal(UNREADABLE) from None

    # A subclass would need a front end of its own.
    component.preprocess = preprocess_or_refuse  # type: ignore[method-assign]
    return component


def read_mask(path: str) -> PIL.Image.Image:
    """A ground-truth mask.

    Raises:
        gr.Error: if the file is no image.
    """
    title = "This ground truth cannot be drawn"
    check_picture(path, title)
    try:
        with decoding("This file"), open_picture(path) as picture:
            return picture.convert("L")
    except ValueError as error:
        raise refusal(str(error), title) from None


def output_path(name: str) -> Path:
    """A file for a visitor alone, in the folder whose files the page deletes after its stated time."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder / name
