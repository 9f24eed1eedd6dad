"""The page for programs: the Gradio API and MCP."""

import asyncio
import base64
import io
import json
import re
import shutil
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file

from tests.app.conftest import assert_same_repair
from tests.conftest import ROOT
from tests.helpers import EPS


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
    assert set(endpoints) == {"/categories", "/inspect", "/fit"}
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
    with pytest.raises(Exception, match="The file is not an image that can be read"):
        client.predict(handle_file(path), "tiny_part", None, None, False, api_name="/inspect")


def test_unknown_categories_and_wrong_settings_are_explained(client, defective):
    with pytest.raises(Exception, match="'unknown' is no category of this page"):
        client.predict(handle_file(defective), "unknown", None, None, True, api_name="/inspect")
    with pytest.raises(Exception, match=r"`alpha` must lie in \[0, 1\], found 2"):
        client.predict(handle_file(defective), "tiny_part", None, 2, True, api_name="/inspect")


def with_mcp(server, talk):
    """What an MCP session answers to `talk(session)`."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def run():
        async with (
            streamablehttp_client(f"{server}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await talk(session)

    # Another thread: the browser of the other tests has a loop of its own in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def as_data(path, kind: str) -> str:
    """A file as an assistant sends it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_mcp_tools_are_described_by_their_names(server):
    async def talk(session):
        return {tool.name: tool for tool in (await session.list_tools()).tools}, await session.call_tool("categories")

    tools, answer = with_mcp(server, talk)
    assert set(tools) == {"categories", "inspect", "fit"}
    for tool in tools.values():
        named = set(re.findall(r"`(\w+)`", json.dumps([tool.description, tool.inputSchema])))
        assert named <= set(tools), "a description names a tool that there is not"
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        for one in tool.inputSchema["properties"].values():
            assert one["description"].endswith(".") and "$ref" not in json.dumps(one)
    inspect = tools["inspect"]
    assert "Finds the defects" in inspect.description and inspect.inputSchema["required"] == ["image"]
    assert set(inspect.inputSchema["properties"]) == {"image", "category", "threshold", "alpha", "normal_version"}
    assert "solar_cell_mono" in answer.content[0].text


def test_an_assistant_inspects_with_and_without_settings(server, defective, solar_pipe):
    image = as_data(defective, "image/png")

    async def talk(session):
        return [
            await session.call_tool("inspect", {"image": image, "normal_version": False}),
            await session.call_tool("inspect", {"image": image, "threshold": None, "alpha": None, "category": ""}),
            await session.call_tool("inspect", {"image": image, "threshold": 1000, "normal_version": False}),
            await session.call_tool("inspect", {"image": image, "alpha": 7, "normal_version": False}),
        ]

    plain, empty, high, wrong = with_mcp(server, talk)
    expected = solar_pipe(defective, denoise=False)
    for answer in (plain, empty):
        assert not answer.isError
        assert f"'threshold': {expected.threshold:.4f}"[:18] in answer.content[0].text
        assert "'is_anomalous': True" in answer.content[0].text
    pictures = [one for one in empty.content if one.type == "image"]
    assert len(pictures) == 2 and {one.mimeType for one in pictures} == {"image/png"}
    sizes = {PIL.Image.open(io.BytesIO(base64.b64decode(one.data))).size for one in pictures}
    assert sizes == {(300, 300)}
    assert "'threshold': 1000.0" in high.content[0].text and "'is_anomalous': False" in high.content[0].text
    assert wrong.isError and "`alpha` must lie in [0, 1], found 7" in wrong.content[0].text


@pytest.mark.slow  # `test_programs_fit_and_inspect` goes the same way without MCP
def test_an_assistant_calibrates(server, tmp_path):
    path, random = tmp_path / "parts.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            values = 110 + 60 * np.sin(np.arange(80) / 6 + random.normal(0, 0.3)) + random.normal(0, 3, (80, 80))
            data = io.BytesIO()
            PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(data, "PNG")
            archive.writestr(f"{number}.png", data.getvalue())

    async def talk(session):
        arguments = {"images": as_data(path, "application/zip"), "category": "tiny_part"}
        return await session.call_tool("fit", arguments)

    answer = with_mcp(server, talk)
    text = " ".join(one.text for one in answer.content)
    assert not answer.isError and "'images': 12" in text and "tiny_part~" in text and ".zip" in text


def test_what_is_left_out_is_the_categorys_own(client, defective, solar_pipe):
    report = client.predict(image=handle_file(defective), normal_version=False, api_name="/inspect")[0]
    assert report["category"] == "solar_cell_mono"
    assert report["threshold"] == pytest.approx(solar_pipe.threshold, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": "NaN"}, "`threshold` must be a number, or null for the category's own, found 'NaN'"),
        ({"threshold": "high"}, "`threshold` must be a number"),
        ({"alpha": "half"}, "`alpha` must be a number"),
        ({"alpha": True}, "`alpha` must be a number"),
        ({"category": 7}, "'7' is no category of this page"),
        ({"category": ["alien"]}, "is no category of this page"),
    ],
)
def test_arguments_of_another_kind_are_one_sentence(client, defective, arguments, message):
    with pytest.raises(Exception, match=re.escape(message)):
        client.predict(image=handle_file(defective), normal_version=False, api_name="/inspect", **arguments)


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
