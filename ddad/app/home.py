"""A part's own network, trained from the page where the page runs at home."""

import ipaddress
import os
import re
import shutil
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import PIL.Image

from ddad.app.categories import OWN_MARK, Categories, label_choices, readable
from ddad.app.compute import SLOW, evaluates_networks, give_way
from ddad.app.trainings import TITLE, Training, describe
from ddad.app.uploads import refusal
from ddad.app.visits import Visits
from ddad.app.words import Words, as_text, refused
from ddad.checkpoint.curve import draw_losses
from ddad.checkpoint.installed import DDADPipeline

LOOK_SECONDS = 5
NOTHING_YET = "Nothing is trained yet."


# What proxies, tunnels and load balancers add: who comes through one sits elsewhere, whatever the rest says.
FORWARDED = re.compile(
    r"forwarded|via|x-forwarded-.+|x-real-ip|x-client-ip|x-cluster-client-ip|true-client-ip|cf-.+|fly-.+|fastly-.+"
    r"|x-envoy-.+|x-amzn-.+|x-original-.+|x-proxy.*|ngrok-.+|tailscale-.+"
)
HOME_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def is_at_home(request: gr.Request | None) -> bool:
    """Whether a visitor sits at the machine itself: nobody else may keep its processors busy, or use its Hub login.

    The connection must come from this machine, by no proxy; the client's headers only ever take away from that. Host
    and Origin must name this machine too, so that a page of another name that resolves to it (DNS rebinding) asks in
    vain. A proxy on this machine that adds no header of its own cannot be told apart: `DDAD_HOME_TRAINING=0` switches
    all of this off.
    """
    if request is None or os.environ.get("SPACE_ID") or os.environ.get("DDAD_HOME_TRAINING") == "0":
        return False
    client = getattr(request, "client", None)
    if client is None or not is_loopback(str(client.host)):
        return False
    headers = {str(name).lower(): str(value) for name, value in request.headers.items()}
    if any(FORWARDED.fullmatch(name) for name in headers):
        return False
    asked = [f"//{headers.get('host', '')}", *(headers[name] for name in ("origin", "referer") if name in headers)]
    try:
        return all(urlsplit(address).hostname in HOME_NAMES for address in asked)
    except ValueError:
        return False


def check_home(request: gr.Request | None) -> None:
    """Raises a gr.Error for a visitor who does not sit at the machine."""
    if not is_at_home(request):
        raise refusal("Open the page in a browser on the machine that serves it.", "Only available on that machine")


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
        return pipe.renderer.to_image(pipe.image_processor.read_image(path), "pil"), result.denoised_image[0]

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
            self.status = Words(NOTHING_YET, container=True)
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
        return [self.parts, self.status, self.curve, self.stop, self.go_on, self.open, self.timer]

    def show(self, name: str | None) -> dict[Any, Any]:
        """What stands in a part's folder, and buttons for what can be done."""
        trainings = {one.name: one for one in Training.every()}
        names = list(trainings)
        chosen = name if name in trainings else (names[-1] if names else None)
        view = {self.parts: gr.Dropdown(choices=label_choices(names), value=chosen, visible=bool(names))}
        if chosen is None:
            return {**view, self.status: NOTHING_YET, self.timer: gr.Timer(active=False)}
        training = trainings[chosen]
        glance = training.glance()
        drawn = draw_losses(glance.losses) if len(glance.losses) > 1 else None
        return {
            **view,
            self.status: describe(training, glance),
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
            return {self.status: refused(error)}

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
        words = f"**{as_text(readable(training.name))}** has a network of its own now."
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
