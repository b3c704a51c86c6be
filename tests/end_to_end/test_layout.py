"""The layout of the package: imports between its wings point down only, and no file or function is too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import headstart

PACKAGE = Path(headstart.__file__).parent
# From the ground up: a wing may import those before it, and itself. `cache` and `runs` stand side by side.
RANKS = {
    "utils": 0,
    "config": 1,
    "data": 2,
    "models": 3,
    "cache": 4,
    "runs": 4,
    "training": 5,
    "inference": 6,
    "report": 7,
    "checks": 8,
    "advice": 9,
    "train": 10,
    "cli": 11,
    "cross_validation": 11,
    "sweeps": 12,
}
MAX_FILE, MAX_FUNCTION = 300, 60  # lines


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of headstart that a file imports, at its top or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parts(module: str) -> tuple[str, ...]:
    """A module of headstart below the package; nothing of others."""
    first, *rest = module.split(".")
    return tuple(rest) if first == "headstart" else ()


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_imports_point_down() -> None:
    wrong = []
    for file in files():
        wing, *rest = file.relative_to(PACKAGE).with_suffix("").parts
        if not rest and wing == "__init__":
            continue  # `headstart.load`
        for module in imported(ast.parse(file.read_text(encoding="utf-8"))):
            other = parts(module)
            if other and other[0] in RANKS and other[0] != wing and RANKS[other[0]] >= RANKS[wing]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_every_wing_has_a_rank() -> None:
    assert {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in files()} == {*RANKS, "__init__"}


def test_packages_are_empty() -> None:
    assert [
        file for file in files() if file.name == "__init__.py" and file.parent != PACKAGE and file.read_text()
    ] == []


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{file.relative_to(PACKAGE)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for file in files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION} == {}


def test_no_file_is_too_long() -> None:
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines()) for file in files()}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_FILE} == {}
