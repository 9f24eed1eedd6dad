"""One image on the page: give it, see it, ask what if."""

import io
import itertools
import re

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from ddad.report.regions import find_regions
from tests.app.conftest import assert_same_repair, give, take_away, upload
from tests.conftest import create_tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FOUND = re.compile("⚠ Defect found")
NOT_FOUND = re.compile("No defect found")


def slider_images(page: Page) -> list[PIL.Image.Image]:
    """The two pictures of the slider, once they are there."""
    pictures = page.locator(".slider-wrap img, [data-testid=image-slider] img")
    expect(pictures).to_have_count(2, timeout=60_000)
    sources = pictures.evaluate_all("images => images.map(image => image.src)")
    return [PIL.Image.open(io.BytesIO(page.request.get(source).body())) for source in sources]


def verdict(page: Page, start: str = "Score "):
    """The sentence below the verdict."""
    return page.locator("p").filter(has_text=re.compile(f"^{start}"))


def score(page: Page) -> tuple[float, float]:
    """Score and threshold as the verdict says them."""
    text = verdict(page).inner_text()
    return tuple(float(value) for value in re.search(r"Score (\S+), .*?threshold of (\S+), which", text).groups())


def test_a_defect_is_found_shown_and_removed(open_page, defective, solar_pipe):
    page = open_page()
    give(page, defective)
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()
    result = solar_pipe(defective)
    assert score(page) == (round(result.image_score[0], 1), round(result.threshold, 1))
    original, denoised = slider_images(page)
    assert original.size == denoised.size == (300, 300)
    with PIL.Image.open(defective) as picture:
        np.testing.assert_array_equal(np.array(original), np.array(picture.convert("RGB")))
    assert_same_repair(denoised, result.denoised_image[0])
    heatmap = page.get_by_alt_text(re.compile("under its heatmap"))
    expect(heatmap).to_be_visible()
    region = find_regions(result.anomaly_map[0], result.threshold)[0]
    box = f"{region.left}, {region.top}, {region.width}, {region.height}"
    expect(page.get_by_role("gridcell", name=box)).to_be_visible()
    page.get_by_role("button", name=re.compile("How the defect was removed")).click()
    expect(page.get_by_text("As it came")).to_be_visible()
    animation = page.get_by_alt_text(re.compile("denoising steps, one after"))
    expect(animation).to_be_visible()
    frames = PIL.Image.open(io.BytesIO(page.request.get(animation.get_attribute("src")).body()))
    steps = [np.array(one.quantize()) for one in result.intermediates[0]]  # frames that look alike become one
    changes = sum(not np.array_equal(before, after) for before, after in itertools.pairwise(steps))
    assert frames.format == "GIF" and len(steps) > 10 and abs(frames.n_frames - (changes + 1)) <= 2
    page.get_by_role("button", name=re.compile("Why: the maps")).click()
    for caption in ("Feature score", "Combined"):
        expect(page.get_by_text(caption, exact=True).first).to_be_visible()
    assert solar_pipe.config.alpha == 0  # the pixel score was not evaluated
    expect(page.get_by_text("Pixel score (KL)", exact=True)).to_have_count(0)


def test_a_good_example_stays_dark_and_as_it_was(open_page):
    page = open_page()
    page.locator("#examples").get_by_role("button", name="Good", exact=True).click()
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()
    original, denoised = slider_images(page)
    difference = np.abs(np.array(original.convert("RGB")).astype(int) - np.array(denoised.convert("RGB")))
    assert difference.mean() < 2  # the stored pictures are compressed
    heatmap = page.get_by_alt_text(re.compile("under its heatmap")).get_attribute("src")
    colours = np.array(PIL.Image.open(io.BytesIO(page.request.get(heatmap).body())).convert("RGB")).astype(int)
    coloured = (np.ptp(colours, axis=2) > 40).mean()
    assert coloured < 0.02


