"""`ddad fit`."""

import argparse
import sys

from ddad.commands.shared import add_dry_run, add_layout, add_region, add_tolerance, read_data, show_good


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad fit`."""
    parser = commands.add_parser(
        "fit",
        help="make a checkpoint of a new part from a few good photographs, in a minute or two, without training",
        description="Measures what a part looks like on a few photographs of good ones (four at least, twenty or more"
        " are better), and says whether they are enough. No network is trained: normal versions come from a base"
        " network that never saw the part; `ddad train` gives it one of its own.",
    )
    parser.add_argument("data", metavar="FOLDER", help="folder of good images, or of a data set")
    add_layout(parser)
    parser.add_argument("--output", required=True, help="folder that the checkpoint is saved to")
    parser.add_argument("--category", help="name of the part (default: name of --output)")
    parser.add_argument(
        "--base", metavar="CHECKPOINT", help="folder or USER/NAME of the base network (default: checkpoints/base)"
    )
    add_tolerance(parser, "strict")
    add_region(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    add_dry_run(parser)
    parser.set_defaults(run=run_fit)


def run_fit(arguments: argparse.Namespace) -> int:
    """Says and shows what is taken for good, fits, saves, and says what to expect."""
    from pathlib import Path

    import torch

    from ddad.calibration.observing import CalibrationConfig
    from ddad.calibration.part import fit_part
    from ddad.checkpoint.saving import check_output, save_checkpoint

    check_output(arguments.output)
    dataset = read_data(arguments)
    show_good(dataset, arguments.output)
    if arguments.dry_run:
        return 0
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    category = arguments.category or Path(arguments.output).name
    config = CalibrationConfig(tolerance=arguments.tolerance)
    pipe, record, told = fit_part(
        dataset.train_paths, category, base=arguments.base, config=config, device=device, region=arguments.region
    )
    save_checkpoint(pipe, record, arguments.output)
    print("\n".join([*told.sentences(), f"Saved to {arguments.output} after {told.seconds:.0f} s."]))
    if not told.works:
        print(f"ddad: warning: {arguments.output} cannot be relied on; see above.", file=sys.stderr)
    return 0
