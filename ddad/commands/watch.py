"""`ddad watch`."""

import argparse

from ddad.runtime.commands import add_watching, run_watch


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad watch`."""
    parser = commands.add_parser(
        "watch",
        help="inspect pictures as they appear in a folder, or come from a camera",
        description="Inspects every picture that appears in a folder, once it is whole, or a camera's pictures: a row"
        " in inspections.csv, the picture under its heatmap where it is defective, and a message to a web address or"
        " an MQTT broker. What was inspected is kept: after an interruption the same command goes on where it stopped."
        " A machine without PyTorch watches by `ddad-runtime watch`, with the same flags.",
    )
    add_watching(parser, "an exported folder, a checkpoint's folder, or USER/NAME on the Hub")
    parser.set_defaults(run=run_exported)


def run_exported(arguments: argparse.Namespace) -> int:
    """Exports what needs it, and watches."""
    from ddad.serving.cached import exported

    arguments.category = exported(arguments.category, arguments.engine)
    return run_watch(arguments)