@pytest.mark.slow
def test_what_if(open_page, defective, solar_pipe):
    page = open_page()
    give(page, defective)
    slider_images(page)
    page.get_by_role("button", name=re.compile("What if")).click()
    measured = score(page)
    limit = page.get_by_label(re.compile("^Threshold: score above"))
    expect(limit).to_have_value(f"{solar_pipe.threshold:.2f}")
    limit.fill("340")  # far beyond the slider, which widens
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()
    expect(verdict(page)).to_contain_text("threshold of 340.0, which you chose")
    expect(page.get_by_label(re.compile("range slider for The same"))).to_have_attribute("max", "1020")
    page.get_by_role("button", name="Make the normal version with these settings").click()
    slider_images(page)
    alpha = page.get_by_label(re.compile("number input for Alpha"))
    alpha.fill("0.5")
    alpha.press("Enter")
    alpha.blur()
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()
    assert score(page)[0] != measured[0] and score(page)[1] < 10  # measured anew
    page.get_by_role("button", name=re.compile("Why: the maps")).click()
    for caption in ("Pixel score (KL)", "Feature score", "Combined"):
        expect(page.get_by_text(caption, exact=True).first).to_be_visible()
    page.get_by_role("button", name=re.compile("Back to the pipeline")).click()
    expect(verdict(page, f"Score {measured[0]}, above the threshold of {measured[1]}")).to_be_visible()
    for level in ("20", "201", "401"):
        page.get_by_label(level, exact=True).uncheck()
    expect(page.get_by_text("Choose at least one noise level.")).to_be_visible()


def test_ground_truth_is_drawn_or_refused(open_page, defective, good, tmp_path):
    page = open_page()
    give(page, defective)
    slider_images(page)
    heatmap = page.get_by_alt_text(re.compile("under its heatmap"))
    before = heatmap.get_attribute("src")
    page.get_by_role("button", name=re.compile("Compare with a ground truth")).click()
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[100:200, 50:150] = 1
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    upload(page, tmp_path / "mask.png", "truth")
    expect(heatmap).not_to_have_attribute("src", before)
    drawn = np.array(PIL.Image.open(io.BytesIO(page.request.get(heatmap.get_attribute("src")).body())))
    assert (drawn[298, 160:440] == 255).all()  # the picture is three times as large; the line lies outside the mask
    page.locator("#truth").get_by_role("button", name=re.compile("Clear|Remove")).click()
    PIL.Image.fromarray(mask[:100]).save(tmp_path / "wrong.png")
    upload(page, tmp_path / "wrong.png", "truth")
    expect(page.get_by_text(re.compile("belongs to another image"))).to_be_visible()
    # It holds nothing back: another image gets its verdict.
    give(page, good)
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()


@pytest.mark.slow
def test_stop_ends_the_work(open_page, defective):
    page = open_page()
    give(page, defective)
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()
    expect(page.get_by_text(re.compile(r"Removing the defect: step \d+ of at most 20"))).to_be_visible()
    page.get_by_role("button", name="Stop").first.click()
    expect(page.get_by_text(re.compile("Removing the defect"))).to_have_count(0)
    assert page.locator(".slider-wrap img, [data-testid=image-slider] img").count() == 0
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()  # what was found stays
    page.get_by_role("button", name="Find defects").click()
    slider_images(page)


@pytest.mark.slow
def test_files_that_are_no_images_are_refused_kindly(open_page, defective, tmp_path):
    broken, text, small = (tmp_path / name for name in ("broken.png", "text.png", "small.png"))
    broken.write_bytes(defective.read_bytes()[:3000])
    text.write_text("no image")
    PIL.Image.new("L", (8, 8)).save(small)
    for path, message in (
        (broken, "broken.png is damaged or cut off"),
        (text, "not an image that can be read"),
        (small, "small.png is 8x8 pixels; each side needs at least 16"),
    ):
        page = open_page()
        give(page, path)
        expect(page.get_by_text(re.compile(re.escape(message)))).to_be_visible()
        assert str(tmp_path) not in page.content() and "Traceback" not in page.content()


def test_a_link_opens_a_category_and_the_list_has_the_hub(open_page, defective, solar_pipe):
    page = open_page("/?category=tiny_part")
    category = page.get_by_label(re.compile("what kind of part"))
    expect(category).to_have_value("Tiny part")
    give(page, defective)
    expect(verdict(page)).to_be_visible()
    tiny = score(page)
    category.click()
    expect(page.get_by_role("option", name="factory/tiny")).to_be_visible()
    page.get_by_role("option", name="Solar cell mono").click()
    expected = solar_pipe(defective, denoise=False).image_score[0]
    expect(verdict(page, f"Score {expected:.1f}")).to_be_visible()
    assert score(page) != tiny


