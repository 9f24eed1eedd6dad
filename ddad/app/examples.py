"""Example images, read from installed packages and written as files that the page can offer."""

import logging
import tempfile
from pathlib import Path

import PIL.Image

from ddad.datasets.elpv import load_solar_cells

logger = logging.getLogger(__name__)

# Positions in the test split: cells with cracks, dark regions and broken fingers, then two without defects.
DEFECTIVE = (78, 39, 117, 195)
GOOD = (3, 40)


def write_examples(category: str) -> list[tuple[Path, str]]:
    """Test images of a category with captions, defective ones first; none where no package carries any."""
    cell_type = category.rpartition("/")[2].removeprefix("solar_cell_")
    if cell_type not in ("mono", "poly"):
        return []
    try:
        cells = load_solar_cells(cell_type)
    except ImportError as error:
        logger.warning("No example images: %s", error)
        return []
    folder = Path(tempfile.mkdtemp(prefix="ddad-examples-"))
    examples = []
    for name, caption, images, positions in (
        ("defective", "Defect", cells.test_defective, DEFECTIVE),
        ("good", "Good", cells.test_good, GOOD),
    ):
        for number, position in enumerate(positions, start=1):
            path = folder / f"{cell_type}_{name}_{number}.png"
            PIL.Image.fromarray(images[position]).save(path)
            examples.append((path, f"{caption} {number}"))
    return examples
