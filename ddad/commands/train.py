"""`ddad train`."""

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path

from ddad.commands.shared import add_dry_run, add_good, show_good


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad train`: one flag for every field of `TrainConfig`."""
    from ddad.training.config import TrainConfig

    parser = commands.add_parser(
        "train",
        help="train a pipeline on a folder of good images",
        description="Trains a pipeline on a folder of good images. The same command again resumes an interrupted run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for field in dataclasses.fields(TrainConfig):
        if field.name == "good":
            add_good(parser)
            continue
        required = field.default is dataclasses.MISSING
        options: dict[str, typing.Any] = {"help": field.metadata["help"], "required": required}
        if typing.get_origin(field.type) is typing.Literal:
            options["choices"] = typing.get_args(field.type)
        elif typing.get_origin(field.type) is tuple:
            options |= {"type": typing.get_args(field.type)[0], "nargs": "+"}
        elif isinstance(field.type, types.UnionType):  # or None
            options["type"] = typing.get_args(field.type)[0]
        else:
            options["type"] = field.type
        if not required:
            options["default"] = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    add_dry_run(parser)
    parser.add_argument("--restart", action="store_true", help="delete what an unfinished run in --output has saved")
    parser.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Says and shows what is taken for good, trains and saves."""
    from ddad.datasets.layouts import read_dataset
    from ddad.training.config import TrainConfig
    from ddad.training.run import check_writable, train
    from ddad.training.state import remove_state

    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    values |= {name: tuple(values[name]) for name in ("timesteps", "strides", "good")}
    config = TrainConfig(**values)
    dataset = read_dataset(config.data, config.data_format, config.good)
    print(dataset.describe(), file=sys.stderr)
    if not arguments.dry_run:
        check_writable(Path(config.output))
    show_good(dataset, config.output)
    if not arguments.dry_run:
        if arguments.restart:
            remove_state(config.output)
        train(config)
    return 0
