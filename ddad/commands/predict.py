"""`ddad predict`."""

import argparse
import json
import typing
from pathlib import Path

from ddad.commands.loading import load_pipeline


def find_inputs(inputs: list[str]) -> list[Path]:
    """Files as they are named, folders as the images in them."""
    from ddad.datasets.layouts import find_images

    return [path for name in inputs for path in (find_images(name) if Path(name).is_dir() else [Path(name)])]


def add_commands(commands: argparse._SubParsersAction) -> None:
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
