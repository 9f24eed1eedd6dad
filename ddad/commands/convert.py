"""`ddad convert`."""

import argparse
import os
import shutil
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad convert`."""
    parser = commands.add_parser(
        "convert",
        help="make a base network of guided-diffusion's weights, for `ddad train --base`",
        description="Converts the weights of a guided-diffusion U-Net (OpenAI's 128x128, 256x256 or 512x512 diffusion"
        " models, with classes or without) into the U-Net of the paper. No code in the file is run.",
    )
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="256x256_diffusion.pt, or a .safetensors of the same tensors"
    )
    parser.add_argument("--output", required=True, help="folder that the base network is written to")
    parser.add_argument(
        "--attention-head-dim", type=int, metavar="N", help="channels of an attention head (default: as OpenAI's)"
    )
    parser.set_defaults(run=run_convert)


def run_convert(arguments: argparse.Namespace) -> int:
    """Reads, converts, saves."""
    from ddad.datasets.layouts import check_empty
    from ddad.training.guided_diffusion import convert, read_weights

    output = Path(arguments.output)
    check_empty(output)
    unet, scheduler = convert(read_weights(arguments.weights), arguments.attention_head_dim)
    # Written beside and moved: an interruption leaves no half of it.
    fresh = output.with_name(output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    unet.save_pretrained(fresh / "unet")
    scheduler.save_pretrained(fresh / "scheduler")
    os.replace(fresh, output)
    parameters = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    size = unet.config.sample_size
    print(
        f"{output}: {parameters:.0f} million parameters for images of {size} pixels. Train on it with\n"
        f"ddad train --base {output} --prediction-type epsilon --image-size {size} --batch-size 2 --learning-rate 1e-4"
        " --ema-decay 0.997 --steps 10000 --memory low --data GOOD_IMAGES --output CHECKPOINT"
    )
    return 0
