"""Many images: files, folders and zips."""

import io
import json
import re
import zipfile

import pytest
from playwright.sync_api import expect

from ddad.app import many, sources
from ddad.app.categories import Category
from ddad.app.many import ManyImages
from ddad.app.sources import open_all
from ddad.app.visits import Visits
from tests.helpers import EPS


@pytest.fixture
def batch(tmp_path, defective, good):
    """A zip with a good, a defective and a damaged file, two that are ignored, and one with a bad name."""
    path = tmp_path / "parts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(defective, "line 1/part.png")
        archive.write(good, "line 2/part.png")
        archive.writestr("../../escaped.png", defective.read_bytes()[:2000])
        archive.writestr("__MACOSX/part.png", b"")
        archive.writestr("line 1/.DS_Store", b"")
    return path


def test_a_batch_fills_the_table_and_can_be_downloaded(open_page, batch, good, tmp_path):
    page = open_page()
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text("Choose images, a folder or a zip first.")).to_be_visible()
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(
        [batch, good, text]
    )
    page.get_by_label(re.compile("Make normal versions")).check()
    page.get_by_role("button", name="Inspect all").click()
    expect(
        page.get_by_text(re.compile("4 inspected: 1 with defects, 2 good, 1 that cannot be read. 1 other files"))
    ).to_be_visible(timeout=60_000)
    expect(page.get_by_text("line 1/part.png").first).to_be_visible()
    expect(page.get_by_role("gridcell", name=re.compile("This file is damaged or cut off"))).to_be_attached()
    expect(page.get_by_role("img", name="Heatmap of line 1/part.png")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("row", name=re.compile("ddad_results")).get_by_role("link").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
        lines = [json.loads(line) for line in archive.read("results.jsonl").splitlines()]
    kinds = ("map.tiff", "overlay.png", "normal_version.png")
    assert {f"line {n}/part_{kind}" for n in (1, 2) for kind in kinds} | {"results.csv", "regions.csv"} <= set(names)
    assert len(lines) == 4 and not any(".." in name for name in names)
    assert (lines[0]["overlay"], lines[1]["map"]) == ("line 1/part_overlay.png", "line 2/part_map.tiff")
    assert all(line["category"] == "solar_cell_mono" and line["date"] for line in lines)
    assert sum(line["is_anomalous"] is True for line in lines) == 1
    page.get_by_role("button", name=re.compile("Report for who was not there")).click()
    with page.expect_download() as download:
        page.get_by_role("row", name=re.compile(r"report\.html")).get_by_role("link").click()
    content = download.value.path().read_text()
    assert content.count("<img") == 2 and "3 inspected, 1 with defects" in content and "damaged or cut off" in content


@pytest.mark.slow
def test_a_batch_can_be_stopped(open_page, tmp_path, defective):
    path = tmp_path / "long.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            archive.write(defective, f"part_{number}.png")
    page = open_page()
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Inspect all").click()
    running = page.get_by_text(re.compile(r"\d+ inspected: .* of at most 40, more are coming"))
    expect(running).to_be_visible()
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    stopped = page.get_by_text(re.compile(r"\d+ inspected: .* Stopped: what is done is kept"))
    expect(stopped).to_be_visible()
    count = int(stopped.inner_text().split()[0])
    assert 0 < count < 40
    with page.expect_download() as download:
        page.get_by_role("row", name=re.compile("ddad_results")).get_by_role("link").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.read("results.jsonl").splitlines()) == count


def test_a_row_opens_its_image_in_full(open_page, batch, solar_pipe, defective):
    page = open_page()
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(batch)
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text(re.compile("3 inspected"))).to_be_visible(timeout=60_000)
    page.get_by_role("gridcell", name="line 1/part.png", exact=True).click()
    expected = solar_pipe(defective, denoise=False).image_score[0]
    expect(page.locator("#verdict")).to_contain_text(f"Score {expected:.1f}")
    expect(page.locator("#image img")).to_be_visible()


class OneCategory(Category):
    """The tiny pipeline as the only category."""

    def __init__(self, pipe):
        super().__init__(pipe, pipe, 0)

    def get(self, _):
        return self


