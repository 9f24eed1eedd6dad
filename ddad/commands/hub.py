"""`ddad publish`, `ddad publish-space`, `ddad list`, `ddad refresh`."""

import argparse
import shutil
from pathlib import Path

from ddad.commands.shared import load_pipeline


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
    from ddad.checkpoint.client import reach
    from ddad.checkpoint.publish import PublishOptions, prepare, publish

    folder = Path(arguments.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not the folder of a checkpoint.")
    pipe = load_pipeline(arguments.checkpoint, None)
    with prepare(pipe, folder, arguments.repository, arguments.example) as staged:
        if arguments.dry_run is None:
            reach()
            options = PublishOptions(arguments.private, arguments.revision, arguments.create_pr)
            print(publish(staged, arguments.repository, options))
            return 0
        show_files(staged, Path(arguments.dry_run))
    return 0


def show_files(staged: Path, target: Path) -> None:
    """What `--dry-run` does: keeps what would be sent, and lists it."""
    shutil.copytree(staged, target)
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.relative_to(target).as_posix()}")


def add_publish_space(commands: argparse._SubParsersAction) -> None:
    """`ddad publish-space`."""
    parser = commands.add_parser(
        "publish-space",
        help="put the page on the Hugging Face Hub as a Space",
        description="Uploads the page as a Space that offers the given checkpoints. The same command again sends only"
        " what changed. Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("repository", metavar="USER/NAME", help="the Space, made if it is not there")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="folders of checkpoints, or public USER/NAME on the Hub, downloaded when the Space is made",
    )
    parser.add_argument(
        "--hardware", default="cpu-basic", help="suggested to whoever duplicates it (default: %(default)s)"
    )
    parser.add_argument("--private", action="store_true", help="make a private Space")
    parser.add_argument("--dry-run", metavar="FOLDER", help="write what would be sent into a folder, send nothing")
    parser.set_defaults(run=run_publish_space)


def run_publish_space(arguments: argparse.Namespace) -> int:
    """Checks that every folder loads, prepares, and sends or lists."""
    from ddad.checkpoint.client import reach
    from ddad.checkpoint.space import prepare_space, publish_space

    with prepare_space(arguments.repository, arguments.checkpoints, arguments.hardware) as staged:
        for path in sorted((staged / "checkpoints").glob("*/model_index.json")):
            load_pipeline(str(path.parent), "cpu")
        if arguments.dry_run is None:
            reach()
            print(publish_space(staged, arguments.repository, arguments.private))
        else:
            show_files(staged, Path(arguments.dry_run))
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
    from ddad.checkpoint.client import reach
    from ddad.checkpoint.publish import find_published

    reach()
    for repository, downloads in find_published():
        print(f"{downloads:>10}  {repository}")
    return 0


def add_refresh(commands: argparse._SubParsersAction) -> None:
    """`ddad refresh`."""
    parser = commands.add_parser(
        "refresh",
        help="bring checkpoints up to date with this version",
        description="Writes the code and the settings of this version into checkpoints, so that they load with"
        " diffusers alone as well; weights stay as they are. Settings that you changed by hand are accepted.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders of checkpoints")
    parser.set_defaults(run=run_refresh)


def run_refresh(arguments: argparse.Namespace) -> int:
    """Loads each checkpoint and writes all of it but the weights."""
    from ddad.checkpoint.installed import DDADPipeline
    from ddad.checkpoint.loading import refresh

    for checkpoint in arguments.checkpoints:
        if not Path(checkpoint).is_dir():
            raise ValueError(f"{checkpoint} is not the folder of a checkpoint.")
        refresh(DDADPipeline, Path(checkpoint))
        print(f"{checkpoint} is up to date.")
    return 0


def add_commands(commands: argparse._SubParsersAction) -> None:
    """All commands of this file."""
    for add in (add_publish, add_publish_space, add_list, add_refresh):
        add(commands)
