"""A part's own network from the page: who may train, what is read of a training, and that it outlives the page."""

import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from ddad.app.categories import Categories
from ddad.app.home import HomeTraining, is_at_home
from ddad.app.trainings import Training, describe, parts_folder
from ddad.calibration.progress import Journal
from tests.conftest import create_tiny_pipeline
from tests.helpers import striped_images

LOG = (
    "8 good images train.\nMeasuring the features of the good images.\n"
    "Training:   0%|          | 0/1000 [00:00<?, ?it/s]\r"
    "Training:   2%|▏         | 20/1000 [00:22<18:09,  1.11s/it, pixel=0.019, variance=1e-05, feature=0.44]\r"
)
LINE = '\n{"what": "Training", "done": 20, "count": 1000, "left": 1089.0, "pixel": 0.019, "variance": 1e-05}'
# Stands for `ddad train`, whose process is watched: it works until it is told to end.
PROGRAM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
output = pathlib.Path(sys.argv[1])
output.mkdir(exist_ok=True)
line = '{"what": "Training", "done": 100, "count": 1000, "left": 90.0, "pixel": 0.02, "feature": 0.4}'
(output / "training_progress.jsonl").write_text(line)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DDAD_HOME", str(tmp_path))
    monkeypatch.delenv("SPACE_ID", raising=False)
    return tmp_path / "parts"


@pytest.fixture
def photographs(tmp_path):
    return [str(path) for path in sorted(striped_images(tmp_path / "photographs", 6, seed=1).rglob("*.png"))]


