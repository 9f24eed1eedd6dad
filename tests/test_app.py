"""The page, served by its own program, used through its API and in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import PIL.Image
import pytest

from tests.conftest import ROOT

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=2)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail(f"The page did not answer: {log.read_text()}")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    from ddad.datasets.elpv import load_solar_cells

    path = tmp_path_factory.mktemp("cell") / "cell.png"
    PIL.Image.fromarray(load_solar_cells("mono").test_defective[78]).save(path)
    return path


def test_the_api_answers(server, cell, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(server, verbose=False, download_files=str(tmp_path))
    answer, overlay, denoised, steps = client.predict(handle_file(cell), "solar_cell_mono", api_name="/inspect")
    assert "Defect found" in answer
    assert PIL.Image.open(overlay).size == PIL.Image.open(denoised).size == (300, 300)
    assert len(steps) > 5
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(Exception, match="not an image") as caught:
        client.predict(handle_file(text), "solar_cell_mono", api_name="/inspect")
    assert str(tmp_path) not in str(caught.value) and "gradio" not in str(caught.value)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_visitor_clicks_an_example_and_uploads_an_image(server, cell, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        expect(page.get_by_role("heading", name=re.compile("find the defect"))).to_be_visible(timeout=30_000)
        page.locator(".gallery-item, .gallery button, table tbody tr").first.click()
        expect(page.get_by_text("Defect found")).to_be_visible(timeout=120_000)
        for label in ("Anomaly heatmap", "Normal version"):
            expect(page.get_by_test_id("block-label").filter(has_text=label)).to_be_visible()
        shown = page.locator("img[src*='/file=']").evaluate_all("images => images.map(i => [i.naturalWidth, i.src])")
        assert sum(width == 300 for width, _ in shown) >= 2
        page.reload()
        page.locator("input[type=file]").first.set_input_files(cell)
        expect(page.get_by_text("Defect found")).to_be_visible(timeout=120_000)
        page.reload()
        broken = tmp_path / "broken.png"
        broken.write_bytes(cell.read_bytes()[:3000])
        page.locator("input[type=file]").first.set_input_files(broken)
        expect(page.get_by_text(re.compile("damaged or cut off"))).to_be_visible(timeout=60_000)
        assert not errors
        browser.close()
