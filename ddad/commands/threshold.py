"""`ddad threshold`."""

import argparse
import sys
import typing

from ddad.commands.shared import add_false_alarms, add_layout, load_pipeline, read_data


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad threshold`."""
    parser = commands.add_parser(
        "threshold",
        help="what each threshold promises, and choosing one by false alarms or by cost",
        description="Prints for several rates of false alarms where the threshold lies, between which limits the rate"
        " of new good parts will be (90 % interval), and how many more good photographs a rate needs. With labelled"
        " test images (--data) also what each threshold finds, and with --miss-costs the threshold that costs least."
        " With --output the checkpoint is saved with the threshold of --false-alarms.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint, or USER/NAME on the Hub")
    add_false_alarms(parser)
    parser.add_argument("--data", help="folder of a data set with good and defective test images")
    add_layout(parser)
    parser.add_argument(
        "--miss-costs",
        type=float,
        metavar="ALARMS",
        help="how many false alarms one missed defect costs, such as 20; needs --data",
    )
    parser.add_argument(
        "--defects",
        type=float,
        default=0.01,
        metavar="PART",
        help="part of parts that are defective on the line, for --miss-costs (default: %(default)s)",
    )
    parser.add_argument("--output", help="folder that the checkpoint is saved to with its new threshold")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.set_defaults(run=run_threshold)


def run_threshold(arguments: argparse.Namespace) -> int:
    """Prints the table; saves where that is asked for."""
    from ddad.calibration.promise import RATES, promise
    from ddad.calibration.trade import choose_by_cost, trade_table
    from ddad.checkpoint.loading import find_folder
    from ddad.checkpoint.saving import check_output, load_record, save_checkpoint

    if arguments.miss_costs is not None and arguments.data is None:
        raise ValueError("--miss-costs needs labelled images: give them by --data.")
    if arguments.output is not None:
        if arguments.false_alarms is None:
            raise ValueError("--output saves a checkpoint with another threshold: say which by --false-alarms.")
        check_output(arguments.output)
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    judges = pipe.calibration.config.num_calibration_images
    if pipe.config.threshold is not None or judges < 2:
        raise ValueError(
            f"The threshold of {arguments.checkpoint} was given by hand, or it stores no good images: it promises"
            " nothing. `ddad calibrate` measures one."
        )
    rates = sorted({*RATES, *([] if arguments.false_alarms is None else [arguments.false_alarms])}, reverse=True)
    scores: typing.Any = None
    if arguments.data is not None:
        from ddad.calibration.trade import score_dataset

        scores = score_dataset(pipe, read_data(arguments))
    print(trade_table(pipe, rates, scores))
    if arguments.false_alarms is not None:
        print(promise(judges, arguments.false_alarms))
    if arguments.miss_costs is not None:
        print(choose_by_cost(pipe, scores, arguments.miss_costs, arguments.defects))
    if arguments.output is not None:
        chosen = pipe.with_components(calibration=pipe.calibration.with_false_alarms(arguments.false_alarms))
        save_checkpoint(chosen, load_record(find_folder(arguments.checkpoint, {})), arguments.output)
        print(f"Saved to {arguments.output}, threshold {chosen.threshold:.2f}.", file=sys.stderr)
    return 0
