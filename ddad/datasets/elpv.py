"""Solar cells: electroluminescence images of the package `elpv-dataset` (CC BY-NC-SA 4.0).

2,624 grey images of 300x300 pixels of mono- and polycrystalline cells, each with the probability that experts gave for
a defect: 0, 1/3, 2/3 or 1 ("A benchmark for visual identification of defective solar cells in electroluminescence
imagery", Buerhop-Lutz et al., 2018).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclass
class SolarCells:
    """Cells of one type, split. Each array is `[N, 300, 300]`, uint8.

    Attributes:
        train: cells that all experts called free of defects, for training and calibration.
        test_good: a random fifth of those, held out.
        test_defective: cells that all experts called defective (probability 1).
    """

    train: np.ndarray
    test_good: np.ndarray
    test_defective: np.ndarray


def load_solar_cells(cell_type: Literal["mono", "poly"]) -> SolarCells:
    """Reads the cells of one type from the installed package and splits them, always in the same way.

    Raises:
        ImportError: if `elpv-dataset` is not installed.
    """
    try:
        from elpv_dataset.utils import load_dataset
    except ImportError as error:
        raise ImportError("The solar cells come with a package: pip install 'ddad[solar-cells]'.") from error
    images, probabilities, types = load_dataset()
    chosen = types == cell_type
    good = images[chosen & (probabilities == 0)]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(good))
    held_out = round(TEST_FRACTION * len(good))
    return SolarCells(
        train=good[np.sort(order[held_out:])],
        test_good=good[np.sort(order[:held_out])],
        test_defective=images[chosen & (probabilities == 1)],
    )


def export_solar_cells(cell_type: Literal["mono", "poly"], folder: str | Path) -> None:
    """Writes the cells as PNG files: `train/good`, `test/good` and `test/defective` below `folder`."""
    cells = load_solar_cells(cell_type)
    for name, images in (
        ("train/good", cells.train),
        ("test/good", cells.test_good),
        ("test/defective", cells.test_defective),
    ):
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            PIL.Image.fromarray(image).save(target / f"{index:04d}.png")
