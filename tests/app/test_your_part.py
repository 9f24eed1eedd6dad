"""A visitor's own part, new or of a category: on the page, through the API, and where it is forgotten."""

import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect

from ddad import DDADPipeline
from ddad.app import learning, part, photographs
from ddad.app.categories import Categories, CategoryError, readable
from ddad.app.compute import LONG, QUICK, SLOW, ModelThread
from ddad.app.own_parts import OwnParts, Photographs
from ddad.app.visits import Visits
from ddad.images_ddad import DDADImageProcessor
from tests.app.conftest import give
from tests.conftest import create_tiny_pipeline


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Twelve good parts in a zip, and a file that is none."""
    folder, random = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    path = folder / "good parts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            stripes = 110 + 60 * np.sin(np.arange(80) / 6 + random.normal(0, 0.3)) + random.normal(0, 3, (80, 80))
            file = folder / f"{number:02d}.png"
            PIL.Image.fromarray(stripes.clip(0, 255).astype(np.uint8)).save(file)
            archive.write(file, file.name)
        archive.writestr("notes.txt", "no image")
    return path


def choose_tiny(page) -> None:
    page.get_by_role("listbox", name=re.compile("Category")).or_(
        page.get_by_label(re.compile("Category:"))
    ).first.click()
    page.get_by_role("option", name=re.compile("Tiny part")).click()
    expect(page.get_by_label(re.compile("Category:")).first).to_have_value("Tiny part")


def give_parts(page, parts, name: str | None = None) -> None:
    """Opens the tab and gives photographs: of a new part of that name, or of the chosen category."""
    page.get_by_role("tab", name="Your part").click()
    if name is None:
        page.get_by_label("The category above, under another camera").check()
    else:
        page.get_by_label("What is the part called?").fill(name)
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(parts)
    expect(
        page.get_by_role("tabpanel").locator("visible=true").get_by_text(re.compile("parts.*zip")).last
    ).to_be_visible()
    page.get_by_role("button", name="Learn", exact=True).click()


def download(page, name: str, path):
    page.get_by_role("tab", name="Your part").click()
    with page.expect_download() as file:
        page.get_by_role("row", name=re.compile(name)).get_by_role("link").click()
    file.value.save_as(path)
    return path


def test_a_new_part_is_learnt_looked_at_and_taken_home(open_page, parts, tmp_path):
    page = open_page()
    page.get_by_role("tab", name="Your part").click()
    page.get_by_role("button", name="Learn", exact=True).click()
    expect(page.get_by_text("Give photographs of good parts, a folder or a zip first.")).to_be_visible()
    give_parts(page, parts, "Striped bolt")
    # There is something to do first, so it stays there, and says what.
    answer = page.get_by_role("heading", name="Striped bolt cannot be relied on yet").locator("visible=true")
    expect(answer).to_be_visible(timeout=180_000)
    expect(page.get_by_text("Now give a good photograph that it has not seen").locator("visible=true")).to_be_visible()
    expect(page.get_by_text(re.compile("Of defects pasted into your images")).locator("visible=true")).to_be_visible()
    expect(page.get_by_label(re.compile("Category:")).first).to_have_value("Striped bolt, your good parts")
    # Where images are inspected two pictures of its own wait: a test defect, and the most unusual good part.
    page.get_by_role("tab", name="One image").click()
    expect(page.locator("#verdict")).to_contain_text(re.compile(r"This is a \w+ pasted into \d\d.png as a test"))
    expect(page.get_by_alt_text(re.compile("under its heatmap"))).to_be_visible(timeout=30_000)
    page.locator("#examples").get_by_role("button", name="Most unusual good part").click()
    expect(page.locator("#verdict")).to_contain_text("the highest score of your good parts, by what was learnt from")
    image = parts.parent / "03.png"
    give(page, image)
    score = page.locator("p").filter(has_text=re.compile("^Score "))
    expect(score).to_be_visible(timeout=30_000)
    said = score.inner_text()
    # What is taken home says the same.
    with zipfile.ZipFile(download(page, "Striped_bolt", tmp_path / "bolt.zip")) as archive:
        archive.extractall(tmp_path)
    pipe = DDADPipeline.from_pretrained(tmp_path / "Striped_bolt")
    assert f"Score {pipe(image, denoise=False).image_score[0]:.1f}" in said
    assert f"threshold of {pipe.threshold:.1f}" in said and pipe.config.category == "Striped_bolt"
    # More room for other light and places is another threshold, which the part brings along.
    page.get_by_role("tab", name="One image").click()
    page.get_by_role("button", name=re.compile("What if")).click()
    page.get_by_label("other light, focus and position too").check()
    tolerant = pipe.calibration.threshold(pipe.judgement(tolerance="tolerant"))
    limit = page.get_by_label(re.compile("^Threshold: score above"))
    expect(limit).to_have_value(re.compile(rf"^{tolerant:.2f}".rstrip("0") + "0*$"))
    assert tolerant != pipe.threshold


@pytest.mark.slow
def test_a_calibrated_category_lives_on(open_page, browser, parts, tmp_path):
    page = open_page()
    choose_tiny(page)
    give_parts(page, parts)
    expect(page.locator("#verdict")).to_contain_text("Calibrated on your good parts", timeout=120_000)
    page.get_by_role("tab", name="Your part").click()
    told = page.get_by_role("tabpanel").locator("visible=true").inner_text()
    assert "12 images." in told and "These are few images" in told and "notes.txt: this file is not an image" in told
    category = page.get_by_label(re.compile("Category:")).first
    expect(category).to_have_value("Tiny part, your good parts")
    archive = download(page, "my_tiny_part", tmp_path / "my_tiny_part.zip")
    # After a reload it is offered, in this browser alone.
    page.reload()
    page.wait_for_selector("body[data-ready]")
    category.click()
    expect(page.get_by_role("option", name="Tiny part, your good parts")).to_be_visible()
    other = open_page()
    other.get_by_label(re.compile("Category:")).first.click()
    expect(other.get_by_role("option", name="Tiny part", exact=True)).to_be_visible()
    assert other.get_by_role("option", name="Tiny part, your good parts").count() == 0
    # Its zip can be given back, and is inspected with in both tabs.
    other.keyboard.press("Escape")
    other.get_by_role("tab", name="Your part").click()
    other.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").last.set_input_files(archive)
    expect(other.get_by_text("is open again, for you alone").locator("visible=true")).to_be_visible()
    other.get_by_role("tab", name="Many images").click()
    other.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(parts)
    other.get_by_role("button", name="Inspect all").click()
    expect(other.get_by_text(re.compile("12 inspected"))).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("kind", ["text", "code", "outside", "two", "damaged"])
def test_zips_that_are_no_checkpoint_are_refused(kind, tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    path = tmp_path / "given.zip"
    with zipfile.ZipFile(path, "w") as archive:
        if kind == "code":
            archive.writestr("bolt/pipeline.py", "raise SystemExit")
        elif kind == "outside":
            archive.writestr("bolt/../../outside.json", "{}")
        elif kind in ("two", "damaged"):
            for file in (tmp_path / "tiny").rglob("*.*"):
                content = file.read_bytes()
                if kind == "damaged" and file.suffix == ".safetensors":
                    content = content[:-100]
                archive.writestr(f"bolt/{file.relative_to(tmp_path / 'tiny').as_posix()}", content)
            if kind == "two":
                archive.writestr("nut/model_index.json", "{}")
    if kind == "text":
        path.write_text("no zip")
    work = part.YourPart(Categories(tmp_path, "cpu"), Visits(), OwnParts())
    with pytest.raises(gr.Error) as caught:
        work.take(str(path))
    assert caught.value.title == "This zip cannot be opened" and str(tmp_path) not in caught.value.message
    assert not (tmp_path.parent / "outside.json").exists()


@pytest.mark.slow
def test_programs_fit_and_inspect(server, parts, tmp_path):
    client = Client(server, verbose=False, download_files=str(tmp_path))
    report, archive = client.predict(handle_file(parts), category="tiny_part", api_name="/fit")
    assert report["images"] == 12 and report["asked"] == 12 and report["judges"] == 12
    assert archive.endswith("my_tiny_part.zip")
    found = client.predict(
        handle_file(parts.parent / "00.png"), report["category"], None, None, False, api_name="/inspect"
    )[0]
    assert found["threshold"] == pytest.approx(report["threshold"], abs=1e-3)
    # Its name is a secret, and on no list.
    assert report["category"] not in client.predict(api_name="/categories")
    with pytest.raises(Exception, match="Give a zip of photographs of good parts; this file is none"):
        text = tmp_path / "text.png"
        text.write_text("no image")
        client.predict(handle_file(text), api_name="/fit")
    with pytest.raises(Exception, match="0 good images are too few.*1 files cannot be read"):
        with zipfile.ZipFile(tmp_path / "text.zip", "w") as zipped:
            zipped.write(text, "text.png")
        client.predict(handle_file(tmp_path / "text.zip"), api_name="/fit")


@pytest.mark.slow
def test_an_event_takes_no_visitor_from_where_they_have_gone(open_page, parts):
    """Somebody learns a part and looks at an image meanwhile: they stay with it, and the part waits in the list."""
    page = open_page()
    give_parts(page, parts, "Patient bolt")
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("tab", name="Your part").click()
    page.get_by_role("tab", name="Many images").click()
    page.wait_for_function("document.body.innerText.includes('Inspect all')")
    category = page.get_by_label(re.compile("Category:")).first
    before = category.input_value()
    page.wait_for_function(
        "[...document.querySelectorAll('p')].some(p => p.textContent.includes('It stands in the list of categories'))",
        timeout=180_000,
    )
    expect(page.get_by_role("button", name="Inspect all")).to_be_visible()
    expect(category).to_have_value(before)
    category.click()
    expect(page.get_by_role("option", name=re.compile("Patient bolt"))).to_be_visible()


@pytest.mark.parametrize("same", [False, True])
def test_a_folder_that_is_chosen_keeps_its_folders(open_page, parts, same, tmp_path):
    """What the browser leaves out decides what trains: folders OK and NG are refused."""
    for number, path in enumerate(sorted(parts.parent.glob("*.png"))[:10]):
        place = tmp_path / "data" / ("OK" if number < 6 else "NG")
        place.mkdir(parents=True, exist_ok=True)
        (place / (f"{number % 6}.png" if same else path.name)).write_bytes(path.read_bytes())
    page = open_page()
    page.get_by_role("tab", name="Your part").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("tabpanel").locator("visible=true").get_by_role(
            "button", name="Choose a whole folder"
        ).click()
    chooser.value.set_files(tmp_path / "data")
    expect(
        page.get_by_text(re.compile(r"Give images of good parts alone. Found: NG \(4, defective\)"))
    ).to_be_visible()


@pytest.mark.slow
def test_what_is_learnt_names_the_photographs_to_look_at(parts, server, tmp_path):
    """The page's button leaves out what the report calls suspects."""
    random = np.random.default_rng(5)
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for path in sorted(parts.parent.glob("[01]?.png")):
            archive.write(path, path.name)
        odd = tmp_path / "odd.png"
        PIL.Image.fromarray(random.integers(0, 255, (80, 80), dtype=np.uint8)).save(odd)
        archive.write(odd, odd.name)
    client = Client(server, verbose=False, download_files=str(tmp_path))
    report, _ = client.predict(handle_file(tmp_path / "mixed.zip"), name="mixed bolt", api_name="/fit")
    assert report["suspects"] == ["odd.png"] and any("odd.png" in sentence for sentence in report["words"])


