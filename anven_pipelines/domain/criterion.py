"""One criterion of the sign-off, and what several of them say together.

Every criterion is met, not met, undecided or unmeasured. GO needs all gating criteria met; one that is proven
not met gives NO-GO; anything else is INCONCLUSIVE. What was not measured never passes; a criterion waived by
name does not gate, and the verdict says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from anven_pipelines.domain.evaluation import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.spec import SignOff

Status = Literal["met", "not met", "undecided", "unmeasured"]
Outcome = Literal["GO", "NO-GO", "INCONCLUSIVE"]


class Criterion(Finding):
    """One criterion of the sign-off and what became of it."""

    name: str
    status: Status
    waived: bool
    reason: str


def judged(name: str, status: Status, reason: str, spec: SignOff) -> Criterion:
    """Return the criterion with its status; the migration file says whether it gates."""
    return Criterion(name=name, status=status, waived=name in spec.waive, reason=reason)


def combine(criteria: Sequence[Criterion]) -> Outcome:
    """GO on proof of all, NO-GO on proof against one, INCONCLUSIVE otherwise."""
    gating = [criterion.status for criterion in criteria if not criterion.waived]
    if "not met" in gating:
        return "NO-GO"
    return "GO" if gating and all(status == "met" for status in gating) else "INCONCLUSIVE"


def explain_criterion(criterion: Criterion) -> str:
    """Say what became of a criterion, and whether it gates."""
    waived = " (waived by the migration file)" if criterion.waived else ""
    return f"{criterion.name}: {criterion.status}{waived}: {criterion.reason}"
