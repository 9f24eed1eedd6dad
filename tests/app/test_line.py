"""The line view: a camera or a folder in, one large verdict out, the space bar says that it was wrong."""

import re
import shutil
import threading
from types import SimpleNamespace

import PIL.Image
import pytest
from playwright.sync_api import expect

from ddad.app import line as line_module
from ddad.app import uploads
from ddad.app.categories import Categories
from ddad.app.line import Line, counters, sign
from ddad.app.visits import Judged, Visits
from tests.conftest import create_tiny_pipeline

REQUEST = SimpleNamespace(session_hash="visitor")


@pytest.fixture
def line(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    return Line(Categories(tmp_path, "cpu"), Visits())


def picture(tmp_path, number: int) -> str:
    path = tmp_path / f"{number}.png"
    PIL.Image.effect_noise((40, 30), 20).convert("RGB").save(path)
    return str(path)


def test_pictures_that_come_meanwhile_are_dropped_and_none_waits(line, tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slow(pipe, path, settings):
        begun.set()
        go_on.wait(10)
        return Judged(path, True, 9.0, 3.0), PIL.Image.new("RGB", (40, 30))

    line.look = slow
    first = threading.Thread(target=line.take_frame, args=(picture(tmp_path, 1), "tiny", REQUEST))
    first.start()
    begun.wait(10)
    second = picture(tmp_path, 2)
    line.take_frame(second, "tiny", REQUEST)  # returns at once
    go_on.set()
    first.join()
    counts = line.visits.of(REQUEST).line
    assert (counts.defective, counts.good, counts.dropped) == (1, 0, 1)
    assert not (tmp_path / "2.png").exists()


def test_verdicts_are_those_of_the_pipeline_and_old_frames_go(line, tmp_path):
    paths = [picture(tmp_path, number) for number in range(2)]
    pipe = line.categories.get("tiny").pipe
    expected = pipe(paths[0], denoise=False)
    shown, heatmap, words = line.take_frame(paths[0], "tiny", REQUEST)
    assert f"score {expected.image_score[0]:.1f}, threshold {expected.threshold:.1f}" in shown
    assert ("line-defect" in shown) == expected.is_anomalous[0] and PIL.Image.open(heatmap).width == 900
    assert "1 inspected" in words
    line.take_frame(paths[1], "tiny", REQUEST)
    assert not (tmp_path / "0.png").exists() and (tmp_path / "1.png").exists()
    (tmp_path / "none.png").write_bytes(b"no image")
    shown, heatmap, words = line.take_frame(str(tmp_path / "none.png"), "tiny", REQUEST)
    assert "This picture" in shown and heatmap is None and "2 inspected" in words


def test_wrong_said_twice_is_right(line, tmp_path):
    line.take_frame(picture(tmp_path, 1), "tiny", REQUEST)
    visit = line.visits.of(REQUEST)
    shown, words, button = line.say_wrong(REQUEST)
    assert "line-wrong" in shown and "1 verdicts marked as wrong" in words and button.visible
    assert list(visit.corrected) == [str(tmp_path / "1.png")]
    _, words, button = line.say_wrong(REQUEST)
    assert "0 verdicts marked" in words and not button.visible and not visit.corrected
    assert "0 inspected" in counters(line.visits.of(SimpleNamespace(session_hash="another")))


def test_the_sign_says_what_its_colour_says():
    assert "GOOD" in sign("good") and "DEFECT" in sign("defect") and "<b>" not in sign("none", "<b>")


def test_a_folder_is_played_and_the_space_bar_says_wrong(open_page, defective, good, tmp_path):
    folder = tmp_path / "line"
    folder.mkdir()
    shutil.copy(defective, folder / "1.png")
    (folder / "notes.txt").write_text("no image")
    shutil.copy(good, folder / "2.png")
    page = open_page()
    page.get_by_role("tab", name="Line").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Play a folder").click()
    chooser.value.set_files(folder)
    expect(page.locator(".line-sign")).to_contain_text("DEFECT", timeout=30_000)
    expect(page.get_by_text(re.compile("2 inspected"))).to_be_visible(timeout=30_000)
    expect(page.locator(".line-sign")).to_contain_text("GOOD")
    expect(page.get_by_alt_text("The picture under its heatmap")).to_be_visible()
    page.get_by_role("heading", name=re.compile("find the defect")).click()  # the focus is on no button
    page.keyboard.press("Space")
    expect(page.locator(".line-sign")).to_contain_text("WRONG")
    expect(page.get_by_text(re.compile("1 verdicts marked as wrong"))).to_be_visible()
    expect(page.get_by_role("button", name="Correct 1 verdict that I marked as wrong")).to_be_visible()


@pytest.mark.slow
def test_the_camera_is_watched(open_page):
    """Chromium's own test camera: its pictures get verdicts as long as it runs."""
    page = open_page()
    page.context.grant_permissions(["camera"])
    page.get_by_role("tab", name="Line").click()
    camera = page.locator("#line-camera")
    camera.get_by_text("Click to Access Webcam").click()
    assert "flip" not in camera.locator("video").get_attribute("class")  # parts are not mirrored
    camera.get_by_role("button", name="capture photo").click()
    expect(page.get_by_text(re.compile(r"[2-9] inspected"))).to_be_visible(timeout=60_000)
    expect(page.locator(".line-sign")).to_contain_text(re.compile("score"))
    assert line_module.EVERY_SECONDS <= 1
