"""What commands share: the data that they are given, and loading a checkpoint."""

import argparse
import math
import sys
import typing
from pathlib import Path


def add_data(parser: argparse.ArgumentParser, what: str) -> None:
    """`--data` and what is said of it; `read_data` reads it."""
    parser.add_argument("--data", required=True, help=what)
    add_layout(parser)


def add_layout(parser: argparse.ArgumentParser) -> None:
    """How the data that a command was given is read."""
    from ddad.datasets.layouts import READERS

    parser.add_argument("--data-format", choices=("auto", *READERS), default="auto", help="layout of --data")
    add_good(parser)
    parser.add_argument("--masks", metavar="FOLDER", help="folder of ground truth, where names do not say so")


def add_good(parser: argparse.ArgumentParser) -> None:
    """`--good`."""
    parser.add_argument(
        "--good",
        action="extend",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folder below --data that holds good images, where names do not say so; repeatable, . for --data itself",
    )


def parse_rate(text: str) -> float:
    """`1%`, `1 %` or `0.01` -> 0.01.

    Raises:
        ValueError: for what is no part between 0 and a half.
    """
    number = text.strip().removesuffix("%").strip()
    try:
        rate = float(number) / (100 if "%" in text else 1)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 0.5:
        raise ValueError(f"{text!r} is no part of good parts that may fail: give 1% or 0.01, at most 50%.")
    return rate


def add_false_alarms(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """`--false-alarms`."""
    parser.add_argument(
        "--false-alarms",
        type=parse_rate,
        metavar="RATE",
        required=required,
        help="part of good parts that may be called defective, such as 1%% or 0.01, from which the threshold follows",
    )


def add_region(parser: argparse.ArgumentParser) -> None:
    """`--region`."""
    parser.add_argument(
        "--region",
        metavar="MASK",
        help="image of the photographs' aspect ratio, white where it is looked at; what is black decides nothing",
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """`--dry-run`."""
    parser.add_argument(
        "--dry-run", action="store_true", help="only say which images would be used, and write the contact sheet"
    )


def add_tolerance(parser: argparse.ArgumentParser, default: str | None) -> None:
    """`--tolerance`."""
    parser.add_argument(
        "--tolerance",
        choices=("strict", "tolerant"),
        default=default,
        help="what the threshold has room for: strict, photographs like the good ones; tolerant, other light, focus"
        f" and position too, at the price of small defects (default: {default or 'the checkpoint has its own'})",
    )


def read_data(arguments: argparse.Namespace) -> typing.Any:
    """The data set that a command was given, read and described."""
    from ddad.datasets.layouts import read_dataset

    dataset = read_dataset(arguments.data, arguments.data_format, arguments.good, arguments.masks)
    print(dataset.describe(), file=sys.stderr)
    return dataset


def show_good(dataset: typing.Any, output: str) -> None:
    """Writes some of the images that are taken for good beside the output, and says where."""
    from ddad.datasets.layouts import make_contact_sheet

    paths = dataset.require_training()
    path = Path(output).with_name(f"{Path(output).name}_good_images.webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    make_contact_sheet(paths).save(path)
    print(f"What is taken for good: {path}", file=sys.stderr)


def load_pipeline(checkpoint: str, device: str | None) -> typing.Any:
    """The pipeline, on the device asked for or on the GPU where there is one."""
    import torch

    from ddad.checkpoint.client import bound_waiting
    from ddad.checkpoint.installed import DDADPipeline

    bound_waiting()
    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
