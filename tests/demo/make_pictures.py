"""Make the pictures of docs/demo.md anew: python -m tests.demo.make_pictures

Draws in Chromium with the model of CIFAR-10 that ships, and writes docs/demo.png, docs/demo_narrow.png and
docs/demo_edit.png.
"""

import tempfile
from contextlib import chdir
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.command_factory import ROOT
from tests.demo.browser import NARROW, PATIENCE, WIDE, finish, launched, stroke
from tests.demo.factory import serving

COLOURS = 256  # of a picture: enough for the page, and a third of the size
SCENES = {
    "demo": (WIDE, ("horse", "ship", "automobile", "frog"), 4, 16),
    "demo_narrow": (NARROW, ("ship",), 4, 4),
    "demo_edit": (WIDE, ("ship", "airplane"), 4, 19),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # so that the page names a short path
        Path("pretrained_models").symlink_to(ROOT / "pretrained_models")
        with (
            serving(Path("output/demo"), Path("pretrained_models/cifar10-checkerboard"), "auto") as served,
            launched() as browser,
        ):
            for name, (viewport, classes, count, seed) in SCENES.items():
                page = open_page(browser, served.address, viewport, classes, count, seed)
                page.locator("#draw-start").click()
                finish(page)
                if name.endswith("edit"):
                    edit(page)
                save(page, ROOT / f"docs/{name}.png", whole=viewport is WIDE)
                page.context.close()


def open_page(
    browser: Browser, address: str, viewport: dict[str, int], classes: tuple[str, ...], count: int, seed: int
) -> Page:
    page = browser.new_context(viewport=viewport).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    for name in classes:
        page.locator("#classes input").fill(name)
        page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    page.locator("#count input[type=number]").fill(str(count))
    page.locator("#seed input").fill(str(seed))
    return page


def edit(page: Page) -> None:
    """Draw the upper part of the first image anew."""
    page.locator("#draw-take").click()
    expect(page.locator("#canvas canvas").first).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(2000)  # for the image to be on the canvas
    stroke(page, (-0.18, -0.2), (0.18, -0.2), (0.18, -0.1), (-0.18, -0.1))
    page.locator("#edit-start").click()
    finish(page, "edit")


def save(page: Page, path: Path, whole: bool) -> None:
    """A picture of the page, or of what is seen of it in a small window."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # for what moves to come to rest
    with Image.open(BytesIO(page.screenshot(full_page=whole))) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
