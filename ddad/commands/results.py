"""`ddad monitor` and `ddad report`."""

import argparse

from ddad.runtime.commands import add_monitoring


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Both, which machines without PyTorch have too."""
    add_monitoring(commands)
