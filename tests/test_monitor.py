"""What has changed on a line, and the report for people who were not there."""

import datetime
import html.parser
import json
import re

import numpy as np
import PIL.Image
import pytest

from ddad.cli import main
from ddad.runtime.condition import Condition, measure_condition
from ddad.runtime.html import write_report
from ddad.runtime.journal import Journal
from ddad.runtime.monitor import by_period, describe_changes, find_changes, find_step
from ddad.runtime.records import Record
from ddad.runtime.results import Kept, read_results
from tests.conftest import create_tiny_pipeline
from tests.helpers import runtime_command, striped_images

START = datetime.datetime(2026, 11, 24, 8, tzinfo=datetime.UTC)  # a Tuesday


def series(count=240, usual=0.05, seed=0, **changed):
    """A day of results, two minutes apart; from the middle on what is `changed` holds."""
    random, results = np.random.default_rng(seed), []
    for number in range(count):
        now = changed if number >= count // 2 else {}
        anomalous = bool(random.random() < now.get("failing", usual))
        condition = Condition(
            0.5 * now.get("light", 1) * (1 + 0.01 * random.standard_normal()),
            0.2,
            0.6 * now.get("focus", 1) * (1 + 0.03 * random.standard_normal()),
            now.get("material", 0.0) + 0.05 * random.standard_normal(),
        )
        record = Record(f"{number}.png", anomalous, 6.0 if anomalous else 2.0, 4.0, condition=condition)
        results.append(Kept(START + datetime.timedelta(minutes=2 * number), record, "bottle"))
    return results


@pytest.mark.parametrize(
    ("changed", "names", "said"),
    [
        ({}, set(), "Nothing has changed"),
        ({"light": 0.9, "failing": 0.4}, {"brightness", "failing"}, "darker by 10 %"),
        ({"light": 1.1}, {"brightness"}, "brighter by 10 %"),
        ({"focus": 0.8, "failing": 0.4}, {"sharpness", "failing"}, "less sharp by 20 %"),
        ({"material": 0.5, "failing": 0.4}, {"distance", "failing"}, "Parts look different all over"),
        ({"failing": 0.4}, {"failing"}, "and pictures are as they were: more parts are defective"),
    ],
)
def test_lamp_focus_and_material_are_told_apart_from_more_defects(changed, names, said):
    for seed in range(5):
        results = series(seed=seed, **changed)
        assert set(find_changes(results)) == names
        sentences = describe_changes(results)
        assert len(sentences) == 1 and said in sentences[0]
        if names:
            hour, minute = map(int, re.search(r"since Tuesday 2026-11-24 (\d\d):(\d\d)", sentences[0]).groups())
            assert abs(60 * hour + minute - 12 * 60) <= 40


def test_a_lamp_that_ages_slowly_is_found_and_few_pictures_tell_nothing():
    results = series()
    for number, one in enumerate(results):
        condition = Condition(one.record.condition.brightness * (1 - 0.1 * number / 240), 0.2, 0.6, 0.0)
        results[number] = Kept(one.date, Record(one.record.image, False, 2.0, 4.0, condition=condition))
    assert "darker" in describe_changes(results)[0]
    assert "too few to tell" in describe_changes(results[:30])[0]
    assert find_step(np.zeros(10)) == (0, 0.0)


def test_a_condition_knows_light_focus_and_a_part_that_is_another():
    random = np.random.default_rng(0)
    pixels = (255 * np.kron(random.random((40, 40, 1)), np.ones((16, 16, 3)))).astype(np.uint8)
    maps = random.standard_normal((64, 64))
    first = measure_condition(pixels, maps)
    darker = measure_condition((pixels * 0.8).astype(np.uint8), maps)
    assert darker.brightness == pytest.approx(0.8 * first.brightness, rel=0.01)
    assert darker.sharpness == pytest.approx(first.sharpness, rel=0.02)
    small = PIL.Image.fromarray(pixels).resize((160, 160)).resize((640, 640))
    assert measure_condition(np.asarray(small), maps).sharpness < 0.7 * first.sharpness
    spotted = maps.copy()
    spotted[:10, :10] = 30
    assert abs(measure_condition(pixels, spotted).distance - first.distance) < 0.1
    assert measure_condition(pixels, maps + 1).distance == pytest.approx(first.distance + 1)
    assert measure_condition(pixels / 255, maps).brightness == pytest.approx(first.brightness, abs=1e-3)


