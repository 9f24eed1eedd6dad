"""Photographs that a visitor gives to learn a part from: read, or refused with the reason; and how far learning is."""

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import gradio as gr

from ddad.app.own_parts import Photographs, file_name
from ddad.app.uploads import refusal
from ddad.calibration.progress import Report
from ddad.datasets.folder import ImagesInMemory
from ddad.datasets.ground_truth import truth_stem
from ddad.datasets.lookalikes import LEAST_IMAGES
from ddad.datasets.names import choose_good, describe_found
from ddad.images_ddad import DDADImageProcessor

MOST_IMAGES = 300
TITLE = "These images cannot be used"
ANNOTATIONS = (".json", ".xml", ".txt")


@dataclass(frozen=True)
class GoodImages:
    """Photographs of good parts that were read.

    Attributes:
        images: what is looked at of them, `[3, L, L]` in [-1, 1].
        paths: what they are called, with their folders.
        problems: what is wrong with others.
    """

    images: ImagesInMemory
    paths: list[PurePosixPath]
    problems: list[str]

    @property
    def names(self) -> list[str]:
        """What they are called, without their folders."""
        return [path.name for path in self.paths]


def read_good_images(processor: DDADImageProcessor, size: int, photographs: Photographs, report: Report) -> GoodImages:
    """What the networks see of uploaded photographs, and what is wrong with others.

    Args:
        processor: reads them.
        size: at which they are wanted.
        photographs: they.
        report: called with the progress.

    Raises:
        gr.Error: if there are too few, or too many, or they are not of good parts alone.
    """
    images, problems, names, tried = ImagesInMemory(), [], [], 0
    with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
        for source in photographs.open(Path(scratch)):
            if len(names) == MOST_IMAGES:
                raise refusal(f"Give at most {MOST_IMAGES} images; `ddad fit` has no limit.", TITLE)
            if source.path is None:
                problems.append(f"{source.name}: {source.error}")
                continue
            tried += 1
            try:
                images.append(processor.preprocess(processor.read_image(source.path), size)[0])
                names.append(file_name(source))
            except (TypeError, ValueError) as error:
                problems.append(f"{source.name}: {str(error).replace(str(source.path), 'this file')}")
            report("Reading photographs", tried, max(len(photographs.files), tried))
    check_names(names, [PurePosixPath(problem.partition(": ")[0]) for problem in problems])
    try:
        choice = choose_good(names)
    except ValueError:
        described = describe_found(names)
        raise refusal(
            f"It is not clear which images show good parts: {described}. Give the good ones alone.", TITLE
        ) from None
    if choice.defective or choice.masks:
        raise refusal(f"Give images of good parts alone. Found: {describe_found(names)}.", TITLE)
    if len(names) < LEAST_IMAGES:
        problem = f" {len(problems)} files cannot be read; {problems[0]}" if problems else ""
        few = f"{len(names)} good images are too few: {LEAST_IMAGES} are needed at least, twenty are better."
        raise refusal(few + problem, TITLE)
    return GoodImages(images, names, problems)


def check_names(names: list[PurePosixPath], others: list[PurePosixPath]) -> None:
    """Refuses files that are not photographs of good parts by how they are called together.

    Raises:
        gr.Error: for two of one name, which lay in folders that the browser has left out; for ground truth, and for
            annotations beside images.
    """
    counts = Counter(names)
    twice = [name.name for name, count in counts.items() if count > 1]
    if twice:
        raise refusal(
            f"{len(twice)} names are there more than once, such as {twice[0]}: they lay in different folders, whose"
            " names got lost, and may say which parts are good. Give a zip of the folder, or of the good photographs"
            " alone.",
            TITLE,
        )
    stems = Counter(name.with_suffix("") for name in names)
    truth = [name for name in names if stems[name.parent / (truth_stem(name.stem) or "")]]
    truth += [name for name in names if stems[name.with_suffix("")] > 1]
    marks = [name for name in others if name.suffix.lower() in ANNOTATIONS and stems[name.with_suffix("")]]
    if truth or marks:
        first = (truth + marks)[0].name
        raise refusal(
            f"{first} repeats the name of another file, as ground truth and annotations do. Give the photographs of"
            " good parts alone.",
            TITLE,
        )


# Where each step of learning ends on one bar, by the time that it took of twenty photographs on two cores.
STEP_ENDS = {
    "Reading photographs": 0.01,
    "Asking the category as it is": 0.03,
    "Looking at good images": 0.36,
    "Asking the network about good images": 0.55,
    "Measuring held-out images": 0.63,
    "Looking at synthetic defects": 0.7,
    "Asking fewer images": 0.8,
    "Measuring unchanged images": 0.85,
    "Looking at test defects": 1.0,
}
SURE_ENOUGH = 0.08  # of the bar, before what is left is foretold


class OneBar:
    """One bar from the first step to the last, with the time that is left.

    Args:
        progress: the page's.
    """

    def __init__(self, progress: gr.Progress):
        self.progress, self.at, self.step, self.begun, self.started = progress, 0.0, "", 0.0, time.monotonic()

    def move(self, what: str, done: int, count: int) -> None:
        """Moves it on; never back."""
        if what != self.step:
            self.step, self.begun = what, self.at
        end = max(STEP_ENDS.get(what, self.at), self.begun)
        self.at = max(self.at, self.begun + (end - self.begun) * done / max(count, 1))
        left = ""
        if self.at > SURE_ENOUGH:
            seconds = (time.monotonic() - self.started) * (1 - self.at) / self.at
            time_left = f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
            left = f": about {time_left} left"
        self.progress(min(self.at, 1.0), desc=f"{what}{left}")
