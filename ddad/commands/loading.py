"""What commands share: the data that they are given, and loading a checkpoint."""

import argparse
import typing


def add_data(parser: argparse.ArgumentParser, what: str) -> None:
    """`--data` and `--data-format`."""
    from ddad.datasets.layouts import READERS

    parser.add_argument("--data", required=True, help=what)
    parser.add_argument("--data-format", choices=("auto", *READERS), default="auto", help="layout of --data")


def load_pipeline(checkpoint: str, device: str | None) -> typing.Any:
    """The pipeline, on the device asked for or on the GPU where there is one."""
    import torch

    from ddad.pipeline import DDADPipeline

    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
