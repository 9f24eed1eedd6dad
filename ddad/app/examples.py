"""Example images that the page can offer, with what was found on them: made once, stored in a checkpoint's folder.

examples/defective_1.webp            the photograph
examples/defective_1_heatmap.webp    it under its heatmap
examples/defective_1_normal.webp     it without its defects
examples/captions.json               what each photograph shows, in a word or three
examples/results.json                verdicts and regions, and of which checkpoint they are
"""

import functools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ddad.app.inspection import Finding, draw_heatmap
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.saving import describe_state

logger = logging.getLogger(__name__)

FOLDER_NAME = "examples"
RESULTS_NAME, CAPTIONS_NAME = "results.json", "captions.json"
CAPTIONS = {"defective": "Defect", "good": "Good"}
NAME = re.compile(r"(defective|good)_(\d+)")
OPACITY = 0.7


@dataclass(frozen=True)
class Example:
    """One example, as files that a page may serve.

    Attributes:
        path: the photograph.
        caption: what is said below it.
        finding, heatmap, normal: what was found on it; None where nothing is stored for this checkpoint as it is.
        about: what is said above its verdict; nothing of a bundled one.
    """

    path: Path
    caption: str
    finding: Finding | None = None
    heatmap: Path | None = None
    normal: Path | None = None
    about: str = ""


def caption(path: Path) -> str:
    """What is said below an example: what it shows, or "Defect 2" of `defective_2.webp` where that is not stored."""
    stored = path.with_name(CAPTIONS_NAME)
    captions = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    kind, number = path.stem.split("_")
    return str(captions.get(path.stem, f"{CAPTIONS[kind]} {number}"))


def photographs(checkpoint: Path) -> list[Path]:
    """The example photographs of a checkpoint, defective ones first."""
    return sorted(path for path in checkpoint.glob(f"{FOLDER_NAME}/*.webp") if NAME.fullmatch(path.stem))


def read_results(checkpoint: Path) -> dict[str, Finding]:
    """What was found on the examples; nothing where the checkpoint has changed since."""
    path = checkpoint / FOLDER_NAME / RESULTS_NAME
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["checkpoint"] != describe_state(checkpoint):
        logger.warning("The results of the examples in %s are of another state of the checkpoint.", checkpoint)
        return {}
    return {name: Finding.from_dict(values) for name, values in stored["findings"].items()}


def write_results(checkpoint: Path, progress: Callable[[Path], None] = lambda _: None) -> None:
    """Inspects the examples of a checkpoint as the page does and stores what it would show."""
    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    findings = {}
    for path in photographs(checkpoint):
        progress(path)
        original = pipe.image_processor.read_image(path)
        size = (original.shape[2], original.shape[1])
        result = pipe(original)
        finding = Finding.of(result, size, size)
        heatmap = draw_heatmap(original, result, finding.regions, OPACITY)
        heatmap.save(path.with_name(f"{path.stem}_heatmap.webp"), quality=85, method=6)
        result.denoised_image[0].save(path.with_name(f"{path.stem}_normal.webp"), quality=92, method=6)
        findings[path.stem] = asdict(finding)
    results = {"checkpoint": describe_state(checkpoint), "findings": findings}
    (checkpoint / FOLDER_NAME / RESULTS_NAME).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Examples:
    """The examples of the bundled categories, copied to where a page may serve them when they are first asked for.

    Args:
        folder: holds the checkpoints.
        categories: the names of those that have examples.
        own: those of a visitor's own part, None for other categories.
    """

    def __init__(
        self, folder: Path, categories: list[str], own: Callable[[str], list[Example] | None] = lambda _: None
    ):
        self._folder, self._categories, self._own = folder, categories, own
        self._bundled = functools.cache(self._copy)

    def of(self, category: str) -> list[Example]:
        """What is offered of a category; its own where a visitor learnt it."""
        own = self._own(category)
        return self._bundled(category) if own is None else own

    def finished(self, category: str) -> Example | None:
        """The category's first example of which is stored what was found on it."""
        return next((example for example in self.of(category) if example.finding is not None), None)

    def _copy(self, category: str) -> list[Example]:
        checkpoint = self._folder / category
        if category not in self._categories or not photographs(checkpoint):
            return []
        folder = Path(tempfile.mkdtemp(prefix="ddad-examples-"))
        findings = read_results(checkpoint)
        examples = []
        for path in photographs(checkpoint):
            shown, finding = Path(shutil.copy(path, folder)), findings.get(path.stem)
            pictures = [path.with_name(f"{path.stem}_{kind}.webp") for kind in ("heatmap", "normal")]
            if finding is None or not all(picture.is_file() for picture in pictures):
                examples.append(Example(shown, caption(path)))
                continue
            heatmap, normal = (Path(shutil.copy(picture, folder)) for picture in pictures)
            examples.append(Example(shown, caption(path), finding, heatmap, normal))
        return examples
