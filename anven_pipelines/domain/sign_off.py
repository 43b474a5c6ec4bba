"""The verdict: GO, NO-GO or INCONCLUSIVE with the number of items still needed.

It rests on the sealed items alone, on each criterion of `criterion.py`, and on the declared levels: the verdict says
what each error rate is the error rate of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.criterion import Criterion, Outcome, Status, combine, explain_criterion, judged
from anven_pipelines.domain.evaluation import (
    TRAFFIC,
    ContractReport,
    Finding,
    Missingness,
    compare_missingness,
    report_contract,
)
from anven_pipelines.domain.holdout import Attempt
from anven_pipelines.domain.quality import Quality, compare_quality
from anven_pipelines.domain.quality_report import explain_quality
from anven_pipelines.domain.segments import Segment, compare_segments, judge_segments
from anven_pipelines.domain.speed import Speed, assess_speed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.spec import Migration

_FIRST: Final = Attempt()

SIGNED_OFF, REFUSED = "signed_off", "refused"

JUDGED = "judged_scores"
"""Name under which a sign-off keeps the scores of all items, and what its event calls their digest."""


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
    attempt: Attempt = _FIRST,
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
        attempt: Which attempt of the workload this is.
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
        judged("quality", _quality_status(quality), explain_quality(quality), spec),
        judged("missingness", "undecided" if missingness.differs else "met", _explain_missingness(missingness), spec),
        judged("segments", *judge_segments(segments), spec),
        judged("ttft", speed.status, speed.reason, spec),
        judged("cost", cost["status"], cost["reason"], spec),
        judged("safety", safety.status, safety.reason, spec),
        judged("holdout", *_judge_freshness(sealed, burnt, shown), spec),
    ]
    return Verdict(
        workload=migration.workload,
        verdict=combine(criteria),
        reasons=[explain_criterion(criterion) for criterion in criteria],
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
        attempt=attempt.number,
        families=_families(criteria, segments, level, attempts=_attempts(attempt, level)),
        digests=dict(digests),
    )


def _families(
    criteria: Sequence[Criterion], segments: Sequence[Segment], level: float, *, attempts: str
) -> dict[str, str]:
    """State what each error rate is the error rate of.

    Source:
        Berger (1982), Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24:295.
    """
    gating = sum(not each.waived for each in criteria)
    return {
        "GO": f"all {gating} gating criteria must be met, each at a one-sided level of {level:g}: an intersection-"
        f"union test, so that a GO is false with at most {level:g} without correction",
        "attempts": attempts,
        "NO-GO": f"any of {gating} gating criteria that is proven not met; each proof errs with at most {level:g}",
        "segments": f"{len(segments)} segments in one family under Holm, at {level:g} for each of both claims",
    }


def _attempts(attempt: Attempt, level: float) -> str:
    """Say how often luck would have passed by now; on the same items only the sum of the chances bounds it."""
    number = attempt.number
    if number == 1:
        return f"first attempt of this workload: a GO is false with a chance of at most {level:g}"
    chance, items = 1 - (1 - level) ** number, "each on items that no other has judged"
    if attempt.items_overlap:
        chance, items = min(1.0, number * level), "with items that more than one has judged"
    return (
        f"attempt {number} of this workload, {items}: that any of {number} gives a false GO has a chance of at most "
        f"{chance:.3g}"
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
