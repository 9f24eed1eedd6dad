"""The command `ddad`: parse, call, print."""

import argparse
import dataclasses
import json
import logging
import sys
import typing
from pathlib import Path

PROGRAM = "ddad"


def add_train(commands: argparse._SubParsersAction) -> None:
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


def load_pipeline(checkpoint: str, device: str | None) -> typing.Any:
    """The pipeline, on the device asked for or on the GPU where there is one."""
    import torch

    from ddad.pipeline import DDADPipeline

    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def find_inputs(inputs: list[str]) -> list[Path]:
    """Files as they are named, folders as the images in them."""
    from ddad.training.data import find_images

    return [path for name in inputs for path in (find_images(name) if Path(name).is_dir() else [Path(name)])]


def add_predict(commands: argparse._SubParsersAction) -> None:
    """`ddad predict`."""
    parser = commands.add_parser(
        "predict",
        help="find and remove the defects of images",
        description="Writes NAME_map.tiff (the anomaly map as float32, zero for an average normal pixel),"
        " NAME_overlay.png and NAME_denoised.png for each image, and prints one JSON line for each. An image that"
        " cannot be read gets a line with its error; the exit status is then 1.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or USER/NAME on the Hub")
    parser.add_argument("--output", required=True, help="folder that the results are written to")
    parser.add_argument("--alpha", type=float, help="weight of the pixel score in [0, 1] (default: the checkpoint's)")
    parser.add_argument("--timesteps", type=int, nargs="+", help="noise levels (default: the checkpoint's)")
    parser.add_argument("--threshold", type=float, help="score above which an image is anomalous (default: measured)")
    parser.add_argument("--no-denoise", action="store_true", help="do not make the version without defects")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> int:
    """Scores each image by itself, so that one that is broken stops no other."""
    import PIL.Image

    from ddad.report.export import UniqueNames

    paths = find_inputs(arguments.images)
    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    names = UniqueNames()
    status = 0
    for path in paths:
        name = names.choose(path.as_posix())
        line: dict[str, typing.Any] = {"image": str(path)}
        try:
            original = pipe.image_processor.read_image(path)
        except ValueError as error:
            status = 1
            print(json.dumps(line | {"error": str(error)}), flush=True)
            continue
        result = pipe(
            original,
            alpha=arguments.alpha,
            timesteps=arguments.timesteps,
            threshold=arguments.threshold,
            denoise=not arguments.no_denoise,
        )
        files = {"map": f"{name}_map.tiff", "overlay": f"{name}_overlay.png"}
        PIL.Image.fromarray(result.anomaly_map[0]).save(output / files["map"])
        result.overlay[0].save(output / files["overlay"])
        if result.denoised_image is not None:
            files["denoised"] = f"{name}_denoised.png"
            result.denoised_image[0].save(output / files["denoised"])
        line |= {
            "image_score": round(result.image_score[0], 4),
            "threshold": round(result.threshold, 4),
            "is_anomalous": result.is_anomalous[0],
        }
        print(json.dumps(line | {key: str(output / value) for key, value in files.items()}), flush=True)
    return status


def add_evaluate(commands: argparse._SubParsersAction) -> None:
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


def add_publish(commands: argparse._SubParsersAction) -> None:
    """`ddad publish`."""
    parser = commands.add_parser(
        "publish",
        help="put a checkpoint on the Hugging Face Hub",
        description="Checks a checkpoint, writes its card, and uploads it with its code. The same command again sends"
        " only what changed. Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument("repository", metavar="USER/NAME", help="the repository, made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--revision", help="branch to publish to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--example", metavar="IMAGE", help="image that the card shows with heatmap and normal version")
    parser.add_argument("--dry-run", metavar="FOLDER", help="write what would be sent into a folder, send nothing")
    parser.set_defaults(run=run_publish)


def run_publish(arguments: argparse.Namespace) -> int:
    """Prepares, and sends or lists."""
    import shutil

    from ddad.hub.publish import PublishOptions, prepare, publish

    folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not the folder of a checkpoint.")
    pipe = load_pipeline(arguments.checkpoint, None)
    with prepare(pipe, folder, arguments.repository, arguments.example) as staged:
        if arguments.dry_run is None:
            options = PublishOptions(arguments.private, arguments.revision, arguments.create_pr)
            print(publish(staged, arguments.repository, options))
            return 0
        shutil.copytree(staged, arguments.dry_run)
        for path in sorted(one for one in Path(arguments.dry_run).rglob("*") if one.is_file()):
            print(f"{path.stat().st_size:>12,}  {path.relative_to(arguments.dry_run).as_posix()}")
    return 0


def add_list(commands: argparse._SubParsersAction) -> None:
    """`ddad list`."""
    parser = commands.add_parser(
        "list",
        help="list the categories on the Hugging Face Hub",
        description="Prints the repositories that carry the tag `ddad`, the most downloaded first.",
    )
    parser.set_defaults(run=run_list)


def run_list(_: argparse.Namespace) -> int:
    """Searches and prints."""
    from ddad.hub.publish import find_published

    for repository, downloads in find_published():
        print(f"{downloads:>10}  {repository}")
    return 0


def add_refresh(commands: argparse._SubParsersAction) -> None:
    """`ddad refresh`."""
    parser = commands.add_parser(
        "refresh",
        help="bring checkpoints up to date with this version",
        description="Writes the code and the settings of this version into checkpoints, so that they load with"
        " diffusers alone as well; weights stay as they are.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders of checkpoints")
    parser.set_defaults(run=run_refresh)


def run_refresh(arguments: argparse.Namespace) -> int:
    """Loads each checkpoint and writes all of it but the weights."""
    from ddad.hub.loading import refresh

    for checkpoint in arguments.checkpoints:
        refresh(load_pipeline(checkpoint, "cpu"), Path(checkpoint))
        print(f"{checkpoint} is up to date.")
    return 0


def add_dataset(commands: argparse._SubParsersAction) -> None:
    """`ddad dataset`."""
    parser = commands.add_parser(
        "dataset",
        help="write the solar cells of the package elpv-dataset as image files",
        description="Writes train/good, test/good and test/defective as PNG files: solar cells of the package"
        " elpv-dataset (CC BY-NC-SA 4.0).",
    )
    parser.add_argument("cell_type", choices=("mono", "poly"), help="mono- or polycrystalline cells")
    parser.add_argument("--output", required=True, help="folder that the images are written to")
    parser.set_defaults(run=run_dataset)


def run_dataset(arguments: argparse.Namespace) -> int:
    """Writes the images."""
    from ddad.datasets.elpv import export_solar_cells

    export_solar_cells(arguments.cell_type, arguments.output)
    return 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Finds and removes defects on product images with a diffusion model of good parts."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_train, add_predict, add_evaluate, add_publish, add_list, add_refresh, add_dataset):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; what is wrong with its input is one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request
    arguments = create_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
