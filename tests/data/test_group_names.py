"""File names that look grouped are told from those that do not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headstart.data.build import open_images
from headstart.data.group_names import GroupSuggestion, suggest_groups
from tests.helpers.images import planted_groups
from tests.helpers.runs import composed

CLASSES = ("cat", "dog")
Name = Callable[[str, int, int], str]  # from class, group and number within the group


def suggested(names: list[str], labels: list[int]) -> GroupSuggestion | None:
    rng = random.Random(0)
    return suggest_groups(names, np.array(labels), [rng.choice(("train", "train", "val", "test")) for _ in names])


def hexadecimal(seed: object, bits: int) -> str:
    return f"{random.Random(str(seed)).getrandbits(bits):0{bits // 4}x}"


GROUPED: dict[str, tuple[Name, str]] = {
    "patients": (lambda c, g, i: f"{c}/patient{g:03}_slice{i:02}.png", r"(patient\d+)_"),
    "scans": (lambda c, g, i: f"{c}/scan{g}_{i:02}.jpg", r"(scan\d+)_"),
    "sides": (lambda _, g, i: f"P{g:04}_{('left', 'right', 'top', 'back')[i]}.png", r"(P\d+)_"),
    "videos": (lambda c, g, i: f"train/{c}/video{g}_frame{i:04}.jpg", r"(video\d+)_"),
    "folders": (lambda c, g, i: f"{c}/patient{g}/{i:02}.png", r"(patient\d+)/"),
    "folders with scans": (lambda c, g, i: f"{c}/patient{g}/scan{i}_0.png", r"(patient\d+)/"),
    "sites": (lambda c, g, i: f"{c}/site{g % 3}/case {g} - {i}.png", r"(case \d+) "),
    "hyphens": (lambda _, g, i: f"scan{g}-{i}.jpg", r"(scan\d+)-"),
    "two words": (lambda c, g, i: f"{c}/IMG_{g:04}_{i}.jpg", r"(IMG_\d+)_"),
    "numbers": (lambda c, g, i: f"{c}/{g:08}_{i:03}.png", r"(\d+)_"),
    "no separator": (lambda c, g, i: f"{c}/p{g}s{i}.png", r"(p\d+)[A-Za-z]"),
    "letters": (lambda c, g, i: f"{c}/{g:04}{'abcd'[i]}.png", r"(\d+)[A-Za-z]"),
    "copies": (lambda c, g, i: f"{c}/IMG_{g}_jpg.rf.{hexadecimal((g, i), 64)}.jpg", r"(IMG_\d+)_"),
}


@pytest.mark.parametrize("scheme", GROUPED)
def test_groups_are_suggested(scheme: str) -> None:
    name, pattern = GROUPED[scheme]
    pairs = [(group, index) for group in range(20) for index in range(4)]
    names = [name(CLASSES[group % 2], group, index) for group, index in pairs]
    suggestion = suggested(names, [group % 2 for group, _ in pairs])
    assert suggestion is not None
    assert (suggestion.pattern, suggestion.groups, suggestion.unmatched) == (pattern, 20, 0)
    found = [re.search(pattern, name) for name in names]
    assert len({match[1] for match in found if match}) == 20


def test_groups_of_any_spelling_get_a_pattern_that_finds_them() -> None:
    pairs = [(group, index) for group in range(30) for index in range(4)]
    names = [
        f"SOB_{'BM'[group % 2]}_A-14-{22000 + group}{'ABCD'[group % 4]}-40-{index:03}.png" for group, index in pairs
    ]
    suggestion = suggested(names, [group % 2 for group, _ in pairs])
    assert suggestion is not None
    matches = [re.search(suggestion.pattern, name) for name in names]
    assert {match[1] for match in matches if match} == {name.rsplit("-", 2)[0] for name in names}


ALONE: dict[str, Callable[[str, int], str]] = {
    "numbers": lambda c, i: f"{c}/{i:04}.jpg",
    "counted": lambda c, i: f"{c}/image_{i:04}.jpg",
    "class and number": lambda c, i: f"train/{c}.{i}.jpg",
    "class as a prefix": lambda c, i: f"images/{'Abyssinian' if c == 'cat' else 'american_bulldog'}_{i}.jpg",
    "class as a code": lambda c, i: f"n0144{CLASSES.index(c)}764_{i}.jpg",
    "hashes": lambda c, i: f"{c}/{hexadecimal(i, 32)}.jpg",
    "short hashes": lambda c, i: f"{c}/{hexadecimal(i, 16)}.jpg",
    "UUIDs": lambda c, i: f"{c}/{hexadecimal(i, 32)}-{hexadecimal(-i, 16)}.jpg",
    "Flickr": lambda c, i: f"{c}/{10**9 + 37 * i}_{hexadecimal(i, 40)}_n.jpg",
    "telephones": lambda c, i: f"{c}/IMG_202503{i % 28 + 1:02}_{i:06}.jpg",
    "dates": lambda c, i: f"{c}/2025-03-{i % 28 + 1:02} {i}.jpg",
    "chat": lambda c, i: f"{c}/IMG-2025{i % 12 + 1:02}{i % 28 + 1:02}-WA{i:04}.jpg",
    "screenshots": lambda c, i: f"{c}/Screenshot 2025-03-04 at {i % 24}.{i % 60}.{i}.png",
    "numbers by class": lambda c, i: f"{c}/{i // 2:04}_{c}.jpg",
    "batches": lambda _, i: f"batch{i % 7}/{i}.jpg",
    "a year in all names": lambda c, i: f"{c}/ILSVRC2012_val_{i:08}.JPEG",
    "search results": lambda c, i: f"{c}/images ({i}).jpg",
    "two numbers": lambda c, i: f"{c}/Black_Footed_{i:04}_{7 * i}.jpg",
    "label and number": lambda c, i: f"{CLASSES.index(c)}_{i:05}.png",
}


@pytest.mark.parametrize("scheme", ALONE)
def test_other_names_raise_no_alarm(scheme: str) -> None:
    names = [ALONE[scheme](CLASSES[index % 2], index) for index in range(300)]
    assert suggested(names, [index % 2 for index in range(300)]) is None


def test_groups_that_are_whole_raise_no_alarm() -> None:
    names = [f"scan{group}_{index}.png" for group in range(20) for index in range(4)]
    splits = ["train" if group < 12 else "val" for group in range(20) for _ in range(4)]
    assert suggest_groups(names, np.arange(80) % 2, splits) is None


def test_names_that_do_not_match_are_counted() -> None:
    names = [f"scan{group}_{index}.png" for group in range(20) for index in range(4)]
    suggestion = suggested([*names, "cover.png"], [index % 2 for index in range(81)])
    assert suggestion is not None
    assert suggestion.unmatched == 1
    assert suggestion.warning.endswith(r"data.group_pattern='(scan\d+)_' (1 names do not match it)")


def test_the_warning_can_be_followed(tmp_path: Path) -> None:
    settings = ("data=imagefolder", f"data.root={planted_groups(tmp_path, groups=12, images=5)}")
    (note,) = open_images(composed(*settings).data).notes
    assert re.match(
        r"file names look as if images belonged together in 12 groups, of which \d+ stand in more than one split, such "
        r"as (cat|dog)/(scene\d+)_\d.png and \1/\2_\d.png. If these show one patient",
        note,
    )
    assert note.endswith(r"keep such images together by data.group_pattern='(scene\d+)_'")
    (note,) = open_images(composed(*settings, note.split()[-1]).data).notes
    assert note.startswith("12 groups, none in two splits")


@pytest.mark.parametrize(
    "data",
    [
        ("imagefolder", "hymenoptera"),
        ("pets", "pets-3breeds"),
        ("emergency", "emergency-vehicles"),
    ],
)
def test_real_sets_raise_no_alarm(data: tuple[str, str], shared: Path) -> None:
    source, folder = data
    images = open_images(composed(f"data={source}", f"data.root={shared / 'data' / folder}").data)
    assert not any("belonged together" in note for note in images.notes)
