"""The page in a browser: what a visitor sees and does."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from demo import drawing
from demo.jobs import CancelledError
from sampling.pipeline import StepProgress
from tests.demo.browser import CHROMIUM, NARROW, PATIENCE, WIDE, finish, folder_of, launched, stroke
from tests.demo.factory import Served, serving
from tests.pictures import picture

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("browser") / "demo") as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with launched() as found:
        yield found


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
        page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.address)
        expect(page.locator("#draw-start")).to_be_visible()
        return page

    def is_local(url: str) -> bool:
        return url.startswith((served.address, "data:", f"blob:{served.address}"))

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere
    assert not errors


@dataclass
class Held:
    """Drawings stop after their third step until ``go_on`` is set; how many were cancelled there."""

    go_on: threading.Event
    cancelled: int = 0


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Pictures of steps are shown as they come."""
    held, step = Held(threading.Event()), drawing.StepPictures.step

    def held_step(shown: drawing.StepPictures, progress: StepProgress) -> None:
        step(shown, progress)
        while progress.step == 2 and not held.go_on.wait(0.01):
            try:
                shown.job.check()
            except CancelledError:
                held.cancelled += 1
                raise

    monkeypatch.setattr(drawing.StepPictures, "step", held_step)
    monkeypatch.setattr(drawing, "FIRST_PICTURE", 0)
    return held


def test_it_draws_what_is_chosen(opened: Open) -> None:
    """A class by typing, images, settings; then pictures of all scales, maps of a chosen image, files, a command."""
    page = opened()
    for typed, name in (("shi", "ship"), ("fro", "frog")):
        page.locator("#classes input").fill(typed)
        page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    page.locator("#count input[type=number]").fill("3")
    page.locator("#seed input").fill("7")
    page.locator("#setting-cfg input").fill("much")
    page.locator("#draw-start").click()
    expect(page.locator("#draw-says [role=alert]")).to_contain_text("cfg is much; it must be a number")
    page.locator("#setting-cfg input").fill("[0, 0, 1]")
    page.locator("#draw-start").click()
    folder = folder_of(finish(page))
    tiles, scales = page.locator("#draw-pictures .tile"), page.locator("#draw-scales")
    assert tiles.all_inner_texts() == ["ship", "frog", "ship"]
    rows = [text.split("\n")[0] for text in scales.locator(".name").all_inner_texts()]
    assert rows == ["picture", "order", "probability", "entropy"]
    assert scales.locator(".heads span").all_inner_texts()[1:] == ["1 x 1", "2 x 2", "8 x 8"]
    before = scales.inner_html()
    tiles.nth(1).click()
    expect(tiles.nth(1)).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("before => document.querySelector('#draw-scales').innerHTML !== before", arg=before)
    command = page.locator("#draw-command").inner_text()
    for words in ("--labels ship,frog", "--num_samples 3", "--seed 7", "--cfg '[0.0, 0.0, 1.0]'"):
        assert words in command
    for name in ("images.zip", "grid.png", "samples.json"):
        with page.expect_download() as download:
            page.locator(f".downloads a[href$='{name}']").first.click()
        assert Path(download.value.path()).read_bytes() == (folder / name).read_bytes()


def test_one_draws_at_a_time_and_who_cancels_or_leaves_makes_room(opened: Open, held: Held) -> None:
    first, second = opened(), opened()
    first.locator("#draw-start").click()
    expect(first.locator("#draw-says")).to_contain_text("Step 3 of 13")
    expect(first.locator("#draw-scales .blank").first).to_be_visible()
    second.locator("#draw-start").click()
    expect(second.locator("#draw-says")).to_contain_text("1 drawing before yours")
    first.locator("#draw-cancel").click()
    expect(first.locator("#draw-says")).to_have_text("cancelled")
    expect(second.locator("#draw-says")).to_contain_text("Step 3 of 13")
    first.locator("#draw-start").click()
    expect(first.locator("#draw-says")).to_contain_text("1 drawing before yours")
    second.close()
    expect(first.locator("#draw-says")).to_contain_text("Step 3 of 13")
    assert held.cancelled == 2
    held.go_on.set()
    finish(first)
    assert first.locator("#draw-scales .blank").count() == 0


def test_an_uploaded_image_is_edited_on_a_narrow_window(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another size; what is not painted stays. Mistakes are sentences, and nothing is wider than the window."""
    monkeypatch.setattr(drawing, "REPLAYED", 1)  # the canvas is drawn by the processor here, which is enough
    page = opened(NARROW, has_touch=True)
    expect(page.locator("#draw-start")).to_be_in_viewport()
    page.get_by_role("tab", name="Edit").click()
    start, alert = page.locator("#edit-start"), page.locator("#edit-says [role=alert]")
    expect(start).to_be_in_viewport()
    start.tap()
    expect(alert).to_contain_text("there is no image yet")
    broken, wide = tmp_path / "broken.png", tmp_path / "wide.png"
    broken.write_text("no image")
    picture(90, 64, seed=1).save(wide)
    upload = page.locator("input[type=file]").first
    upload.set_input_files(broken)
    expect(alert).to_contain_text("broken.png cannot be read as an image")
    upload.set_input_files(wide)
    expect(alert).to_have_count(0)
    start.tap()
    expect(alert).to_contain_text("nothing is painted")
    stroke(page)
    start.tap()
    folder = folder_of(finish(page, "edit"))
    image, mask, drawn = (np.array(Image.open(folder / name)) for name in ("image.png", "mask.png", "000000.png"))
    assert image.shape == drawn.shape == (32, 32, 3)
    assert 0 < (mask > 0).mean() < 0.5
    assert (drawn[mask == 0] == image[mask == 0]).all()
    assert not (drawn[mask > 0] == image[mask > 0]).all()
    assert page.locator("#edit-pictures .tile").all_inner_texts()[:2] == ["the image", "to be drawn anew"]
    assert f"--mask {folder}/mask.png" in page.locator("#edit-command").inner_text().replace("\n", "")
    expect(start).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.locator("#edit-pictures button").nth(1).tap()
    with page.expect_response(lambda response: ".page" in response.url):  # the canvas takes the chosen image
        page.locator("#edit-take").tap()
