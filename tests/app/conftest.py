"""The page as its visitors meet it: served by its own program, in a real browser."""

import re
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from tests.conftest import CHECKPOINT, create_tiny_pipeline
from tests.hub.server import running_hub
from tools.serve import ROOT, running_page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A camera that shows a test picture, and is allowed without a question.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", *CAMERA]

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from ddad.app import LAUNCH, create_page, learning
learning.IMAGE_SIZE = 96  # photographs of 80 pixels are looked at no larger, which learns a part four times faster
create_page({checkpoints!r}, export=False).launch(**LAUNCH)
"""


@pytest.fixture(autouse=True)
def own_threads():
    """The model's thread leaves one thread to all others, which would slow the tests that follow."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_repair(first, second) -> None:
    """Repairs made with another number of threads: rounding decides about a gradient step now and then."""
    difference = np.abs(np.array(first).astype(int) - np.array(second).astype(int))
    assert difference.max() <= 12 and difference.mean() < 0.5


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A Hub that carries one small category, one repository of another kind, and one of the wrong shape."""
    with running_hub() as hub:
        folder = tmp_path_factory.mktemp("repositories")
        create_tiny_pipeline().save_pretrained(folder / "tiny")
        hub.add("factory/tiny", folder / "tiny", ["ddad", "diffusers"])
        (folder / "other").mkdir()
        (folder / "other" / "config.json").write_text("{}")
        hub.add("somebody/other", folder / "other", [])
        shutil.copytree(folder / "tiny", folder / "broken")
        weights = next((folder / "broken" / "unet").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:2000])
        hub.add("factory/broken", folder / "broken", ["ddad"])
        yield hub


@pytest.fixture(scope="session")
def server(tmp_path_factory, hub):
    """A page with two categories, whose Hub is the one of the tests."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "solar_cell_mono").symlink_to(CHECKPOINT)
    tiny = create_tiny_pipeline()
    tiny.save_pretrained(folder / "tiny_part")
    for name in ("unet", "scheduler", "feature_extractor"):
        getattr(tiny, name).save_pretrained(folder / "base" / name)
    tiny.feature_extractor.save_pretrained(folder / "base" / "appearance_extractor")
    program = folder / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), checkpoints=str(folder)))
    home = str(tmp_path_factory.mktemp("home"))
    with running_page(program, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_HOME=home, HF_HUB_DISABLE_XET="1") as url:
        yield url


@pytest.fixture(scope="session")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=40_000)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


def upload(page, path, element: str = "image") -> None:
    """Uploads a file into one of the page's image inputs, as it is."""
    page.locator(f"#{element} input[type=file]").set_input_files(path)


def take_away(page) -> None:
    """Presses the image's X."""
    page.locator("#image").get_by_role("button", name=re.compile("Clear|Remove")).click()


def give(page, path) -> None:
    """Gives an image to a page that shows nothing of another."""
    from playwright.sync_api import expect

    if page.locator("#image img").count():
        take_away(page)
        expect(page.locator("#verdict")).to_contain_text(re.compile("drop an image", re.IGNORECASE))
    upload(page, path)


@pytest.fixture
def open_page(browser, server):
    """Opens the page; in the end no script of it may have failed."""
    pages, errors = [], []

    def open_at(address: str = "", width: int = 1440, height: int = 1000):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(40_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append(page)
        page.goto(server + address)
        page.get_by_role("heading", name=re.compile("find the defect")).wait_for()
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_at
    for page in pages:
        page.close()
    assert not errors


def save_cell(solar_cells, folder, split: str, position: int):
    path = folder / f"{split}_{position}.png"
    PIL.Image.fromarray(getattr(solar_cells, f"test_{split}")[position]).save(path)
    return path


@pytest.fixture
def defective(solar_cells, tmp_path):
    """A file with cracks and dark corners."""
    return save_cell(solar_cells, tmp_path, "defective", 78)


@pytest.fixture
def good(solar_cells, tmp_path):
    return save_cell(solar_cells, tmp_path, "good", 3)
