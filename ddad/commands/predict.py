"""`ddad predict`."""

import argparse
import glob
import hashlib
import json
import sys
import typing
from pathlib import Path

from ddad.commands.shared import add_false_alarms, add_region, add_tolerance, load_pipeline

RESULTS_NAME = "results.jsonl"
ENDINGS = ("_map.tiff", "_overlay.png", "_denoised.png")


def find_inputs(inputs: list[str], output: Path) -> tuple[list[Path], list[Path]]:
    """Files as they are named, folders as the images in them; what lies in the output is a result and no input.

    A pattern that no shell has resolved, as on Windows, stands for what it matches.

    Returns:
        The images, and the files of the folders that are none.
    """
    from ddad.datasets.files import find_images, other_files

    paths: list[Path] = []
    others: list[Path] = []
    for name in inputs:
        path = Path(name)
        matches = (
            [] if path.exists() or not glob.has_magic(name) else sorted(map(Path, glob.glob(name, recursive=True)))
        )
        for match in matches or [path]:
            if match.is_dir():
                paths += find_images(match)
                others += other_files(match)
            else:
                paths.append(match)
    inside = output.resolve()
    kept = [[path for path in some if not path.resolve().is_relative_to(inside)] for some in (paths, others)]
    return list(dict.fromkeys(kept[0])), list(dict.fromkeys(kept[1]))


def state_of(path: Path) -> dict[str, typing.Any]:
    """What tells whether a file is the one that was inspected before."""
    from ddad.datasets.files import region_of

    try:
        status = path.stat()
    except OSError:
        return {}
    state = {"path": str(path.resolve()), "bytes": status.st_size, "modified": status.st_mtime_ns}
    region = region_of(path)
    return state if region is None else state | {"region": region.stat().st_mtime_ns}


