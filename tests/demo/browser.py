"""A browser without a window, and what is done in it again and again."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # milliseconds
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def launched() -> Iterator[Browser]:
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def finish(page: Page, tab: str = "draw") -> str:
    """Wait for the end of a drawing; what the page says then."""
    expect(page.locator(f"#{tab}-says")).to_contain_text("kept in", timeout=PATIENCE)
    expect(page.locator(f"#{tab}-command")).to_be_visible()
    return page.locator(f"#{tab}-says").inner_text()


def folder_of(said: str) -> Path:
    return Path(re.search(r"kept in (\S+)", said)[1])


def stroke(page: Page, *along: tuple[float, float]) -> None:
    """Paint from place to place, in shares of the canvas from its middle; by default a short stroke there.

    Few places are best: each is a picture that the processor draws where there is no GPU.
    """
    canvas = page.locator("#canvas canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    places = [(x + right * box["width"], y + down * box["height"]) for right, down in along or ((-0.05, 0), (0.05, 0))]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()
