"""Names of sweeps and jobs, derived from their overrides so that a repeated command finds the same folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from headstart.sweeps.jobs import UNTOLD

LONGEST = 120  # bytes; most file systems allow 255
# Overrides that do not change results: a command that differs only in these resumes the same sweep.
ELSEWHERE = ("launcher", *UNTOLD)


def sweep_name(choice: str, words: Sequence[str]) -> str:
    """Return the name of a sweep, which does not depend on the order of its overrides.

    Args:
        choice: the choice of the config group `sweep`, such as grid or optuna.
        words: the overrides, such as `lr=1e-3,1e-2`; those of `ELSEWHERE` are ignored.

    Returns:
        A name such as grid-head-lr-1f0a3b42.
    """
    telling = sorted(word for word in words if not is_elsewhere(word))
    swept = "-".join(swept_keys(OverridesParser.create().parse_overrides(telling)))
    digest = hashlib.sha256("\n".join([choice, *telling]).encode()).hexdigest()[:8]
    return "-".join(part for part in (choice, _clean(swept)[:60].strip("-"), digest) if part)


def is_elsewhere(word: str) -> bool:
    """Tell whether an override is one of `ELSEWHERE`."""
    key = word.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in ELSEWHERE)


def swept_keys(words: Iterable[Override]) -> list[str]:
    """Return the keys of overrides that have several values."""
    return [word.get_key_element().lstrip("+") for word in words if word.is_sweep_override()]


def job_name(words: Sequence[str], swept: Collection[str]) -> str:
    """Return the name of a job, made of its swept overrides.

    Args:
        words: the overrides of one job, such as `head=mlp` and `lr=0.01`.
        swept: the keys that have several values in the sweep.

    Returns:
        A name such as head=mlp,lr=0.01. If a value was shortened or has characters that a file name cannot have, six
        digits of a digest make the name unique.
    """
    # Sorted, so that the order of the overrides does not matter.
    telling = sorted(word.lstrip("+") for word in words if word.lstrip("+").partition("=")[0] in swept)
    shown = ",".join(_shown(word) for word in telling)
    if shown == ",".join(telling) and 0 < len(shown.encode()) <= LONGEST and not shown.startswith("."):
        return shown
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:6]
    kept = shown.encode()[: LONGEST - 7].decode(errors="ignore")  # omits a character that was cut in two
    return f"{kept}-{digest}".lstrip("-.")


def _shown(word: str) -> str:
    key, _, value = word.partition("=")
    try:
        number = float(value)
        value = f"{number:.4g}" if len(value) > 8 else value
    except ValueError:
        value = value.strip("'\"")
        value = value.rstrip("/").rpartition("/")[2] or value  # the last part of a path
    return f"{_clean(key)}={_clean(value)}"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