def visitor(host, client="127.0.0.1", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(headers={"host": host, **named}, client=SimpleNamespace(host=client))


def test_who_sits_at_the_machine_may_train_and_nobody_else(monkeypatch):
    for host, client in (
        ("127.0.0.1:7860", "127.0.0.1"), ("localhost:7860", "::1"), ("[::1]:7860", "::ffff:127.0.0.1"),
        ("localhost", "127.0.0.1"),
    ):  # fmt: skip
        assert is_at_home(visitor(host, client))
        assert is_at_home(visitor(host, client, origin="http://localhost:7860", referer="http://127.0.0.1:7860/"))
    for host in (
        "192.168.0.7:7860",
        "abc.gradio.live",
        "localhost.evil.example:80",
        "evil.example",
        "",
        "localhost@x",
    ):
        assert not is_at_home(visitor(host))
    # The client writes its headers itself; only the connection says where it is.
    for client in ("192.168.0.9", "10.0.0.3", "203.0.113.5", "fe80::1", "testclient", ""):
        assert not is_at_home(visitor("localhost:7860", client))
    assert not is_at_home(SimpleNamespace(headers={"host": "localhost:7860"}, client=None)) and not is_at_home(None)
    monkeypatch.setenv("SPACE_ID", "factory/ddad")
    assert not is_at_home(visitor("localhost:7860"))
    monkeypatch.delenv("SPACE_ID")
    monkeypatch.setenv("DDAD_HOME_TRAINING", "0")
    assert not is_at_home(visitor("localhost:7860"))


@pytest.mark.parametrize(
    "header",
    ["forwarded", "via", "x_forwarded_for", "x_forwarded_host", "x_real_ip", "cf_connecting_ip", "X_Forwarded_For"],
)
def test_who_comes_through_a_proxy_sits_elsewhere(header):
    assert not is_at_home(visitor("localhost:7860", **{header: "127.0.0.1"}))


def test_a_page_of_another_name_may_not_ask(monkeypatch):
    assert not is_at_home(visitor("localhost:7860", origin="http://evil.example"))
    assert not is_at_home(visitor("localhost:7860", origin="null"))
    assert not is_at_home(visitor("localhost:7860", referer="https://evil.example/localhost"))


def address_of_this_machine() -> str | None:
    """An address of this machine that is not loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return probe.getsockname()[0]


@pytest.mark.parametrize("forged", ["localhost", "127.0.0.1"])
def test_a_forged_host_header_starts_nothing_on_a_served_page(forged):
    """As the page is really served: on every address, asked over the network by a client that lies."""
    address = address_of_this_machine()
    if address is None or address.startswith("127."):
        pytest.skip("this machine has no address but its own")

    def who(request: gr.Request) -> str:
        return str(is_at_home(request))

    with gr.Blocks() as page:
        out = gr.Textbox()
        gr.Button().click(who, None, out, api_name="who", queue=False)
    _, url, _ = page.launch(server_name="0.0.0.0", prevent_thread_lock=True, quiet=True)
    port = url.rstrip("/").rpartition(":")[2]

    def ask(host: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(
            f"http://{host}:{port}/gradio_api/run/who",
            b'{"data": []}',
            {"Content-Type": "application/json", **headers},
        )
        return json.load(urllib.request.urlopen(request, timeout=10))["data"][0]

    try:
        assert ask("127.0.0.1", {}) == "True"
        assert ask("127.0.0.1", {"X-Forwarded-For": "203.0.113.5"}) == "False"
        assert ask("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}) == "False"
        assert ask(address, {"Host": f"{forged}:{port}"}) == "False"
    finally:
        page.close()


def test_photographs_are_kept_under_names_that_say_nothing(photographs, folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "more"), "zip", tmp_path / "photographs")
    renamed = shutil.copy(photographs[0], tmp_path / "bad angle.png")
    training = Training.create("bracket", [renamed, archive])
    assert [path.name for path in sorted(training.photographs.iterdir())] == [f"{n:04d}.png" for n in range(1, 8)]
    assert training.folder == folder / "bracket"
    assert Training.create("bracket", photographs).name == "bracket_2"
    assert [one.name for one in Training.every()] == ["bracket", "bracket_2"]


def test_how_far_it_is_stands_in_its_output(photographs):
    training = Training.create("bracket", photographs)
    assert training.glance().what == "Starting" and training.state == "unfinished"
    training.log.write_text(LOG, encoding="utf-8")
    training.output.mkdir()
    journal = Journal(training.progress)
    for done in (9, 10, 1000):
        journal("Training", done, 1000, pixel=0.02, variance=1e-5)
    text = training.progress.read_text(encoding="utf-8")
    assert [json.loads(line)["done"] for line in text.splitlines()] == [9, 1000]  # one a second at most, and the last
    training.progress.write_text(text.splitlines()[0] + LINE + '\n{"what": "Trai', encoding="utf-8")
    glance = training.glance()
    assert (glance.what, glance.done, glance.count, glance.left) == ("Training", 20, 1000, 1089.0)
    assert [loss["step"] for loss in glance.losses] == [9, 20] and glance.losses[1]["variance"] == 1e-5
    assert "Measuring the features" in describe(training, glance) and "*Go on*" in describe(training, glance)
    assert "20 of 1000, 18 min left of this; loss: pixel 0.019" in describe(training, replace(glance, state="running"))
    with training.log.open("a", encoding="utf-8") as log:
        log.write("\nddad: error: 2 good images are too few.\n")
    assert "too few" in describe(training, training.glance())
    (training.output / "model_index.json").write_text("{}")
    assert training.state == "finished" and "*Open*" in describe(training, training.glance())


def test_a_training_outlives_the_page_and_ends_when_it_is_told_to(photographs, monkeypatch, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(Training, "command", property(lambda self: [sys.executable, str(program), str(self.output)]))
    training = Training.create("bracket", photographs)
    assert training.start() == "bracket"
    while not training.glance().losses:
        time.sleep(0.05)
    assert training.state == "running" and "100 of 1000" in describe(training, training.glance())
    with pytest.raises(gr.Error, match="Bracket is being trained"):
        Training.create("other", photographs).start()
    # A page that was started anew knows it by its number alone.
    child = Training._children.pop(training.folder)
    again = next(one for one in Training.every() if one.name == "bracket")
    assert again.state == "running"
    os.kill(child.pid, signal.SIGTERM)
    child.wait(10)
    assert again.state == "unfinished"
    again.start()
    assert again.state == "running"
    again.stop()
    assert again.state == "unfinished"
    # The number of a process that ended may be given to another one.
    again.pid.write_text(str(os.getpid()))
    Training._children.clear()
    assert again.state == "unfinished"


def test_nothing_is_trained_before_something_was_learnt(tmp_path):
    create_tiny_pipeline().save_pretrained(tmp_path / "checkpoints" / "tiny")
    work = HomeTraining(Categories(tmp_path / "checkpoints", "cpu"))
    for learnt, files in (("", ["a.png"]), ("bracket~1", None)):
        with pytest.raises(gr.Error, match="Learn the part first"):
            work.begin(learnt, files)
    with pytest.raises(gr.Error, match="Choose a part"):
        work.find("unknown")
    assert not parts_folder().exists()


@pytest.mark.slow
def test_a_network_is_trained_watched_stopped_and_goes_on(photographs, tmp_path):
    training = Training.create("stripes", photographs)
    training.start()
    until = time.monotonic() + 240
    while training.glance().done < 3 and time.monotonic() < until:
        assert training.state == "running", training.glance().last
        time.sleep(1)
    training.stop()
    glance = training.glance()
    assert training.state == "unfinished" and glance.done >= 3
    unet = training.load_average()
    assert unet is not None and unet.config.patch_size == 4 and training.saved_at > 0
    create_tiny_pipeline().save_pretrained(tmp_path / "checkpoints" / "tiny")
    with pytest.raises(gr.Error, match="not finished"):
        HomeTraining(Categories(tmp_path / "checkpoints", "cpu")).open(training)
    training.start()
    while training.glance().done <= glance.done and time.monotonic() < until:
        assert training.state == "running", training.glance().last
        time.sleep(1)
    training.stop()
    assert training.glance().done > glance.done