def settings_of(arguments: argparse.Namespace) -> str:
    """What results follow from beside the images, in a word: the checkpoint as it is, and the settings."""
    from ddad.checkpoint.saving import describe_state
    from ddad.runtime.inspector import METADATA_NAME

    names = (
        "checkpoint",
        "alpha",
        "timesteps",
        "threshold",
        "false_alarms",
        "tolerance",
        "no_denoise",
        "engine",
        "region",
    )
    folder = Path(arguments.checkpoint)
    metadata = folder / METADATA_NAME  # of an exported folder
    state = describe_state(folder) if folder.is_dir() else None
    state = metadata.read_text(encoding="utf-8") if metadata.is_file() else state
    values = [*(getattr(arguments, name) for name in names), state]
    if arguments.region is not None:  # another mask under the same name is another setting
        values.append(hashlib.sha256(Path(arguments.region).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def read_done(output: Path, settings: str) -> dict[str, dict[str, typing.Any]]:
    """The lines of an earlier run with the same settings whose files are all there, by the state of their images."""
    path, done = output / RESULTS_NAME, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            files = [entry["line"][kind] for kind in ("map", "overlay", "denoised") if kind in entry["line"]]
        except (ValueError, KeyError, TypeError):
            continue  # cut off when that run was
        if entry["line"].get("error") is not None:
            continue  # it is tried once more
        if entry["settings"] == settings and all(Path(path).is_file() for path in files):
            done[json.dumps(entry["state"])] = entry["line"]
    return done


def add_commands(commands: argparse._SubParsersAction) -> None:
    """`ddad predict`."""
    parser = commands.add_parser(
        "predict",
        help="find and remove the defects of images",
        description="Writes NAME_map.tiff (the anomaly map as float32, zero for an average normal pixel),"
        " NAME_overlay.png and NAME_denoised.png for each image, and prints one JSON line for each. An image that"
        " cannot be read gets a line with its error, one that is far too small a warning; the exit status is 1 if one"
        " could not be read. The lines are kept in results.jsonl:"
        " the same command again goes on where it stopped, and nothing that is there is overwritten. Beside an image"
        " NAME_region.png, white where to look, tells what part of it may decide.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or patterns")
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or USER/NAME on the Hub")
    parser.add_argument("--output", required=True, help="folder that the results are written to")
    parser.add_argument("--alpha", type=float, help="weight of the pixel score in [0, 1] (default: the checkpoint's)")
    parser.add_argument("--timesteps", type=int, nargs="+", help="noise levels (default: the checkpoint's)")
    parser.add_argument("--threshold", type=float, help="score above which an image is anomalous (default: measured)")
    add_false_alarms(parser)
    add_tolerance(parser, None)
    add_region(parser)
    parser.add_argument("--no-denoise", action="store_true", help="do not make the version without defects")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.add_argument(
        "--engine",
        choices=("onnx", "openvino"),
        help="let the checkpoint's verdict, exported once a machine, judge on the CPU: faster, without normal version",
    )
    parser.set_defaults(run=run_predict)


Pictures = dict[str, typing.Any]


class Inspector(typing.NamedTuple):
    """How a file is inspected: only `read` may fail for one of many, the rest fails for all of them.

    Attributes:
        read: gives what `inspect` takes; raises a ValueError for a file that is no image.
        inspect: gives a file's line, and its pictures.
    """

    read: typing.Callable[[Path], typing.Any]
    inspect: typing.Callable[[Path, typing.Any], tuple[dict[str, typing.Any], Pictures]]


def by_pipeline(arguments: argparse.Namespace) -> Inspector:
    """Inspects by the checkpoint's pipeline: line, map, overlay and normal version."""
    from ddad.datasets.files import region_of
    from ddad.report.export import record_of
    from ddad.report.size import far_too_small

    pipe = load_pipeline(arguments.checkpoint, arguments.device)
    if arguments.region is not None:
        pipe = pipe.with_region(arguments.region)

    def read(path: Path) -> typing.Any:
        image, region = pipe.image_processor.read_image(path), region_of(path)
        if region is not None:
            region = pipe.image_processor.read_region(region, tuple(image.shape[1:]))
        return image, region, pipe.image_processor.largest_value(path)

    def inspect(path: Path, image: typing.Any) -> tuple[dict[str, typing.Any], Pictures]:
        original, region, white = image
        result = pipe(
            original,
            alpha=arguments.alpha,
            timesteps=arguments.timesteps,
            threshold=arguments.threshold,
            false_alarms=arguments.false_alarms,
            tolerance=arguments.tolerance,
            denoise=not arguments.no_denoise,
            region=region,
        )
        small = far_too_small((original.shape[2], original.shape[1]), pipe)
        line = {
            **record_of(str(path), result, original).to_dict(),
            **({} if small is None else {"warning": " ".join(small)}),
            **({} if white is None else {"white": white}),  # of files of more than 8 bits
        }
        pictures = {"map": result.anomaly_map[0], "overlay": result.overlay[0]}
        return line, pictures if result.denoised_image is None else pictures | {"denoised": result.denoised_image[0]}

    return Inspector(read, inspect)


def by_engine(arguments: argparse.Namespace) -> Inspector:
    """Inspects by the checkpoint's exported verdict: line, map and overlay.

    Raises:
        ValueError: for flags that only the pipeline knows.
    """
    from ddad.report.size import too_small_for
    from ddad.runtime import load
    from ddad.serving.cached import exported

    flags = ("alpha", "timesteps", "tolerance", "device", "region")
    given = [f"--{name}" for name in flags if getattr(arguments, name) is not None]
    if given or not arguments.no_denoise:
        said = f"leave out {' and '.join(given)}" if given else "add --no-denoise"
        raise ValueError(f"--engine gives the checkpoint's own verdict, and makes no normal version: {said}.")
    inspector = load(exported(arguments.checkpoint, arguments.engine), arguments.engine)
    if arguments.false_alarms is not None:
        inspector.set_false_alarms(arguments.false_alarms)

    def inspect(path: Path, image: typing.Any) -> tuple[dict[str, typing.Any], Pictures]:
        found = inspector.judge(image, arguments.threshold)
        size = (found.image.shape[1], found.image.shape[0])
        small = too_small_for(size, inspector.metadata["sizes"]["looked_at"])
        line = found.record(str(path)).to_dict() | ({} if small is None else {"warning": " ".join(small)})
        return line, {"map": found.anomaly_map, "overlay": found.overlay}

    return Inspector(inspector.read, inspect)


def run_predict(arguments: argparse.Namespace) -> int:
    """Scores each image by itself, so that one that is broken stops no other."""
    from ddad.datasets.files import describe_others
    from ddad.report.export import UniqueNames
    from ddad.runtime.records import Record

    output = Path(arguments.output)
    paths, others = find_inputs(arguments.images, output)
    if others:
        print(f"{describe_others(others)}.", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    settings = settings_of(arguments)
    done = read_done(output, settings)
    inspector = by_pipeline(arguments) if arguments.engine is None else by_engine(arguments)
    there = (path.name for path in output.iterdir())
    names = UniqueNames(name.removesuffix(ending) for name in there for ending in ENDINGS if name.endswith(ending))
    status = 0

    def keep(line: dict[str, typing.Any], state: dict[str, typing.Any]) -> None:
        with (output / RESULTS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"settings": settings, "state": state, "line": line}) + "\n")
        print(json.dumps(line), flush=True)

    for path in paths:
        state = state_of(path)
        if json.dumps(state) in done:
            print(json.dumps(done[json.dumps(state)]), flush=True)
            continue
        try:
            image = inspector.read(path)
        except ValueError as error:
            status = 1
            keep(Record(str(path), error=str(error)).to_dict(), state)
            continue
        line, pictures = inspector.inspect(path, image)
        keep(line | write_pictures(pictures, output, names.choose(path.as_posix())), state)
    return status


def write_pictures(pictures: Pictures, output: Path, name: str) -> dict[str, str]:
    """Writes map, overlay and normal version; where they are."""
    import PIL.Image

    from ddad.runtime.pictures import write_whole

    files = {}
    for (kind, picture), ending in zip(pictures.items(), ENDINGS, strict=False):
        target = output / f"{name}{ending}"
        if kind == "map":
            write_whole(PIL.Image.fromarray(picture), target, "TIFF")
        else:
            write_whole(picture, target)
        files[kind] = str(target)
    return files
