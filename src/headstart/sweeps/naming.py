"""Names of sweeps and jobs, derived from their overrides so that a repeated command finds the same folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from headstart.runs import jobs

MAX_BYTES = 120  # most file systems allow 255
# A command that differs only in overrides of these keys resumes the same sweep.
NO_EFFECT = ("launcher", *jobs.NO_EFFECT)


def sweep_name(start: str, overrides: Sequence[str]) -> str:
    """Return the name of a sweep, such as grid-head-lr-1f0a3b42, from how it begins and the overrides.

    The order of the overrides does not matter, and those without effect on results are ignored.
    """
    overrides = sorted(filter(affects_results, overrides))
    swept = "-".join(swept_keys(OverridesParser.create().parse_overrides(overrides)))
    digest = hashlib.sha256("\n".join([start, *overrides]).encode()).hexdigest()[:8]
    return "-".join(part for part in (start, _clean(swept)[:60].strip("-"), digest) if part)


def affects_results(override: str) -> bool:
    """Tell whether an override may change the weights or metrics of a job."""
    key = override.lstrip("+~").partition("=")[0]
    return not any(key == name or key.startswith(f"{name}.") for name in NO_EFFECT)


def swept_keys(overrides: Iterable[Override]) -> list[str]:
    """Return the keys of overrides that have several values."""
    return [override.get_key_element().lstrip("+") for override in overrides if override.is_sweep_override()]


def job_name(overrides: Sequence[str], swept: Collection[str]) -> str:
    """Return the name of a job, such as head=mlp,lr=0.01, made of its overrides of swept keys.

    If a value was shortened or has characters that a file name cannot have, six digits of a digest make the name
    unique.
    """
    # Sorted, so that the order of the overrides does not matter.
    pairs = sorted(text.lstrip("+") for text in overrides if text.lstrip("+").partition("=")[0] in swept)
    name = ",".join(map(_shorten, pairs))
    if name == ",".join(pairs) and 0 < len(name.encode()) <= MAX_BYTES and not name.startswith("."):
        return name
    digest = hashlib.sha256("\n".join(pairs).encode()).hexdigest()[:6]
    start = name.encode()[: MAX_BYTES - 7].decode(errors="ignore")  # omits a character that was cut in two
    return f"{start}-{digest}".lstrip("-.")


def _shorten(override: str) -> str:
    key, _, value = override.partition("=")
    try:
        number = float(value)
        value = f"{number:.4g}" if len(value) > 8 else value
    except ValueError:
        value = value.strip("'\"")
        value = value.rstrip("/").rpartition("/")[2] or value  # the last part of a path
    return f"{_clean(key)}={_clean(value)}"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
