"""The documentation: its links lead somewhere, what is generated in it is current, and the README stays short."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from docs.generate.pages import DOCS, PAGES, renewed

from tests.helpers.runs import ROOT

MARKDOWN = sorted(
    [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / name / "README.md" for name in ("tests", "benchmarks"))]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """Returns a page without its code, in which brackets mean something else."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, by the rule that forges and the site share."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), target


@pytest.mark.parametrize("page", PAGES)
def test_what_is_generated_is_current(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == renewed(page), "run python -m docs.generate"


def test_the_site_has_every_page() -> None:
    def files(entries: list[dict[str, object]]) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [file for value in values for file in (files(value) if isinstance(value, list) else [str(value)])]

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(files(nav)) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_readme_is_short_and_links_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 10_000
    assert {f"docs/{path.name}" for path in DOCS.glob("*.md")} <= {
        link.partition("#")[0] for link in LINK.findall(text)
    }
