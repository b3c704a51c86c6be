"""The Python API as a page: signatures and docstrings, read without importing anything."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src" / "headstart"
# What people call from Python, by file.
API = {
    "__init__.py": ("load", "check", "advise"),
    "advice/result.py": ("Advice", "Measured", "Candidate", "Estimate"),
    "checks/result.py": ("CheckResult",),
    "checks/findings.py": ("Finding",),
    "inference/model.py": (
        "Model", "Model.predict", "Model.predict_each", "Model.evaluate", "Model.logits_each", "Model.logits",
        "Prediction",
    ),
    "runs/predictions.py": ("Evaluation",),
    "inference/explain/heatmaps.py": ("explain", "Heatmap"),
    "inference/export.py": ("export",),
    "training/checkpoints.py": ("load_checkpoint",),
    "training/classifier.py": ("TransferClassifier",),
    "train.py": ("run",),
}  # fmt: skip


def api() -> str:
    """Return a section for each public name: how to import it, its signature and its docstring."""
    return "\n".join(_section(SOURCE / file, name) for file, names in API.items() for name in names)


def _section(path: Path, name: str) -> str:
    node: Any = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(item for item in node.body if getattr(item, "name", None) == part)
    module = ".".join(("headstart", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    code = [] if "." in name else [f"from {module} import {name}"]
    if isinstance(node, ast.FunctionDef):
        code.append(_signature(name, node))
    return "\n".join([f"## {name}\n", "```python", *code, "```\n", _markdown(ast.get_docstring(node) or "")])


def _signature(name: str, node: ast.FunctionDef) -> str:
    """Return a function's signature, in several lines where one would be too long."""
    arguments = ast.unparse(node.args).removeprefix("self, ")
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({arguments}){result}"
    if len(line) <= 80:
        return line
    return f"{name}(\n    " + re.sub(r", (?=[*\w]+(?:[:=,]|$))", ",\n    ", arguments) + f",\n){result}"


def _markdown(docstring: str) -> str:
    """Return a docstring in Google style as Markdown."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        if match := re.match(r"(Args|Attributes|Returns|Yields|Raises):$", line):
            section = match[1]
            lines += [f"**{section.replace('Args', 'Arguments')}**", ""]
        elif not line.startswith(" "):
            section = ""
            lines.append(line)
        elif section in ("Returns", "Yields") or line.startswith("     "):
            lines.append(line.strip() if section in ("Returns", "Yields") else f"  {line.strip()}")
        elif match := re.match(r" +([\w*]+): (.*)$", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"
