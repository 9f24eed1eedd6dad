"""Makes the pictures of the About tab and the README's screenshots: `python -m tools.pictures`.

Needs Chromium. The pictures follow from the bundled checkpoint; make them again when it or the page changes.
"""

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from playwright.sync_api import sync_playwright

from ddad import DDADPipeline
from ddad.app.examples import photographs
from ddad.app.inspection import draw_heatmap, draw_maps
from ddad.report.regions import regions_of
from tools.serve import ROOT, running_page

EXPLAINED = "solar_cell_mono"  # in the About tab
ABOUT = ROOT / "ddad" / "app" / "pictures"
SCREENSHOTS = ROOT / "docs"
SIDE, GAP = 300, 12
LEVEL = 201


def strip(pictures: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Pictures in a row, on transparent ground so that they suit light and dark pages."""
    row = PIL.Image.new("RGBA", (len(pictures) * (SIDE + GAP) - GAP, SIDE))
    for number, picture in enumerate(pictures):
        row.paste(picture.convert("RGB").resize((SIDE, SIDE)), (number * (SIDE + GAP), 0))
    return row


@torch.no_grad()
def make_about_pictures(image: Path) -> None:
    """What the About tab shows, from a real run."""
    pipe = DDADPipeline.from_pretrained(ROOT / "checkpoints" / EXPLAINED)
    original = pipe.image_processor.read_image(image)
    inputs = pipe.prepare([original])
    _, noisy, levels, output, _ = pipe.predict_at(inputs, [LEVEL], pipe.get_noise([LEVEL]))
    clean = pipe.scheduler.predict_original_sample(output, noisy, levels)
    shown = [
        pipe.renderer.to_image(original, "pil"),
        *(pipe.renderer.to_image((one[0] + 1) / 2, "pil") for one in (noisy, clean)),
    ]
    result = pipe(original, alpha=0.5, feature_score="residual")  # the paper's two scores
    pixel, feature, combined = (picture for picture, _ in draw_maps(result))
    strip([*shown, pixel]).save(ABOUT / "pixel_score.webp", quality=88)
    heatmap = draw_heatmap(original, result, regions_of(result), 0.7)
    strip([pixel, feature, combined, heatmap]).save(ABOUT / "combined.webp", quality=88)
    frames = result.intermediates[0]
    chosen = [frames[round(index)] for index in np.linspace(0, len(frames) - 1, 6)]
    strip(chosen).save(ABOUT / "denoising.webp", quality=88)


def make_screenshots() -> None:
    """What the page opens with: on a desk and on a phone, light and dark."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with running_page() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name, width, height, theme in (
            ("page", 1440, 1080, "light"),
            ("page_dark", 1440, 1080, "dark"),
            ("page_phone", 390, 844, "light"),
        ):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{url}?__theme={theme}")
            page.wait_for_selector("body[data-ready]")
            page.wait_for_function("[...document.images].every(one => one.complete)")
            if width < 500:
                page.locator("#examples button").first.click()
                page.wait_for_function("document.getElementById('verdict').getBoundingClientRect().top < 100")
            screenshot = PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            screenshot.save(SCREENSHOTS / f"{name}.webp", quality=85, method=6)
            page.close()
        browser.close()


def make_painting() -> None:
    """Where to look, painted on the page, for docs/line.md: the heatmap, and the picture that was painted on."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with running_page() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 2200})
        page.goto(f"{url}?category=bottle")
        page.wait_for_selector("body[data-ready]")
        page.locator("#examples button").nth(4).click()
        page.wait_for_timeout(2000)
        page.get_by_text("Where to look: paint").click()
        page.wait_for_timeout(4000)
        box = page.locator("#painting canvas").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 60, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=12)
        page.mouse.up()
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Look so").click()
        page.get_by_text("is looked at now").wait_for()
        page.wait_for_timeout(15_000)
        shot = PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    shot.save(SCREENSHOTS / "where_to_look.webp", quality=80, method=6)


def make_guide(good: Path) -> None:
    """The way to a part of one's own, for docs/your_part.md: photographs given, and the first verdict."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    defective = photographs(ROOT / "checkpoints" / "bottle")[0]
    with running_page() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.get_by_role("tab", name="Your part").click()
        panel = page.get_by_role("tabpanel").locator("visible=true")
        panel.locator("input[type=file]").first.set_input_files(sorted(good.iterdir()))
        page.get_by_label("What is the part called?").fill("Bottle")
        page.wait_for_timeout(2000)
        shots = {"your_part_given": page.screenshot()}
        page.get_by_role("button", name="Learn", exact=True).click()
        learnt = page.get_by_role("heading", name="is learnt from").locator("visible=true")
        learnt.wait_for(timeout=600_000)
        shots["your_part_learnt"] = page.screenshot()
        page.locator("input[type=file]").first.set_input_files(defective)
        page.get_by_role("heading", name="Defect found").wait_for(timeout=60_000)
        page.wait_for_timeout(15_000)
        shots["your_part_verdict"] = page.screenshot()
        browser.close()
    for name, data in shots.items():
        PIL.Image.open(io.BytesIO(data)).convert("RGB").save(SCREENSHOTS / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=Path, metavar="FOLDER", help="makes the guide's of these photographs alone")
    part = parser.parse_args().part
    if part is not None:
        make_guide(part)
        raise SystemExit
    ABOUT.mkdir(exist_ok=True)
    SCREENSHOTS.mkdir(exist_ok=True)
    make_about_pictures(photographs(ROOT / "checkpoints" / EXPLAINED)[0])
    make_screenshots()
    make_painting()
