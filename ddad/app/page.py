"""The page in the browser. It calls the pipeline and computes nothing itself."""

import secrets
from pathlib import Path

import gradio as gr
import torch

from ddad.app.about import add_about
from ddad.app.adapt import add_own_parts
from ddad.app.api import add_api
from ddad.app.categories import Categories, CategoryError, label_choices
from ddad.app.compute import evaluates_networks
from ddad.app.many import add_many_images
from ddad.app.single import KEEP_SECONDS, add_single_image
from ddad.app.uploads import refusal

TITLE = "ddad: find the defect, see the part without it"
INTRODUCTION = f"""# {TITLE}
A diffusion model that has seen **good parts only** marks what is not normal on your image, and shows the same part as
it would look without the defect. Images are deleted after an hour, and nobody else sees them."""
QUEUE_SIZE = 64
# Looked at every ten minutes, deleted when older than fifty: gone after an hour.
DELETE_CACHE = (600, KEEP_SECONDS - 600)
# What `launch` must be given, wherever the page is launched.
LAUNCH = {
    "theme": gr.themes.Soft(primary_hue="indigo", neutral_hue="slate"),
    "max_file_size": "50mb",
    "footer_links": ["api", "settings"],
    "run_history": False,
    "state_session_capacity": 100,
    "show_error": False,
    "mcp_server": True,
}


def add_hub(
    page: gr.Blocks, categories: Categories, category: gr.Dropdown, known: gr.State, session: gr.State
) -> None:
    """The place where a visitor opens a repository that is not in the list: first what it is, then the question."""

    def look_up(repository: str):
        try:
            _, description = categories.look_up(repository)
        except CategoryError as error:
            raise refusal(str(error), "This repository cannot be opened") from None
        return description, gr.Button(visible=True), repository.strip()

    def open_repository(name: str, known: list[str]):
        try:
            categories.get(name)
        except CategoryError as error:
            raise refusal(str(error), "This repository cannot be opened") from None
        names = [*known, *([] if name in known else [name])]
        chosen = gr.Dropdown(choices=label_choices(names), value=name)
        return chosen, names, f"**{name}** is open.", gr.Button(visible=False)

    with gr.Accordion("Another category from the Hugging Face Hub", open=False):
        with gr.Row():
            repository = gr.Textbox(label="Repository", placeholder="user/name", scale=3, max_lines=1)
            check = gr.Button("What is it?", scale=1)
        description = gr.Markdown()
        agree = gr.Button("Open it", variant="primary", visible=False)
    hidden = {"api_visibility": "private"}
    # What is opened is what was described, whatever stands in the field by then.
    described = gr.State("")
    gr.on([check.click, repository.submit], look_up, repository, [description, agree, described], **hidden)
    agree.click(open_repository, [described, known], [category, known, description, agree], **hidden)

    def welcome(request: gr.Request):
        """A link with ?category=NAME opens that category; what carries our tag on the Hub joins the list.

        The session gets a name that nobody can guess: with it Stop finds the visitor's own run.
        """
        names = [*categories.offered, *(name for name in categories.search() if name not in categories.offered)]
        asked = request.query_params.get("category")
        # The Hub may take seconds to answer: what the visitor chose meanwhile stays.
        value = {"value": asked} if asked in names else {}
        return (
            gr.Dropdown(choices=label_choices(names), **value),
            names,
            asked if asked and asked not in names else None,
            secrets.token_hex(16),
        )

    page.load(welcome, None, [category, known, repository, session], show_progress="hidden", **hidden)


def create_page(checkpoints: str | Path) -> gr.Blocks:
    """Loads the checkpoints, onto the GPU where there is one, and builds the page; launch it with `**LAUNCH`.

    Args:
        checkpoints: a folder of checkpoints, with or without `repositories.txt`; see `Categories`.

    Raises:
        FileNotFoundError, CategoryError: if the folder holds no checkpoint, or none can be loaded.
    """
    categories = Categories(checkpoints, "cuda" if torch.cuda.is_available() else "cpu")
    categories.load_offered(evaluates_networks(categories.get))
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.Markdown(INTRODUCTION)
        session, known = gr.State(""), gr.State(categories.offered)
        with gr.Row():
            category = gr.Dropdown(
                label_choices(categories.offered), value=categories.offered[0], interactive=True, min_width=280,
                label="Category: what kind of part is it?",
            )  # fmt: skip
            with gr.Column(scale=2, min_width=300):
                add_hub(page, categories, category, known, session)
        with gr.Tab("One image"):
            add_single_image(categories, category, session)
        with gr.Tab("Many images"):
            add_many_images(categories, category)
        with gr.Tab("Calibrate"):
            add_own_parts(categories, category, known, session)
        with gr.Tab("About"):
            add_about()
        add_api(categories)
    return page.queue(max_size=QUEUE_SIZE)