def test_periods_are_hours_days_or_pictures():
    results = series()
    assert [period.count for period in by_period(results, "hour")] == [30] * 8
    assert [period.count for period in by_period(results, "day")] == [240]
    assert [period.name for period in by_period(results, "100")] == ["1 to 100", "101 to 200", "201 to 240"]
    assert len(by_period(results, "auto")) == 8
    with pytest.raises(ValueError, match="hour, day, or how many"):
        by_period(results, "week")


class Page(html.parser.HTMLParser):
    """What a page holds."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]


def test_the_report_is_one_file_and_names_are_no_markup(tmp_path):
    PIL.Image.new("RGB", (900, 600), (200, 30, 30)).save(tmp_path / "overlay.png")
    results = series(usual=0.2)
    evil = Record("<script>alert(1)</script>.png", True, 9.0, 4.0)
    results.append(Kept(results[-1].date, evil, "<b>", tmp_path / "overlay.png", tmp_path / "overlay.png"))
    results.append(Kept(results[-1].date, Record("broken.png", error="It is damaged & cut off.")))
    write_report(results, tmp_path / "report.html", "Line <1>")
    content = (tmp_path / "report.html").read_text()
    page = Page(content)
    assert "script" not in page.tags and "b" not in page.tags
    assert page.tags.count("img") == 2 and all(address.startswith("data:image/jpeg") for address in page.addresses)
    assert page.tags.count("svg") == 5 and "<h1>Line &lt;1&gt;</h1>" in content
    assert content.index("&lt;script&gt;alert") < content.index("score 6.0")  # the strongest first
    assert "1 that could not be read" in content and "damaged &amp; cut off" in content and "Threshold 4.00" in content


def test_results_of_a_watch_of_predictions_and_of_a_service_are_read(tmp_path, capsys):
    journal = Journal(tmp_path / "watch")
    (tmp_path / "watch" / "overlays").mkdir()
    PIL.Image.new("RGB", (30, 30)).save(tmp_path / "watch" / "overlays" / "a.png")
    for one in series(60):
        journal.add(one.record, "bottle", overlay="overlays/a.png" if one.record.is_anomalous else "")
    journal.close()
    kept = read_results(tmp_path / "watch")
    assert len(kept) == 60 and kept[0].record.condition is not None and kept[0].category == "bottle"
    assert all((one.overlay is not None) == one.record.is_anomalous for one in kept)
    assert main(["monitor", str(tmp_path / "watch"), "--by", "20", "--output", str(tmp_path / "monitor.html")]) == 0
    said = capsys.readouterr().out
    assert "Nothing has changed" in said and "41 to 60" in said and (tmp_path / "monitor.html").is_file()

    create_tiny_pipeline(threshold=-100.0).save_pretrained(tmp_path / "tiny")
    images = striped_images(tmp_path / "images", 3)
    output = str(tmp_path / "predicted")
    assert main(["predict", str(images), "--checkpoint", str(tmp_path / "tiny"), "--output", output]) == 0
    kept = read_results(output)
    assert len(kept) == 3 and all(one.overlay and one.normal and one.record.condition for one in kept)
    assert main(["report", output, "--output", str(tmp_path / "report.html"), "--title", "Tiny"]) == 0
    assert Page((tmp_path / "report.html").read_text()).tags.count("img") == 6

    answers = tmp_path / "answers.jsonl"
    line = {"date": START.isoformat(), "category": "bottle", **kept[0].record.to_dict()}
    answers.write_text(f"{json.dumps(line)}\n{json.dumps(line)}\n{json.dumps(line)[:50]}")
    assert len(read_results(answers)) == 2
    capsys.readouterr()
    assert main(["monitor", str(tmp_path / "nothing")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_it_runs_without_pytorch(tmp_path):
    import subprocess

    journal = Journal(tmp_path)
    for one in series(60):
        journal.add(one.record, "bottle")
    journal.close()
    command = runtime_command("report", tmp_path, "--output", tmp_path / "report.html")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Called defective" in (tmp_path / "report.html").read_text()
