"""The categories that the page offers: bundled checkpoints, and repositories on the Hub."""

import copy
import functools
import logging
import math
import os
import queue
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from ddad.app import engines
from ddad.app.words import as_text
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.names import CHOSEN_NAME, TAG
from ddad.images_ddad import ImageInput
from ddad.pipeline import DDADScores, PixelScore
from ddad.runtime.inspector import Inspector

logger = logging.getLogger(__name__)

# Between the name of a category and the secret that makes it one visitor's own.
OWN_MARK = "~"  # needs no encoding in a link
REGION_MARK = "look-"  # after it, of one that looks where the visitor says
SEARCH_AGAIN_SECONDS = 600
MOST_FOUND = 100
SEARCH_SECONDS = 5.0
ANSWER_SECONDS = 8.0
ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?(?P<id>[^?#]+)")
Answer = TypeVar("Answer")
MEMORY_LIMIT = 4 * 2**30
DOWNLOAD_LIMIT = 3 * 2**30
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", flags=re.ASCII)


class CategoryError(ValueError):
    """A category that cannot be offered; its message is for the visitor and names no path of this machine."""


@dataclass
class Category:
    """One category in memory.

    Attributes:
        pipe: the pipeline, on the device.
        judge: the same pipeline with its statistics on the CPU: it judges scores where no GPU is at hand.
        size: bytes of its weights.
        graph: its verdict exported, once it is there, where that is faster.
    """

    pipe: DDADPipeline
    judge: DDADPipeline
    size: int
    graph: Inspector | None = None

    def score(self, image: ImageInput, pixel_score: PixelScore | None = None) -> DDADScores:
        """As the pipeline's `score`."""
        if self.graph is None or pixel_score is not None:
            return self.pipe.score(image, pixel_score=pixel_score)
        return engines.score_by(self.graph, self.pipe, self.pipe.image_processor.read_image(image))


def readable(name: str) -> str:
    """How a category is called on the page."""
    name, own, secret = name.partition(OWN_MARK)
    shown = name if "/" in name else name.replace("_", " ").capitalize()
    if secret.startswith(REGION_MARK):
        return f"{shown}, where you look"
    return f"{shown}, your good parts" if own else shown


def label_choices(names: list[str]) -> list[tuple[str, str]]:
    """Categories as a dropdown shows them."""
    return [(readable(name), name) for name in names]


def repository_of(text: str) -> str:
    """The id in what a visitor typed or pasted: the address of a repository's page is one too."""
    found = ADDRESS.match(text.strip())
    return "/".join(found["id"].split("/")[:2]) if found else text.strip()


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What a question to the Hub gives, waited for no longer: without a network its library tries for a minute.

    Raises:
        TimeoutError: if there is no answer by then; and whatever the question raises.
    """
    answers: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((True, ask()))
        except Exception as error:
            answers.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        worked, answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("the Hub does not answer") from None
    if not worked:
        raise answer
    return answer


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:.0f} MB"


class Categories:
    """Loads categories when they are asked for, one copy for all visitors, and forgets the least recently used.

    No code of a repository is ever run: its numbers fill this package's own classes.

    Args:
        folder: holds the bundled checkpoints, and `repositories.txt` with further ones on the Hub, one a line, if the
            page is to offer some from the start.
        device: where the networks run.
        memory_limit: bytes of weights kept; one category is kept whatever it takes.
        export: whether to look for a faster verdict on the CPU; see `engines`.

    Raises:
        FileNotFoundError: if the folder neither holds a checkpoint nor names one.
    """

    def __init__(self, folder: str | Path, device: str, memory_limit: int = MEMORY_LIMIT, export: bool = False):
        self.folder = Path(folder)
        self.device = device
        self.memory_limit = memory_limit
        self.export = export and device == "cpu"
        self.bundled = sorted(path.parent.name for path in self.folder.glob(f"*/{DDADPipeline.config_name}"))
        chosen = self.folder / CHOSEN_NAME
        repositories = chosen.read_text(encoding="utf-8").split() if chosen.is_file() else []
        self.offered = [*self.bundled, *(name for name in repositories if REPOSITORY.fullmatch(name))]
        if not self.offered:
            raise FileNotFoundError(
                f"{folder} holds no checkpoint. Train one with `ddad train --output {folder}/NAME`."
            )
        self._loaded: OrderedDict[str, Category] = OrderedDict()
        self._lock = threading.Lock()
        self._found: list[str] = []
        self._searched = -math.inf
        # A public Space must not hand its owner's private repositories to visitors.
        self._token = False if os.environ.get("SPACE_ID") else None

    @property
    def loaded(self) -> list[str]:
        """The categories in memory, the least recently used first."""
        return list(self._loaded)

    def get(self, name: str) -> Category:
        """The category, loaded if it is not in memory.

        Raises:
            CategoryError: if there is no such category or it cannot be loaded.
        """
        name = str(name)
        # One at a time: two visitors who ask for the same category wait for one copy.
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            self._loaded.move_to_end(name)
            while (
                len(self._loaded) > 1 and sum(category.size for category in self._loaded.values()) > self.memory_limit
            ):
                forgotten, _ = self._loaded.popitem(last=False)
                logger.info("Forgetting the category %s.", forgotten)
            return self._loaded[name]

    def holds(self, name: str) -> bool:
        """Whether a category is a visitor's own, and still kept."""
        return OWN_MARK in name and name in self._loaded

    def add_own(self, name: str, checkpoint: Path) -> str:
        """Takes in a visitor's own version of a category, under a name that nobody can guess.

        Args:
            name: the category that it was made from.
            checkpoint: its folder, which is not needed afterwards.

        Returns:
            The name; once the category is forgotten to make room for others, it cannot be had again.
        """
        return self._keep_own(name, "", self._hold(DDADPipeline.from_pretrained(checkpoint)))

    def add_region(self, name: str, region: ImageInput | None) -> str:
        """Takes in a visitor's own version of a category that looks at a part of the picture alone.

        Args:
            name: the category that it is made from, whose weights it shares.
            region: see `DDADPipeline.with_region`.

        Returns:
            Its name; see `add_own`.

        Raises:
            CategoryError: if there is no such category.
            ValueError: if the region is too small.
        """
        category = self.get(name)
        judge = category.judge.with_region(region)
        pipe = judge if category.pipe is category.judge else category.pipe.with_region(region)
        return self._keep_own(name, REGION_MARK, Category(pipe, judge, judge.calibration.calibration_maps.nbytes))

    def _keep_own(self, name: str, mark: str, category: Category) -> str:
        """Keeps a visitor's own category; its name, after the one that it was made from."""
        own = f"{name.partition(OWN_MARK)[0]}{OWN_MARK}{mark}{secrets.token_hex(16)}"
        with self._lock:
            self._loaded[own] = category
        return own

    def load_offered(self, load: Callable[[str], Category]) -> None:
        """Loads what the page offers from the start; what cannot be loaded is not offered.

        Args:
            load: `get`, or what calls it.

        Raises:
            CategoryError: if none can be loaded, or a bundled one is damaged.
        """
        errors = []
        for name in list(self.offered):
            try:
                load(name)
            except CategoryError as error:
                if name in self.bundled:
                    raise
                logger.warning("Not offered: %s", error)
                errors.append(str(error))
                self.offered.remove(name)
        if not self.offered:
            raise CategoryError(" ".join(errors))

    def _load(self, name: str) -> Category:
        if name in self.bundled:
            source, options = str(self.folder / name), {}
        elif OWN_MARK in name:
            raise CategoryError(
                "Your own version of this category was forgotten to make room: learn it again, or give its zip back."
            )
        else:
            size = self.look_up(name)[0]
            if size > DOWNLOAD_LIMIT:
                raise CategoryError(
                    f"{name} has {megabytes(size)}; this page loads at most {megabytes(DOWNLOAD_LIMIT)}."
                )
            source, options = name, {"token": self._token}
        try:
            pipe = DDADPipeline.from_pretrained(source, **options)
        except Exception as error:
            # The message would name folders of this machine.
            logger.warning("The category %s cannot be loaded: %s", name, error)
            raise CategoryError(
                f"{name} cannot be loaded: it is no ddad checkpoint of this version, or a file of it is damaged."
            ) from None
        category = self._hold(pipe)
        if self.export:
            engines.prepare(pipe, source, functools.partial(setattr, category, "graph"))
        return category

    def _hold(self, pipe: DDADPipeline) -> Category:
        """A pipeline on its device, with what judges beside it."""
        pipe.set_progress_bar_config(disable=True)
        networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
        size = sum(value.nbytes for network in networks for value in network.state_dict().values())
        judge = pipe
        if self.device != "cpu":
            judge = pipe.with_components(calibration=copy.deepcopy(pipe.calibration))
            pipe.to(self.device)
        return Category(pipe, judge, size)

    def search(self) -> list[str]:
        """Repositories on the Hub that carry the tag `ddad`, the most downloaded first; none where no Hub answers.

        The Hub is asked every ten minutes, and waited for no longer than `SEARCH_SECONDS`.
        """

        def ask() -> list[str]:
            models = HfApi().list_models(filter=TAG, sort="downloads", limit=MOST_FOUND, token=self._token)
            return [model.id for model in models if REPOSITORY.fullmatch(model.id)]

        if time.monotonic() - self._searched > SEARCH_AGAIN_SECONDS:
            self._searched = time.monotonic()
            try:
                self._found = within(SEARCH_SECONDS, ask)
            except Exception as error:
                logger.info("The Hub was not searched: %s", error)
        return list(self._found)

    def look_up(self, repository: str) -> tuple[int, str]:
        """What a repository is, before anything of it is loaded.

        Returns:
            The bytes to be loaded, and a description in Markdown.

        Raises:
            CategoryError: if it cannot be had.
        """
        repository = repository_of(repository)
        if not REPOSITORY.fullmatch(repository):
            raise CategoryError(
                f"{repository!r} is no category of this page and no repository (user/name) on the Hub."
            )
        try:
            info = within(
                ANSWER_SECONDS,
                lambda: HfApi().model_info(repository, files_metadata=True, token=self._token, timeout=ANSWER_SECONDS),
            )
        except (RepositoryNotFoundError, GatedRepoError):
            raise CategoryError(f"{repository} does not exist on the Hub, or is private.") from None
        except Exception as error:  # each version of its library raises errors of other libraries
            logger.info("The Hub does not answer for %s: %s", repository, error)
            raise CategoryError(f"The Hub cannot be reached for {repository} now: try again later.") from None
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if DDADPipeline.config_name not in files:
            raise CategoryError(f"{repository} holds no ddad checkpoint: it has no {DDADPipeline.config_name}.")
        size = sum(value for name, value in files.items() if name.endswith((".json", ".safetensors")))
        card = info.card_data.to_dict() if info.card_data else {}
        code = sum(name.endswith(".py") for name in files)
        description = (
            f"**{as_text(repository)}**: {megabytes(size)} of weights and settings, licence:"
            f" {as_text(card.get('license_name') or card.get('license') or 'not stated')}."
            f" It also holds {code} program files. **They are not run here and not even downloaded**: this page reads"
            " the repository's numbers into its own, installed networks, which can do no harm. So a repository that"
            " needs its own program cannot be opened here. In Python, `trust_remote_code=True` would run that program"
            " with all the rights that you have: do so for authors that you trust."
        )
        return size, description
