"""The page in the browser. It calls the pipeline and computes nothing itself."""

import threading
import time
from pathlib import Path

import gradio as gr
import torch

from ddad.app.about import add_about
from ddad.app.api import add_api
from ddad.app.categories import REPOSITORY, Categories, CategoryError, label_choices, readable, repository_of
from ddad.app.compute import evaluates_networks
from ddad.app.corrections import Corrections, Lists, add_corrections
from ddad.app.examples import Examples
from ddad.app.line import add_line
from ddad.app.many import add_many_images
from ddad.app.own_parts import OwnParts
from ddad.app.part import HERE, add_your_part
from ddad.app.regions import WhereToLook, add_where_to_look
from ddad.app.single import KEEP_SECONDS, MOST_WAITING, add_single_image
from ddad.app.single_events import MOMENT, SingleImage
from ddad.app.uploads import delete_old_outputs
from ddad.app.visits import Visits
from ddad.app.words import Words, as_text

TITLE = "ddad: find the defect, see the part without it"
INTRODUCTION = f"""# {TITLE}
What has seen **good parts only** marks what is not normal on your image, and shows the part as it would look without
it. Images are deleted after an hour, and nobody else sees them."""
QUEUE_SIZE = 64
HERE_FOLDER = Path(__file__).parent
CSS = (HERE_FOLDER / "page.css").read_text(encoding="utf-8")
READY = f"() => {{ {(HERE_FOLDER / 'page.js').read_text(encoding='utf-8')} document.body.dataset.ready = 'yes' }}"
# Looked at every ten minutes, deleted when older than fifty: gone after an hour.
DELETE_CACHE = (600, KEEP_SECONDS - 600)
# One typeface for all of a sentence, the visitor's own: what Gradio bundles as Montserrat is another one when bold.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
# What `launch` must be given, wherever the page is launched.
LAUNCH = {
    "css": CSS,
    "theme": gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=FONTS),
    "max_file_size": "50mb",
    "footer_links": ["api", "settings"],
    "run_history": False,
    "state_session_capacity": 100,
    "show_error": False,
    "mcp_server": True,
    # A thread for each who waits for the networks, and some for all that is quick.
    "max_threads": 3 * MOST_WAITING,
}


def cannot_be_opened(name: str, error: CategoryError) -> str:
    """What stands where a repository was asked for."""
    return f"**{as_text(name)} cannot be opened.** {as_text(error)}"


def add_hub(categories: Categories, work: SingleImage, category: gr.Dropdown, known: gr.State) -> gr.Textbox:
    """The place where a visitor opens a repository that is not in the list: first what it is, then the question."""

    def look_up(repository: str):
        try:
            _, description = categories.look_up(repository)
        except CategoryError as error:
            # What is wrong stays readable where it was asked.
            return cannot_be_opened(repository.strip() or "Nothing", error), gr.Button(visible=False), ""
        return description, gr.Button(visible=True), repository_of(repository)

    def open_repository(name: str, known: list[str]):
        try:
            categories.get(name)
        except CategoryError as error:
            return gr.skip(), gr.skip(), cannot_be_opened(name, error), gr.Button(visible=True)
        names = [*known, *([] if name in known else [name])]
        chosen = gr.Dropdown(choices=label_choices(names), value=name)
        return chosen, names, f"**{as_text(name)}** is open.", gr.Button(visible=False)

    with gr.Row():
        repository = gr.Textbox(label="Repository", placeholder="user/name", scale=3, max_lines=1)
        check = gr.Button("What is it?", scale=1)
    description = Words()
    agree = gr.Button("Open it", variant="primary", visible=False)
    hidden = {"api_visibility": "private"}
    # What is opened is what was described, whatever stands in the field by then.
    described = gr.State("")
    gr.on([check.click, repository.submit], look_up, repository, [description, agree, described], **hidden)
    opened = agree.click(open_repository, [described, known], [category, known, description, agree], **hidden)
    opened.then(work.follow, [category, work.moment], work.places.all, js=MOMENT, **hidden)
    return repository


