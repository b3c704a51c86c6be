"""What a table says of each backbone, on the terminal and on the page."""

from __future__ import annotations

from pathlib import Path

from headstart.advice.result import Advice, Estimate, Measured
from headstart.report.style import short

LIBRARIES = ("torchvision/", "timm/")


def verdict(measured: Measured, advice: Advice) -> str:
    """Return what a backbone is: recommended, may be best or clearly worse."""
    if measured.candidate.name == advice.recommended.candidate.name:
        return "recommended"
    return "may be best" if measured.may_be_best else "clearly worse"


def at_all(measured: Measured, images: int) -> Estimate | None:
    """Return the accuracy of a head that is fitted to all training images; None if the sample does not say.

    Args:
        measured: a backbone.
        images: number of training images.
    """
    return next((estimate for count, estimate in measured.curve if count >= images), None)


def label(name: str, length: int = 26) -> str:
    """Return a short form of a candidate's name: without the library, and without the folders of a file of weights."""
    network, separator, weights = name.partition("@")
    for library in LIBRARIES:
        network = network.removeprefix(library)
    return short(f"{network}{separator}{Path(weights).name}", length)


def rows(advice: Advice) -> list[list[str]]:
    """Return a header and a row for each backbone that was measured, as text; accuracies in per cent."""
    header = ["backbone", "licence", "accuracy %", f"at all {advice.images:,}", "images/s", "MB", ""]
    return [header, *(_row(measured, advice) for measured in advice.measured)]


def _row(measured: Measured, advice: Advice) -> list[str]:
    candidate = measured.candidate
    return [
        candidate.label,
        licence_name(candidate.licence),
        _format(measured.accuracy),
        _format(at_all(measured, advice.images)),
        format_rate(measured.rate),
        "" if candidate.megabytes is None else f"{candidate.megabytes:,.0f}",
        verdict(measured, advice),
    ]


def licence_name(licence: str | None) -> str:
    """Return a short name of a licence: of an address such as https://github.com/OWNER/NAME/..., NAME."""
    if licence is None:
        return "not stated"
    parts = licence.split("/")
    return parts[4] if licence.startswith("https://") and len(parts) > 4 else licence


def format_rate(rate: float) -> str:
    """Format images a second: two digits if it is small, a whole number otherwise."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _format(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