@pytest.mark.slow
def test_a_repository_is_described_before_it_is_opened(open_page, defective, hub):
    page = open_page()
    page.get_by_role("button", name=re.compile("Another category")).click()
    name = page.get_by_label("Repository")
    for repository, message in (
        ("../../etc", "is no category of this page and no repository"),
        ("nobody/nothing", "does not exist on the Hub, or is private"),
        ("somebody/other", "holds no ddad checkpoint"),
    ):
        name.fill(repository)
        page.get_by_role("button", name="What is it?").click()
        expect(page.get_by_text(re.compile(message)).first).to_be_visible()
        expect(page.get_by_role("button", name="Open it")).to_be_hidden()
    name.fill("factory/tiny")
    name.press("Enter")
    expect(page.get_by_text(re.compile("not run here and not even downloaded"))).to_be_visible()
    assert not any("/factory/tiny/resolve/" in path for path in hub.requests)
    page.get_by_role("button", name="Open it").click()
    expect(page.get_by_label(re.compile("what kind of part"))).to_have_value("factory/tiny")
    expect(page.get_by_text("There are no examples of factory/tiny here")).to_be_visible()
    fetched = [path for path in hub.requests if "/factory/tiny/resolve/" in path]
    assert fetched and not any(path.endswith(".py") for path in fetched)
    give(page, defective)
    expect(verdict(page)).to_be_visible()
    name.fill("factory/broken")
    page.get_by_role("button", name="What is it?").click()
    page.get_by_role("button", name="Open it").click()
    expect(page.get_by_text(re.compile("factory/broken cannot be loaded")).first).to_be_visible()


