"""`ddad train`."""

import argparse
import dataclasses
import typing


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
        required = field.default is dataclasses.MISSING
        options: dict[str, typing.Any] = {"help": field.metadata["help"], "required": required}
        if typing.get_origin(field.type) is typing.Literal:
            options["choices"] = typing.get_args(field.type)
        elif typing.get_origin(field.type) is tuple:
            options |= {"type": typing.get_args(field.type)[0], "nargs": "+"}
        else:
            options["type"] = field.type
        if not required:
            options["default"] = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    parser.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Trains and saves."""
    from ddad.training.config import TrainConfig
    from ddad.training.run import train

    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    values["timesteps"] = tuple(values["timesteps"])
    train(TrainConfig(**values))
    return 0
