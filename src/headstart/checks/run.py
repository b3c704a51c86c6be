"""Check of a user's images: what is found, and the files that it leaves."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.cache.disk import writable_cache_folder
from headstart.checks.clean import clean_tables, copy_groups
from headstart.checks.copies import belonging_together
from headstart.checks.facts import Facts, read_facts
from headstart.checks.files import file_findings, group_findings
from headstart.checks.findings import TIERS, Consequence, Finding, check_names, issues_csv, ordered
from headstart.checks.page import write_page
from headstart.checks.pixels import pixel_findings
from headstart.checks.result import CheckResult
from headstart.checks.table import ImageTable, image_table
from headstart.config.schema import Config
from headstart.data.build import open_grouped, split_images
from headstart.data.dataset import LabelledImages
from headstart.utils.errors import DataError
from headstart.utils.files import write_text
from headstart.utils.progress import progress_bar


def check(
    config: Config,
    folder: Path,
    tiers: Collection[str] = TIERS,
    *,
    drop: Collection[str] = (),
    overrides: Sequence[str] = (),
) -> CheckResult:
    """Check images, and write index.html, issues.csv and, if the images are files, clean.csv and clean_test.csv.

    Args:
        config: the checked configuration: data, and model for the features tier.
        folder: the folder to write to.
        tiers: those of `TIERS` that are checked.
        drop: kinds of findings whose images are left out of clean.csv; see `clean_tables`.
        overrides: the overrides of the command line, for the command that trains with clean.csv.

    Raises:
        HeadstartError: the images cannot be listed, or the features tier lacks weights; as in training.
    """
    result = find_issues(config, tiers)
    write_text(folder / "issues.csv", issues_csv(result.findings))
    clean = None
    if not isinstance(result.table.samples.images, np.ndarray):
        clean = clean_tables(result.table, result.findings, tested=result.tested, drop=drop)
        clean.write(folder)
    options = [] if len(result.tiers) == len(TIERS) else ["--tiers", ",".join(result.tiers)]
    options += ["--drop", ",".join(drop)] if drop else []
    write_page(result, config, folder, clean=clean, overrides=overrides, options=options)
    return result


def find_issues(config: Config, tiers: Collection[str] = TIERS) -> CheckResult:
    """Check images in some tiers, and return what was found; nothing is written but to the cache.

    Images that `data.train_per_class` would leave out are checked, too.

    Raises:
        ConfigError: a tier is unknown.
        HeadstartError: see `check`.
    """
    check_names(tiers, TIERS, "tiers")
    source = open_grouped(config.data)
    images, refused = _splits(source, replace(config, data=replace(config.data, train_per_class=None)))
    table = image_table(images)
    facts = _facts(table, decode=set(tiers) != {"files"})
    of_files = [*refused, *file_findings(table, facts), *group_findings(table)]
    of_pixels = [] if facts.pixels is None else pixel_findings(table, facts)
    same = copy_groups(table, [*of_files, *of_pixels], ["copy"])
    findings = of_files if "files" in tiers else []
    if "pixels" in tiers:
        from headstart.checks.wrapper import wrapper_findings  # imported late: scikit-learn takes seconds

        groups = belonging_together(table, same)
        findings = [*findings, *of_pixels, *wrapper_findings(table, *facts.columns(), groups=groups)]
    consequences: list[Consequence] = []
    notes = list(images.notes)
    if "features" in tiers:
        from headstart.checks.features import feature_findings  # imported late, as scikit-learn is

        # Features have no more to say on pictures that bytes or pixels show to be the same.
        results = feature_findings(config, *_readable(table, facts, same), tested="test" in source.splits)
        findings = [*findings, *results.findings]
        consequences, notes = results.consequences, [*notes, *results.notes]
    checked = [tier for tier in TIERS if tier in tiers]
    return CheckResult(table, ordered(findings), consequences, notes, checked, "test" in source.splits)


def _facts(table: ImageTable, *, decode: bool) -> Facts:
    with progress_bar("Pixels" if decode else "Files", len(table), shown=sys.stderr.isatty(), stderr=True) as advance:
        return read_facts(table, decode=decode, folder=writable_cache_folder(), advance=advance)


def _splits(source: LabelledImages, config: Config) -> tuple[LabelledImages, list[Finding]]:
    """Return the images with the splits of training; if it refuses to make them, those of the source, and a finding."""
    try:
        return split_images(source, config.data), []
    except DataError as error:
        return source, [Finding("splits", "all images", detail=str(error))]


def _readable(table: ImageTable, facts: Facts, groups: Sequence[Sequence[int]]) -> tuple[ImageTable, list[list[int]]]:
    """Return the images that can be read, and groups of indices into all images as indices into those."""
    readable = np.array([not error for error in facts.error], dtype=bool)
    chosen: NDArray[np.int64] = np.flatnonzero(readable)
    places = np.cumsum(readable) - 1
    among = [[int(places[index]) for index in group if readable[index]] for group in groups]
    rest = ImageTable(table.samples.take(chosen), table.splits[chosen], table.class_names)
    return rest, [group for group in among if len(group) > 1]
