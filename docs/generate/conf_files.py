"""Values of the files of conf/, and the comments beside them."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"


def _bases(group: str, path: Path) -> list[Path]:
    """Return the files in the defaults of a file of conf/."""
    listed = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    names = [entry.partition("@")[0] for entry in listed if isinstance(entry, str) and entry != "_self_"]
    return [CONF / f"{name.lstrip('/')}.yaml" if name[0] == "/" else CONF / group / f"{name}.yaml" for name in names]


def values_of(group: str, path: Path) -> dict[str, Any]:
    """Return the values of a group that a file of conf/ sets, including those of its defaults."""
    values: dict[str, Any] = {}
    for base in _bases(group, path):
        values |= values_of(group, base)
    text = path.read_text(encoding="utf-8")
    own = yaml.safe_load(text) or {}
    return values | (own.get(group, {}) if "@package _global_" in text else own)


def comments_of(group: str, path: Path) -> dict[str, str]:
    """Return the comment beside each key; a comment in the file's defaults takes precedence."""
    comments = {key.removeprefix(f"{group}."): text for key, text in key_comments(path).items()}
    for base in _bases(group, path):
        comments |= comments_of(group, base)
    return comments


def key_comments(path: Path) -> dict[str, str]:
    """Return the comment beside each key, by the key's name with dots."""
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(\w+):(?: [^#]*?)?(?:#\s*(.*))?$", line):
            depth = len(match[1])
            parents = [(indent, name) for indent, name in parents if indent < depth] + [(depth, match[2])]
            last = ".".join(name for _, name in parents)
            if match[3]:
                comments[last] = match[3]
        elif (match := re.match(r" +#\s*(.*)$", line)) and last in comments:
            comments[last] += f" {match[1]}"
        elif not line.startswith(" "):
            last = ""
    return comments


def header(path: Path) -> str:
    """Return the comment that a file of conf/ opens with."""
    lines = path.read_text(encoding="utf-8").removeprefix("# @package _global_\n").splitlines()
    return "\n".join(line[1:].removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), lines)).strip()
