"""Publishing what was learnt on the page: with the visitor's own login on a Space, with the machine's at home."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.utils import get_space
from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ddad.app.home import check_home
from ddad.app.uploads import refusal, unpack_checkpoint
from ddad.app.words import Words, as_text, refused
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.loading import read_json, refresh
from ddad.checkpoint.names import RECORD_NAME
from ddad.checkpoint.publish import PublishOptions, prepare, publish

TITLE = "Nothing was published"
# What the Hub answers with and the page makes a link of.
ADDRESS = re.compile(r"https?://[\w./:-]+", flags=re.ASCII)
LICENSES = ("", "cc-by-4.0", "cc-by-nc-sa-4.0", "apache-2.0", "mit", "other")


def has_login() -> bool:
    """Whether visitors can log in here with their own account: on a Space that asks for it."""
    return get_space() is not None and "OAUTH_CLIENT_ID" in os.environ


def publish_archive(
    archive: str | None, repository: str, license_name: str, source: str, public: bool, token: str | None
) -> str:
    """Sends a checkpoint that the page gave as a zip to the Hub, with its card and code.

    Args:
        archive: the zip; None where nothing was learnt.
        repository: USER/NAME.
        license_name: of the photographs, as the Hub names it; the card says so.
        source: a sentence on them.
        public: whether everybody may see it.
        token: of the account.

    Returns:
        The address.

    Raises:
        gr.Error: that says what to do.
    """
    if archive is None:
        raise refusal("Learn a part first: what is published is the checkpoint above.", TITLE)
    if not token:
        raise refusal("Log in to the Hugging Face Hub first.", TITLE)
    try:
        validate_repo_id(repository.strip())
    except HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise refusal("Name the repository as USER/NAME, such as factory/brackets.", TITLE)
    if public and not license_name:
        raise refusal("Choose a licence: whoever sees it must know what they may do with it.", TITLE)
    with tempfile.TemporaryDirectory(prefix="ddad-") as scratch:
        folder = unpack_checkpoint(archive, Path(scratch))
        record = read_json(folder / RECORD_NAME)
        record["config"] |= {"license": license_name, "data_source": source.strip()}
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        pipe = refresh(DDADPipeline, folder)  # the zip holds no code; what is published does
        try:
            with prepare(pipe, folder, repository.strip()) as staged:
                return publish(staged, repository.strip(), PublishOptions(private=not public), token)
        except HfHubHTTPError as error:
            reason = error.server_message or "try again later"
            raise refusal(f"The Hub refused: {reason}.", TITLE) from None
        except OSError:
            raise refusal("The Hub cannot be reached now: try again later.", TITLE) from None


def add_sharing(download: gr.File) -> None:
    """Builds the place.

    Args:
        download: the checkpoint as a zip.
    """
    with gr.Accordion("Publish it on the Hugging Face Hub", open=False, elem_id="sharing"):
        gr.Markdown(
            "The checkpoint above becomes a repository of your account, private unless you say otherwise: weights,"
            " settings, code and a card, none of your photographs. `from_pretrained` and every page of ddad open it."
        )
        if has_login():
            gr.LoginButton()
        with gr.Row():
            repository = gr.Textbox(label="Repository", placeholder="user/name", max_lines=1)
            license_name = gr.Dropdown(list(LICENSES), value="", label="Licence of your photographs")
        source = gr.Textbox(label="What do they show, and where do they come from? (a sentence for the card)")
        public = gr.Checkbox(False, label="Everybody may see it")
        send = gr.Button("Publish")
        answer = Words(container=True)

    def tell(action: Callable[[], str]) -> str:
        try:
            address = action()
            return f"### ✓ Published\n\n{address if ADDRESS.fullmatch(address) else as_text(address)}"
        except gr.Error as error:
            return refused(error)

    def send_from_home(
        archive: str | None, repository: str, license_name: str, source: str, public: bool, request: gr.Request
    ) -> str:
        def act() -> str:
            check_home(request)
            return publish_archive(archive, repository, license_name, source, public, get_token())

        return tell(act)

    def send_as_visitor(
        archive: str | None,
        repository: str,
        license_name: str,
        source: str,
        public: bool,
        oauth_token: gr.OAuthToken | None,
    ) -> str:
        token = None if oauth_token is None else oauth_token.token
        return tell(lambda: publish_archive(archive, repository, license_name, source, public, token))

    send.click(
        send_as_visitor if has_login() else send_from_home,
        [download, repository, license_name, source, public],
        answer,
        api_visibility="private",
        concurrency_limit=None,
    )
