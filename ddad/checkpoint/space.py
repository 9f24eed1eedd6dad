"""Publishes the page as a Space: the package, the checkpoints that it offers, and the Space's front matter."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData, SpaceHardware
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ddad.checkpoint.names import BUNDLED_BASE, CHOSEN_NAME, INDEX_NAME, TAGS
from ddad.checkpoint.publish import copy_published

PACKAGE = Path(__file__).parent.parent
PACKAGE_FILES = ("*.py", "*.md", "*.webp", "*.css", "*.js")
# diffusers needs 3.11, Spaces take 3.10 unless they are told.
PYTHON_VERSION = "3.12"
APP = '''"""The demo: `python app.py`, or a Hugging Face Space."""

from pathlib import Path

from ddad.app import LAUNCH, create_page

demo = create_page(Path(__file__).parent / "checkpoints")

if __name__ == "__main__":
    demo.launch(**LAUNCH)
'''
README = """---
{card_data}
---

# {title}

Drop an image of a part: the page marks what is not normal on it, and shows the same part as it would look without the
defect. Made with `ddad publish-space`; it offers {offered}.
"""


def card_data(title: str, hardware: str, repositories: Sequence[str]) -> SpaceCardData:
    """What a Space must know of itself.

    Args:
        title: how it is called.
        hardware: what is suggested to whoever duplicates it.
        repositories: checkpoints on the Hub that are downloaded when the Space is built.

    Raises:
        ValueError: if there is no such hardware.
    """
    known = [kind.value for kind in SpaceHardware]
    if hardware not in known:
        raise ValueError(f"`--hardware` must be one of {', '.join(known)}, found {hardware}.")
    return SpaceCardData(
        title=title,
        emoji="🔍",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=PYTHON_VERSION,
        app_file="app.py",
        short_description="Find the defect, see the part without it",
        suggested_hardware=hardware,
        license="apache-2.0",
        tags=list(TAGS),
        models=list(repositories) or None,
        preload_from_hub=list(repositories) or None,
        # Visitors publish what they have learnt under their own login; nothing else of theirs is asked for.
        hf_oauth=True,
        hf_oauth_scopes=["contribute-repos"],
    )


def requirements() -> str:
    """What the installed package needs, without its extras; the Space itself brings Gradio and its version."""
    needed = [requirement for requirement in requires("ddad") or [] if "extra ==" not in requirement]
    return "".join(f"{requirement}\n" for requirement in sorted(needed))


@contextmanager
def prepare_space(repository: str, checkpoints: Sequence[str], hardware: str) -> Iterator[Path]:
    """A folder with all files of the Space, for as long as it is needed.

    Args:
        repository: USER/NAME.
        checkpoints: folders, which go along, and USER/NAME of repositories, which the Space downloads.
        hardware: such as `cpu-basic`, `t4-small` or `zero-a10g`.

    Raises:
        ValueError: if a name, checkpoint or the hardware is none.
    """
    validate_repo_id(repository)
    folders = [Path(name) for name in checkpoints if Path(name).is_dir()]
    repositories = [name for name in checkpoints if not Path(name).is_dir()]
    for name in repositories:
        if name.count("/") != 1:
            raise ValueError(f"{name} is neither the folder of a checkpoint nor USER/NAME on the Hub.")
        validate_repo_id(name)
    for folder in folders:
        if not (folder / INDEX_NAME).is_file():
            raise ValueError(f"{folder} is not the folder of a checkpoint: {INDEX_NAME} is missing.")
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise ValueError("Two checkpoints have folders of the same name: rename one.")
    title = repository.partition("/")[2].replace("-", " ").replace("_", " ")
    data = card_data(title, hardware, repositories)
    with tempfile.TemporaryDirectory(prefix="ddad-space-") as scratch:
        staged = Path(scratch) / "space"
        for path in sorted(PACKAGE.rglob("*")):
            if path.is_file() and any(path.match(pattern) for pattern in PACKAGE_FILES):
                target = staged / "ddad" / path.relative_to(PACKAGE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for folder in folders:
            copy_published(folder, staged / "checkpoints" / folder.resolve().name)
        if BUNDLED_BASE.is_dir():  # visitors' own parts are learnt from it
            shutil.copytree(BUNDLED_BASE, staged / "checkpoints" / BUNDLED_BASE.name)
        (staged / "checkpoints").mkdir(exist_ok=True)
        if repositories:
            (staged / "checkpoints" / CHOSEN_NAME).write_text("\n".join(repositories) + "\n", encoding="utf-8")
        (staged / "app.py").write_text(APP, encoding="utf-8")
        (staged / "requirements.txt").write_text(requirements(), encoding="utf-8")
        offered = ", ".join([*(f"`{folder.resolve().name}`" for folder in folders), *repositories])
        readme = README.format(card_data=data.to_yaml().rstrip(), title=title, offered=offered)
        (staged / "README.md").write_text(readme, encoding="utf-8")
        yield staged


def publish_space(staged: Path, repository: str, private: bool) -> str:
    """Sends a prepared folder; files that the Space has already are not sent again.

    Returns:
        The address of the Space.

    Raises:
        OSError: if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    url = api.create_repo(repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        repo_type="space",
        folder_path=staged,
        commit_message="Publish with ddad",
        delete_patterns=["ddad/*", "checkpoints/*"],  # of a version before this one
    )
    return str(url)
