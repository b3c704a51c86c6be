"""Fields of the schema that have a range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any

AUTO = "auto"  # in the place of a number: measure it


def within(test: Callable[[Any], bool], words: str, default: Any = MISSING) -> Any:
    """A field whose value, if it is not null, must pass `test`; `words` finish the sentence "expected ..."."""
    return field(default=default, metadata={"test": test, "words": words})


def at_least(minimum: int) -> Any:
    """A whole number of at least `minimum`."""
    return within(lambda value: value >= minimum, f"a whole number of at least {minimum}")


def pixels(most: int) -> Any:
    """The side of an image."""
    return within(lambda value: 1 <= value <= most, f"a whole number of pixels from 1 to {most}")


def or_auto(number: Any) -> Any:
    """What another field takes, or the word auto."""
    test, words = number.metadata["test"], number.metadata["words"]
    return within(lambda value: value == AUTO or (not isinstance(value, str) and test(value)), f"{words}, or {AUTO}")


def positive() -> Any:
    """A number above 0."""
    return within(lambda value: 0 < value < float("inf"), "a number above 0")


def not_negative() -> Any:
    """A number of at least 0."""
    return within(lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(*, zero: bool) -> Any:
    """A fraction of something: below 1, and above 0 unless zero is meant to be possible."""
    if zero:
        return within(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
    return within(lambda value: 0 < value < 1, "a number between 0 and 1")


def batches() -> Any:
    """How many batches of an epoch."""
    return within(
        lambda value: value >= 1 if isinstance(value, int) else 0 < value <= 1,
        "a whole number of batches of at least 1, or a fraction of them above 0 and at most 1.0",
    )
