"""What visitors give: images and names of categories, read with messages that are for them."""

import secrets
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from gradio.components.image import ImageData
from gradio.utils import get_upload_folder

from ddad.app.categories import Categories, Category, CategoryError
from ddad.images_ddad import decoding, open_picture

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


class ImageFile(gr.Image):
    """An image input that passes files on as they are: whoever reads one says what is wrong with it.

    Gradio itself would open it with every decoder that Pillow has, and start the programs that some of them need.
    """

    is_template = True  # for the browser it is an image

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The file's path on this machine."""
        return None if payload is None else payload.path


def create_image_input(value: str | None = None, **options: Any) -> ImageFile:
    """An image input whose events get the file's path."""
    return ImageFile(value, type="filepath", image_mode=None, **options)


def read_mask(path: str) -> PIL.Image.Image:
    """A ground-truth mask.

    Raises:
        gr.Error: if the file is no image.
    """
    title = "This ground truth cannot be drawn"
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
