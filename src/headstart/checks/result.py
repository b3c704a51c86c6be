"""What a check has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from headstart.checks.findings import TIERS, Consequence, Finding
from headstart.checks.table import ImageTable


@dataclass(frozen=True)
class CheckResult:
    """What a check has found.

    Attributes:
        table: the images, with the splits that training makes.
        findings: what was found, by kind in the order of `KINDS`, and the worst of a kind first.
        consequences: what copies in two splits do to a result; empty without the features tier.
        notes: messages for the user, such as which files were skipped.
        tiers: the tiers that were checked.
        tested: whether the data come with a test split.
    """

    table: ImageTable
    findings: list[Finding]
    consequences: list[Consequence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tiers: Sequence[str] = TIERS
    tested: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of findings by kind, in the order of `KINDS`."""
        return dict(Counter(found.kind for found in self.findings))
