"""`ddad serve`."""

import argparse

from ddad.runtime.commands import add_serving, run_service


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad serve`."""
    parser = commands.add_parser(
        "serve",
        help="inspect images over HTTP",
        description="Inspects images over HTTP: POST /inspect, GET /categories, GET /health, POST /reload; /docs"
        " describes them. Checkpoints are exported first, once a machine. A machine without PyTorch serves exported"
        " folders by `ddad-runtime serve`, with the same flags.",
    )
    add_serving(parser, "exported folders, folders of checkpoints, or USER/NAME on the Hub")
    parser.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Exports what needs it, and serves."""
    from ddad.serving.cached import exported

    arguments.categories = [exported(one, arguments.engine) for one in arguments.categories]
    return run_service(arguments)