def add_welcome(
    page: gr.Blocks,
    categories: Categories,
    work: SingleImage,
    category: gr.Dropdown,
    known: gr.State,
    own: gr.BrowserState,
    repository: gr.Textbox,
) -> None:
    """What happens when somebody comes: a link's category, the visitor's own categories, then those of the Hub."""

    def welcome(before: list[str] | None, request: gr.Request):
        """A link with ?category=NAME opens that category; what the visitor calibrated before is offered again."""
        kept = [name for name in before or [] if categories.holds(name)]
        names = [*categories.offered, *kept]
        asked = request.query_params.get("category")
        chosen = asked if asked and (asked in names or categories.holds(asked)) else categories.offered[0]
        names += [chosen] if chosen not in names else []
        unknown = asked is not None and chosen != asked
        if unknown:
            words = (
                f"## There is no category *{as_text(readable(asked))}* here\n\nThe link names it. Choose another above"
            )
            if REPOSITORY.fullmatch(asked):
                words += ", or look it up below, under *Another category from the Hugging Face Hub*"
            view = work.welcome_with(chosen, f"{words}.", request)
        elif asked:
            view = work.welcome(chosen, request)
        else:
            work.arrive(chosen, request)
            view = {}
        return {
            **view,
            # Without a link the visitor may have chosen another one meanwhile, which stays.
            category: gr.Dropdown(choices=label_choices(names), **({"value": chosen} if asked else {})),
            known: names,
            own: kept,
            # Without such a link the visitor may be typing there already, which stays.
            **({repository: asked} if unknown and REPOSITORY.fullmatch(asked) else {}),
        }

    def search(known: list[str]):
        """What carries our tag on the Hub joins the list; the Hub may take seconds, and nobody waits for it."""
        names = [*known, *(name for name in categories.search() if name not in known)]
        return gr.Dropdown(choices=label_choices(names)), names

    hidden = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    came = page.load(welcome, own, [*work.places.all, category, known, own, repository], **hidden)
    came.then(work.examples_of, category, work.example_places, **hidden)
    came.then(search, known, [category, known], **hidden)
    came.then(None, None, None, js=READY, **hidden)  # for programs that drive the page
    page.unload(work.visits.end)


def keep_deleting(every: float, age: float) -> None:
    """Deletes what was made for visitors when it is so old, in the background, for as long as the program runs."""

    def run() -> None:
        while True:
            time.sleep(every)
            delete_old_outputs(age)

    threading.Thread(target=run, name="delete", daemon=True).start()


def create_page(checkpoints: str | Path, export: bool = True) -> gr.Blocks:
    """Loads the checkpoints, onto the GPU where there is one, and builds the page; launch it with `**LAUNCH`.

    Args:
        checkpoints: a folder of checkpoints, with or without `repositories.txt`; see `Categories`.
        export: whether verdicts on the CPU may come from exported graphs, where an engine is installed and faster.

    Raises:
        FileNotFoundError, CategoryError: if the folder holds no checkpoint, or none can be loaded.
    """
    categories = Categories(checkpoints, "cuda" if torch.cuda.is_available() else "cpu", export=export)
    categories.load_offered(evaluates_networks(categories.get))
    visits, parts = Visits(), OwnParts()
    examples = Examples(categories.folder, categories.bundled, parts.examples)
    keep_deleting(*DELETE_CACHE)
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        known = gr.State(categories.offered)
        own = gr.BrowserState([], storage_key="ddad_own_categories", secret="ddad")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.Markdown(INTRODUCTION, elem_classes="page-title")
            with gr.Column(scale=2, min_width=280):
                category = gr.Dropdown(
                    label_choices(categories.offered), value=categories.offered[0], interactive=True, min_width=280,
                    label="Category: what kind of part is it?",
                )  # fmt: skip
                other = gr.Button("Not one of these? Learn it from your photographs", size="sm")
        with gr.Tabs() as tabs:
            with gr.Tab("One image", id="one"):
                work = add_single_image(categories, visits, examples, category)
            with gr.Tab("Many images"):
                many = add_many_images(categories, visits, category, tabs, work)
            with gr.Tab("Line"):
                line = add_line(categories, visits, category)
            with gr.Tab(HERE, id="part"):
                part, given = add_your_part(page, categories, visits, category, known, own, work, parts)
            with gr.Tab("About"):
                add_about(categories, category)
        other.click(lambda: gr.Tabs(selected="part"), None, tabs, queue=False, api_visibility="private")
        lists = Lists(category, known, own, given)
        add_corrections(Corrections(part, work, lists), [many, line])
        with work.more:
            add_where_to_look(WhereToLook(part, work, lists))
        with gr.Accordion("Another category from the Hugging Face Hub", open=False):
            repository = add_hub(categories, work, category, known)
        add_welcome(page, categories, work, category, known, own, repository)
        add_api(categories, visits)
    return page.queue(max_size=QUEUE_SIZE)
