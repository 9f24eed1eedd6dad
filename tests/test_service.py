"""The service: what it answers, what it refuses, and that nothing is lost; a real process without PyTorch."""

import asyncio
import concurrent.futures
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest

from ddad.runtime import load
from tests.conftest import ROOT
from tests.helpers import png, runtime_command

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

KEY = "a key of the line"


class Running:
    """A service in a process of its own."""

    def __init__(self, folder, *flags, key=None, categories=()):
        environment = {name: value for name, value in os.environ.items() if name != "DDAD_API_KEY"}
        with socket_at() as port:
            self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "service.log"
        self.process = subprocess.Popen(
            runtime_command("serve", *categories, "--port", port, *flags),
            cwd=ROOT,
            env=environment | ({"DDAD_API_KEY": key} if key else {}),
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        headers = {"x-api-key": key} if key else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
        until = time.monotonic() + 120
        while True:
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200 and self.log.read_text():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def inspect(self, content, **parameters):
        return self.client.post("/inspect", content=content, params=parameters)

    def memory(self):
        """Of the process, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def socket_at():
    """A port that is free, while it is held."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, exported):
    folder = tmp_path_factory.mktemp("line")
    shutil.copytree(exported, folder / "tiny")
    (folder / "images").mkdir()
    (folder / "images" / "part.png").write_bytes(png())
    return folder


@pytest.fixture(scope="module")
def service(folder):
    flags = ["--images", str(folder / "images"), "--results", str(folder / "answers.jsonl"), "--max-megabytes", "1"]
    running = Running(folder, *flags, key=KEY, categories=[folder / "tiny"])
    yield running
    assert running.stop() == 0, running.log.read_text()


def test_it_says_what_the_exported_category_says(service, folder):
    expected = load(folder / "tiny").inspect(png())
    (category,) = service.client.get("/categories").json()
    assert category["engine"] in ("onnx", "openvino") and category["threshold"] == round(expected.threshold, 4)
    answer = service.inspect(png(), name="a part", category=category["category"])
    assert answer.status_code == 200 and answer.json() == {
        "category": category["category"],
        **expected.record("a part").to_dict(),
    }
    kept = json.loads((folder / "answers.jsonl").read_text().splitlines()[-1])
    assert kept.pop("date") and kept == answer.json()
    assert service.inspect(png(), threshold=-1e9).json()["is_anomalous"]
    stricter = service.inspect(png(), false_alarms=0.01).json()["threshold"]
    assert stricter == pytest.approx(load(folder / "tiny").threshold_at(0.01), abs=1e-4)
    named = service.client.post("/inspect", json={"path": "part.png"}).json()
    assert named["image"] == "part.png" and named["image_score"] == answer.json()["image_score"]


def test_pictures_on_demand(service, folder):
    expected = load(folder / "tiny").inspect(png())
    answer = service.inspect(png(), output="overlay")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-is-anomalous"] == str(expected.is_anomalous).lower()
    drawn = np.asarray(PIL.Image.open(io.BytesIO(answer.content)), float)
    assert np.abs(drawn - np.asarray(expected.overlay, float)).max() <= 1
    found = np.asarray(PIL.Image.open(io.BytesIO(service.inspect(png(), output="map").content)))
    np.testing.assert_allclose(found, expected.anomaly_map, atol=1e-4)


@pytest.mark.parametrize(
    ("ask", "status", "said"),
    [
        (lambda one: one.inspect(png()[:500]), 422, "damaged or cut off"),
        (lambda one: one.inspect(b"%!PS-Adobe-3.0 EPSF-3.0\n"), 422, "not an image that can be read"),
        (lambda one: one.inspect(png(size=(8, 8))), 422, "each side needs at least 16"),
        (lambda one: one.inspect(png(), category="cup"), 404, "'cup' is not served here; these are: tiny"),
        (lambda one: one.inspect(png(), false_alarms=0.9), 422, "`rate` must lie in"),
        (lambda one: one.inspect(bytes(2**20 + 1)), 413, "1 MB at most"),
        (lambda one: one.inspect(iter([bytes(2**19)] * 3)), 413, "1 MB at most"),
        (lambda one: one.client.post("/inspect", json={"path": "../tiny/metadata.json"}), 403, "does not lie in"),
        (lambda one: one.client.post("/inspect", json={"path": "none.png"}), 422, "none.png does not exist"),
        (lambda one: one.client.post("/inspect", json=["part.png"]), 422, "JSON must be"),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence(service, folder, ask, status, said):
    answer = ask(service)
    assert answer.status_code == status and said in answer.json()["error"]
    assert str(folder) not in answer.text


def test_without_the_key_nothing_is_told_but_that_it_runs(service):
    for headers in ({}, {"x-api-key": "another"}, {"authorization": "Bearer another"}):
        for path in ("/categories", "/docs", "/openapi.json", "/gradio_api/info", "/gradio_api/mcp/"):
            assert httpx.get(service.url + path, headers=headers, trust_env=False).status_code == 401
        assert httpx.post(f"{service.url}/reload", headers=headers, trust_env=False).status_code == 401
    assert httpx.get(f"{service.url}/health", trust_env=False).json()["status"] == "ok"
    bearer = {"authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{service.url}/categories", headers=bearer, trust_env=False).status_code == 200


def test_a_category_is_exchanged_without_a_restart(service, folder):
    path = folder / "tiny" / "metadata.json"
    before = path.read_text()
    assert service.client.post("/reload").json() == {"loaded": []}
    path.write_text(json.dumps(json.loads(before) | {"threshold": 99.0}))
    assert service.inspect(png()).json()["threshold"] != 99
    assert service.client.post("/reload").json() == {"loaded": ["tiny"]}
    assert service.inspect(png()).json()["threshold"] == 99
    path.write_text("{}")
    answer = service.client.post("/reload")
    assert answer.status_code == 409 and "stays as it was" in answer.json()["error"]
    assert service.inspect(png()).json()["threshold"] == 99
    path.write_text(before)
    service.client.post("/reload")


def test_assistants_find_two_tools(service):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk():
        address = f"{service.url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address, headers={"x-api-key": KEY}) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}
            called = await session.call_tool("inspect_file", {"path": "part.png", "category": ""})
            refused = await session.call_tool("inspect_file", {"path": "../tiny/verdict.onnx", "category": ""})
            return tools, called.content[0].text, refused.content[0].text

    tools, called, refused = asyncio.run(talk())
    assert tools == {"list_categories", "inspect_file"}
    assert "'image': 'part.png'" in called.replace('"', "'") and "does not lie in" in refused


def test_too_many_are_told_to_come_again_and_none_is_lost(folder, exported):
    running = Running(folder, "--max-waiting", "2", "--results", str(folder / "few.jsonl"), categories=[exported])
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda seed: running.inspect(png(seed, (900, 900)), name=str(seed)), range(24)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429} and all(
        answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429
    )
    assert running.stop() == 0
    kept = {json.loads(line)["image"] for line in (folder / "few.jsonl").read_text().splitlines()}
    assert kept == {answer.json()["image"] for answer in answers if answer.status_code == 200}


def test_a_stop_in_the_middle_loses_nothing_that_was_answered(folder, exported):
    running = Running(folder, "--results", str(folder / "stopped.jsonl"), categories=[exported])
    answered = []

    def ask(seed):
        try:
            answer = running.inspect(png(seed, (600, 600)), name=str(seed))
        except httpx.TransportError:
            return None
        if answer.status_code == 200:
            answered.append(answer.json()["image"])
        return answer.status_code

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, seed) for seed in range(60)]
        while len(answered) < 10:
            time.sleep(0.01)
        assert running.stop() == 0
        statuses = {one.result() for one in asked}
    assert 200 in statuses and statuses <= {200, 503, None} and len(answered) < 60
    kept = {json.loads(line)["image"] for line in (folder / "stopped.jsonl").read_text().splitlines()}
    assert kept == set(answered)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the memory of a process from /proc")
def test_five_hundred_requests_eight_at_a_time(folder, exported, capsys):
    running = Running(folder, categories=[exported])
    huge = io.BytesIO()
    PIL.Image.new("RGB", (8000, 8000), (90, 90, 90)).save(huge, "PNG")
    bodies = [png(seed % 20, (512, 512)) for seed in range(500)]
    bodies[123], bodies[321] = bodies[123][:1000], huge.getvalue()

    def ask(body):
        started = time.monotonic()
        return running.inspect(body).status_code, time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, bodies[:60]))
        before = running.memory()
        answers = list(threads.map(ask, bodies))
    statuses, seconds = zip(*answers, strict=True)
    assert [number for number, status in enumerate(statuses) if status != 200] == [123]
    low, high = np.quantile(seconds, (0.5, 0.95))
    with capsys.disabled():
        sys.stdout.write(
            f"\np50 {1000 * low:.0f} ms, p95 {1000 * high:.0f} ms, {before:.0f} -> {running.memory():.0f} MB\n"
        )
    assert running.memory() < before + 300
    assert running.stop() == 0
