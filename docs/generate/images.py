"""Makes docs/images/ from a run: `python -m docs.generate.images RUN`, where RUN is that of `python train.py`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "images"
WIDTH = 1060  # three charts beside each other
FIGURES = ("confusion.png", "reliability.png", "worst.png")


def main(run: Path) -> None:
    """Copy figures of the run, and take a picture of the top of its report, from the title to the curves."""
    for name in FIGURES:
        shutil.copy(run / "report" / "figures" / name, IMAGES / name)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 700})
        page.goto((run / "report" / "index.html").resolve().as_uri())
        # Not the line above the title, a path of this machine.
        top = page.locator("h1").first.bounding_box()
        end = page.locator("#mistakes").bounding_box()
        assert top
        assert end
        clip = {"x": 0, "y": top["y"] - 5, "width": WIDTH, "height": end["y"] - top["y"] - 19}
        page.screenshot(path=IMAGES / "report.png", clip=clip, full_page=True)  # type: ignore[arg-type]
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
