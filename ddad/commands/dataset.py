"""`ddad dataset`."""

import argparse


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad dataset`."""
    parser = commands.add_parser(
        "dataset",
        help="write the solar cells of the package elpv-dataset as image files",
        description="Writes train/good, test/good and test/defective as PNG files: solar cells of the package"
        " elpv-dataset (CC BY-NC-SA 4.0).",
    )
    parser.add_argument("cell_type", choices=("mono", "poly"), help="mono- or polycrystalline cells")
    parser.add_argument("--output", required=True, help="folder that the images are written to")
    parser.set_defaults(run=run_dataset)


def run_dataset(arguments: argparse.Namespace) -> int:
    """Writes the images."""
    from ddad.datasets.elpv import export_solar_cells

    export_solar_cells(arguments.cell_type, arguments.output)
    return 0
