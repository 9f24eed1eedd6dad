"""Where to look, painted on the page."""

import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from ddad import DDADPipeline
from ddad.app import uploads
from ddad.app.categories import Categories, CategoryError, readable
from ddad.app.corrections import Lists
from ddad.app.examples import Examples
from ddad.app.own_parts import OwnParts
from ddad.app.part import YourPart
from ddad.app.regions import IGNORE, ONLY, Painting, WhereToLook
from ddad.app.single_events import SingleImage
from ddad.app.visits import Visit, Visits
from tests.app.conftest import give
from tests.conftest import create_tiny_pipeline
from tests.helpers import png

LEFT = np.zeros((60, 80), bool)
LEFT[:, :40] = True


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    categories, visits, parts = Categories(tmp_path, "cpu"), Visits(), OwnParts()
    single = SingleImage(categories, visits, Examples(tmp_path, ["tiny"], parts.examples))
    return WhereToLook(YourPart(categories, visits, parts), single, Lists("category", "known", "own", "given"))


def share(work, name):
    inside = work.single.categories.get(name).judge.inside
    return 1.0 if inside is None else float(inside.mean())


def test_what_is_painted_makes_a_version_of_the_category(work):
    left = work.narrow("tiny", LEFT, ONLY)
    assert share(work, left) == pytest.approx(0.5, abs=0.02) and readable(left) == "Tiny, where you look"
    top = np.zeros((60, 80), bool)
    top[:30] = True
    assert share(work, work.narrow(left, top, IGNORE)) == pytest.approx(0.25, abs=0.02)  # ignores both
    assert share(work, work.narrow(left, ~LEFT, ONLY)) == pytest.approx(0.5, abs=0.02)  # replaces it
    assert share(work, work.version(left, None)) == 1.0 and share(work, "tiny") == 1.0
    with pytest.raises(uploads.gr.Error, match="Paint on the picture"):
        work.narrow("tiny", None, IGNORE)
    with pytest.raises(uploads.gr.Error, match=r"too small|black all over"):
        work.narrow("tiny", np.ones((60, 80), bool), IGNORE)
    with pytest.raises(CategoryError):
        work.single.categories.get("tiny~look-guessed")


def test_a_look_that_was_overtaken_changes_nothing(work):
    visit = Visit(moment=5.0)
    work.single.visits = SimpleNamespace(of=lambda _: visit)
    work.single.places = SimpleNamespace(nothing={"shown": "as it is"}, shown="shown")
    arguments = (LEFT, ONLY, "tiny", ["tiny"], [], 0.7, 1.0, None, None)  # asked for before what the page did last
    assert list(work.look_where(*arguments)) == [{"shown": "as it is"}] and visit.category == ""


def test_it_can_be_taken_home(work, tmp_path):
    left = work.narrow("tiny", LEFT, ONLY)
    folder = uploads.unpack_checkpoint(work.download(left).value["path"], tmp_path)
    loaded = DDADPipeline.from_pretrained(folder)
    assert float(loaded.inside.mean()) == share(work, left)
    assert loaded.threshold == pytest.approx(work.single.categories.get(left).judge.threshold, abs=1e-3)


def test_only_the_layers_of_a_painting_are_opened(tmp_path):
    layer = np.zeros((60, 80, 4), np.uint8)
    layer[:, :40] = 255
    PIL.Image.fromarray(layer).save(tmp_path / "layer.png")
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    painting = Painting()

    def given(layers):
        files = [{"path": str(tmp_path / name)} for name in layers]
        below = {"path": str(tmp_path / "eps.png")}
        return painting.preprocess(painting.data_model(background=below, layers=files, composite=below))

    assert (given(["layer.png"]) == LEFT).all()
    assert given([]) is None and painting.preprocess(None) is None
    with pytest.raises(uploads.gr.Error, match="not an image"):
        given(["eps.png"])


def test_painting_on_the_page(open_page, tmp_path):
    page = open_page("?category=tiny_part")
    path = tmp_path / "part.png"
    path.write_bytes(png(size=(80, 60)))
    give(page, path)
    expect(page.locator("#verdict")).to_contain_text("Score")
    page.get_by_text("Where to look: paint").click()
    canvas = page.locator("#painting canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the picture is drawn on a canvas, in which nothing can be waited for
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 10, y)
    page.mouse.down()
    page.mouse.move(x + 10, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Look so").click()
    words = page.locator("#where-words")
    expect(words).to_contain_text(re.compile(r"\d+% of the picture is looked at now"))
    expect(page.get_by_label(re.compile("Category: what kind"))).to_have_value("Tiny part, where you look")
    expect(page.locator("#verdict")).to_contain_text("Score")
    page.get_by_role("button", name="Look everywhere").click()
    expect(words).to_contain_text("All of the picture is looked at now")
