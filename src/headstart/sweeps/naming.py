"""What sweeps and their jobs are called: by what distinguishes them, so that the same words find the same folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from headstart.sweeps.jobs import UNTOLD

LONGEST = 120  # bytes; most file systems take 255
# Words that say where or how long a sweep runs: with others, the same sweep goes on.
ELSEWHERE = ("launcher", *UNTOLD)


def sweep_name(choice: str, words: Sequence[str]) -> str:
    """A name for a command: the same for the same words in any order.

    Args:
        choice: of `sweep`, such as grid or optuna.
        words: of the command line, such as `lr=1e-3,1e-2`; those of `ELSEWHERE` do not count.

    Returns:
        Such as grid-head-lr-1f0a3b42.
    """
    telling = sorted(word for word in words if not is_elsewhere(word))
    swept = "-".join(swept_keys(OverridesParser.create().parse_overrides(telling)))
    digest = hashlib.sha256("\n".join([choice, *telling]).encode()).hexdigest()[:8]
    return "-".join(part for part in (choice, _clean(swept)[:60].strip("-"), digest) if part)


def is_elsewhere(word: str) -> bool:
    """Whether a word of the command line is one of `ELSEWHERE`."""
    key = word.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in ELSEWHERE)


def swept_keys(words: Iterable[Override]) -> list[str]:
    """The keys that have several values."""
    return [word.get_key_element().lstrip("+") for word in words if word.is_sweep_override()]


def job_name(words: Sequence[str], swept: Collection[str]) -> str:
    """The name of a job: those of its words that are swept.

    Args:
        words: of one job, such as `head=mlp` and `lr=0.01`.
        swept: keys.

    Returns:
        Such as head=mlp,lr=0.01. Where a value had to be shortened, or has what a file's name may not have, six digits
        of its digest follow: no two jobs share a name.
    """
    # Sorted, so that the same words in another order are the same job.
    telling = sorted(word.lstrip("+") for word in words if word.lstrip("+").partition("=")[0] in swept)
    shown = ",".join(_shown(word) for word in telling)
    if shown == ",".join(telling) and 0 < len(shown.encode()) <= LONGEST and not shown.startswith("."):
        return shown
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:6]
    kept = shown.encode()[: LONGEST - 7].decode(errors="ignore")  # a character that is cut through is left out
    return f"{kept}-{digest}".lstrip("-.")


def _shown(word: str) -> str:
    key, _, value = word.partition("=")
    try:
        number = float(value)
        value = f"{number:.4g}" if len(value) > 8 else value
    except ValueError:
        value = value.strip("'\"")
        value = value.rstrip("/").rpartition("/")[2] or value  # a path: its last part
    return f"{_clean(key)}={_clean(value)}"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
