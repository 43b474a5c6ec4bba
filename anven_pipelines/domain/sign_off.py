"""The verdict: GO, NO-GO or INCONCLUSIVE with the number of items still needed.

Every criterion is met, not met, undecided or unmeasured. GO needs all gating criteria met; one that is proven
not met gives NO-GO; anything else is INCONCLUSIVE. What was not measured never passes; a criterion waived by
name does not gate, and the verdict says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.evaluation import (
    TRAFFIC,
    ContractReport,
    Finding,
    Missingness,
    cluster_codes,
    compare_missingness,
    report_contract,
)
from anven_pipelines.domain.quality import Quality, Segment, compare_quality, compare_segments, explain_quality
from anven_pipelines.stats.pairs import MIN_PAIRS
from anven_pipelines.stats.quantiles import paired_quantile_difference, weighted_quantile

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.spec import Migration, SignOff
    from anven_pipelines.stats.interval import Interval

Status = Literal["met", "not met", "undecided", "unmeasured"]
Outcome = Literal["GO", "NO-GO", "INCONCLUSIVE"]
SIGNED_OFF, REFUSED = "signed_off", "refused"
JUDGED = "judged_scores"
"""Name under which a sign-off keeps the scores of all items, and what its event calls their digest."""
SPEED_QUANTILE = 0.95
# A p95 over fewer measured pairs than this share could be moved past any limit by the pairs that are missing.
SPEED_COVERAGE = 0.99
# A time to first token that stands for "never": 30 years, beyond any allowance, and exact to a millisecond.
NEVER_MS = 1e12


class Criterion(Finding):
    """One criterion of the sign-off and what became of it."""

    name: str
    status: Status
    waived: bool
    reason: str


class Speed(Finding):
    """Time to first token, paired, over calls of the traffic; NULL where it was not measured.

    Attributes:
        interval_ms: Of `increase_ms`, over measured pairs; it describes.
        beyond_allowed_ms: Bounds of the increase less what is allowed, which decide; NULL where unmeasured pairs leave
            it without bound.
    """

    status: Status
    reason: str
    n_measured: int
    legacy_ttft_p95_ms: float | None = None
    target_ttft_p95_ms: float | None = None
    increase_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    beyond_allowed_ms: tuple[float | None, float | None] | None = None
    allowed_ms: float | None = None
    legacy_latency_p95_ms: float | None = None
    target_latency_p95_ms: float | None = None


class Safety(Finding):
    """Safety failures of the target that legacy did not have."""

    status: Status
    reason: str


class Verdict(Finding):
    """The decision with all that it rests on; the same inputs give the same bytes."""

    workload: str
    verdict: Outcome
    reasons: list[str]
    criteria: list[Criterion]
    waived: list[str]
    quality: Quality
    noise_floor: dict[str, Any] | None
    missingness: Missingness
    segments: list[Segment]
    speed: Speed
    cost: dict[str, Any]
    safety: Safety
    contract: ContractReport
    seed: int
    attempt: int
    families: dict[str, str]
    digests: dict[str, str]

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, no NaN."""
        return canonical_json(self.model_dump(mode="json"))


def sign_off_stream(workload: str) -> str:
    """Return the state stream of a workload's verdicts: `SIGNED_OFF` events are GO, `REFUSED` ones are not."""
    return f"sign_off/{workload}"


