"""`ddad evaluate`."""

import argparse
import json
from pathlib import Path

from ddad.commands.loading import load_pipeline


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure how well a checkpoint separates good from defective images",
        description="Prints the image AUROC of every score as JSON, and keeps it in the checkpoint and its card.",
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint")
    parser.add_argument("--good", required=True, help="folder of good images that the model has not seen")
    parser.add_argument("--defective", required=True, help="folder of defective images")
    parser.add_argument(
        "--denoise", type=int, metavar="N", default=0, help="judge the normal versions of N images of each kind too"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates, prints, and brings the card up to date."""
    from ddad.evaluation.evaluate import evaluate
    from ddad.evaluation.restoration import evaluate_denoising
    from ddad.hub.card import EVALUATION_NAME, write_card
    from ddad.training.data import find_images

    good, defective = find_images(arguments.good), find_images(arguments.defective)
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    evaluation = evaluate(pipe, good, defective)
    if arguments.denoise:
        samples = [
            paths[:: max(1, len(paths) // arguments.denoise)][: arguments.denoise] for paths in (good, defective)
        ]
        evaluation["denoising"] = evaluate_denoising(pipe, *samples)
    results = json.dumps(evaluation, indent=2)
    print(results)
    folder = Path(arguments.checkpoint)
    if folder.is_dir():
        (folder / EVALUATION_NAME).write_text(results + "\n", encoding="utf-8")
        write_card(folder)
    return 0
