"""Example images that the page can offer: those that lie in a checkpoint's folder, and those of installed packages."""

import logging
import re
import shutil
import tempfile
from pathlib import Path

import PIL.Image

from ddad.datasets.elpv import load_solar_cells

logger = logging.getLogger(__name__)

# In a checkpoint's folder; named `defective_1.webp`, `good_1.webp` and so on.
FOLDER_NAME = "examples"
CAPTIONS = {"defective": "Defect", "good": "Good"}
NAME = re.compile(r"(defective|good)_(\d+)")
# Positions in the test split: cells with cracks, dark regions and broken fingers, then two without defects.
DEFECTIVE = {"mono": (78, 39, 117, 195), "poly": (160, 200, 240, 280)}
GOOD = {"mono": (3, 40), "poly": (40, 80)}


def write_examples(checkpoint: Path) -> list[tuple[Path, str]]:
    """Test images of a category with captions, defective ones first, as files that a page may serve.

    Args:
        checkpoint: the checkpoint's folder, which need not be there.

    Returns:
        Paths and captions; nothing where neither the folder nor a package carries any.
    """
    bundled = sorted(path for path in checkpoint.glob(f"{FOLDER_NAME}/*.webp") if NAME.fullmatch(path.stem))
    if bundled:
        folder = Path(tempfile.mkdtemp(prefix="ddad-examples-"))
        return [(Path(shutil.copy(path, folder)), caption(path)) for path in bundled]
    cell_type = checkpoint.name.removeprefix("solar_cell_")
    return write_solar_cells(cell_type) if cell_type in DEFECTIVE else []


def caption(path: Path) -> str:
    """What is said below an example: `defective_2.webp` is "Defect 2"."""
    kind, number = path.stem.split("_")
    return f"{CAPTIONS[kind]} {number}"


def write_solar_cells(cell_type: str) -> list[tuple[Path, str]]:
    """Examples from the package `elpv-dataset`; none where it is not installed."""
    try:
        cells = load_solar_cells(cell_type)
    except ImportError as error:
        logger.warning("No example images: %s", error)
        return []
    folder = Path(tempfile.mkdtemp(prefix="ddad-examples-"))
    examples = []
    for kind, images, positions in (
        ("defective", cells.test_defective, DEFECTIVE[cell_type]),
        ("good", cells.test_good, GOOD[cell_type]),
    ):
        for number, position in enumerate(positions, start=1):
            path = folder / f"{kind}_{number}.webp"
            PIL.Image.fromarray(images[position]).save(path, lossless=True)
            examples.append((path, caption(path)))
    return examples
