"""`ddad dataset` and `ddad split`."""

import argparse
import sys

from ddad.commands.shared import add_data, read_data
from ddad.datasets.annotations import FORMATS


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad dataset` and `ddad split`."""
    parser = commands.add_parser(
        "dataset", help="write a data set as image files: solar cells, or your annotated images"
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, cells in (("mono", "monocrystalline"), ("poly", "polycrystalline")):
        parser = kinds.add_parser(
            name,
            help=f"{cells} solar cells of the package elpv-dataset",
            description=f"Writes train/good, test/good and test/defective as PNG files: {cells} solar cells of"
            " the package elpv-dataset (CC BY-NC-SA 4.0; 92 MB), which must be installed: pip install"
            " 'ddad[solar-cells]'.",
        )
        parser.add_argument("--output", required=True, help="folder that the images are written to")
        parser.set_defaults(run=run_dataset, cell_type=name)
    parser = kinds.add_parser(
        "convert",
        help="make masks of annotations, in MVTec AD's layout",
        description="Copies the images of a folder into train/good, test/good and test/KIND_OF_DEFECT, and draws masks"
        " of the polygons and boxes that labelme, COCO, Pascal VOC, YOLO or CVAT files have of them. Images on which"
        " nothing is marked are taken for good, and how many have no annotation at all is said.",
    )
    parser.add_argument("data", metavar="FOLDER", help="images and annotations")
    parser.add_argument("--from", dest="source", choices=("auto", *FORMATS), default="auto", help="what is read")
    parser.add_argument("--output", required=True, help="folder that it is written to")
    parser.set_defaults(run=run_convert)

    parser = commands.add_parser(
        "split",
        help="split a data set anew, all photographs of a part on one side",
        description="Copies a data set with its good images split anew: images that seem to show the same part all"
        " train or all test. Otherwise a test measures how well parts are known, not how well defects are found.",
    )
    add_data(parser, "folder of one category")
    parser.add_argument("--output", required=True, help="folder that it is written to, in MVTec AD's layout")
    parser.set_defaults(run=run_split)


def run_dataset(arguments: argparse.Namespace) -> int:
    """Writes the images."""
    from ddad.datasets.elpv import export_solar_cells

    export_solar_cells(arguments.cell_type, arguments.output)
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts, and says what became of what."""
    from ddad.datasets.converting import convert_annotations

    print(convert_annotations(arguments.data, arguments.output, arguments.source), file=sys.stderr)
    return 0


def run_split(arguments: argparse.Namespace) -> int:
    """Splits, and says how many good test images showed a part that trains, before and after."""
    from ddad.datasets.layouts import read_dataset
    from ddad.datasets.splitting import count_seen, write_split

    dataset = read_data(arguments)
    write_split(dataset, arguments.output)
    for shown in (dataset, read_dataset(arguments.output, "mvtec")):
        total = len(shown.select("test", defective=False))
        print(
            f"{shown.name}: {count_seen(shown)} of {total} good test images show a part that trains.", file=sys.stderr
        )
    return 0
