"""What visitors give: images and names of categories, read with messages that are for them."""

import base64
import contextlib
import re
import secrets
import shutil
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import PIL.Image
from gradio.components.image import ImageData
from gradio.utils import get_upload_folder

from ddad.app.categories import Categories, Category, CategoryError
from ddad.images_ddad import decoding, open_picture

# What the zip of a checkpoint may hold.
MOST_BYTES = 400 * 2**20
CHECKPOINT_SUFFIXES = (".json", ".safetensors")
NAME_PART = re.compile(r"[\w-][\w.-]{0,95}", flags=re.ASCII)
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
        """The file's path on this machine. Pictures of a camera's stream come without a file, and get one."""
        if payload is None:
            return None
        if payload.path is not None:
            return str(payload.path)
        encoded = (payload.url or "").partition("base64,")[2]
        if not encoded:
            return None
        path = output_path("picture.jpg")
        path.write_bytes(base64.b64decode(encoded))
        return str(path)


def create_image_input(value: str | None = None, **options: Any) -> ImageFile:
    """An image input whose events get the file's path; a camera's pictures are not mirrored, as parts are not."""
    camera = gr.WebcamOptions(mirror=False)
    return ImageFile(value, type="filepath", image_mode=None, webcam_options=camera, **options)


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


def outputs_folder() -> Path:
    """Where files lie that are made for visitors."""
    return Path(get_upload_folder()) / "ddad"


def output_path(name: str) -> Path:
    """A file for a visitor alone, which is deleted after the page's stated time."""
    folder = outputs_folder() / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder / name


def delete_old_outputs(seconds: float) -> None:
    """Deletes what was made for visitors longer ago: Gradio itself deletes only what it has shown or been given."""
    oldest = time.time() - seconds
    for folder in outputs_folder().glob("*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


def unpack_checkpoint(path: str, folder: Path) -> Path:
    """The settings and weights of a checkpoint's zip, and nothing else of it, below `folder`.

    Raises:
        gr.Error: if it is no such zip.
    """
    title = "This zip cannot be opened"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member for member in archive.infolist() if PurePosixPath(member.filename).suffix in CHECKPOINT_SUFFIXES
            ]
            roots = {PurePosixPath(member.filename).parts[0] for member in members}
            if len(roots) != 1 or sum(member.file_size for member in members) > MOST_BYTES:
                raise refusal("Give a zip as this page makes it: one checkpoint in one folder.", title)
            for member in members:
                parts = PurePosixPath(member.filename).parts
                if not 2 <= len(parts) <= 3 or not all(NAME_PART.fullmatch(part) for part in parts):
                    raise refusal("Give a zip as this page makes it: one checkpoint in one folder.", title)
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
    except gr.Error:
        raise
    except Exception:  # decompressors raise what they like
        raise refusal("This zip is damaged or none.", title) from None
    return folder / roots.pop()
