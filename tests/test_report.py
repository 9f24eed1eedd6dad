"""Regions, drawings, tables and archives made of results."""

import csv
import io
import json
import zipfile

import numpy as np
import PIL.Image
import pytest

from ddad.report import drawing
from ddad.report.export import ResultsArchive
from ddad.report.regions import find_regions
from ddad.runtime.records import Record, to_csv


@pytest.fixture
def anomaly_map():
    values = np.zeros((100, 200), dtype=np.float32)
    values[10:20, 30:50] = 4
    values[15, 40] = 9
    values[60:90, 100:130] = 6
    values[90, 130] = 6  # touches at a corner
    values[5, 190] = 8  # one pixel: a half of a thousandth of the image is ten
    return values


def test_regions_are_the_connected_places_above_the_threshold(anomaly_map):
    first, second = find_regions(anomaly_map, 3.0)
    assert (first.left, first.top, first.width, first.height, first.area, first.peak_score) == (30, 10, 20, 10, 200, 9)
    assert (second.left, second.top, second.width, second.height, second.area) == (100, 60, 31, 31, 901)
    assert second.area_percent == pytest.approx(100 * 901 / 20000)
    assert find_regions(anomaly_map, 10.0) == []
    assert len(find_regions(anomaly_map[:10, 150:], 3.0)) == 1  # the single pixel, where nothing else is
    with pytest.raises(ValueError, match=r"\[H, W\], found \[1, 100, 200\]"):
        find_regions(anomaly_map[None], 3.0)


def test_lines_are_drawn_around_regions_and_cover_none_of_them(anomaly_map):
    picture = PIL.Image.new("RGB", (200, 100), "gray")
    drawn = np.array(drawing.draw_regions(picture, anomaly_map, 3.0, find_regions(anomaly_map, 3.0)))
    assert tuple(drawn[59, 115]) == drawing.FOUND_COLOUR
    assert (drawn[61:90, 101:129] == 128).all()
    assert drawing.draw_regions(picture, anomaly_map, 10.0, []) is picture


def test_only_regions_of_the_table_have_a_line_and_their_number_stands_at_it():
    """A diagonal region: the corner of its box lies far from it. A single pixel above the threshold has no line."""
    rows, columns = np.mgrid[:400, :400]
    anomaly_map = np.where((abs(rows - columns) < 6) & (rows > 150) & (rows < 350), 8.0, 0.0).astype(np.float32)
    anomaly_map[20, 380] = 7.0
    regions = find_regions(anomaly_map, 3.0)
    assert len(regions) == 1
    drawn = np.array(drawing.draw_regions(PIL.Image.new("RGB", (800, 800), "gray"), anomaly_map, 3.0, regions))
    assert (drawn[:200] == 128).all()
    label = np.argwhere((drawn == 0).all(axis=-1))
    line = np.argwhere((drawn == drawing.FOUND_COLOUR).all(axis=-1))
    distances = [np.abs(line - corner).max(axis=1).min() for corner in (label.min(axis=0), label.max(axis=0))]
    assert len(label) > 50 and min(distances) < 30
    inside = np.argwhere(np.kron(anomaly_map > 3.0, np.ones((2, 2))) > 0)
    assert (drawn[tuple(inside.T)] == 128).mean() > 0.97  # no number covers the defect


def test_the_strongest_region_is_listed_however_small():
    anomaly_map = np.zeros((200, 200), dtype=np.float32)
    anomaly_map[10:12, 10:12], anomaly_map[100:140, 100:140] = 9.0, 5.0
    assert [(one.area, one.peak_score) for one in find_regions(anomaly_map, 3.0)] == [(4, 9), (1600, 5)]


def test_number_labels_do_not_cover_each_other():
    anomaly_map = np.zeros((100, 100), dtype=np.float32)
    anomaly_map[40:44, 40:60], anomaly_map[46:50, 40:60] = 9.0, 8.0
    taken = anomaly_map > 0
    first = drawing.place_label(taken, anomaly_map == 9, (20, 12), 1)
    taken[first[1] : first[1] + 12, first[0] : first[0] + 20] = True
    second = drawing.place_label(taken, anomaly_map == 8, (20, 12), 1)
    assert not taken[second[1] : second[1] + 12, second[0] : second[0] + 20].any()


