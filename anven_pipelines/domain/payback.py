"""Whether the saving of a day earns back the one-off cost in time: the cost criterion of the sign-off.

It is judged on the interval of the saving: the near bound must pay back for `met`, the far bound must fail for
`not met`. What serving costs a day (`domain/serving.py`) is taken off the saving of a day, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.serving import Serving, usd
from anven_pipelines.stats.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.criterion import Status
    from anven_pipelines.spec import Migration

MIN_SHARE_MEASURED: Final = 0.95
"""Below this share of items with a cost in both arms, the rest could turn the saving around."""


@dataclass(frozen=True)
class Payback:
    """Days until the one-off cost is earned back; None is never, or unknown without a saving per day."""

    days: float | None
    pessimistic_days: float | None
    optimistic_days: float | None


class SavingEvidence(NamedTuple):
    """What the cost criterion is judged on.

    Attributes:
        items: Golden items that stand for traffic.
        paired: Items with a cost in both arms.
        legacy_obtained: How the legacy costs were obtained, or why they were not, to the number of items.
        target_obtained: The same of the target's.
        saving: Of a request, USD, before what serving costs; None without enough pairs.
        per_day: Of a day, USD, after what serving costs; None where the calls of a day are not known.
        serving: What serving the target costs a day.
    """

    items: int
    paired: int
    legacy_obtained: Mapping[str, int]
    target_obtained: Mapping[str, int]
    saving: Interval | None
    per_day: Interval | None
    serving: Serving


class Judgement(NamedTuple):
    """A status and its reason."""

    status: Status
    reason: str


def saving_per_day(saving: Interval | None, calls_per_day: float | None, serving: Serving) -> Interval | None:
    """Scale the saving to a day and take off what serving costs, of which only the upper bound hopes for the least."""
    safe, least = serving.usd_per_day, serving.least_usd_per_day
    if saving is None or calls_per_day is None or safe is None or least is None:
        return None
    return Interval(
        saving.estimate * calls_per_day - safe,
        saving.lower * calls_per_day - safe,
        saving.upper * calls_per_day - least,
        saving.level,
        saving.method,
    )


def per_call(per_day: Interval | None, calls_per_day: float | None) -> Interval | None:
    """Spread the saving of a day over its calls."""
    if per_day is None or not calls_per_day:
        return None
    estimate, lower, upper = (bound / calls_per_day for bound in (per_day.estimate, per_day.lower, per_day.upper))
    return Interval(estimate, lower, upper, per_day.level, per_day.method)


def payback_of(per_day: Interval | None, one_off_usd: float) -> Payback:
    """Divide the one-off cost by the saving per day and by its bounds."""
    if per_day is None:
        return Payback(None, None, None)
    return Payback(*(_days(net, one_off_usd) for net in (per_day.estimate, per_day.lower, per_day.upper)))


def judge_cost(evidence: SavingEvidence, migration: Migration) -> Judgement:
    """Judge the saving per day, or per request where only its sign matters."""
    if evidence.serving.usd_per_day is None:
        return Judgement("unmeasured", f"what serving the target costs is not measured: {evidence.serving.reason}")
    if evidence.paired < MIN_SHARE_MEASURED * evidence.items or not evidence.paired:
        return Judgement("unmeasured", _gap(evidence))
    if evidence.saving is None:
        reason = (
            f"{evidence.paired} items with a cost in both arms, or their conversations, are too few for an interval"
        )
        return Judgement("undecided", reason)
    if not migration.cost.one_off_usd and not evidence.serving.usd_per_day:
        return _judge_neutrality(evidence.saving, noted=_note(evidence.serving, migration))
    if evidence.per_day is None:
        return Judgement("unmeasured", "the log has no timestamps, so calls per day and the saving per day are unknown")
    return _judge_payback(evidence.per_day, migration, noted=_note(evidence.serving, migration))


def _days(usd_per_day: float, one_off_usd: float) -> float | None:
    """Return the days until the one-off cost is earned back, None for never."""
    if usd_per_day < 0 or (usd_per_day == 0 and one_off_usd > 0):
        return None
    return one_off_usd / usd_per_day if one_off_usd > 0 else 0.0


def _note(serving: Serving, migration: Migration) -> str:
    """Say what was taken off for serving and why, where serving costs something or a replica has a price."""
    if serving.usd_per_day:
        return f" after {usd(serving.usd_per_day)} a day for serving ({serving.source}: {serving.reason})"
    priced = migration.load is not None and migration.load.replica_usd_per_hour is not None
    return f" (serving {serving.source}: {serving.reason})" if priced else ""


def _gap(evidence: SavingEvidence) -> str:
    """Say how many items lack a cost, where and why."""
    legacy, target = (
        ", ".join(f"{how} {count}" for how, count in obtained.items()) or "no items"
        for obtained in (evidence.legacy_obtained, evidence.target_obtained)
    )
    return (
        f"{evidence.paired} of {evidence.items} items have a cost in both arms, {MIN_SHARE_MEASURED:.0%} are needed "
        f"(legacy: {legacy}; target: {target}); legacy.price and target.price in the migration file price logged "
        "tokens; where servers of one's own answer, declare load.replica_usd_per_hour and materialise load_benchmark, "
        "or declare a target.price of 0 and cost.target_usd_per_day"
    )


def _judge_neutrality(saving: Interval, *, noted: str) -> Judgement:
    """Without a one-off cost and one of serving, judge that a request costs no more than before."""
    found = f"a request saves {usd(saving.estimate)} [{usd(saving.lower)}, {usd(saving.upper)}]{noted}"
    if saving.lower >= 0:
        return Judgement("met", f"{found}; there is no one-off cost to earn back")
    if saving.upper < 0:
        return Judgement("not met", f"{found}: each costs more than before")
    return Judgement("undecided", f"{found}: it may cost more than before")


def _judge_payback(per_day: Interval, migration: Migration, *, noted: str) -> Judgement:
    """Judge the days of payback on the bounds of the saving per day."""
    one_off, allowed = migration.cost.one_off_usd, migration.sign_off.payback_days
    required = one_off / allowed
    found = (
        f"a day saves {usd(per_day.estimate)} [{usd(per_day.lower)}, {usd(per_day.upper)}]{noted}; "
        f"{usd(one_off)} within {allowed:g} days take {usd(required)} a day"
    )
    if per_day.lower >= required:
        return Judgement("met", f"{found}: pays back in {_days(per_day.lower, one_off):.3g} days at worst")
    if per_day.upper < required:
        best = _days(per_day.upper, one_off)
        outlook = "never pays back" if best is None else f"pays back in {best:.3g} days at best"
        return Judgement("not met", f"{found}: {outlook}")
    return Judgement("undecided", f"{found}: it may or may not pay back in time")
