"""The demo: `python app.py`, or a Hugging Face Space."""

from pathlib import Path

import gradio as gr

from ddad.app import create_page

demo = create_page(Path(__file__).parent / "checkpoints")

if __name__ == "__main__":
    demo.launch(theme=gr.themes.Soft(), max_file_size="50mb", footer_links=["api"])
