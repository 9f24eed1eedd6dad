"""Verdicts that a visitor calls wrong: what changes, on the page and behind it."""

import html
import os
import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

from ddad.app import uploads
from ddad.app.categories import Categories
from ddad.app.corrections import Corrections, Lists
from ddad.app.examples import Examples
from ddad.app.many import ORDERS, WRONG, ManyImages
from ddad.app.own_parts import OwnPart, OwnParts, Photographs
from ddad.app.part import YourPart
from ddad.app.single_events import SingleImage
from ddad.app.visits import Judged, Run, Visit, Visits
from tests.app.conftest import give
from tests.conftest import create_tiny_pipeline


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Twelve photographs of good parts, and one that is brighter."""
    folder, random = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for number in range(13):
        values = 110 + 60 * np.sin(np.arange(80) / 6 + random.normal(0, 0.3)) + random.normal(0, 3, (80, 80))
        values = values / 2 + 120 if number == 12 else values
        PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def corrections(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    categories, visits, parts = Categories(tmp_path, "cpu"), Visits(), OwnParts()
    single = SingleImage(categories, visits, Examples(tmp_path, ["tiny"], parts.examples))
    lists = Lists("category", "known", "own", "given")  # stand for the page's components
    return Corrections(YourPart(categories, visits, parts), single, lists)


def apply(corrections, visit, category, wrong, given=None):
    return corrections.apply(visit, category, wrong, given, Run(), lambda *_, **__: None)


def test_a_bundled_category_collects_what_is_good(corrections, stripes):
    visit = Visit()
    wrong = [Judged(str(path), True, 9.0, 3.0) for path in stripes[:2]]
    outcome = apply(corrections, visit, "tiny", wrong, [str(stripes[5])])
    assert outcome.category is None and len(outcome.given) == 3
    assert "2 good parts that were called defective" in outcome.words and "give 1 more photographs" in outcome.words
    assert all(path.rpartition("/")[2].startswith("corrected_") for path in outcome.given[1:])
    assert "press *Learn* there" in apply(corrections, visit, "tiny", wrong, outcome.given).words


def test_a_missed_defect_lowers_the_threshold_or_nothing_does(corrections):
    visit, settings = Visit(), corrections.single.own_settings("tiny")
    scores = np.sort(corrections.single.good_scores("tiny", settings))
    threshold = corrections.single.open("tiny").judge.threshold
    price = (scores[-1] + scores[-2]) / 2
    outcome = apply(corrections, visit, "tiny", [Judged("x.png", False, float(price), threshold)])
    assert visit.settings["tiny"].threshold < price and visit.settings["tiny"].threshold > scores[-2]
    failed = (scores > threshold).sum()
    assert f"of {len(scores)} good parts 1 lie above it, before {failed}" in outcome.words
    visit.settings.clear()
    outcome = apply(corrections, visit, "tiny", [Judged("x.png", False, float(scores[0]), threshold)])
    assert "No threshold finds this defect" in outcome.words and not visit.settings


def test_an_own_part_learns_again_and_says_what_changed(corrections, stripes, monkeypatch):
    """With what is good, and without a photograph that shows a defect; it takes the place of the old one."""
    categories, parts = corrections.part.categories, corrections.part.parts
    own = categories.add_own("tiny", categories.folder / "tiny")
    parts.keep(own, OwnPart(Photographs([str(path) for path in stripes[:6]]), "tiny", "my_tiny"))
    wrong = [Judged(str(stripes[12]), True, 9.0, 3.0), Judged(str(stripes[2]), False, 1.0, 3.0)]
    visit = Visit()
    outcome = apply(corrections, visit, own, wrong)
    assert outcome.category not in (None, own) and categories.holds(outcome.category)
    assert "Learnt again from 6 photographs: 1 photograph added as good and 02.png left out" in html.unescape(
        outcome.words
    )
    kept = parts.get(outcome.category)
    assert kept.photographs.left_out == {"02.png"} and [one.caption for one in kept.examples]
    changes = corrections.changes(visit, own, outcome, ["tiny", own], [own])
    assert changes["known"] == ["tiny", outcome.category] == [changes["known"][0], changes["category"].value]
    assert changes["own"] == [outcome.category]
    # Photographs are deleted after an hour: then it says so, and nothing is learnt of fewer.
    parts.keep(own, OwnPart(Photographs([str(stripes[0]) + ".gone"]), "tiny", "my_tiny"))
    outcome = apply(corrections, visit, own, wrong[:1])
    assert outcome.category is None and "deleted since" in outcome.words and len(outcome.given) == 1


def test_what_was_made_for_visitors_is_deleted(corrections, monkeypatch):
    old, new = uploads.output_path("old.png"), uploads.output_path("new.png")
    old.write_bytes(b"x"), new.write_bytes(b"x")
    past = old.parent.stat().st_mtime - 4000
    os.utime(old.parent, (past, past))
    uploads.delete_old_outputs(3000)
    assert not old.parent.exists() and new.is_file()


def test_a_row_is_marked_and_unmarked(corrections, stripes):
    work = ManyImages(corrections.part.categories, corrections.single.visits)
    request = SimpleNamespace(session_hash="visitor")
    states = list(work.inspect_all([str(path) for path in stripes[:3]], "tiny", False, ORDERS[0], request))
    rows = states[-1][1]
    assert {row[WRONG] for row in rows} <= {"☐ is good", "☐ is defective"}
    event = SimpleNamespace(row_value=rows[1], index=[1, WRONG])
    tabs, path, table, button = work.choose_row(ORDERS[0], event, request)
    assert path is None and table[1][WRONG].startswith("☑") and button.visible and "1 verdict " in button.value
    *_, table, button = work.choose_row(ORDERS[0], event, request)
    assert table[1][WRONG].startswith("☐") and not button.visible


@pytest.mark.slow
def test_a_false_alarm_is_corrected_under_its_verdict_after_a_reload(open_page, stripes):
    page = open_page()
    category = page.get_by_label(re.compile("Category:")).first
    category.click()
    page.get_by_role("option", name="Tiny part", exact=True).click()
    page.get_by_role("tab", name="Your part").click()
    page.get_by_label("The category above, under another camera").check()
    inputs = page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]")
    inputs.first.set_input_files(stripes[:12])
    expect(page.get_by_role("row", name=re.compile("11.png"))).to_be_visible()
    page.get_by_role("button", name="Learn", exact=True).click()
    # It lands on a test defect of its own, not on four empty boxes.
    expect(page.locator("#verdict")).to_contain_text("as a test", timeout=120_000)
    expect(page.locator("#verdict")).to_contain_text("Calibrated on your good parts")
    expect(page.get_by_alt_text(re.compile("under its heatmap"))).to_be_visible()
    expect(page.locator("#examples").get_by_role("button", name="A test defect")).to_be_visible()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    category.click()
    page.get_by_role("option", name="Tiny part, your good parts").click()
    expect(page.locator("#verdict")).to_contain_text("your good parts", timeout=30_000)
    give(page, stripes[12])
    expect(page.get_by_role("heading", name=re.compile("Defect found|Not such"))).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Wrong? This part is good").click()
    said = re.compile(
        r"Learnt again from 13 photographs: 1 photograph added as good\. The threshold was \d+\.\d and is"
    )
    expect(page.locator("#verdict")).to_contain_text(said, timeout=120_000)
    expect(page.locator("#verdict")).to_contain_text(re.compile(r"This image scored \d+\.\d before"))
    category.click()
    expect(page.get_by_role("option", name="Tiny part, your good parts")).to_have_count(1)


@pytest.mark.slow
def test_rows_that_are_wrong_are_corrected_together(open_page, stripes):
    page = open_page()
    page.get_by_label(re.compile("Category:")).first.click()
    page.get_by_role("option", name="Tiny part", exact=True).click()
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(stripes[:3])
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text(re.compile("3 inspected"))).to_be_visible(timeout=60_000)
    marks = page.get_by_role("gridcell", name=re.compile("☐ is good"))
    count = marks.count()
    assert count >= 1  # the tiny network has seen other parts
    marks.first.click()
    page.get_by_role("button", name="Correct 1 verdict that I marked as wrong").click()
    expect(page.get_by_text(re.compile("Noted: 1 good part that was called defective"))).to_be_visible()
    page.get_by_role("tab", name="Your part").click()
    expect(page.get_by_role("row", name=re.compile("corrected_1.png"))).to_be_visible()


def test_an_example_is_not_doubted(open_page):
    page = open_page()
    page.locator("#examples").get_by_role("button", name="Good", exact=True).click()
    expect(page.get_by_role("heading", name=re.compile("No defect found"))).to_be_visible()
    assert page.locator("#doubt").locator("visible=true").count() == 0


def test_a_missed_defect_is_found_by_the_threshold_that_it_sets(open_page, good):
    page = open_page()
    give(page, good)
    page.get_by_role("button", name="Wrong? This part is defective").click()
    words = page.locator("#verdict")
    expect(words).to_contain_text(re.compile("The threshold is|No threshold finds this defect"))