@pytest.mark.slow
def test_copies_of_one_photograph_are_not_called_learnt(open_page, parts, tmp_path):
    content = (parts.parent / "00.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "copies.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", content)
    page = open_page()
    page.get_by_role("tab", name="Your part").click()
    page.get_by_label("What is the part called?").fill("Copied bolt")
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(
        tmp_path / "copies.zip"
    )
    expect(page.get_by_text("copies").locator("visible=true").first).to_be_visible()
    page.get_by_role("button", name="Learn", exact=True).click()
    heading = page.get_by_role("heading", name="Copied bolt cannot be relied on yet").locator("visible=true")
    expect(heading).to_be_visible(timeout=180_000)
    expect(
        page.get_by_text(re.compile("The 4 photographs seem to show 1 part")).locator("visible=true")
    ).to_be_visible()


def ignore(*_):
    """Progress that nobody looks at."""


def test_too_many_images_are_refused(tiny_pipe, parts, monkeypatch):
    monkeypatch.setattr(photographs, "MOST_IMAGES", 11)
    with pytest.raises(gr.Error, match="at most 11 images"):
        photographs.read_good_images(tiny_pipe.image_processor, 64, Photographs([str(parts)]), ignore)


def test_learning_can_be_stopped(tiny_pipe, parts, tmp_path):
    def stop(*_):
        raise part.Stopped

    with pytest.raises(part.Stopped):
        folders = learning.Folders(str(tmp_path / "output"), str(tmp_path / "examples"))
        learning.calibrate_own(tiny_pipe, None, Photographs([str(parts)]), folders, stop)
    assert not (tmp_path / "output").exists() and not (tmp_path / "examples").exists()


def test_photographs_are_added_and_left_out(tmp_path):
    (tmp_path / "image.png").write_bytes(b"taken")
    first, taken = part.add_photograph(str(tmp_path / "image.png"), ["a.jpg"])[0]
    assert first == "a.jpg" and Path(taken).name == "photograph_2.png" and Path(taken).read_bytes() == b"taken"
    sheet = part.contact_sheet(["/x/a.jpg", "/x/b.jpg", "/x/c.zip"], ["b.jpg"])
    assert sheet == [("/x/b.jpg", "⚠ unlike the rest: b.jpg"), ("/x/a.jpg", "a.jpg")]


def test_photographs_are_left_out_by_name_also_of_a_zip(parts, tmp_path):
    given, added = Photographs([str(parts)]), tmp_path / "corrected_1.png"
    added.write_bytes((parts.parent / "03.png").read_bytes())
    changed = given.with_changes([str(added)], ["05.png"])
    read = photographs.read_good_images(DDADImageProcessor(), 64, changed, ignore)
    assert len(read.names) == 12 and "05.png" not in read.names and read.names[-1] == "corrected_1.png"
    assert given.names_of([str(parts.parent / "05.png")]) == ["05.png"]
    (tmp_path / "gone.png").write_bytes(b"")
    kept = Photographs([str(tmp_path / "gone.png")])
    assert kept.are_kept
    (tmp_path / "gone.png").unlink()
    assert not kept.are_kept


def test_an_own_category_is_forgotten_like_others(tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    categories = Categories(tmp_path, "cpu", memory_limit=1)
    own = categories.add_own("tiny", tmp_path / "tiny")
    again = categories.add_own(own, tmp_path / "tiny")
    assert own != again and len(again) == len(own) and readable(own) == "Tiny, your good parts"
    categories.get("tiny")
    with pytest.raises(CategoryError, match="was forgotten to make room"):
        categories.get(own)
    assert categories.offered == ["tiny"]


def test_repairs_go_before_the_rest_of_a_calibration():
    thread, done = ModelThread(), []

    def calibrate():
        for step in range(4):
            time.sleep(0.05)
            done.append(f"step {step}")
            thread.give_way(LONG)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(thread.run, LONG, calibrate)
        time.sleep(0.02)
        pool.submit(thread.run, SLOW, done.append, "repair")
        pool.submit(thread.run, QUICK, done.append, "look")
    assert done[:2] == ["step 0", "look"] and done[2] == "repair" and done[-1] == "step 3"
