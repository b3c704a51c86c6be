"""Detection of groups in file names: `patient012_slice03.png` looks like one of several images of a patient."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from numpy.typing import NDArray

SEPARATORS = r"_.\- "  # the characters of names that separate words, as in a character class
SEPARATOR = re.compile(f"[{SEPARATORS}]+")
SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")  # re.escape would escape "-" and " ", too
COMPACT = re.compile(r"([A-Za-z]*\d+)[A-Za-z]+\d*")  # p12s3, scan7a: a number, letters and perhaps another number
DATE = re.compile(r"(?<!\d)(19|20)\d\d(\d{4})?(?!\d)")  # photographs of a day or of a year
# Parts of a data set, which say how it is stored and not what belongs together.
CHUNKS = {
    "train",
    "val",
    "valid",
    "test",
    "part",
    "batch",
    "shard",
    "chunk",
    "fold",
    "split",
    "set",
    "images",
    "folder",
}
MAX_WORDS = 6  # maximum number of words in a prefix
COVERED = 0.9  # minimum fraction of the names that have the prefix or folder
SHARED = 0.5  # minimum fraction of the images whose group has several images
MIN_GROUPS, ENOUGH_GROUPS = 5, 10  # fewer groups are no sign; where there are enough, no longer prefix is tried


@dataclass(frozen=True)
class GroupSuggestion:
    """Groups that file names suggest.

    Attributes:
        pattern: the value of `data.group_pattern`.
        groups: number of groups with several images.
        divided: number of groups that stand in more than one split.
        examples: the names of two images of one group in different splits.
        unmatched: number of names that the pattern does not match.
    """

    pattern: str
    groups: int
    divided: int
    examples: tuple[str, str]
    unmatched: int

    @property
    def warning(self) -> str:
        """Return a message that says what was found and how to keep the groups together."""
        unmatched = f" ({self.unmatched} names do not match it)" if self.unmatched else ""
        return (
            f"file names look as if images belonged together in {self.groups} groups, of which {self.divided} stand in "
            f"more than one split, such as {self.examples[0]} and {self.examples[1]}. If these show one patient, scene "
            f"or video, the results are too good: keep such images together by "
            f"data.group_pattern={shlex.quote(self.pattern)}{unmatched}"
        )


class _Candidate(NamedTuple):
    """A way to read groups from names.

    Attributes:
        keys: the group of each name; empty where a name has none.
        ends: what follows the group in some of the names, as in a character class.
        general: a regular expression for groups of any spelling.
    """

    keys: list[str]
    ends: str
    general: str


def suggest_groups(names: Sequence[str], labels: NDArray[Any], splits: Sequence[str]) -> GroupSuggestion | None:
    r"""Return the groups that file names suggest if splits divide them.

    Folders within a class, and what precedes the last words of a file's name, are taken for groups if they contain a
    number, if most images share theirs with another image of their class, and if they tell more than the class. So
    `cat/patient3/01.png`, `scan7_04.jpg` and `P0003_left.png` are grouped; `image_0001.jpg`, `cat.123.jpg`,
    `Abyssinian_12.jpg`, `1095476100_3906d8afde.jpg` and `IMG_20250102_030405.jpg` are not.

    Args:
        names: paths relative to the root, with slashes.
        labels: class index of each image, shape (N,).
        splits: the split of each image.

    Returns:
        The suggestion, or None if the names do not look grouped, or all groups are whole.
    """
    best, most = None, 0
    for candidate in _candidates(names):
        groups = _count_groups(candidate.keys, labels.tolist())
        if groups > most:
            best, most = candidate, groups
        if groups >= ENOUGH_GROUPS:
            break
    if best is None or most < MIN_GROUPS:
        return None
    sides: dict[str, dict[str, str]] = defaultdict(dict)  # by group, an image's name in each split
    for key, name, split in zip(best.keys, names, splits, strict=True):
        if key:
            sides[key].setdefault(split, name)
    divided = [tuple(by_split.values())[:2] for by_split in sides.values() if len(by_split) > 1]
    if len(divided) < 2:
        return None
    pattern = _pattern(best, names)
    unmatched = sum(re.search(pattern, name) is None for name in names)
    return GroupSuggestion(pattern, most, len(divided), (divided[0][0], divided[0][1]), unmatched)


def _candidates(names: Sequence[str]) -> Iterator[_Candidate]:
    """Yield the folders at each depth, then the first words of the files' names: one, two, and so on."""
    paths = [PurePosixPath(name) for name in names]
    for depth in range(max((len(path.parts) for path in paths), default=1) - 1):
        keys = [path.parts[depth] if depth < len(path.parts) - 1 else "" for path in paths]
        yield _Candidate(keys, "/", f"^(?:[^/]+/){{{depth}}}([^/]+)/")
    stems = [path.stem for path in paths]
    compact = [COMPACT.fullmatch(stem) for stem in stems]
    yield _Candidate([match[1] if match else "" for match in compact], "A-Za-z", r"(?:^|/)([A-Za-z]*\d+)[A-Za-z]")
    separators = [[match for match in SEPARATOR.finditer(stem) if match.start() > 0] for stem in stems]
    word = f"[^/{SEPARATORS}]+"
    for words in range(1, MAX_WORDS + 1):
        found = [
            (s, ends[words - 1]) if len(ends) >= words else None for s, ends in zip(stems, separators, strict=True)
        ]
        keys = [stem_end[0][: stem_end[1].start()] if stem_end else "" for stem_end in found]
        following = {stem_end[1][0][0] for stem_end in found if stem_end}
        ends = "".join(character for character in "_. -" if character in following)  # "-" last: it is no range
        longer = f"(?:[{SEPARATORS}]+{word}){{{words - 1}}}" if words > 1 else ""
        yield _Candidate(keys, ends, f"(?:^|/)({word}{longer})[{SEPARATORS}][^/]*$")


