"""The tab that explains the method."""

import re
from pathlib import Path

import gradio as gr

TEXT = Path(__file__).parent / "about.md"


def add_about() -> None:
    """Builds the tab from `about.md`; its pictures are lines of their own."""
    parts = re.split(r"^!\[(.+?)\]\((.+?)\)$", TEXT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    gr.Markdown(parts[0])
    for alt_text, picture, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        gr.Image(
            TEXT.parent / picture, interactive=False, label=alt_text, show_label=False, alt_text=alt_text,
            buttons=["fullscreen"],
        )  # fmt: skip
        gr.Markdown(text)
