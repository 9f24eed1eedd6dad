"""The page for programs: the Gradio API and MCP."""

import asyncio
import json
import re
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file

from tests.app.conftest import assert_same_repair
from tests.conftest import ROOT
from tests.test_images import EPS


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def test_inspect_answers_what_the_pipeline_answers(client, defective, solar_pipe):
    report, heatmap, normal, anomaly_map = client.predict(
        image=handle_file(defective), category="solar_cell_mono", threshold=None, alpha=None, normal_version=True,
        api_name="/inspect",
    )  # fmt: skip
    result = solar_pipe(defective)
    assert report["is_anomalous"] is True and report["error"] is None
    assert report["image_score"] == pytest.approx(result.image_score[0], abs=1e-3)
    assert report["threshold"] == pytest.approx(result.threshold, abs=1e-4)
    assert report["regions"][0]["width"] == 300
    np.testing.assert_allclose(np.array(PIL.Image.open(anomaly_map)), result.anomaly_map[0], atol=1e-3)
    assert_same_repair(PIL.Image.open(normal), result.denoised_image[0])
    assert PIL.Image.open(heatmap).size == (300, 300)


def test_settings_and_what_is_not_asked_for(client, defective):
    report, _, normal, _ = client.predict(
        handle_file(defective), "solar_cell_mono", 1000.0, 0.0, False, api_name="/inspect"
    )
    assert report["is_anomalous"] is False and report["threshold"] == 1000 and report["regions"] == []
    assert normal is None


def test_only_what_is_meant_for_programs_is_offered(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/categories", "/inspect", "/calibrate"}
    assert client.predict(api_name="/categories") == ["solar_cell_mono", "tiny_part"]


def test_errors_name_no_path(client, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    for arguments, message in (
        ((handle_file(text), "solar_cell_mono", None, None, True), "not an image"),
        ((handle_file(text), "unknown", None, None, True), "not an image|no category"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            client.predict(*arguments, api_name="/inspect")
        assert "gradio" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_program_in_the_guise_of_an_image_is_refused(client, tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(EPS)
    with pytest.raises(Exception, match="This file is not an image that can be read"):
        client.predict(handle_file(path), "tiny_part", None, None, False, api_name="/inspect")


def test_unknown_categories_and_wrong_settings_are_explained(client, defective):
    with pytest.raises(Exception, match="'unknown' is no category of this page"):
        client.predict(handle_file(defective), "unknown", None, None, True, api_name="/inspect")
    with pytest.raises(Exception, match=r"`alpha` must lie in \[0, 1\], found 2"):
        client.predict(handle_file(defective), "tiny_part", None, 2, True, api_name="/inspect")


def test_mcp_tools_are_described_and_answer(server):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk():
        async with (
            streamablehttp_client(f"{server}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as mcp,
        ):
            await mcp.initialize()
            tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
            answer = await mcp.call_tool(next(name for name in tools if name.endswith("categories")), {})
            return tools, answer

    # Another thread: the browser of the other tests has a loop of its own in this one.
    with ThreadPoolExecutor(1) as thread:
        tools, answer = thread.submit(asyncio.run, talk()).result()
    assert len(tools) == 3
    inspect = next(tool for name, tool in tools.items() if name.endswith("inspect"))
    assert "Finds the defects" in inspect.description
    properties = inspect.inputSchema["properties"]
    assert set(properties) == {"image", "category", "threshold", "alpha", "normal_version"}
    assert all(one.get("description") for one in properties.values())
    assert "solar_cell_mono" in answer.content[0].text


def test_nothing_is_kept_of_a_run(server):
    config = json.load(urllib.request.urlopen(f"{server}/config"))
    assert config["run_history"] is False and not config["show_error"]


def test_the_example_of_the_readme_runs(server, defective, solar_pipe, capsys, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (example,) = [block for block in blocks if "gradio_client" in block]
    monkeypatch.chdir(defective.parent)
    shutil.copy(defective, "cell.png")
    exec(example.replace("http://127.0.0.1:7860", server), {})
    score = solar_pipe(defective, denoise=False).image_score[0]
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith(f"True {score:.3f}"[:9])