def decide(
    scores: pl.DataFrame,
    cost: Mapping[str, Any],
    migration: Migration,
    *,
    digests: Mapping[str, str],
    burnt: Collection[str] = (),
    shown: Collection[str] = (),
    attempt: int = 1,
    noise_floor: Mapping[str, Any] | None = None,
) -> Verdict:
    """Decide on the sealed items.

    Args:
        scores: SCORES rows of the whole golden dataset; only the sealed ones are used.
        cost: JSON of the cost model, with `status` and `reason`.
        migration: The criteria.
        digests: What the verdict rests on, by name.
        burnt: Ids and clusters that a failed sign-off has looked at before.
        shown: Ids and clusters that stood open in an earlier version.
        attempt: Which attempt of the workload this is: each other measurement of sealed items before it was one.
        noise_floor: JSON of how often the legacy model disagrees with itself; stands beside the quality.
    """
    sealed = scores.filter(pl.col("split") == "sealed").sort("item_id")
    spec = migration.sign_off
    margin, kind, level = spec.quality_margin, spec.margin_kind, spec.level
    quality = compare_quality(sealed, margin=margin, kind=kind, level=level)
    missingness = compare_missingness(sealed, level=level)
    segments = compare_segments(sealed, migration.golden.strata, margin=margin, kind=kind, level=level)
    speed = assess_speed(sealed.filter(pl.col("role") == TRAFFIC), spec, seed=migration.golden.seed)
    safety = Safety(status="unmeasured", reason="no safety suite has been run on the target's answers")
    criteria = [
        _criterion("quality", _quality_status(quality), explain_quality(quality), spec),
        _criterion(
            "missingness", "undecided" if missingness.differs else "met", _explain_missingness(missingness), spec
        ),
        _criterion("segments", *_judge_segments(segments), spec),
        _criterion("ttft", speed.status, speed.reason, spec),
        _criterion("cost", cost["status"], cost["reason"], spec),
        _criterion("safety", safety.status, safety.reason, spec),
        _criterion("holdout", *_judge_freshness(sealed, burnt, shown), spec),
    ]
    return Verdict(
        workload=migration.workload,
        verdict=combine(criteria),
        reasons=[_reason(criterion) for criterion in criteria],
        criteria=criteria,
        waived=[criterion.name for criterion in criteria if criterion.waived],
        quality=quality,
        noise_floor=_stable(noise_floor),
        missingness=missingness,
        segments=segments,
        speed=speed,
        cost=_stable(cost),
        safety=safety,
        contract=report_contract(sealed, declared=migration.contract.json_object),
        seed=migration.golden.seed,
        attempt=attempt,
        families=_families(criteria, segments, level, attempt=attempt),
        digests=dict(digests),
    )


def _families(
    criteria: Sequence[Criterion], segments: Sequence[Segment], level: float, *, attempt: int
) -> dict[str, str]:
    """State what each error rate is the error rate of.

    Source:
        Berger (1982), Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24:295.
    """
    gating = sum(not each.waived for each in criteria)
    return {
        "GO": f"all {gating} gating criteria must be met, each at a one-sided level of {level:g}: an intersection-"
        f"union test, so that a GO is false with at most {level:g} without correction",
        "attempts": _attempts(attempt, level),
        "NO-GO": f"any of {gating} gating criteria that is proven not met; each proof errs with at most {level:g}",
        "segments": f"{len(segments)} segments in one family under Holm, at {level:g} for each of both claims",
    }


def _attempts(attempt: int, level: float) -> str:
    if attempt == 1:
        return f"first attempt of this workload: a GO is false with a chance of at most {level:g}"
    return (
        f"attempt {attempt} of this workload, each on items that no other has judged: that any of {attempt} gives a "
        f"false GO has a chance of at most {1 - (1 - level) ** attempt:.3g}"
    )


def combine(criteria: Sequence[Criterion]) -> Outcome:
    """GO on proof of all, NO-GO on proof against one, INCONCLUSIVE otherwise."""
    gating = [criterion.status for criterion in criteria if not criterion.waived]
    if "not met" in gating:
        return "NO-GO"
    return "GO" if gating and all(status == "met" for status in gating) else "INCONCLUSIVE"


