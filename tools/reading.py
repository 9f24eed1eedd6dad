"""How pictures are read without PyTorch: `python -m tools.reading` takes it over from where it is published.

Published modules import no others of this project, and the runtime imports no PyTorch; so the functions that need
numpy and Pillow alone stand in `ddad/images_ddad.py` and, letter for letter, in `ddad/runtime/reading.py`.
"""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "ddad"
SOURCE, TARGET = PACKAGE / "images_ddad.py", PACKAGE / "runtime" / "reading.py"
FIRST, AFTER = "# The formats that are read,", "class DDADImages("
HEAD = '''"""Pictures of any kind -> their pixels, by numpy and Pillow alone.

Taken over from `ddad/images_ddad.py` by `python -m tools.reading`: change it there.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

'''


def generate() -> str:
    """The runtime's module."""
    text = SOURCE.read_text(encoding="utf-8")
    return HEAD + text[text.index(FIRST) : text.index(AFTER)].rstrip() + "\n"


def main() -> None:
    """Writes it."""
    TARGET.write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