def run(tiny_pipe, files):
    work = ManyImages(OneCategory(tiny_pipe), Visits())
    states = list(work.inspect_all([str(path) for path in files], "tiny", False, many.ORDERS[0], None))
    return states, states[-1][1]


def test_the_table_in_another_order(open_page, batch, solar_pipe, defective, good):
    page = open_page(width=390, height=844)
    page.get_by_role("tab", name="Many images").locator("visible=true").click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(batch)
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text(re.compile("3 inspected"))).to_be_visible(timeout=60_000)
    scores = page.locator("[role=gridcell][aria-colindex='4']")
    expected = [str(round(score, 2)) for score in solar_pipe([defective, good], denoise=False).image_score]
    expect(scores).to_have_text([*expected, ""])
    box = scores.first.bounding_box()
    assert box["x"] + box["width"] <= 390  # on a phone, without scrolling aside
    page.get_by_label("Lowest score first").check()
    expect(scores).to_have_text([*expected[::-1], ""])


def test_hostile_zips_cost_nothing(tiny_pipe, tmp_path, monkeypatch, defective):
    monkeypatch.setattr(sources, "LARGEST_FILE", 1_000_000)
    bomb, locked, none = (tmp_path / name for name in ("bomb.zip", "locked.zip", "none.zip"))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * 3_000_000)
    data = bytearray(io.BytesIO(bomb.read_bytes()).getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption
        data[data.index(signature) + offset] |= 1
    locked.write_bytes(data)
    none.write_bytes(b"no zip")
    _, rows = run(tiny_pipe, [bomb, locked, none, defective])
    notes = [row[-1] for row in rows]
    assert "more than 0 MB" in notes[0] and "password" in notes[1] and "damaged or none" in notes[2]
    assert rows[3][2] in ("⚠ defect", "✓ good") and notes[3] == ""


def test_the_number_of_images_is_limited(tiny_pipe, monkeypatch, defective):
    monkeypatch.setattr(many, "MOST_IMAGES", 2)
    states, rows = run(tiny_pipe, [defective] * 4)
    assert len(rows) == 2 and "At most 2 images" in states[-1][0]
    assert "2 inspected" in states[-1][0] and states[-1][2].endswith("ddad_results.zip")


def test_text_files_use_up_no_place(tiny_pipe, monkeypatch, tmp_path, defective):
    monkeypatch.setattr(many, "MOST_IMAGES", 2)
    notes = [tmp_path / f"note_{number}.txt" for number in range(5)]
    for note in notes:
        note.write_text("not an image")
    states, rows = run(tiny_pipe, [*notes, defective, defective])
    assert len(rows) == 2 and "5 other files were left out" in states[-1][0]


def test_names_cannot_break_the_table(tiny_pipe, tmp_path, defective):
    path = tmp_path / "names.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(defective, '"><img src=x onerror=alert(1)>.png')
    _, rows = run(tiny_pipe, [path])
    assert "<img src=x" not in rows[0][1].replace("&lt;", "")


def test_files_come_one_at_a_time(tmp_path, batch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for source in open_all([str(batch)], scratch):
        assert source.path.parent == scratch and len(list(scratch.iterdir())) == 1
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_stream_in_a_zip_is_that_files_error(method, tmp_path, defective):
    path = tmp_path / "parts.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("broken.png", defective.read_bytes() * 2)
        start = archive.fp.tell() - 4000
        archive.write(defective, "whole.png")
    content = bytearray(path.read_bytes())
    for position in range(start, start + 2000):
        content[position] ^= 0x5A
    path.write_bytes(bytes(content))
    broken, whole = list(open_all([str(path)], tmp_path))
    assert broken.name == "broken.png" and broken.path is None and "damaged in the zip" in broken.error
    assert whole.name == "whole.png" and whole.path is not None


def test_one_file_of_another_kind_stops_no_batch(tiny_pipe, tmp_path, picture):
    source = many.Source("part.png", tmp_path / "part.png")
    source.path.write_bytes(EPS)
    record, result = many.inspect_source(Category(tiny_pipe, tiny_pipe, 0), source, False)
    assert result is None and record.error.startswith("This file is not an image that can be read")
