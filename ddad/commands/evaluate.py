"""`ddad evaluate`."""

import argparse
import json
import sys
from pathlib import Path

from ddad.commands.shared import add_data, load_pipeline, read_data


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure what a checkpoint finds on a test set",
        description="Prints what every score measures on the test images of a data set, in all and by kind of defect,"
        " and keeps it in the checkpoint and its card. Layouts: MVTec AD, MVTec AD 2, VisA, BTAD, or a folder with"
        " `good` and `defective` (every fifth good image tests then, the others train), and `masks` if there are any.",
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or USER/NAME on the Hub")
    add_data(parser, "folder of one category")
    parser.add_argument(
        "--denoise", type=int, metavar="N", default=0, help="judge the normal versions of N images of each kind too"
    )
    parser.add_argument(
        "--figures", metavar="FOLDER", help="write the best and worst cases, histogram and curves there"
    )
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON instead of tables")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates, prints, and brings the card up to date."""
    from ddad.checkpoint.card import write_card
    from ddad.checkpoint.names import EVALUATION_NAME
    from ddad.evaluation.evaluate import evaluate, format_tables, leave_out_broken
    from ddad.evaluation.figures import write_figures
    from ddad.evaluation.nuisance import evaluate_nuisances
    from ddad.evaluation.restoration import evaluate_denoising

    dataset = read_data(arguments)
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    dataset, errors = leave_out_broken(pipe, dataset)
    for error in errors.values():
        print(f"Left out: {error}", file=sys.stderr)
    report, scored, masks = evaluate(pipe, dataset)
    if errors:
        report["left_out"] = sorted(errors)
    report["nuisances"] = evaluate_nuisances(pipe, [sample.path for sample in dataset.select("test", defective=False)])
    if arguments.denoise:
        kinds = [dataset.select("test", defective) for defective in (False, True)]
        samples = [of_kind[:: max(1, len(of_kind) // arguments.denoise)][: arguments.denoise] for of_kind in kinds]
        report["denoising"] = evaluate_denoising(pipe, *samples)
    results = json.dumps(report, indent=2)
    print(results if arguments.json else format_tables(report))
    if arguments.figures:
        for path in write_figures(pipe, dataset.select("test"), scored, masks, arguments.figures):
            print(path, file=sys.stderr)
    folder = Path(arguments.checkpoint)
    if folder.is_dir():
        (folder / EVALUATION_NAME).write_text(results + "\n", encoding="utf-8")
        write_card(folder)
    return 1 if errors else 0
