"""The page in a browser: what a visitor sees and does."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from demo import drawing
from tests.demo.factory import Served, serving
from tests.pictures import picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # milliseconds
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("browser") / "demo") as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def opened(served: Served, browser: Browser) -> Iterator[Open]:
    """Opens the page for a visitor; whatever asks another machine for anything fails the test at its end."""
    contexts, elsewhere, errors = [], [], []

    def open_page(viewport: dict[str, int] = WIDE, **settings: Any) -> Page:
        context = browser.new_context(viewport=viewport, **settings)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: elsewhere.append(request.url) if not is_local(request.url) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        expect(page.locator("#draw-start")).to_be_visible(timeout=PATIENCE)
        return page

    def is_local(url: str) -> bool:
        return url.startswith((served.address, "data:", f"blob:{served.address}"))

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere
    assert not errors


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step of a drawing takes a while; the steps that are done."""
    steps, step = [], drawing.Film.step

    def slow_step(film: drawing.Film, progress: Any) -> None:
        time.sleep(0.15)
        step(film, progress)
        steps.append(progress.step)

    monkeypatch.setattr(drawing.Film, "step", slow_step)
    return steps


def finish(page: Page, tab: str = "draw") -> str:
    """Wait for the end of a drawing; what the page says then."""
    expect(page.locator(f"#{tab}-says")).to_contain_text("kept in", timeout=PATIENCE)
    expect(page.locator(f"#{tab}-command")).to_be_visible()
    return page.locator(f"#{tab}-says").inner_text()


def folder_of(said: str) -> Path:
    return Path(re.search(r"kept in (\S+)", said)[1])


def test_it_draws_what_is_chosen(opened: Open) -> None:
    """A class by typing, images, settings; then pictures of all scales, maps of a chosen image, files, a command."""
    page = opened()
    page.locator("#classes input").fill("shi")
    page.get_by_role("option", name="ship").click()
    page.locator("#classes input").fill("fro")
    page.get_by_role("option", name="frog").click()
    page.keyboard.press("Escape")
    page.locator("#count input[type=number]").fill("3")
    page.locator("#seed input").fill("7")
    page.locator("#setting-cfg input").fill("[0, 0, 1, 1]")
    page.locator("#draw-start").click()
    folder = folder_of(finish(page))
    tiles = page.locator("#draw-pictures .tile")
    assert tiles.all_inner_texts() == ["ship", "frog", "ship"]
    assert page.locator("#draw-scales .name").all_inner_texts() == [
        "picture", "order\n0\n12", "probability\n0\n1", page.locator("#draw-scales .name").last.inner_text(),
    ]  # fmt: skip
    assert page.locator("#draw-scales .heads span").all_inner_texts()[1:] == ["1 x 1", "2 x 2", "4 x 4", "8 x 8"]
    before = page.locator("#draw-scales").inner_html()
    tiles.nth(1).click()
    expect(tiles.nth(1)).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("before => document.querySelector('#draw-scales').innerHTML !== before", arg=before)
    command = page.locator("#draw-command").inner_text()
    for words in ("--labels ship,frog", "--num_samples 3", "--seed 7", "--cfg '[0.0, 0.0, 1.0, 1.0]'"):
        assert words in command
    for name in ("images.zip", "grid.png", "samples.json"):
        with page.expect_download() as download:
            page.locator(f".downloads a[href$='{name}']").first.click()
        assert Path(download.value.path()).read_bytes() == (folder / name).read_bytes()


def test_steps_appear_one_after_another(opened: Open, slow: list[int]) -> None:
    page = opened()
    page.locator("#draw-start").click()
    expect(page.locator("#draw-says")).to_contain_text(re.compile(r"Step \d+ of 13"))
    expect(page.locator("#draw-scales .blank").first).to_be_visible()
    assert len(slow) < 13
    finish(page)
    assert page.locator("#draw-scales .blank").count() == 0