def assess_speed(scores: pl.DataFrame, spec: SignOff, *, seed: int) -> Speed:
    """Judge the increase of p95 time to first token over calls of the traffic on its one-sided bounds.

    The allowance is the larger of the relative and the absolute one, and is estimated with the increase. A pair of
    which one side has no time to first token counts against whatever is to be proven: for "met" the target was
    infinitely slow and the legacy instant, for "not met" the other way round. Below `SPEED_COVERAGE` measured pairs
    nothing is claimed.
    """
    pairs = scores.filter(pl.col("legacy_ttft_ms").is_not_null() & pl.col("target_ttft_ms").is_not_null())
    if pairs.height < SPEED_COVERAGE * scores.height or pairs.is_empty():
        reason = (
            f"time to first token was measured in both arms for {pairs.height} of {scores.height} items; "
            f"{SPEED_COVERAGE:.0%} are needed"
        )
        return Speed(status="unmeasured", reason=reason, n_measured=pairs.height)
    legacy_p95, target_p95 = (_p95(pairs, f"{arm}_ttft_ms") or 0.0 for arm in ("legacy", "target"))
    allowed = max(spec.ttft_increase * legacy_p95, spec.ttft_increase_ms)
    facts = {
        "n_measured": pairs.height,
        "legacy_ttft_p95_ms": round(legacy_p95, 3),
        "target_ttft_p95_ms": round(target_p95, 3),
        "allowed_ms": round(allowed, 3),
        "legacy_latency_p95_ms": _p95(pairs, "legacy_latency_ms"),
        "target_latency_p95_ms": _p95(pairs, "target_latency_ms"),
    }
    try:
        increase = _speed_change(pairs, spec, seed=seed)
        lower, upper = _beyond_allowed(scores, spec, seed=seed)
    except TooFewPairs as error:
        return Speed(status="undecided", reason=str(error), **facts)
    status: Status = "met" if upper <= 0 else "not met" if lower > 0 else "undecided"
    beyond = _known(lower), _known(upper)
    ends = " to ".join("?" if bound is None else f"{bound:+.0f}" for bound in beyond)
    missing = scores.height - pairs.height
    reason = (
        f"p95 time to first token changes by {increase.estimate:+.0f} ms "
        f"({increase.lower:+.0f} to {increase.upper:+.0f}); up to {allowed:+.0f} ms is allowed, which is "
        f"exceeded by {ends} ms" + (f", with the worst for {missing} unmeasured items" if missing else "")
    )
    return Speed(
        status=status,
        reason=reason,
        increase_ms=round(increase.estimate, 3),
        interval_ms=(round(increase.lower, 3), round(increase.upper, 3)),
        beyond_allowed_ms=beyond,
        **facts,
    )


def _speed_change(pairs: pl.DataFrame, spec: SignOff, *, seed: int, beyond: bool = False) -> Interval:
    """Bound the change of the p95, or by how much it lies beyond what is allowed; the same seed, the same resamples."""
    return paired_quantile_difference(
        pairs["target_ttft_ms"].to_numpy(),
        pairs["legacy_ttft_ms"].to_numpy(),
        quantile=SPEED_QUANTILE,
        allowed_share=spec.ttft_increase if beyond else 0.0,
        allowed=spec.ttft_increase_ms if beyond else 0.0,
        clusters=cluster_codes(pairs),
        weights=pairs["weight"].to_numpy(),
        level=1 - 2 * spec.level,
        rng=np.random.default_rng(seed),
    )


def _beyond_allowed(scores: pl.DataFrame, spec: SignOff, *, seed: int) -> tuple[float, float]:
    """Bound the increase of the p95 less what is allowed, each side with the worst for what was not measured."""
    best, worst = (_without_gaps(scores, slow=arm) for arm in ("legacy", "target"))
    against = _speed_change(worst, spec, seed=seed, beyond=True)
    in_favour = against if best.equals(worst) else _speed_change(best, spec, seed=seed, beyond=True)
    return in_favour.lower, against.upper


def _known(bound: float) -> float | None:
    return None if abs(bound) > NEVER_MS / 2 else round(bound, 3)


def _without_gaps(scores: pl.DataFrame, *, slow: str) -> pl.DataFrame:
    """Fill the times of pairs that were not measured in both arms: one arm never answered, the other at once."""
    measured = pl.col("legacy_ttft_ms").is_not_null() & pl.col("target_ttft_ms").is_not_null()
    return scores.with_columns(
        pl.when(measured).then(f"{arm}_ttft_ms").otherwise(NEVER_MS if arm == slow else 0.0).alias(f"{arm}_ttft_ms")
        for arm in ("legacy", "target")
    )


def explain_burnt(verdict: Verdict) -> str | None:
    """Say what a verdict that is not GO means for the items that it saw; None after GO."""
    if verdict.verdict == "GO":
        return None
    needed = verdict.quality.n_needed
    new = f"about {needed:,} new ones" if needed else "new ones"
    return f"the sealed items are burnt: an attempt with other answers, prompts or limits needs {new}"


