"""Dataclass fields for structured configs, with the range of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any

AUTO = "auto"  # in place of a number: measure it


def within(test: Callable[[Any], bool], expected: str, default: Any = MISSING) -> Any:
    """Return a dataclass field whose value must pass a test, unless it is null.

    Args:
        test: tells whether a value is valid.
        expected: completes the message "expected ...".
        default: default value of the field.
    """
    return field(default=default, metadata={"test": test, "expected": expected})


def at_least(minimum: int, default: Any = MISSING) -> Any:
    """Return a field for a whole number of at least `minimum`."""
    return within(lambda value: value >= minimum, f"a whole number of at least {minimum}", default)


def pixels(most: int) -> Any:
    """Return a field for the side of an image: a whole number of pixels from 1 to `most`."""
    return within(lambda value: 1 <= value <= most, f"a whole number of pixels from 1 to {most}")


def or_auto(number: Any) -> Any:
    """Return a field for the values of another field of this module, or the word auto; with the other's default."""
    test, expected = number.metadata["test"], number.metadata["expected"]
    return within(
        lambda value: value == AUTO or (not isinstance(value, str) and test(value)),
        f"{expected}, or {AUTO}",
        number.default,
    )


def positive(default: Any = MISSING) -> Any:
    """Return a field for a finite number above 0."""
    return within(lambda value: 0 < value < float("inf"), "a number above 0", default)


def not_negative() -> Any:
    """Return a field for a finite number of at least 0."""
    return within(lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(*, zero: bool) -> Any:
    """Return a field for a fraction below 1; `zero` tells whether 0 is valid."""
    if zero:
        return within(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
    return within(lambda value: 0 < value < 1, "a number between 0 and 1")


def batches() -> Any:
    """Return a field for a limit of batches: an int counts batches, a float is a fraction of the epoch."""
    return within(
        lambda value: value >= 1 if isinstance(value, int) else 0 < value <= 1,
        "a whole number of batches of at least 1, or a fraction of them above 0 and at most 1.0",
    )
