"""`ddad calibrate`."""

import argparse

from ddad.commands.shared import add_data, add_dry_run, load_pipeline, read_data, show_good


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a checkpoint's statistics and threshold to other good images, without training",
        description="Fits Gaussians, settings and threshold anew on good images, in minutes: what a line needs after a"
        " lamp or a camera was changed. The networks stay as they are. A hundred images are enough.",
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or USER/NAME on the Hub")
    add_data(parser, "folder of good images, or of a data set")
    parser.add_argument("--output", required=True, help="folder that the new checkpoint is saved to")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    add_dry_run(parser)
    parser.set_defaults(run=run_calibrate)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Says and shows what is taken for good, loads, calibrates, saves."""
    from ddad.calibration.calibration import calibrate_checkpoint
    from ddad.checkpoint.loading import find_folder
    from ddad.checkpoint.saving import check_output, load_record

    check_output(arguments.output)
    dataset = read_data(arguments)
    show_good(dataset, arguments.output)
    if arguments.dry_run:
        return 0
    record = load_record(find_folder(arguments.checkpoint, {}))
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    calibrate_checkpoint(pipe, record, dataset, arguments.output)
    return 0
