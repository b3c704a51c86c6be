"""The pages of docs/ that are partly generated."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import indent

from .api import api
from .conf_files import CONF, header
from .keys import key_tables

DOCS = Path(__file__).parents[1]
BEGIN, END = "<!-- written by python -m docs.generate -->\n", "<!-- end of what python -m docs.generate writes -->\n"


def recipes() -> str:
    """Return a section for each experiment: its command, description and settings."""
    sections = []
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        commands, description = header(path).split("\n\n")[:2]
        description = re.sub(r"(Published: no figure\. )?Measured: .*", "", description, flags=re.DOTALL)
        settings = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()
        parts = (f"## {path.stem}", indent(commands, "    "), description.strip(), f"```yaml\n{settings}\n```\n")
        sections.append("\n\n".join(parts))
    return "\n".join(sections)


PAGES = {"configuration.md": key_tables, "recipes.md": recipes, "api.md": api}


def renewed(page: str) -> str:
    """Return the text of a page with its generated part up to date."""
    text = (DOCS / page).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: the marks of the generated part are missing: the lines {BEGIN}{END}")
    return f"{before}{BEGIN}\n{PAGES[page]()}\n{END}{after}"
