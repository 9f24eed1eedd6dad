"""A sheet of defects and how parts look without them: `python -m tools.repairs CHECKPOINT DATA --output PICTURE`."""

import argparse
from pathlib import Path

import PIL.Image

from ddad import DDADPipeline
from ddad.datasets.layouts import read_dataset

SIDE, GAP, COLUMNS = 128, 4, 6


def found_defects(pipe: DDADPipeline, paths: list[Path], count: int) -> list[tuple[PIL.Image.Image, PIL.Image.Image]]:
    """So many of the images that are found defective, evenly, and their normal versions."""
    pairs: list[tuple[PIL.Image.Image, PIL.Image.Image]] = []
    order = [path for first in range(count) for path in paths[first::count]]  # a part from everywhere first
    for path in sorted(order[: 2 * count], key=paths.index):
        original = pipe.image_processor.read_image(path)
        scores = pipe.score(original)
        if len(pairs) < count and pipe(scores, denoise=False).is_anomalous[0]:
            pairs.append((pipe.image_processor.to_image(original, "pil"), pipe(scores).denoised_image[0]))
    return pairs


def draw_sheet(pairs: list[tuple[PIL.Image.Image, PIL.Image.Image]]) -> PIL.Image.Image:
    """Rows of defective images, each row above its normal versions."""
    rows = -(-len(pairs) // COLUMNS)
    step, height = SIDE + GAP, 2 * SIDE + 3 * GAP
    sheet = PIL.Image.new("RGB", (COLUMNS * step - GAP, rows * height - 2 * GAP), "white")
    for number, pair in enumerate(pairs):
        row, column = divmod(number, COLUMNS)
        for below, picture in enumerate(pair):
            place = (column * step, row * height + below * (SIDE + GAP // 2))
            sheet.paste(picture.resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS), place)
    return sheet


def main() -> None:
    """Draws one sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    arguments = parser.parse_args()
    pipe = DDADPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    paths = [sample.path for sample in read_dataset(arguments.data).select("test") if sample.defective]
    draw_sheet(found_defects(pipe, paths, arguments.count)).save(arguments.output, quality=85)


if __name__ == "__main__":
    main()
