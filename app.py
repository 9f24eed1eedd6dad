"""The demo: `python app.py`, or a Hugging Face Space."""

from pathlib import Path

from ddad.app import LAUNCH, create_page

demo = create_page(Path(__file__).parent / "checkpoints")

if __name__ == "__main__":
    demo.launch(**LAUNCH)
