"""`ddad export`."""

import argparse
import sys
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad export`."""
    parser = commands.add_parser(
        "export",
        help="write a checkpoint's verdict as a graph for machines without PyTorch, and prove that it says the same",
        description="Writes verdict.onnx (pixels of any size to anomaly map and image score), metadata.json (threshold"
        " and what it rests on, sizes, check sums) and, on request, the networks of the normal version; then inspects"
        " images by both and fails if they differ. `ddad.runtime` reads the folder with numpy, Pillow and onnxruntime"
        " or openvino alone.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint, or USER/NAME on the Hub")
    parser.add_argument("--output", required=True, help="folder that is written")
    parser.add_argument("--format", choices=("onnx", "openvino"), default="onnx", help="(default: %(default)s)")
    parser.add_argument("--with-networks", action="store_true", help="also unet.onnx and refiner.onnx")
    parser.add_argument(
        "--verify",
        nargs="+",
        metavar="IMAGE",
        default=[],
        help="images, folders or patterns that both inspect (default: the checkpoint's own examples)",
    )
    parser.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> int:
    """Exports and compares; the exit status is 1 if the two differ."""
    import torch

    from ddad.checkpoint.installed import DDADPipeline
    from ddad.checkpoint.loading import find_folder
    from ddad.commands.predict import find_inputs
    from ddad.serving.export import compare, export_pipeline, pictures_to_compare

    pipe = DDADPipeline.from_pretrained(arguments.checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    output = Path(arguments.output)
    images = find_inputs(arguments.verify, output)[0] if arguments.verify else []
    export_pipeline(pipe, output, arguments.format, arguments.with_networks)
    images = images or pictures_to_compare(find_folder(arguments.checkpoint, {}))
    for engine in ("onnx", "openvino") if arguments.format == "openvino" else ("onnx",):
        agreement = compare(pipe, output, images, engine)
        print(f"{engine}: {agreement}")
        if not agreement.holds:
            print(
                f"ddad: error: {output} does not say the same as {arguments.checkpoint}.",
                file=sys.stderr,
            )
            return 1
    return 0