def test_the_lines_of_a_ground_truth_are_explained_below_the_picture(anomaly_map):
    picture = PIL.Image.new("RGB", (200, 100), "white")
    drawn = drawing.draw_truth(picture, PIL.Image.fromarray((anomaly_map > 3).astype(np.uint8)))
    assert drawn.width == 200 and drawn.height > 110
    strip = np.array(drawn)[100:].reshape(-1, 3).tolist()
    assert list(drawing.FOUND_COLOUR) in strip and list(drawing.TRUTH_COLOUR) in strip
    assert (np.array(drawn)[:100] == 0).all(axis=-1).any()  # a white line shows on a white part by its dark edge


def test_ground_truth_is_every_value_above_zero(anomaly_map):
    picture = PIL.Image.new("RGB", (200, 100), "gray")
    truth = PIL.Image.fromarray((anomaly_map > 3).astype(np.uint8))  # ones, not 255
    assert tuple(np.array(drawing.draw_truth(picture, truth))[59, 115]) == drawing.TRUTH_COLOUR
    larger = truth.resize((400, 200), PIL.Image.Resampling.NEAREST)
    assert tuple(np.array(drawing.draw_truth(picture, larger))[59, 115]) == drawing.TRUTH_COLOUR
    with pytest.raises(ValueError, match="100x100 pixels and the image 200x100"):
        drawing.draw_truth(picture, truth.crop((0, 0, 100, 100)))


def test_the_scale_of_a_map_does_not_depend_on_the_map():
    low, high = (np.array(drawing.colour_map(np.full((4, 4), value), 2.0)) for value in (0.0, 40.0))
    assert (low == 0).all() and (high > 230).all()
    steps = [np.array(drawing.colour_map(np.full((1, 1), value), 2.0)).sum() for value in (0, 1, 2, 3, 4)]
    assert steps == sorted(steps) and len(set(steps)) == 5


def test_the_animation_has_all_steps(tmp_path):
    frames = [PIL.Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 100, 200)]
    with PIL.Image.open(drawing.save_animation(frames, tmp_path / "steps.gif")) as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0


def test_records_become_lines_and_tables(anomaly_map):
    regions = tuple(find_regions(anomaly_map, 3.0))
    good = Record("=cmd().png", False, 1.23456, 3.0)
    bad = Record("b.png", True, 9.0, 3.0, regions)
    broken = Record("c.png", error="damaged, or cut off")
    rows = list(csv.DictReader(io.StringIO(to_csv([good, bad, broken]))))
    assert rows[0]["image"] == "'=cmd().png" and rows[0]["image_score"] == "1.2346"
    assert rows[1] | {"regions": "2", "left": "30", "width": "20"} == rows[1]
    assert rows[2]["error"] == "damaged, or cut off" and rows[2]["is_anomalous"] == ""
    assert json.loads(bad.to_json())["regions"][1]["area"] == 901


def test_the_archive_holds_pictures_maps_and_tables(tmp_path, anomaly_map):
    archive = ResultsArchive(tmp_path / "results.zip")
    picture = PIL.Image.new("RGB", (200, 100), "gray")
    archive.add(Record("a/part.png", True, 9.0, 3.0), anomaly_map, picture, picture)
    archive.add(Record("b/part.jpg", False, 1.0, 3.0), anomaly_map, picture)
    archive.add(Record("c.png", error="not an image"))
    with zipfile.ZipFile(archive.close()) as file:
        assert set(file.namelist()) == {
            "a/part_map.tiff", "a/part_overlay.png", "a/part_normal_version.png", "b/part_map.tiff",
            "b/part_overlay.png", "results.csv", "regions.csv", "results.jsonl",
        }  # fmt: skip
        stored = np.array(PIL.Image.open(io.BytesIO(file.read("a/part_map.tiff"))))
        np.testing.assert_array_equal(stored, anomaly_map)
        assert len(file.read("results.jsonl").splitlines()) == 3
        table = file.read("results.csv")
        assert table.startswith(b"\xef\xbb\xbf")  # or spreadsheets misread names
        rows = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"))))
        assert rows[1]["overlay"] == "b/part_overlay.png" and rows[2]["map"] == "" and rows[0]["date"]
        assert file.read("regions.csv").decode("utf-8-sig").startswith("image,region,left,top,width,height,area")
