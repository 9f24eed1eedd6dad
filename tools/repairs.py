"""A sheet of defects and how parts look without them: `python -m tools.repairs DATA CHECKPOINT ... --output PICTURE`.

The first checkpoint finds the defects; each draws a row of normal versions of its own, so that two can be compared.
"""

import argparse
from pathlib import Path

import PIL.Image

from ddad import DDADPipeline, DDADRenderer
from ddad.datasets.layouts import read_dataset

SIDE, GAP, COLUMNS = 128, 4, 6


def found_defects(pipes: list[DDADPipeline], paths: list[Path], count: int) -> list[list[PIL.Image.Image]]:
    """So many of the images that the first pipeline calls defective, evenly, each with its normal versions by all."""
    found: list[list[PIL.Image.Image]] = []
    processor = pipes[0].image_processor
    order = [path for first in range(count) for path in paths[first::count]]  # a part from everywhere first
    for path in sorted(order[: 2 * count], key=paths.index):
        if len(found) == count:
            break
        original = processor.read_image(path)
        first = pipes[0](original)  # repairs what it finds alone
        if first.is_anomalous[0]:
            results = [first, *(pipe(original) for pipe in pipes[1:])]
            found.append([DDADRenderer.to_image(original, "pil"), *(one.denoised_image[0] for one in results)])
    return found


def draw_sheet(found: list[list[PIL.Image.Image]]) -> PIL.Image.Image:
    """Rows of defective images, each row above its normal versions."""
    rows, kinds = -(-len(found) // COLUMNS), len(found[0])
    step, height = SIDE + GAP, kinds * (SIDE + GAP // 2) + GAP
    sheet = PIL.Image.new("RGB", (COLUMNS * step - GAP, rows * height - GAP - GAP // 2), "white")
    for number, pictures in enumerate(found):
        row, column = divmod(number, COLUMNS)
        for below, picture in enumerate(pictures):
            place = (column * step, row * height + below * (SIDE + GAP // 2))
            sheet.paste(picture.resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS), place)
    return sheet


def main() -> None:
    """Draws one sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    arguments = parser.parse_args()
    pipes = [DDADPipeline.from_pretrained(checkpoint) for checkpoint in arguments.checkpoints]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    paths = [sample.path for sample in read_dataset(arguments.data).select("test") if sample.defective]
    draw_sheet(found_defects(pipes, paths, arguments.count)).save(arguments.output, quality=85)


if __name__ == "__main__":
    main()
