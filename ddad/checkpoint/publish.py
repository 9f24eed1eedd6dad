"""Publishes a checkpoint on the Hub: checked, with its card, only what changed is sent."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from huggingface_hub import HfApi

from ddad.checkpoint.card import write_card
from ddad.checkpoint.names import FIGURE_NAME, RECORD_NAME, TAG

FIGURE_SIDE, FIGURE_GAP = 320, 12
# A checkpoint's folder may hold more: the state of a run, a user's notes. This is what is published.
PUBLISHED = ("*.json", "*.py", "*.safetensors", "README.md", FIGURE_NAME, "examples/*.webp")


@dataclass(frozen=True)
class PublishOptions:
    """How a checkpoint is published.

    Attributes:
        private: whether a repository that is made for it is private.
        revision: the branch; made if it is not there.
        create_pr: whether to open a pull request instead of a commit.
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False


def check_code(pipe: Any, folder: Path) -> None:
    """Refuses a checkpoint whose code is not this version's.

    Raises:
        ValueError: that says what to do.
    """
    sources = {"pipeline.py": pipe.source_code}
    for name, (module, _) in pipe.component_classes.items():
        if getattr(pipe, name) is None:
            continue
        sources[f"{name}/{module}.py"] = getattr(pipe, name).source_code
    for name, source in sources.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != source:
            raise ValueError(f"{path} is not the code of this version: run `ddad refresh {folder}` first.")


def draw_figure(pipe: Any, image: str | Path) -> PIL.Image.Image:
    """An image, its heatmap and its normal version side by side."""
    result = pipe(image)
    original = pipe.renderer.to_image(pipe.image_processor.read_image(image), "pil")
    pictures = [original, result.overlay[0], result.denoised_image[0]]
    height = round(FIGURE_SIDE * original.height / original.width)
    row = PIL.Image.new("RGBA", (3 * (FIGURE_SIDE + FIGURE_GAP) - FIGURE_GAP, height))
    for number, picture in enumerate(pictures):
        row.paste(picture.resize((FIGURE_SIDE, height)), (number * (FIGURE_SIDE + FIGURE_GAP), 0))
    return row


def copy_published(folder: Path, target: Path) -> None:
    """Copies of a checkpoint's folder what is published, nothing else."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and len(inside.parts) <= 2 and any(inside.match(pattern) for pattern in PUBLISHED):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)


@contextmanager
def prepare(pipe: Any, folder: Path, repository: str, example: str | None = None) -> Iterator[Path]:
    """A folder with what will be published, for as long as it is needed.

    Args:
        pipe: the pipeline that was loaded from `folder`, which so is whole.
        folder: the checkpoint.
        repository: USER/NAME.
        example: an image for the card's figure.

    Raises:
        ValueError: if the checkpoint's code is another version's, its record is missing, or a text names a folder of
            this machine.
    """
    check_code(pipe, folder)
    if not (folder / RECORD_NAME).is_file():
        raise ValueError(
            f"{folder} has no {RECORD_NAME}, of which its card is written: publish what `ddad train` or `ddad"
            " calibrate` saved, or use `pipe.push_to_hub`."
        )
    with tempfile.TemporaryDirectory(prefix="ddad-publish-") as scratch:
        staged = Path(scratch) / "repository"
        copy_published(folder, staged)
        if example is not None:
            draw_figure(pipe, example).save(staged / FIGURE_NAME, quality=90)
        write_card(staged, repository)
        private = {str(folder.resolve().parent), str(Path.home())} - {"/"}
        for path in (file for file in staged.rglob("*") if file.suffix in (".json", ".md", ".py")):
            text = path.read_text(encoding="utf-8")
            for name in private:
                if name in text:
                    raise ValueError(f"{folder / path.relative_to(staged)} names a folder of this machine: {name}.")
        yield staged


def publish(staged: Path, repository: str, options: PublishOptions, token: str | None = None) -> str:
    """Sends a prepared folder; files that the repository has already are not sent again.

    Args:
        staged: it.
        repository: USER/NAME.
        options: how.
        token: of the account; None takes that of this machine.

    Returns:
        The address of the commit or pull request.

    Raises:
        OSError: if the Hub refuses or cannot be reached; what was sent so far need not be sent again.
    """
    api = HfApi(token=token)
    api.create_repo(repository, private=options.private, exist_ok=True)
    if options.revision is not None and not options.create_pr:
        api.create_branch(repository, branch=options.revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=staged,
        revision=options.revision,
        create_pr=options.create_pr,
        commit_message="Publish with ddad",
        delete_patterns=["*.safetensors", "*/*.safetensors"],  # of a version before this one
    )
    return str(commit.pr_url or commit.commit_url)


def find_published(limit: int = 100) -> list[tuple[str, int]]:
    """The categories on the Hub and how often each was downloaded, the most downloaded first."""
    return [
        (model.id, model.downloads or 0) for model in HfApi().list_models(filter=TAG, sort="downloads", limit=limit)
    ]
