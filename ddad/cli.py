"""The command `ddad`: its parser, and what becomes of an error."""

import argparse
import logging
import sys

from ddad import __version__
from ddad.commands import (
    calibrate,
    convert,
    dataset,
    evaluate,
    export,
    fit,
    hub,
    predict,
    results,
    serve,
    threshold,
    train,
    watch,
)
from ddad.commands.errors import explain

PROGRAM = "ddad"
EPILOG = """examples:
  ddad fit good_photographs --output checkpoints/my_part
  ddad train --data good_parts --output checkpoints/my_part
  ddad predict part.png --checkpoint checkpoints/my_part --output results
  ddad evaluate --checkpoint checkpoints/my_part --data my_data_set
  ddad publish checkpoints/my_part USER/my_part

exit status: 0 done, 1 some images could not be read, 2 an error, 130 interrupted"""


def create_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Finds and removes defects on product images with a diffusion model of good parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (
        fit, train, calibrate, threshold, predict, evaluate, export, serve, watch, results, hub, convert, dataset,
    ):  # fmt: skip
        module.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; what is wrong with its input is one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for every request
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself
    arguments = create_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except Exception as error:
        said = explain(error)
        if said is None and not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)):
            raise
        print(f"{PROGRAM}: error: {said or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        said = f": {interruption}" if interruption.args else ""
        print(f"{PROGRAM}: interrupted{said}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