def test_cancel_ends_it_and_who_waits_is_next(opened: Open, slow: list[int]) -> None:
    first, second = opened(), opened()
    first.locator("#draw-start").click()
    expect(first.locator("#draw-says")).to_contain_text("Step 2 of 13")
    second.locator("#draw-start").click()
    expect(second.locator("#draw-says")).to_contain_text("1 drawing before yours")
    first.locator("#draw-cancel").click()
    expect(first.locator("#draw-says")).to_have_text("cancelled")
    expect(first.locator("#draw-start")).to_be_visible()
    finish(second)
    assert len(slow) < 2 * 13


def test_a_tab_that_is_closed_leaves_no_drawing(opened: Open, slow: list[int]) -> None:
    page = opened()
    page.locator("#draw-start").click()
    expect(page.locator("#draw-says")).to_contain_text("Step 2 of 13")
    page.close()
    other = opened()
    other.locator("#draw-start").click()
    finish(other)
    assert len(slow) < 2 * 13


def test_a_wrong_value_is_a_sentence_on_the_page(opened: Open) -> None:
    page = opened()
    page.locator("#setting-cfg input").fill("much")
    page.locator("#draw-start").click()
    alert = page.locator("#draw-says [role=alert]")
    expect(alert).to_contain_text("cfg is much; it must be a number")
    page.locator("#setting-cfg input").fill("1")
    page.locator("#draw-start").click()
    finish(page)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-start").click()
    expect(page.locator("#edit-says [role=alert]")).to_contain_text("there is no image yet")


def paint(page: Page) -> None:
    """A stroke across the middle of the image."""
    canvas = page.locator("#canvas canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 60, y)
    page.mouse.down()
    for along in range(-50, 60, 10):
        page.mouse.move(x + along, y)
    page.mouse.up()


def test_an_uploaded_image_is_edited(opened: Open, tmp_path: Path) -> None:
    """Of another size; what is not painted stays, and a file that is no image is a sentence."""
    page = opened()
    page.get_by_role("tab", name="Edit").click()
    broken, wide = tmp_path / "broken.png", tmp_path / "wide.png"
    broken.write_text("no image")
    picture(90, 64, seed=1).save(wide)
    upload = page.locator("input[type=file]").first
    upload.set_input_files(broken)
    expect(page.locator("#edit-says [role=alert]")).to_contain_text("broken.png cannot be read as an image")
    upload.set_input_files(wide)
    expect(page.locator("#edit-says [role=alert]")).to_have_count(0)
    page.locator("#edit-start").click()
    expect(page.locator("#edit-says [role=alert]")).to_contain_text("nothing is painted")
    paint(page)
    page.locator("#edit-start").click()
    folder = folder_of(finish(page, "edit"))
    image, mask, drawn = (np.array(Image.open(folder / name)) for name in ("image.png", "mask.png", "000000.png"))
    assert image.shape == drawn.shape == (32, 32, 3)
    assert 0 < (mask > 0).mean() < 0.5
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert not (drawn[mask > 0] == image[mask > 0]).all()
    assert page.locator("#edit-pictures .tile").all_inner_texts()[:2] == ["the image", "to be drawn anew"]
    assert f"--mask {folder}/mask.png" in page.locator("#edit-command").inner_text().replace("\n", "")


def test_a_narrow_window_is_usable(opened: Open) -> None:
    """Nothing is wider than the window; the button is at hand wherever one is; a drawn image can be edited."""
    page = opened(NARROW, has_touch=True)
    start = page.locator("#draw-start")
    expect(start).to_be_in_viewport()
    start.tap()
    finish(page)
    for tab in ("draw", "edit"):
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        expect(page.locator(f"#{tab}-start")).to_be_in_viewport()
        if tab == "draw":
            page.locator("#draw-take").tap()
            expect(page.locator("#canvas canvas").first).to_be_visible()
