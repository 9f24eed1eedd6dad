"""A part's own network, trained from the page where the page runs at home: `ddad train` in a process of its own.

The process outlives the page. What it does stands in its folder: photographs, its output line by line, the saved state
and in the end the checkpoint; the page reads there, also after a restart.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import PIL.Image

from ddad.app.categories import OWN_MARK, Categories, label_choices, readable
from ddad.app.compute import SLOW, evaluates_networks, give_way
from ddad.app.many import open_all
from ddad.app.uploads import refusal
from ddad.app.visits import Visits
from ddad.checkpoint.curve import draw_losses
from ddad.pipeline import DDADPipeline
from ddad.unet_ddad import DDADUNet2DModel

TITLE = "Nothing is trained"
# A line of the progress bar of `ddad train`: what is done, how far, how long it still takes, and the loss.
PROGRESS = re.compile(
    r"(?P<what>[A-Z][^:\r\n]*):\s+\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<count>\d+) \[[\d:]+<(?P<left>[\d:]+|\?)"
)
LOSS = re.compile(r"(\w+)=([\d.e+-]+)")
SAVE_EVERY = 100
LOOK_SECONDS = 5
NOTHING_YET = "Nothing is trained yet."
READ_BYTES = 400_000
STOP_SECONDS = 60.0

State = Literal["running", "unfinished", "finished"]


def parts_folder() -> Path:
    """Where trainings lie: `$DDAD_HOME/parts`, else `~/.cache/ddad/parts`."""
    return Path(os.environ.get("DDAD_HOME") or Path.home() / ".cache" / "ddad").expanduser() / "parts"


def is_at_home(request: gr.Request | None) -> bool:
    """Whether a visitor sits at the machine itself: nobody else may keep its processors busy for half an hour."""
    if os.environ.get("SPACE_ID") or request is None:
        return False
    host = str(request.headers.get("host", ""))
    return host.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")


def check_home(request: gr.Request | None) -> None:
    """Raises a gr.Error for a visitor who does not sit at the machine."""
    if not is_at_home(request):
        raise refusal("This is for who sits at the machine itself, and opens the page there.", "Not from here")


@dataclass(frozen=True)
class Glance:
    """How far a training is.

    Attributes:
        state: `running`, `unfinished` or `finished`.
        what: what is being done.
        done, count: steps.
        left: how long that still takes, as `ddad train` says it.
        losses: of the steps seen, as in a training record.
        last: the last line of the output that is no progress bar.
    """

    state: State
    what: str
    done: int
    count: int
    left: str
    losses: list[dict[str, Any]]
    last: str


class Training:
    """One part's folder.

    Args:
        folder: it; made by `create`.
    """

    # Processes that this page has started: a child that ended must be asked for, or it stays in the list for ever.
    _children: dict[Path, subprocess.Popen] = {}  # noqa: RUF012 - one for all

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.photographs, self.output = folder / "good", folder / "checkpoint"
        self.log, self.pid = folder / "train.log", folder / "pid"

    @classmethod
    def create(cls, name: str, files: Sequence[str]) -> "Training":
        """Copies the photographs into a folder of the part's own.

        Args:
            name: of the part.
            files: photographs and zips of them, that were fitted.
        """
        folder, number = parts_folder() / name, 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{name}_{number}")
        training = cls(folder)
        training.photographs.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
            count = 0
            for source in open_all(list(files), Path(scratch)):  # what comes from a zip is gone with the next
                if source.path is not None:
                    count += 1  # under names that say nothing
                    shutil.copy(source.path, training.photographs / f"{count:04d}{source.path.suffix.lower()}")
        return training

    @staticmethod
    def every() -> list["Training"]:
        """All that there are, by name."""
        return [Training(path.parent) for path in sorted(parts_folder().glob("*/good"))]

    @property
    def command(self) -> list[str]:
        """What is run, and goes on where it ended."""
        train = [sys.executable, "-m", "ddad.cli", "train", "--data", str(self.photographs)]
        return [*train, "--output", str(self.output), "--category", self.name, "--save-every", str(SAVE_EVERY)]

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        child = self._children.get(self.folder)
        if child is not None:
            return child.poll() is None
        try:
            number = int(self.pid.read_text(encoding="utf-8"))
            os.kill(number, 0)
        except (OSError, ValueError):
            return False
        command = Path(f"/proc/{number}/cmdline")  # the number may be another's by now
        return not command.is_file() or str(self.output).encode() in command.read_bytes()

    @property
    def state(self) -> State:
        """How it stands."""
        if self.is_running:
            return "running"
        return "finished" if (self.output / DDADPipeline.config_name).is_file() else "unfinished"

    def start(self) -> str:
        """Starts `ddad train`, or goes on with it; it runs on when the page ends. Returns the part's name.

        Raises:
            gr.Error: if one is running: two would be slower than one after the other.
        """
        running = next((one.name for one in self.every() if one.is_running), None)
        if running is not None:
            raise refusal(f"{readable(running)} is being trained: wait for it, or stop it first.", TITLE)
        with self.log.open("ab") as log:
            child = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._children[self.folder] = child
        self.pid.write_text(str(child.pid), encoding="utf-8")
        return self.name

    def stop(self) -> str:
        """Asks it to save and end, and waits until it has. Returns the part's name."""
        if not self.is_running:
            return self.name
        number = int(self.pid.read_text(encoding="utf-8"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while self.is_running and time.monotonic() < until:
            time.sleep(0.2)
        return self.name

    def glance(self) -> Glance:
        """How far it is, by the end of its output."""
        text = ""
        if self.log.is_file():
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - READ_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        found, losses, last = None, {}, ""
        for line in re.split(r"[\r\n]+", text):
            match = PROGRESS.search(line)
            if match is None:
                last = line.strip() or last
                continue
            found = match
            if match["what"] == "Training" and (terms := LOSS.findall(line)):
                values = {name: float(value) for name, value in terms}
                losses[int(match["done"])] = {"step": int(match["done"]), **values}
        what, done, count, left = "Starting", 0, 0, "?"
        if found is not None:
            what, done, count, left = found["what"], int(found["done"]), int(found["count"]), found["left"]
        return Glance(self.state, what, done, count, left, [losses[step] for step in sorted(losses)], last)

    @property
    def saved_at(self) -> float:
        """When what it has learnt was last saved; 0 for never."""
        folder = self.output / "training_state" / "average"
        with contextlib.suppress(OSError):
            return folder.stat().st_mtime
        return 0.0

    def load_average(self) -> DDADUNet2DModel | None:
        """What it has learnt so far; None before it has saved, and while it saves."""
        try:
            unet = DDADUNet2DModel.from_pretrained(
                self.output / "training_state" / "average", use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError):
            return None
        return unet.float().requires_grad_(False).eval()


def describe(training: Training, glance: Glance) -> str:
    """How far it is, in words."""
    name = readable(training.name)
    if glance.state == "finished":
        return f"### ✓ {name} has a network of its own\n\nPress *Open*: it is chosen above then."
    if glance.state == "unfinished":
        why = f"\n\n`{glance.last}`" if glance.last else ""
        return f"### {name} is not finished\n\nPress *Go on*.{why}"
    of = f" {glance.done} of {glance.count}" if glance.count else ""
    left = "" if "?" in glance.left or glance.done == 0 else f", {glance.left} left of this"
    loss = ""
    if glance.losses and glance.what == "Training":
        loss = "; loss: " + ", ".join(
            f"{key} {value:.3f}" for key, value in glance.losses[-1].items() if key != "step"
        )
    return (
        f"### {name}: {glance.what.lower()}{of}{left}{loss}\n\nIt goes on when this page is closed, and uses"
        " all processors: other things take longer meanwhile."
    )


class HomeTraining:
    """What the place on the page does.

    Args:
        categories: the categories.
    """

    def __init__(self, categories: Categories):
        self.categories = categories
        self.preview = evaluates_networks(self._preview, SLOW)

    def begin(self, learnt: str, files: list[str] | None) -> Training:
        """Starts a training on the photographs that a part was learnt from.

        Raises:
            gr.Error: if nothing was learnt, or another training runs.
        """
        if not learnt or not files:
            raise refusal("Learn the part first: give photographs above and press Learn.", TITLE)
        training = Training.create(learnt.partition(OWN_MARK)[0].partition("/")[0], files)
        try:
            training.start()
        except gr.Error:
            shutil.rmtree(training.folder)
            raise
        return training

    def find(self, name: str | None) -> Training:
        """A training by its name.

        Raises:
            gr.Error: if there is none.
        """
        found = next((one for one in Training.every() if one.name == name), None)
        if found is None:
            raise refusal("Choose a part that was trained here.", TITLE)
        return found

    def _preview(self, training: Training, category: str, path: str) -> tuple[PIL.Image.Image, PIL.Image.Image] | None:
        """An image and its normal version by what was learnt so far; None where there is nothing to show yet."""
        unet = training.load_average()
        if unet is None:
            return None
        own = self.categories.get(category).pipe
        pipe = DDADPipeline.from_pipe(own, unet=unet.to(own.device))
        pipe.set_progress_bar_config(disable=True)
        # One gradient step: the distance is that of another network's features.
        result = pipe(path, num_denoising_steps=1, callback_on_step_end=lambda *_: give_way())
        return pipe.image_processor.to_image(pipe.image_processor.read_image(path), "pil"), result.denoised_image[0]

    def open(self, training: Training) -> str:
        """The finished checkpoint as a category of the visitor's own; returns its name.

        Raises:
            gr.Error: if it is not finished.
        """
        if training.state != "finished":
            raise refusal("It is not finished yet.", TITLE)
        return self.categories.add_own(training.name, training.output)


class HomePlace:
    """The place on the page, and what its buttons do.

    Args:
        work: what is done.
        visits: the visitors.
    """

    def __init__(self, work: HomeTraining, visits: Visits):
        self.work, self.visits = work, visits
        with gr.Accordion("A network of its own", open=False, visible=False, elem_id="home") as self.place:
            gr.Markdown(
                "What was learnt above finds defects at once; its normal version comes from a network that never saw"
                " this part. Half an hour on this machine trains one that did. Show a defective photograph under *One"
                " image* meanwhile: every hundred steps its normal version is made anew."
            )
            with gr.Row():
                self.start = gr.Button("Learn how it looks without defects", variant="primary")
                self.parts = gr.Dropdown([], label="Trained here", visible=False)
                self.stop = gr.Button("Stop the training", variant="stop", visible=False, min_width=80)
                self.go_on = gr.Button("Go on", visible=False, min_width=80)
                self.open = gr.Button("Open", variant="primary", visible=False, min_width=80)
            self.told = gr.Markdown(NOTHING_YET, container=True)
            with gr.Row():
                self.curve = gr.Image(label="Loss", visible=False, interactive=False, buttons=[], height=260)
                self.so_far = gr.ImageSlider(
                    label="The image under One image, and how it looks without its defect so far", visible=False,
                    interactive=False, max_height=360, elem_id="so_far",
                )  # fmt: skip
        self.timer, self.shown_at = gr.Timer(LOOK_SECONDS, active=False), gr.State(0.0)

    @property
    def view(self) -> list[Any]:
        """What `show` changes."""
        return [self.parts, self.told, self.curve, self.stop, self.go_on, self.open, self.timer]

    def show(self, name: str | None) -> dict[Any, Any]:
        """What stands in a part's folder, and buttons for what can be done."""
        names = [one.name for one in Training.every()]
        chosen = name if name in names else (names[-1] if names else None)
        view = {self.parts: gr.Dropdown(choices=label_choices(names), value=chosen, visible=bool(names))}
        if chosen is None:
            return {**view, self.told: NOTHING_YET, self.timer: gr.Timer(active=False)}
        training = self.work.find(chosen)
        glance = training.glance()
        drawn = draw_losses(glance.losses) if len(glance.losses) > 1 else None
        return {
            **view,
            self.told: describe(training, glance),
            self.curve: gr.Image(drawn, visible=drawn is not None),
            self.stop: gr.Button(visible=glance.state == "running"),
            self.go_on: gr.Button(visible=glance.state == "unfinished"),
            self.open: gr.Button(visible=glance.state == "finished"),
            self.timer: gr.Timer(active=glance.state == "running"),
        }

    def welcome(self, request: gr.Request) -> dict[Any, Any]:
        """Nothing of this is seen where the visitor does not sit at the machine."""
        if not is_at_home(request):
            return {self.place: gr.Accordion(visible=False)}
        return {self.place: gr.Accordion(visible=True), **self.show(None)}

    def _act(self, request: gr.Request, action: Callable[[], str]) -> dict[Any, Any]:
        """Does what a button says, and shows the part that it is about; what is refused is said where it was asked."""
        try:
            check_home(request)
            return self.show(action())
        except gr.Error as error:
            return {self.told: f"**{error.title}.** {error.message}"}

    def begin(self, learnt: str, files: list[str] | None, request: gr.Request) -> dict[Any, Any]:
        """Starts a training on what was learnt."""
        return self._act(request, lambda: self.work.begin(learnt, files).name)

    def end(self, name: str, request: gr.Request) -> dict[Any, Any]:
        """Ends it for now."""
        return self._act(request, lambda: self.work.find(name).stop())

    def resume(self, name: str, request: gr.Request) -> dict[Any, Any]:
        """Goes on with it."""
        return self._act(request, lambda: self.work.find(name).start())

    def look(self, name: str, seen: float, request: gr.Request) -> dict[Any, Any]:
        """Every few seconds: how far it is, and once it has saved, what it makes of the image under One image."""
        if not is_at_home(request):
            return {self.timer: gr.Timer(active=False)}
        view = self.show(name)
        training, visit = self.work.find(name), self.visits.of(request)
        saved = training.saved_at
        inspected, own, _ = visit.category.partition(OWN_MARK)
        if saved > seen and visit.path is not None and own and training.name.startswith(inspected):
            made = self.work.preview(training, visit.category, visit.path)
            if made is not None:
                view |= {self.so_far: gr.ImageSlider(made, visible=True), self.shown_at: saved}
        return view


def add_home_training(
    page: gr.Blocks,
    categories: Categories,
    visits: Visits,
    learnt_from: tuple[gr.State, gr.File],
    known: tuple[gr.State, gr.BrowserState],
    offer: Callable[[str, str, list[str], list[str] | None], dict[Any, Any]],
    offered: list[Any],
) -> Any:
    """Builds the place; what follows when a finished part is opened is the caller's.

    Args:
        page: it.
        categories: the categories.
        visits: the visitors.
        learnt_from: the name of what was learnt last, and the photographs.
        known: the names in the list of categories, and the visitor's own of these.
        offer: chooses a new category on the page: its name, words, and these names.
        offered: what `offer` changes.

    Returns:
        The event of opening.
    """
    work = HomeTraining(categories)
    place = HomePlace(work, visits)

    def open_finished(name: str, known: list[str], own: list[str] | None, request: gr.Request) -> dict[Any, Any]:
        check_home(request)
        training = work.find(name)
        words = f"**{readable(training.name)}** has a network of its own now, and is chosen above."
        return offer(work.open(training), words, known, own)

    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    place.start.click(place.begin, list(learnt_from), place.view, **hidden)
    place.stop.click(place.end, place.parts, place.view, **hidden)
    place.go_on.click(place.resume, place.parts, place.view, **hidden)
    place.parts.input(place.show, place.parts, place.view, **hidden)
    seen = [*place.view, place.so_far, place.shown_at]
    place.timer.tick(place.look, [place.parts, place.shown_at], seen, **hidden)
    page.load(place.welcome, None, [place.place, *place.view], **hidden)
    return place.open.click(open_finished, [place.parts, *known], offered, **hidden)