@pytest.mark.slow
def test_dark_and_narrow(open_page, defective):
    page = open_page("/?__theme=dark", width=390, height=844)
    assert "dark" in (page.locator("body").get_attribute("class") or "")
    dark = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60
    give(page, defective)
    slider_images(page)
    for name in ("What if", "How the defect", "Why: the maps"):
        page.get_by_role("button", name=re.compile(name)).click()
    for tab in ("Many images", "Your part", "About", "One image"):
        if not page.get_by_role("tab", name=tab).is_visible():  # those that do not fit are in a menu
            page.get_by_role("button", name="More tabs").click()
            page.locator(".overflow-dropdown").get_by_text(tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_everything_has_a_name_and_the_keyboard_is_enough(open_page, defective):
    page = open_page()
    give(page, defective)
    slider_images(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, [role=slider], [role=tab]')].filter(one => {
            const shown = one.offsetParent !== null && one.type !== 'file';
            const name = one.innerText || one.ariaLabel || one.title || one.placeholder || one.alt
                || [...(one.labels || [])].map(label => label.innerText).join('')
                || [...one.querySelectorAll('img')].map(image => image.alt).join('');
            return shown && !name.trim();
        }).map(one => one.outerHTML.slice(0, 200))"""
    )
    assert not nameless
    assert page.locator("img:not([alt])").count() == 0
    find = page.get_by_role("button", name="Find defects")
    page.get_by_role("tab", name="One image").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if find.evaluate("one => one === document.activeElement"):
            break
    else:
        pytest.fail("The button cannot be reached with the keyboard.")
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("Removing the defect"))).to_be_visible()


def test_about_explains_with_pictures(open_page):
    page = open_page()
    page.get_by_role("tab", name="About").click()
    for title in ("The pixel score", "The feature score", "Gradient denoising", "Sources and licences"):
        expect(page.get_by_role("heading", name=re.compile(title))).to_be_visible()
    pictures = page.get_by_alt_text(re.compile("^(From left to right|Six steps)"))
    expect(pictures).to_have_count(3)
    page.wait_for_function("() => [...document.images].filter(one => one.offsetParent).every(one => one.complete)")
    assert all(width > 1000 for width in pictures.evaluate_all("images => images.map(one => one.naturalWidth)"))


# ------------------------------------------------------------------------- what is shown belongs to the image above it


def test_the_page_opens_with_a_finished_example(open_page):
    page = open_page(width=1300, height=800)
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()
    assert len(slider_images(page)) == 2
    expect(page.locator("#heatmap img")).to_be_visible()
    expect(page.locator("#histogram svg")).to_be_visible()
    last = page.locator("#examples button").last.bounding_box()
    assert last["y"] + last["height"] < 800


@pytest.mark.slow
def test_what_an_image_leaves_goes_with_it(open_page, defective, good):
    page = open_page()
    give(page, defective)
    expect(page.get_by_role("heading", name=FOUND)).to_be_visible()
    expect(page.get_by_text(re.compile(r"Removing the defect: step \d+"))).to_be_visible()
    take_away(page)
    expect(page.locator("#verdict")).to_contain_text("Drop an image")
    for place in ("#heatmap img", "#compare img", "#histogram svg"):
        expect(page.locator(place)).to_have_count(0)
    upload(page, good)
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()
    first = slider_images(page)[0]
    with PIL.Image.open(good) as picture:
        np.testing.assert_array_equal(np.array(first), np.array(picture.convert("RGB")))
    # A control judges this image, and no other.
    before = page.locator("#heatmap img").get_attribute("src")
    page.get_by_label(re.compile("range slider for Opacity")).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#heatmap img")).not_to_have_attribute("src", before)
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()


@pytest.mark.slow
def test_the_last_image_wins_however_fast(open_page, defective, good, solar_pipe):
    page = open_page()
    take_away(page)
    for path, other in ((good, defective), (defective, good)):
        upload(page, path)
        page.wait_for_timeout(400)
        take_away(page)
        upload(page, other)
        expected = solar_pipe(other, denoise=False)
        expect(verdict(page, f"Score {expected.image_score[0]:.1f}, ")).to_be_visible()
        slider_images(page)
        assert score(page)[0] == round(expected.image_score[0], 1)
        take_away(page)
        expect(page.locator("#verdict")).to_contain_text("Drop an image")


@pytest.mark.slow
def test_two_examples_in_a_row_end_with_the_second(open_page):
    page = open_page()
    examples = page.locator("#examples button")
    for first, second, expected in ((0, 4, NOT_FOUND), (4, 1, FOUND)):
        examples.nth(first).click()
        page.wait_for_timeout(100)
        examples.nth(second).click()
        expect(page.get_by_role("heading", name=expected)).to_be_visible()
        name = ("defective_1", "defective_2", "", "", "good_1")[second]
        expect(page.locator("#compare img").first).to_have_attribute("src", re.compile(name))
        expect(page.locator("#image img")).to_have_attribute("src", re.compile(name))


def test_another_category_leaves_nothing_of_the_old_one(open_page):
    page = open_page()
    category = page.get_by_label(re.compile("what kind of part"))
    category.click()
    page.get_by_role("option", name="Tiny part").click()
    expect(page.get_by_text("There are no examples of Tiny part here: drop an image.")).to_be_visible()
    for place in ("#heatmap img", "#compare img", "#histogram svg", "#image img"):
        expect(page.locator(place)).to_have_count(0)
    expect(page.locator("#examples button")).to_have_count(0)
    # Back again: that category's finished example, as a link shows it.
    category.click()
    page.get_by_role("option", name="Solar cell mono").click()
    expect(page.get_by_role("heading", name="Defect found")).to_be_visible()
    expect(page.locator("#image img")).to_have_count(1)
    expect(page.locator("#histogram svg")).to_be_visible()


@pytest.mark.slow
def test_ones_own_image_is_judged_by_another_category(open_page, defective):
    page = open_page()
    give(page, defective)
    expect(page.get_by_role("heading", name="Defect found")).to_be_visible()
    before = page.locator("#verdict").inner_text()
    category = page.get_by_label(re.compile("what kind of part"))
    category.click()
    page.get_by_role("option", name="Tiny part").click()
    expect(page.locator("#verdict")).to_contain_text("Score")
    expect(page.locator("#verdict")).not_to_have_text(before)
    expect(page.locator("#heatmap img")).to_be_visible()
    expect(page.locator("#image img")).to_have_count(1)


@pytest.mark.parametrize(
    "way", ["elsewhere", *(pytest.param(way, marks=pytest.mark.slow) for way in ("Escape", "same", "Tab"))]
)
def test_leaving_the_list_of_categories_changes_nothing(open_page, way):
    page = open_page()
    before = page.locator("#verdict").inner_text()
    assert "Defect found" in before
    category = page.get_by_label(re.compile("what kind of part"))
    category.click()
    if way == "elsewhere":
        page.locator("#verdict").click()
    elif way == "same":
        page.get_by_role("option", name="Solar cell mono").click()
    else:
        page.keyboard.press(way)
        page.keyboard.press("Tab")
    page.wait_for_timeout(1500)
    assert page.locator("#verdict").inner_text() == before
    for place in ("#heatmap img", "#histogram svg"):
        expect(page.locator(place)).to_be_visible()


def test_the_histogram_is_of_this_image(open_page, defective, good, solar_pipe):
    page = open_page()
    for path in (defective, good):
        give(page, path)
        expected = solar_pipe(path, denoise=False).image_score[0]
        mark = page.locator("#histogram .your-image")
        expect(mark).to_have_attribute("data-score", f"{expected:.2f}")
        expect(page.locator("#histogram figcaption")).to_contain_text(f"Your image scores {expected:.1f}")


@pytest.mark.slow
def test_a_chosen_threshold_holds_for_the_category(open_page, defective, good):
    page = open_page()
    page.get_by_role("button", name=re.compile("What if")).click()
    limit = page.get_by_label(re.compile("^Threshold: score above"))
    limit.fill("0.5")
    expect(verdict(page)).to_contain_text("threshold of 0.5, which you chose")
    give(page, good)
    expect(verdict(page)).to_contain_text("above the threshold of 0.5, which you chose")
    expect(limit).to_have_value("0.5")
    page.get_by_role("tab", name="Many images").click()
    page.get_by_role("tabpanel").locator("visible=true").locator("input[type=file]").first.set_input_files(good)
    page.get_by_role("button", name="Inspect all").click()
    expect(page.get_by_text(re.compile("1 inspected: 1 with defects"))).to_be_visible()
    page.get_by_role("tab", name="One image").click()
    page.get_by_role("button", name=re.compile("Back to the pipeline")).click()
    expect(verdict(page)).to_contain_text("lets 95% of good parts pass")


def test_how_many_good_parts_may_fail_is_a_choice(open_page):
    page = open_page()
    page.get_by_role("button", name=re.compile("What if")).click()
    expect(page.locator("#rates").get_by_label("5 %", exact=True)).to_be_checked()
    before = score(page)[1]
    page.locator("#rates").get_by_label("1 %", exact=True).check()
    expect(verdict(page)).to_contain_text("lets 99% of good parts pass")
    assert score(page)[1] > before
    expect(page.locator("#promise")).to_contain_text(
        re.compile(r"Of new good parts 0\.\d to \d(\.\d)? % will be called")
    )
    limit = page.get_by_label(re.compile("^Threshold: score above"))
    limit.fill("0.5")
    expect(verdict(page)).to_contain_text("threshold of 0.5, which you chose")
    expect(page.locator("#rates").get_by_label("1 %", exact=True)).not_to_be_checked()
    page.get_by_role("button", name=re.compile("Back to the pipeline")).click()
    expect(page.locator("#rates").get_by_label("5 %", exact=True)).to_be_checked()


def test_the_line_moves_by_keyboard(open_page):
    page = open_page()
    slider_images(page)
    page.get_by_label(re.compile("range slider for Line between")).focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    clipped = page.locator("#compare .fixed")
    expect(clipped).to_have_attribute("style", re.compile(r"clip-path: inset\(0px 0px 0px (19\.|20\.|20%)"))


def test_a_tapped_example_scrolls_to_the_verdict(open_page):
    page = open_page(width=390, height=844)
    page.locator("#examples button").nth(1).click()
    page.wait_for_function("document.getElementById('verdict').getBoundingClientRect().top < 200")
    expect(page.get_by_role("heading", name=FOUND)).to_be_in_viewport()


def test_a_link_to_nothing_says_so(open_page):
    page = open_page("/?category=bolts")
    expect(page.get_by_role("heading", name=re.compile("There is no category Bolts here"))).to_be_visible()
    expect(page.get_by_label(re.compile("what kind of part"))).to_have_value("Solar cell mono")


@pytest.mark.slow
def test_downloads_say_what_they_are(open_page, defective):
    page = open_page()
    give(page, defective)
    slider_images(page)
    for place, name in (("#heatmap", "heatmap"), ("#compare", "normal_version")):
        link = page.locator(f"{place} a[download]")
        expect(link).to_have_attribute("download", re.compile(f"^{defective.stem}_{name}"))


def test_a_tiff_is_shown_and_its_own_values_are_judged(open_page, solar_cells, solar_pipe, tmp_path):
    path = tmp_path / "cell.tiff"
    PIL.Image.fromarray(solar_cells.test_defective[78].astype(np.uint16) * 257).save(path)
    page = open_page()
    give(page, path)
    expected = solar_pipe(path, denoise=False).image_score[0]
    expect(verdict(page, f"Score {expected:.1f}, ")).to_be_visible()
    page.wait_for_function("document.querySelector('#image img')?.naturalWidth === 300")
    page.get_by_role("button", name="Find defects").click()
    expect(page.locator("#histogram .your-image")).to_have_attribute("data-score", f"{expected:.2f}")


@pytest.mark.slow
def test_too_many_pixels_are_called_so(open_page, tmp_path):
    path = tmp_path / "huge.png"
    PIL.Image.new("1", (20_000, 20_000)).save(path)
    page = open_page()
    give(page, path)
    expect(page.get_by_text(re.compile("has far too many pixels. Crop it or scale it down"))).to_be_visible()


def test_a_picture_of_something_else_is_called_so(open_page, tmp_path):
    path = tmp_path / "black.png"
    PIL.Image.new("L", (300, 300)).save(path)
    page = open_page()
    give(page, path)
    expect(page.get_by_role("heading", name="Not such a part?")).to_be_visible()
    expect(page.get_by_text(re.compile(r"Most of this picture \(\d+%\) is unlike the good parts"))).to_be_visible()
    page.wait_for_timeout(3000)
    expect(page.locator("#compare img")).to_have_count(0)  # nobody asked for a normal version


@pytest.mark.slow
def test_a_picture_that_is_far_too_small_is_called_so(open_page, defective, tmp_path):
    with PIL.Image.open(defective) as picture:
        picture.resize((24, 24)).save(tmp_path / "small.png")
    page = open_page()
    give(page, tmp_path / "small.png")
    expect(
        page.get_by_text(re.compile("Your image has 24x24 pixels, and this category looks at 384x384"))
    ).to_be_visible()


@pytest.mark.slow
def test_a_storm_of_uploads_ends_with_everybodys_last_image(open_page, tmp_path):
    """Five visitors, fifty uploads and as many takings away, none waited for."""
    pipe, random = create_tiny_pipeline(), np.random.default_rng(0)
    pages = [open_page("/?category=tiny_part") for _ in range(5)]
    for page in pages:
        expect(page.locator("#verdict")).to_contain_text(re.compile("drop an image", re.IGNORECASE))
    last = {}
    for turn in range(10):
        for number, page in enumerate(pages):
            path = tmp_path / f"part_{number}_{turn}.png"
            PIL.Image.fromarray(random.integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
            if page.locator("#image img").count():
                take_away(page)
            upload(page, path)
            last[number] = path
    for number, page in enumerate(pages):
        expected = pipe(last[number], denoise=False).image_score[0]
        # Another number of threads adds in another order, so the last digit shown may be another.
        shown = "|".join(re.escape(f"{expected + cents / 100:.2f}") for cents in (-1, 0, 1))
        mark = page.locator("#histogram .your-image")
        expect(mark).to_have_attribute("data-score", re.compile(f"^({shown})$"), timeout=60_000)
        # Noise is no such part, so no normal version is made of it.
        expect(page.locator("#heatmap a[download]")).to_have_attribute(
            "download", re.compile(f"^{last[number].stem}_heatmap"), timeout=60_000
        )


def test_the_heatmap_is_seen_without_scrolling_and_the_verdict_has_a_colour(open_page, good):
    page = open_page(width=1440, height=900)
    heatmap = page.get_by_alt_text(re.compile("under its heatmap"))
    expect(heatmap).to_be_visible()
    box = heatmap.bounding_box()
    assert box["y"] + box["height"] <= 900
    answer = page.locator("#verdict")
    expect(answer).to_have_attribute("data-state", "defect")
    expect(answer).to_have_attribute("aria-live", "polite")
    colours = {page.evaluate("getComputedStyle(document.querySelector('#verdict h2')).color")}
    give(page, good)
    expect(page.get_by_role("heading", name=NOT_FOUND)).to_be_visible()
    expect(answer).to_have_attribute("data-state", "good")
    colours.add(page.evaluate("getComputedStyle(document.querySelector('#verdict h2')).color"))
    assert len(colours) == 2


def test_arrow_keys_go_from_tab_to_tab_and_focus_is_seen(open_page):
    page = open_page()
    page.get_by_role("tab", name="One image").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Many images")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("tab", name="Many images")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="About")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    style = "getComputedStyle(document.activeElement).outline"
    assert "3px" in page.evaluate(style)
    page.get_by_label(re.compile("Category:")).first.focus()
    page.keyboard.press("Tab")  # out of the list, to the next
    assert "3px" in page.evaluate(style)


def test_downloads_are_reached_by_keyboard(open_page):
    page = open_page()
    page.get_by_role("tab", name="One image").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('a[href]')?.getAttribute('download') ?? ''"))
    assert any("heatmap" in name for name in reached)


def test_no_row_of_examples_has_a_scrollbar_of_its_own(open_page):
    page = open_page()
    expect(page.locator("#examples img").first).to_be_visible()
    overflow = "(() => { const row = document.querySelector('#examples .grid-wrap');"
    overflow += " return [row.scrollWidth - row.clientWidth, row.scrollHeight - row.clientHeight,"
    overflow += " getComputedStyle(row).overflowY] })()"
    wide, _, vertical = page.evaluate(overflow)
    assert wide <= 0 and vertical == "hidden"
    picture, caption = (
        page.locator(f"#examples .thumbnail-item {part}").first.bounding_box() for part in ("img", ".caption-label")
    )
    assert caption["y"] >= picture["y"] + picture["height"] - 1  # words cover no defect


def test_on_a_phone_the_verdict_comes_into_view_and_all_tabs_have_names(open_page, defective):
    page = open_page(width=390, height=844)
    for name in ("One image", "Many images", "Line", "Your part", "About"):
        expect(page.get_by_role("tab", name=name).locator("visible=true")).to_be_visible()
    upload_here = page.locator("#image").get_by_role("button", name=re.compile("Clear|Remove"))
    upload_here.click()
    expect(page.locator("#verdict")).to_contain_text("Drop an image")
    page.evaluate("window.scrollTo(0, 0)")
    upload(page, defective)
    expect(page.get_by_role("heading", name=FOUND)).to_be_in_viewport(timeout=30_000)


def test_not_one_of_these_leads_to_your_part(open_page):
    page = open_page()
    page.get_by_role("button", name=re.compile("Not one of these")).click()
    expect(page.get_by_role("button", name="Learn", exact=True)).to_be_visible()


def test_about_says_what_is_true_of_the_category(open_page, solar_pipe):
    page = open_page()
    page.get_by_role("tab", name="About").click()
    facts = page.locator("#facts")
    size = solar_pipe.appearance_extractor.config.image_size
    expect(facts).to_contain_text(f"at {size}x{size} pixels with EfficientNet-Lite2")
    expect(facts).to_contain_text(f"The threshold, {solar_pipe.threshold:.1f}")
    expect(facts).to_contain_text("Solar cell mono")
    page.get_by_label(re.compile("Category:")).first.click()
    page.get_by_role("option", name="Tiny part").click()
    expect(facts).to_contain_text("Tiny part")
    expect(facts).not_to_contain_text("Solar cell")
