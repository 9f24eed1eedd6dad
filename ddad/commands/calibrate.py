"""`ddad calibrate`."""

import argparse
import dataclasses

from ddad.commands.shared import add_data, add_dry_run, add_region, add_tolerance, load_pipeline, read_data, show_good


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a checkpoint's statistics and threshold to other good images, without training",
        description="Fits statistics and threshold anew on good images, in minutes: what a line needs after a"
        " lamp or a camera was changed. The networks stay as they are. A hundred images are enough.",
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or USER/NAME on the Hub")
    add_data(parser, "folder of good images, or of a data set")
    parser.add_argument("--output", required=True, help="folder that the new checkpoint is saved to")
    parser.add_argument(
        "--appearance-size",
        type=int,
        metavar="PIXELS",
        help="size at which appearance is looked at (default: the checkpoint's; 512 is best)",
    )
    parser.add_argument("--appearance-backbone", metavar="NAME", help="any timm backbone (default: Lite2, else Lite0)")
    parser.add_argument("--backbone-weights", metavar="FILE", help="its weights: safetensors, or a state dict")
    parser.add_argument(
        "--strides", type=int, nargs="+", metavar="STRIDE", help="layers of it that are looked at (default: 4 8 16)"
    )
    parser.add_argument(
        "--nuisance",
        choices=("none", "mild", "strong"),
        default="mild",
        help="how much noise, light, blur and shift is no defect (default: %(default)s)",
    )
    add_tolerance(parser, "strict")
    add_region(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    add_dry_run(parser)
    parser.set_defaults(run=run_calibrate)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Says and shows what is taken for good, loads, calibrates, saves."""
    from ddad.calibration.calibration import AppearanceConfig, calibrate_checkpoint
    from ddad.calibration.observing import CalibrationConfig
    from ddad.checkpoint.loading import find_folder
    from ddad.checkpoint.saving import check_output, load_record

    check_output(arguments.output)
    dataset = read_data(arguments)
    show_good(dataset, arguments.output)
    if arguments.dry_run:
        return 0
    record = load_record(find_folder(arguments.checkpoint, {}))
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    config = dataclasses.replace(
        CalibrationConfig.of(record), nuisance=arguments.nuisance, tolerance=arguments.tolerance
    )
    if arguments.region is not None:
        pipe = pipe.with_region(arguments.region)
    strides = tuple(arguments.strides) if arguments.strides else None
    appearance = AppearanceConfig(
        arguments.appearance_size, arguments.appearance_backbone, arguments.backbone_weights, strides
    )
    calibrate_checkpoint(pipe, record, dataset, arguments.output, config, appearance)
    return 0
