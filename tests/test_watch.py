"""`ddad watch`: every picture once, whatever happens to the folder, the receivers and the process."""

import csv
import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import PIL.Image
import pytest

from ddad.runtime import load
from ddad.runtime.journal import Journal, Table
from ddad.runtime.records import Record
from ddad.runtime.sinks import to_mqtt, to_webhook
from ddad.runtime.sources import Folder
from ddad.runtime.watch import Watch
from tests.conftest import ROOT
from tests.helpers import png, runtime_command

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def fill(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:03}.png").write_bytes(png(number))


def rows_of(output):
    with (output / "inspections.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def start(exported, folder, output, *flags):
    arguments = ["watch", folder, "--category", exported, "--output", output, "--every", "0.1", *flags]
    command = runtime_command(*arguments, without=["gradio"])
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_what_lies_there_is_inspected_once(exported, tmp_path):
    fill(tmp_path / "in" / "line 1", 4)
    (tmp_path / "in" / "broken.png").write_bytes(png(0)[:500])
    os.utime(tmp_path / "in" / "broken.png", (1, 1))  # old enough to stay as it is
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(png(0))
    output = tmp_path / "in" / "out"  # results are no pictures of the line
    process = start(exported, tmp_path / "in", output, "--once", "--all-overlays")
    assert process.wait(60) == 0, process.stderr.read()
    rows = rows_of(output)
    assert [row["image"] for row in rows] == ["broken.png", *(f"line 1/{number:03}.png" for number in range(4))]
    assert "damaged or cut off" in rows[0]["error"] and rows[0]["is_anomalous"] == ""
    for number, row in enumerate(rows[1:]):
        expected = load(exported).inspect(png(number))
        assert float(row["image_score"]) == pytest.approx(expected.image_score, abs=1e-3)
        assert row["is_anomalous"] == str(expected.is_anomalous) and row["date"] and row["category"] == "tiny"
        drawn = np.asarray(PIL.Image.open(output / row["overlay"]), float)
        assert np.abs(drawn - np.asarray(expected.overlay, float)).max() <= 1
    before = (output / "inspections.csv").read_bytes()
    assert start(exported, tmp_path / "in", output, "--once").wait(60) == 0
    assert (output / "inspections.csv").read_bytes() == before


class Watching:
    """A watch in a thread."""

    def __init__(self, exported, folder, output, receivers=None):
        self.said = []
        self.watch = Watch(load(exported, threads=1), output, str(folder), 0.05, receivers)
        self.watch.say = self.watch.source.say = self.said.append
        for sink in self.watch.sinks:
            sink._say = self.said.append
        self.thread = threading.Thread(target=self.watch.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.watch.ended.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def wait_until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_files_that_are_written_slowly_renamed_or_copied(exported, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def names():
        return [row["image"] for row in rows_of(output)]

    with Watching(exported, folder, output):
        content = png(1, (300, 300))
        with (folder / "slow.png").open("wb") as file:
            for part in range(0, len(content), 40_000):
                file.write(content[part : part + 40_000])
                file.flush()
                time.sleep(0.2)  # two looks and more
        wait_until(lambda: names() == ["slow.png"])
        assert rows_of(output)[0]["error"] == ""
        (folder / "slow.png").rename(folder / "part 17.png")
        time.sleep(0.5)
        assert names() == ["slow.png"]
        (folder / "upload.part").write_bytes(png(2))
        (folder / "upload.part").rename(folder / "upload.png")
        wait_until(lambda: names() == ["slow.png", "upload.png"])
        shutil.copy2(folder / "upload.png", folder / "again.png")  # another part that looks the same, for all we know
        wait_until(lambda: names() == ["slow.png", "upload.png", "again.png"])
        (folder / "upload.png").write_bytes(png(3))  # written over: another part
        wait_until(lambda: len(names()) == 4)


def test_a_drive_that_vanishes_for_a_while(exported, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    fill(folder, 2)
    with Watching(exported, folder, output) as watching:
        wait_until(lambda: len(rows_of(output)) == 2)
        folder.rename(tmp_path / "gone")
        wait_until(lambda: any("cannot be read" in sentence for sentence in watching.said))
        fill(tmp_path / "gone", 1, start=2)
        (tmp_path / "gone").rename(folder)
        wait_until(lambda: len(rows_of(output)) == 3)
        assert any("is back" in sentence for sentence in watching.said)


def test_kill_9_loses_nothing_and_does_nothing_twice(exported, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    fill(folder, 120)
    for _ in range(3):
        process = start(exported, folder, output)
        seen = len(rows_of(output)) if (output / "inspections.csv").exists() else 0
        wait_until(lambda seen=seen: (output / "inspections.csv").exists() and len(rows_of(output)) > seen + 5, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(exported, folder, output, "--once").wait(120) == 0
    rows = rows_of(output)
    assert [row["image"] for row in rows] == [f"{number:03}.png" for number in range(120)]
    assert [int(row["number"]) for row in rows] == list(range(1, 121))


def test_a_table_that_was_cut_off_is_mended(tmp_path):
    journal = Journal(tmp_path)
    for number in range(3):
        journal.add(Record(f'a "part", number {number}\n', True, 7.0, 4.0), "cup")
    Table(journal).update()
    path = tmp_path / "inspections.csv"
    whole = path.read_bytes()
    for length in (0, 2, 40, len(whole) - 5, len(whole)):
        path.write_bytes(whole[:length])
        Table(journal).update()
        assert path.read_bytes() == whole


def test_thousands_at_the_start_are_looked_at_quickly(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5000):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"not empty")
    folder = Folder(tmp_path / "in", tmp_path / "out", Journal(tmp_path / "out"), print)
    started = time.monotonic()
    assert list(folder.look()) == [] and folder.waiting == 5000
    next(folder.look())
    assert time.monotonic() - started < 5


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes results, but for the first ones."""

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked += 1
        works = self.server.asked > 2
        if works:
            self.server.taken.append(body)
        self.send_response(204 if works else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_web_address_gets_every_result_in_order(exported, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.asked, server.taken = 0, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fill(tmp_path / "in", 5)
    send = to_webhook(f"http://127.0.0.1:{server.server_port}/results")
    with Watching(exported, tmp_path / "in", tmp_path / "out", {"webhook": send}) as watching:
        wait_until(lambda: len(server.taken) == 5)
    assert [entry["number"] for entry in server.taken] == [1, 2, 3, 4, 5]
    assert [entry["image"] for entry in server.taken] == [f"{number:03}.png" for number in range(5)]
    assert any("does not take results" in sentence for sentence in watching.said)
    assert any("takes results again" in sentence for sentence in watching.said)
    with Watching(exported, tmp_path / "in", tmp_path / "out", {"webhook": send}):
        time.sleep(0.5)
    assert len(server.taken) == 5
    server.shutdown()


def test_addresses_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="an address of http or https"):
        to_webhook("file:///etc/passwd")
    pytest.importorskip("paho.mqtt.client")
    with pytest.raises(ValueError, match="mqtt://host:1883/a/topic"):
        to_mqtt("mqtt://host")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs the broker mosquitto")
def test_a_broker_gets_every_result(exported, tmp_path):
    mqtt = pytest.importorskip("paho.mqtt.client")
    broker = subprocess.Popen(["mosquitto", "-p", "18830"], stderr=subprocess.DEVNULL)
    taken = []
    listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _client, _data, message: taken.append(json.loads(message.payload))

    def connected():
        try:
            listener.connect("127.0.0.1", 18830)
        except OSError:
            return False
        return True

    wait_until(connected)
    listener.subscribe("line/1", qos=1)
    listener.loop_start()
    fill(tmp_path / "in", 4)
    receivers = {"mqtt": to_mqtt("mqtt://127.0.0.1:18830/line/1")}
    with Watching(exported, tmp_path / "in", tmp_path / "out", receivers):
        wait_until(lambda: len(taken) == 4)
    assert [entry["number"] for entry in taken] == [1, 2, 3, 4]
    listener.loop_stop()
    broker.terminate()


def test_a_video_is_taken_by_its_own_clock(exported, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "line.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for number in range(30):
        writer.write(np.full((64, 96, 3), 8 * number, np.uint8))
    writer.release()
    process = start(exported, path, tmp_path / "out", "--every", "1")
    assert process.wait(60) == 0, process.stderr.read()
    names = [float(row["image"]) for row in rows_of(tmp_path / "out")]
    assert len(names) == 3 and np.allclose(np.diff(names), 1.0, atol=0.11)