def _quality_status(quality: Quality) -> Status:
    statuses: dict[str, Status] = {"not worse": "met", "worse": "not met", "too few items": "unmeasured"}
    return statuses.get(quality.outcome, "undecided")


def _explain_missingness(missingness: Missingness) -> str:
    counts = f"unmeasured: {missingness.legacy_unmeasured} legacy and {missingness.target_unmeasured} target items"
    return (
        f"the arms differ in what was measured (p = {missingness.p_difference:.2g}); {counts}"
        if missingness.differs
        else counts
    )


def _judge_segments(segments: Sequence[Segment]) -> tuple[Status, str]:
    """Judge the family of segments: one that is proven worse than the margin is harm, however good the mean.

    A segment that is too small to compare blocks nothing and is named; one that is not, and of which nothing was
    measured, does.
    """
    worse = [segment for segment in segments if segment.outcome == "worse"]
    if worse:
        return "not met", f"proven worse than the margin in {_named(worse)} (Holm over {len(segments)} segments)"
    if not segments:
        return "met", "there are no segments: the migration file declares no strata that the traffic has"
    blank = [segment for segment in segments if segment.legacy_mean is None and segment.n >= MIN_PAIRS]
    if blank:
        return "unmeasured", f"nothing was measured in both arms in {_of(blank, segments)}"
    small = [segment for segment in segments if segment.outcome == "too few items"]
    none = f"none of {len(segments)} segments is proven worse than the margin (Holm)"
    return "met", f"{none}; too few items to tell in {_of(small, segments)}" if small else none


def _of(some: Sequence[Segment], segments: Sequence[Segment]) -> str:
    return f"{len(some)} of {len(segments)} segments: {_named(some, counted=True)}"


def _named(segments: Sequence[Segment], *, counted: bool = False) -> str:
    return ", ".join(f"{each.stratum} = {each.value}" + (f" ({each.n})" if counted else "") for each in segments)


def _judge_freshness(sealed: pl.DataFrame, burnt: Collection[str], shown: Collection[str]) -> tuple[Status, str]:
    """Judge whether the items could have been chosen by: an error rate holds for the first look only."""
    by_burnt, by_shown = (pl.any_horizontal(pl.col("item_id", "cluster").is_in(list(seen))) for seen in (burnt, shown))
    counts = {
        "opened before by a sign-off that failed, an export or a nightly regression": sealed.filter(by_burnt).height,
        "open in an earlier version": sealed.filter(by_shown & ~by_burnt).height,
    }
    if not any(counts.values()):
        return "met", f"none of {sealed.height} sealed items was {' or '.join(counts)}"
    told = "; ".join(f"{seen} of {sealed.height} sealed items were {how}" for how, seen in counts.items() if seen)
    return "undecided", (
        f"{told}: what was learnt from them may have shaped what they judge now, so the error rate is not the "
        "declared level"
    )


def _criterion(name: str, status: Status, reason: str, spec: SignOff) -> Criterion:
    return Criterion(name=name, status=status, waived=name in spec.waive, reason=reason)


def _reason(criterion: Criterion) -> str:
    waived = " (waived by the migration file)" if criterion.waived else ""
    return f"{criterion.name}: {criterion.status}{waived}: {criterion.reason}"


def _stable(value: Any) -> Any:  # noqa: ANN401 - JSON is of any type
    """Round to nine decimals: the last bits differ between processors, and a verdict must not."""
    match value:
        case float():
            return round(value, 9) + 0.0
        case dict():
            return {key: _stable(each) for key, each in value.items()}
        case list() | tuple():
            return [_stable(each) for each in value]
    return value


def _p95(pairs: pl.DataFrame, column: str) -> float | None:
    """Return the p95 over calls of the traffic; None where no item has a value."""
    measured = pairs.filter(pl.col(column).is_not_null())
    if measured.is_empty():
        return None
    weights = measured["weight"].to_numpy()
    return round(weighted_quantile(measured[column].to_numpy(), SPEED_QUANTILE, weights=weights), 3)
