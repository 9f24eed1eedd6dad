"""What strangers write is text on the page: it opens no link, loads no picture and sets no heading."""

import html
import re
import zipfile
from urllib.parse import quote

import gradio as gr
import pytest
from playwright.sync_api import expect

from ddad.app.words import Words, as_text, refused
from tests.conftest import create_tiny_pipeline

HTML = "x</h2><h1>Your account is locked</h1><a href=http://evil.example>unlock</a><img src=http://evil.example/i.png>"
MARKDOWN = "[unlock](http://evil.example) ![see](http://evil.example/i.png) # locked"
BARE = "http://evil.example www.evil.example me@evil.example $x$ `code` _a_ **b**"


@pytest.mark.parametrize("text", [HTML, MARKDOWN, BARE, "line\n# heading\n\n- list\n\x1b[31m\u202egnp.exe"])
def test_nothing_of_a_strangers_text_is_markup(text):
    """No sign that HTML, Markdown, LaTeX or automatic links begin with is left, and every one can be read."""
    escaped = as_text(text)
    without_entities = re.sub(r"&#\d+;", "", escaped)
    assert not set(without_entities) & set("<>[]()`*_$\\!~|\"'.:@\n+=-#&") and "\u202e" not in escaped
    assert html.unescape(escaped).split() == re.sub(r"[\x1b\u202e]", " ", text).split()


def test_messages_and_components_let_no_html_through():
    assert "<" not in refused(gr.Error(HTML, title=f"{HTML}.", print_exception=False))
    assert "<" not in Words().postprocess(f"## {HTML}") and Words().postprocess(None) is None
    assert as_text("Größe 3, 正常 50 %") == "Größe 3, 正常 50 %"


def assert_harmless(page) -> None:
    """The page shows the words, and none of what they would be as markup."""
    expect(page.get_by_text("evil.example").locator("visible=true").first).to_be_visible()
    leads = "[...document.querySelectorAll('*')].filter(e => `${e.href} ${e.src} ${e.action}`.match(/http:\\/*evil/))"
    assert page.evaluate(f"{leads}.map(e => e.outerHTML)") == []
    assert page.get_by_role("heading", name="Your account is locked", exact=True).count() == 0


@pytest.mark.parametrize("name", [HTML, MARKDOWN, BARE])
def test_a_category_in_a_link(open_page, name):
    page = open_page(f"/?category={quote(name)}")
    assert_harmless(page)


def test_a_repository_that_is_asked_for(open_page):
    page = open_page()
    page.get_by_text("Another category from the Hugging Face Hub").click()
    page.get_by_label("Repository", exact=True).locator("visible=true").fill(HTML)
    page.get_by_role("button", name="What is it?").click()
    expect(page.get_by_text("cannot be opened").first).to_be_visible()
    assert_harmless(page)


def test_a_card_on_the_hub(open_page, hub, tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "evil")
    (tmp_path / "evil" / "README.md").write_text(f"---\nlicense_name: '{HTML} {MARKDOWN}'\n---\n")
    hub.add("evil/card", tmp_path / "evil", ["ddad"])
    try:
        page = open_page()
        page.get_by_text("Another category from the Hugging Face Hub").click()
        page.get_by_label("Repository", exact=True).locator("visible=true").fill("evil/card")
        page.get_by_role("button", name="What is it?").click()
        expect(page.get_by_text("of weights and settings").first).to_be_visible()
        assert_harmless(page)
    finally:
        del hub.repositories["evil/card"]


def test_entries_of_a_zip_and_names_of_files(open_page, tmp_path):
    name = "<img src=http:evil.example onerror=alert(1)>[x](http:evil.example).png"
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        archive.writestr(name, b"no image")
    (tmp_path / name).write_bytes(b"no image")
    page = open_page()
    page.on("dialog", lambda _: pytest.fail("a name was run as a program"))
    page.get_by_role("tab", name="Many images").click()
    inputs = page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]")
    inputs.first.set_input_files([tmp_path / "parts.zip", tmp_path / name])
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text("2 inspected: 0 with defects, 0 good, 2 that cannot be read.")).to_be_visible()
    assert_harmless(page)
    # The same as photographs of a part: what cannot be read is named.
    page.get_by_role("tab", name="Your part").click()
    page.get_by_label("What is the part called?").fill(HTML)
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(
        [tmp_path / "parts.zip", tmp_path / name]
    )
    page.get_by_role("button", name="Learn", exact=True).click()
    expect(page.get_by_text("0 good images are too few").first).to_be_visible()
    assert_harmless(page)


def test_a_file_that_is_looked_at(open_page, tmp_path):
    path = tmp_path / "<h1>evil.example<img src=http:evil.example>[x](http:evil.example).png"
    path.write_bytes(b"no image")
    page = open_page()
    page.locator("#image").get_by_role("button", name="Clear").or_(
        page.locator("#image").get_by_role("button", name="Remove")
    ).first.click()
    expect(page.locator("#verdict")).to_contain_text("Drop an image")
    page.locator("#image input[type=file]").set_input_files(path)
    expect(page.locator("#verdict")).to_contain_text("is not an image that can be read")
    assert_harmless(page)