def _count_groups(keys: Sequence[str], labels: Sequence[int]) -> int:
    """Return the number of groups with several images of one class, or 0 if the keys do not look like groups."""
    images = Counter(key for key in keys if key)
    if not images or images.total() < COVERED * len(keys):
        return 0
    by_class: dict[int, Counter[str]] = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        if key:
            by_class[label][key] += 1
    shared = {key for counter in by_class.values() for key, count in counter.items() if count > 1}
    several = sum(len(counter) > 1 for counter in by_class.values())  # classes with more than one group
    if sum(images[key] for key in shared) < SHARED * len(keys) or several <= len(by_class) / 2:
        return 0
    numbered = [key for key in images if re.search(r"\d", key) and not DATE.search(key) and not _is_chunk(key)]
    return len(shared) if len(numbered) > len(images) / 2 else 0


def _is_chunk(key: str) -> bool:
    return re.sub(rf"[\d{SEPARATORS}]", "", key).lower() in CHUNKS


def _pattern(candidate: _Candidate, names: Sequence[str]) -> str:
    r"""Return the shortest regular expression that finds the groups, such as `(patient\d+)_`."""
    shapes = {re.sub(r"\d+", "0", key) for key in candidate.keys if key}
    patterns = [candidate.general]
    if len(shapes) == 1:
        words = r"\d+".join(SPECIAL.sub(r"\\\g<0>", part) for part in shapes.pop().split("0"))
        end = f"[{candidate.ends}]" if len(candidate.ends) > 1 or candidate.ends == "." else candidate.ends
        patterns = [f"({words}){end}", f"(?:^|/)({words}){end}", *patterns]
    pairs = [(key, name) for key, name in zip(candidate.keys, names, strict=True) if key]
    return next((p for p in patterns if all(_finds(p, key, name) for key, name in pairs)), candidate.general)


def _finds(pattern: str, key: str, name: str) -> bool:
    match = re.search(pattern, name)
    return match is not None and match[1] == key
