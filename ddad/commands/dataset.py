"""`ddad dataset` and `ddad split`."""

import argparse
import sys

from ddad.commands.shared import add_data, read_data


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad dataset` and `ddad split`."""
    parser = commands.add_parser(
        "dataset",
        help="write the solar cells of the package elpv-dataset as image files",
        description="Writes train/good, test/good and test/defective as PNG files: solar cells of the package"
        " elpv-dataset (CC BY-NC-SA 4.0; 92 MB), which must be installed: pip install 'ddad[solar-cells]'.",
    )
    parser.add_argument("cell_type", choices=("mono", "poly"), help="mono- or polycrystalline cells")
    parser.add_argument("--output", required=True, help="folder that the images are written to")
    parser.set_defaults(run=run_dataset)

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
