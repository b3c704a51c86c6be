"""Groups of images, such as those of one patient: found by name, kept apart, and described."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import LabelledImages, Samples
from headstart.utils.errors import DataError

NAMED = 5  # maximum number of groups that an error names


def match_groups(images: LabelledImages, pattern: str, source: str) -> LabelledImages:
    r"""Return images with the groups that a regular expression finds in their names.

    Args:
        images: image files, named by their paths relative to the root, with slashes.
        pattern: a regular expression such as `(scan\d+)_`, searched for in each name. The group is the first capture
            group, or the whole match if the expression has none.
        source: the data source, for the message.

    Raises:
        DataError: the images are not files, or there are names without a group.
    """
    splits, without = {}, []
    for split, samples in images.splits.items():
        if isinstance(samples.images, np.ndarray):
            raise DataError(
                f"data.group_pattern={pattern} looks at the names of files, and the images of data={source} are not "
                f"files. Leave it out."
            )
        matches = [re.search(pattern, name) for name in samples.names]
        groups = [(match[1 if match.re.groups else 0] or "") if match else "" for match in matches]
        without += [name for name, group in zip(samples.names, groups, strict=True) if not group]
        splits[split] = replace(samples, groups=groups)
    if without:
        total = sum(map(len, splits.values()))
        raise DataError(
            f"data.group_pattern={pattern} finds no group in {len(without)} of {total} names, such as {without[0]}. "
            f"Names are relative to the folder of the images. Change the pattern, or take these images out."
        )
    return replace(images, splits=splits)


def check_apart(splits: Mapping[str, Samples]) -> None:
    """Check that no group stands in two of the splits that a data source has.

    Raises:
        DataError: some do; the message names them.
    """
    sides: dict[str, dict[str, None]] = {}  # the splits of each group, in order
    for split, samples in splits.items():
        for group in samples.groups or ():
            sides.setdefault(group, {})[split] = None
    divided = [f"{group} ({' and '.join(where)})" for group, where in sides.items() if len(where) > 1]
    if divided:
        more = f" and {len(divided) - NAMED} more" if len(divided) > NAMED else ""
        raise DataError(
            f"{len(divided)} of {len(sides)} groups stand in more than one split of the data: "
            f"{', '.join(divided[:NAMED])}{more}. A model would be tested on groups that it was trained on. Move each "
            f"group into one split, or put all images into train, and headstart splits them by groups."
        )


def describe_groups(source: LabelledImages, splits: Mapping[str, Samples], fractions: Mapping[str, float]) -> str:
    """Describe in a line how splits by groups differ from what was asked for.

    Args:
        source: the images before they were split.
        splits: the splits, with groups.
        fractions: fraction of the source's training images that each split was to have, if it was taken from them.
    """
    everything = source.splits["train"].labels
    parts = []
    for split, samples in splits.items():
        part = f"{split} {len(set(samples.groups or ()))} groups, {len(samples)} images"
        if split in fractions and split not in source.splits:
            here, overall = (_class_fractions(labels, source) for labels in (samples.labels, everything))
            label = int(np.abs(here - overall).argmax())
            part += (
                f" ({math.ceil(len(everything) * fractions[split])} asked), class fractions within "
                f"{abs(here - overall)[label]:.3f} of those of all images ({source.class_names[label]}: "
                f"{here[label]:.3f} and {overall[label]:.3f})"
            )
        parts.append(part)
    total = len({group for samples in source.splits.values() for group in samples.groups or ()})
    return f"{total} groups, none in two splits: {'; '.join(parts)}"


def _class_fractions(labels: NDArray[np.int64], source: LabelledImages) -> NDArray[np.float64]:
    """Return the fraction of the images that each class has, shape (classes,)."""
    return np.bincount(labels, minlength=len(source.class_names)) / len(labels)
