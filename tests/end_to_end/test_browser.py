"""Reports and TensorBoard in a real browser, as a person opens them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from headstart.advice.page import write_advice
from headstart.cli.main import main
from headstart.config.compose import evaluation_config
from headstart.runs.jobs import Job
from headstart.sweeps.report import report_sweep
from headstart.sweeps.results import Sweep
from tests.helpers.advice import hand_made
from tests.helpers.board import start_board

WIDTHS = {"phone": 390, "desktop": 1280}
OpenTab = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; CI must have it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing, and CI must test in a browser")
        pytest.skip("no chromium here: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(reported: Path, sweep: Path, hard: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's report, a comparison, a look at data, a check of them, advice, and a sweep's report."""
    root = tmp_path_factory.mktemp("pages")
    main(["report", str(sweep), "--out", str(root / "comparison")])
    words = ("data=imagefolder", f"data.root={hard}", "model=glyphnet", "augment=flip")
    main(["look", *words, "--out", str(root / "look")])
    copied = Path(shutil.copytree(hard, root / "data"))
    for index in range(3):
        shutil.copyfile(copied / "train" / "ant" / f"{index}.png", copied / "val" / "zebra" / f"copy {index}.png")
    (copied / "val" / "ant" / "0.png").write_bytes(b"broken")
    words = ("data=imagefolder", f"data.root={copied}", "--tiers", "files,pixels")
    main(["check", *words, "--out", str(root / "check")])
    write_advice(hand_made(), evaluation_config(None, []), root / "advice")
    shutil.copytree(sweep, root / "sweep")
    for folder in map(str, range(6)):
        job = job_of(root / "sweep" / folder)
        job.record_start()
        job.record_end(None)
    (root / "sweep" / "1" / "metrics.json").unlink()
    job_of(root / "sweep" / "1").record_end("out of memory")
    report_sweep(Sweep.read(root / "sweep", "val/accuracy", {}), {"lr": 0.7, "head": 0.3})
    others = ("comparison", "look", "check", "advice", "sweep")
    folders = {"report": reported / "report"} | {name: root / name for name in others}
    return {name: folder / "index.html" for name, folder in folders.items()}


def job_of(folder: Path) -> Job:
    return Job.from_config(evaluation_config(folder, []), folder)


@pytest.mark.parametrize("name", ["report", "comparison", "look", "check", "advice", "sweep"])
def test_pages_fit_and_nothing_is_missing(name: str, pages: dict[str, Path], browser: Any) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
    )
    page.goto(pages[name].as_uri())
    drawn = "img" if name == "check" else "svg"  # a check shows images, and draws no charts
    assert page.locator(drawn).count() >= 2
    for width, scheme in product(WIDTHS.values(), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].filter(image => !image.complete || !image.naturalWidth).length") == 0
        # Text and its background are far apart, in the charts, too.
        ink, paper = page.evaluate(
            f"[getComputedStyle(document.querySelector('{drawn}')).color, "
            "getComputedStyle(document.body).backgroundColor]"
        )
        levels = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert abs(levels[0] - levels[1]) > 450, (width, scheme)
        assert (levels[0] > levels[1]) == (scheme == "dark")
    assert problems == []
    page.close()


def test_the_report_shows_its_parts(pages: dict[str, Path], browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(pages["report"].as_uri())
    titles = ("Metrics", "Learning curves", "Confusion matrix", "Accuracy by class", "Calibration", "Images")
    for title in (*titles, "Worst mistakes"):
        assert page.get_by_role("heading", name=title, exact=True).is_visible()
    for chart in ("loss", "accuracy", "confusion", "reliability", "class_accuracy", "accuracy_by_size"):
        box = page.locator(f"figure#{chart} svg").bounding_box()
        assert box["width"] > 200, chart
        assert box["height"] > 80, chart
    page.close()


# --- TensorBoard ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board(reported: Path) -> str:
    return start_board(reported.parent)


@pytest.fixture
def open_tab(browser: Any) -> Iterator[OpenTab]:
    """Opens a tab of TensorBoard at an address, and closes it at the end of the test."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)

    def open_tab(address: str, tab: str) -> Any:
        page.goto(f"{address}#{tab}")
        return page

    yield open_tab
    page.close()


def test_curves_of_splits_are_on_the_same_charts(board: str, open_tab: OpenTab) -> None:
    page = open_tab(board, "custom_scalars")
    for title in ("loss", "accuracy", "macro accuracy"):
        page.get_by_text(title, exact=True).first.wait_for()
    page.get_by_text("Matches (3)").first.wait_for()  # train, val and test
    page.get_by_text("learning rate", exact=True).first.wait_for()
    page.get_by_text("fractions of time: waiting, transfer, compute", exact=True).first.wait_for(state="attached")
    page.close()


def test_scalars(board: str, open_tab: OpenTab) -> None:
    page = open_tab(board, "timeseries")
    page.get_by_role("combobox", name="Filter tags (regex)").fill("val/accuracy|time/")
    for name in ("val/accuracy", "time/epoch_s", "time/images_per_s", "time/waiting", "time/transfer"):
        page.get_by_title(name, exact=True).first.wait_for(state="attached")


def test_images(board: str, open_tab: OpenTab) -> None:
    page = open_tab(board, "images")
    names = ("1_seen", "2_augmented", "3_confusion", "5_reliability", "6_class_accuracy", "7_accuracy_by_size")
    for name in (*names, "8_examples", "9_worst"):
        page.get_by_text(f"images/{name}").first.wait_for(state="attached")
    shown = page.locator("tf-image-loader img")
    shown.first.wait_for()
    page.wait_for_function("document.title.length > 0")
    for index in range(shown.count()):
        shown.nth(index).scroll_into_view_if_needed()
        shown.nth(index).evaluate("image => image.decode()")  # fails if there is no picture
    assert shown.count() == 8


@pytest.mark.parametrize(
    ("tab", "texts"),
    [("text", ("zebra", "monitor: val/accuracy")), ("pr_curves", ("test/zebra",))],
    ids=["settings and classes", "precision and recall"],
)
def test_texts_of_tabs(tab: str, texts: tuple[str, ...], board: str, open_tab: OpenTab) -> None:
    page = open_tab(board, tab)
    for text in texts:
        page.get_by_text(text).first.wait_for()


def test_projector(board: str, open_tab: OpenTab) -> None:
    page = open_tab(board, "projector")
    frame = page.frame_locator("iframe").frame_locator("iframe")
    frame.locator(".numDataPoints").get_by_text("45", exact=True).wait_for()
    frame.get_by_text("Label by").first.wait_for(state="attached")


def test_hparams_of_a_sweep_are_filled(sweep: Path, open_tab: OpenTab) -> None:
    page = open_tab(start_board(sweep), "hparams")
    for number in range(6):
        page.get_by_text(f"{number}/tensorboard", exact=True).first.wait_for()
    assert page.get_by_text("0.0030000").count() >= 2  # of lr
    page.get_by_text("best/val/accuracy").first.wait_for(state="attached")
    page.get_by_text("PARALLEL COORDINATES VIEW", exact=False).first.click()
    page.locator("tf-hparams-parallel-coords-plot svg path").first.wait_for(state="attached")
