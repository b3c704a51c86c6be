"""Writes what the code already says into docs/: the keys of the control panel, the recipes and the Python API.

`python -m docs.generate` rewrites the text between the two marks of each page. tests/end_to_end/test_docs.py fails
where that would change anything.
"""

from __future__ import annotations

from .pages import DOCS, PAGES, renewed

for name in PAGES:
    (DOCS / name).write_text(renewed(name), encoding="utf-8")
