"""Mirrored requests prove that errors, form and cost are no worse, at their part of the error rate; nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from anven_pipelines.domain.rollout import Advance, Hold, decide
from anven_pipelines.domain.rollout_evidence import Assignment, Comparison, Evidence, Mirrored
from anven_pipelines.domain.rollout_measure import UNITS, assignment_of, compare, windows_of
from anven_pipelines.domain.rollout_mirrored import PAIRS
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.domain.rollout_report import report_of, units_words
from anven_pipelines.domain.rollout_status import Drill, RolloutStatus
from anven_pipelines.domain.rollout_top_up import counted_in, few_units, topped_up
from anven_pipelines.spec_rollout import Limits, Metric, Rollout, Stage
from anven_pipelines.stats.boundaries import gamma_exponential_bound
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.paired_sequence import V_OPT

if TYPE_CHECKING:
    from collections.abc import Mapping

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
NOW = T0 + timedelta(days=2)
STAGES = [Stage(share=0.1, soak=timedelta(hours=24)), Stage(share=1, soak=timedelta(hours=24))]
PLAN = RolloutPlan(workload="support", rollout=Rollout(stages=STAGES, shadow_top_up=0.6), metrics=METRICS)
OFF = replace(PLAN, rollout=Rollout(stages=STAGES))
BOUNDS = Interval(0.0, -0.02, 0.02, 0.9, "for a test")
BY_USERS = tuple(
    Comparison(metric=metric, unit="points", harm=BOUNDS, harm_limit=0.01, proof=BOUNDS, proof_limit=0.01)
    for metric in METRICS
)
"""Neither proven nor harmful, in any metric."""


def mirrored(n: int = 400, **change: Any) -> pl.DataFrame:
    """Give so many pairs that are all well; `change` names columns, as lists or one value."""
    rng = np.random.default_rng(3)
    columns = {
        "unit": [f"{number:08x}" for number in range(n)],
        "seen_at": [T0 + timedelta(minutes=number) for number in range(n)],
        "asked": True,
        "timed": True,
        "legacy_usd": rng.lognormal(-4, 0.2, n),
        "target_usd": rng.lognormal(-5, 0.2, n),
        **dict.fromkeys(("legacy_failed", "target_failed", "legacy_broke", "target_broke", "left"), False),
    }
    return PAIRS.conform(pl.DataFrame(columns | change))


def first(n: int, of: int, *, value: Any = True, otherwise: Any = False) -> list[Any]:
    return [value if number < n else otherwise for number in range(of)]


def found(pairs: pl.DataFrame, plan: RolloutPlan = PLAN, *, stage: int = 0) -> dict[str, Comparison]:
    return {each.metric: each for each in topped_up(plan, stage, BY_USERS, pairs)}


def shown(pairs: pl.DataFrame, metric: Metric) -> Mirrored:
    comparison = found(pairs)[metric].mirrored
    assert comparison is not None
    return comparison


def test_errors_worked_by_hand() -> None:
    """Of 400 the target alone failed 4; legacy failed 2, which were not mirrored and count as failed by both."""
    fails = first(4, 400)
    fails[4:6] = [None, None]
    asked = first(6, 400, value=True, otherwise=True)
    asked[4:6] = [False, False]
    legacy = first(0, 400)
    legacy[4:6] = [True, True]

    errors = shown(mirrored(target_failed=fails, asked=asked, legacy_failed=legacy), "errors")

    # Before each failure the mean is 0, 1, 1 and 1; then 4/k, which is predicted for what comes 5th to 400th.
    squares = 1 + 0 + 0 + 0 + sum((4 / k) ** 2 for k in range(4, 400))
    reach = gamma_exponential_bound(squares, alpha=0.025, v_opt=V_OPT, scale=1) / 400
    assert errors.proof is not None
    assert errors.proof.estimate == 0.01
    assert errors.proof.upper == pytest.approx(0.01 + reach)
    assert (errors.requests, errors.limit) == (398, 0.01)


def test_each_metric_has_its_own_two_outcomes() -> None:
    broke = found(mirrored(2000, target_broke=first(40, 2000), legacy_broke=first(60, 2000)))
    errors, contract, cost = (broke[metric].mirrored for metric in ("errors", "contract", "cost"))
    assert errors is not None
    assert contract is not None
    assert cost is not None
    assert [each.proof.estimate if each.proof else None for each in (errors, contract)] == [0.0, -0.01]
    assert cost.proof is not None
    assert cost.proof.upper < 0
    assert cost.limit == 0
    assert all(broke[metric].is_proven(widened=1) for metric in ("errors", "contract", "cost"))


def test_what_a_mirrored_request_does_not_show_it_does_not_prove() -> None:
    """Nobody judges its answer, no client waits for it."""
    comparisons = found(mirrored(5000))
    assert [name for name, each in comparisons.items() if each.mirrored is None] == [
        "quality",
        "safety",
        "ttft",
        "latency",
    ]
    assert not any(each.is_proven(widened=1) for each in comparisons.values() if each.mirrored is None)


@pytest.mark.parametrize(
    ("plan", "stage", "pairs"),
    [(OFF, 0, mirrored(5000)), (PLAN, 1, mirrored(5000)), (PLAN, 0, PAIRS.empty())],
    ids=["not declared", "legacy has no traffic", "nothing was mirrored"],
)
def test_where_nothing_counts_the_comparisons_stay_as_they_are(
    plan: RolloutPlan, stage: int, pairs: pl.DataFrame
) -> None:
    assert topped_up(plan, stage, BY_USERS, pairs) == BY_USERS


NOT_ASKED: Mapping[str, Any] = {"asked": False, "target_failed": None, "target_broke": None, "target_usd": None}


@pytest.mark.parametrize(
    ("metric", "lacking"),
    [
        ("errors", NOT_ASKED),
        ("contract", NOT_ASKED),
        ("cost", NOT_ASKED),
        ("contract", {"legacy_broke": None}),
        ("contract", {"target_broke": None}),
        ("cost", {"legacy_usd": None}),
        ("cost", {"target_usd": None}),
        ("cost", {"left": True}),
        ("cost", {"legacy_failed": True}),
    ],
)
def test_where_more_than_a_hundredth_is_not_known_nothing_is_proven(metric: Metric, lacking: Mapping[str, Any]) -> None:
    """Caps, a gateway that was killed, prices that are not known."""
    whole = mirrored(2000)
    place = pl.int_range(pl.len())

    def lacks(n: int) -> pl.DataFrame:
        return whole.with_columns(
            pl.when(place < n).then(pl.lit(value)).otherwise(column).alias(column) for column, value in lacking.items()
        )

    few, many = shown(lacks(20), metric), shown(lacks(21), metric)
    assert few.proof is not None
    assert (many.proof, many.is_proven(widened=10)) == (None, False)
    told = "1,979 of 2,000 that were drawn to be mirrored tell of it, 99% are needed"
    by_legacy = "; at 21 legacy failed or its client hung up, so that no cost of legacy's is known"
    assert many.unknown == told + (by_legacy if {"left", "legacy_failed"} & lacking.keys() else "")


def test_an_answer_of_legacys_that_its_client_left_counts_as_one_that_kept_its_form() -> None:
    """A tenth of the clients hang up: their pairs are known, and can only count against the target."""
    left = mirrored(2000, left=first(200, 2000), legacy_broke=first(200, 2000, value=None))
    flawless, broken = (
        shown(left.with_columns(target_broke=pl.int_range(pl.len()) < n), "contract").proof for n in (0, 20)
    )
    assert flawless is not None
    assert broken is not None
    assert (flawless.estimate, broken.estimate) == (0.0, 0.01)


@pytest.mark.parametrize("metric", ["errors", "contract"])
def test_what_is_not_known_counts_as_failed_by_the_target(metric: Metric) -> None:
    place = pl.int_range(pl.len())
    unasked = mirrored(2000).with_columns(
        asked=place >= 20, target_failed=pl.when(place >= 20).then(pl.lit(value=False))
    )
    proof = shown(unasked, metric).proof
    assert proof is not None
    assert proof.estimate == 0.01


@pytest.mark.parametrize("part_usd", [None, 0.001], ids=["nothing is known to be spent", "a part was spent"])
def test_a_failure_costs_what_legacys_answer_in_its_place_does(part_usd: float | None) -> None:
    """A target 2 % dearer that fails 4 % is not the cheaper for it."""
    dearer = mirrored(4000).with_columns(
        target_usd=pl.when(pl.int_range(pl.len()) < 160).then(pl.lit(part_usd)).otherwise(1.02 * pl.col("legacy_usd")),
        target_failed=pl.int_range(pl.len()) < 160,
    )
    proof = shown(dearer, "cost").proof
    assert proof is not None
    usd = dearer["legacy_usd"].to_numpy()
    assert proof.estimate == pytest.approx((160 * (part_usd or 0.0) + 0.02 * usd[160:].sum()) / 4000)
    assert not shown(dearer, "cost").is_proven(widened=4)


def test_what_users_leave_unknown_or_in_doubt_mirrored_requests_do_not_prove() -> None:
    proven = Mirrored(requests=2000, proof=Interval(0.0, -0.01, 0.005, 0.95, "for a test"), limit=0.01)
    errors = replace(BY_USERS[1], mirrored=proven)
    assert (errors.is_proven(widened=1), errors.proven_by(widened=1)) == (True, " (proven by the mirrored requests)")
    assert not replace(errors, doubt="clients hung up").is_proven(widened=1)
    assert not replace(errors, unknown="too few were measured").is_proven(widened=1)
    own = replace(errors, proof=proven.proof)
    assert (own.is_proven(widened=1), own.proven_by(widened=1)) == (True, "")


def test_mirrored_requests_that_all_fail_are_no_harm() -> None:
    """No user met them: the breaker and the target's own users roll back."""
    comparisons = found(mirrored(5000, target_failed=True, target_broke=True))
    assert not any(each.is_harm for each in comparisons.values())
    assert not any(each.is_proven(widened=1) for each in comparisons.values())
    evidence = replace(EVIDENCE, comparisons=tuple(comparisons.values()))
    assert isinstance(decide(PLAN, STATUS, evidence, now=NOW), Hold)


def test_a_finding_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="bounds or a reason are needed"):
        Mirrored(requests=1)
    with pytest.raises(ValueError, match="limit nan"):
        Mirrored(requests=1, proof=BOUNDS, limit=float("nan"))


# --- the least number of units


@pytest.mark.parametrize(
    ("target", "extra", "gap"),
    [
        (500, 0, None),
        (200, 300, None),
        (200, 9000, None),
        (212, 300, None),
        (199, 9000, "199 units of target and 300 mirrored of 500"),
        (212, 200, "212 units of target and 200 mirrored of 500"),
        (212, 0, "212 of 500 units of target"),
    ],
)
def test_mirrored_units_stand_in_for_the_declared_part_of_the_targets(target: int, extra: int, gap: str | None) -> None:
    dealt = Assignment(target=target, legacy=5000, mirrored=extra)
    assert few_units(PLAN, STAGES[0], dealt) == ([] if gap is None else [gap])


@pytest.mark.parametrize("part", [0.1, 0.3, 0.55, 0.7, 0.9])
def test_the_part_is_as_declared_to_the_unit(part: float) -> None:
    plan = replace(PLAN, rollout=Rollout(stages=STAGES, shadow_top_up=part))
    own = 500 - round(500 * part)
    enough = Assignment(target=own, legacy=5000, mirrored=5000)
    assert few_units(plan, STAGES[0], enough) == []
    assert few_units(plan, STAGES[0], replace(enough, target=own - 1)) != []


def test_without_the_option_or_of_legacy_none_stands_in() -> None:
    dealt = Assignment(target=212, legacy=212, mirrored=0)
    both = ["212 of 500 units of target", "212 of 500 units of legacy"]
    assert few_units(OFF, STAGES[0], dealt) == both
    assert few_units(OFF, STAGES[1], dealt) == both[:1]
    assert few_units(PLAN, STAGES[0], replace(dealt, mirrored=300)) == both[1:]


def test_only_pairs_that_are_known_are_counted() -> None:
    dealt = Assignment(target=212, legacy=5000)
    known = topped_up(PLAN, 0, BY_USERS, mirrored(400, asked=first(3, 400, value=False, otherwise=True)))
    assert counted_in(dealt, known).mirrored == 397
    unknown = topped_up(PLAN, 0, BY_USERS, mirrored(400, asked=first(5, 400, value=False, otherwise=True)))
    assert counted_in(dealt, unknown).mirrored == 0
    assert counted_in(dealt, BY_USERS).mirrored == 0


# --- what the controller makes of it

STATUS = RolloutStatus(
    phase="running",
    attempt=1,
    generation=1,
    stage=0,
    entered_at=T0,
    plan=PLAN.digest,
    drill=Drill(NOW - timedelta(days=1), passed=True, seconds=0.8),
)
PROVEN = Interval(0.0, -0.005, 0.005, 0.95, "for a test")
EVIDENCE = Evidence(
    generation=1,
    as_of=NOW,
    assignment=Assignment(target=212, legacy=5000, p_value=0.5, mirrored=300),
    comparisons=tuple(
        replace(each, mirrored=Mirrored(requests=300, proof=PROVEN, limit=0.01))
        if each.metric in ("errors", "contract", "cost")
        else replace(each, proof=PROVEN)
        for each in BY_USERS
    ),
)


def test_an_advance_names_what_mirrored_requests_proved() -> None:
    decision = decide(PLAN, STATUS, EVIDENCE, now=NOW)

    assert isinstance(decision, Advance), decision
    by_mirrored = [reason for reason in decision.reasons if "(proven by the mirrored requests)" in reason]
    assert [reason.split()[0] for reason in by_mirrored] == ["errors", "contract", "cost"]
    assert (
        "; over 300 mirrored requests 0 points worse (between 0.5 better and 0.5 worse), 1 worse allowed"
        in by_mirrored[0]
    )
    assert "212 units of target and 300 mirrored" in decision.reasons
    report = report_of(PLAN, STATUS, EVIDENCE, decision, STATUS)
    assert units_words(report["units"]) == "212 of the target, 5,000 of legacy, 300 of these mirrored"
    off = replace(EVIDENCE, assignment=Assignment(target=212, legacy=5000))
    units = report_of(OFF, STATUS, off, decision, STATUS)["units"]
    assert units_words(units) == "212 of the target, 5,000 of legacy"
    assert {row["metric"]: row["state"] for row in report["evidence"]} == {
        **dict.fromkeys(("quality", "safety", "ttft", "latency"), "proven"),
        **dict.fromkeys(("errors", "contract", "cost"), "proven by mirrored requests"),
    }


@pytest.mark.parametrize(
    ("change", "now", "reason"),
    [
        ({}, T0 + timedelta(hours=23), "23.0 h of 1.0 d in this stage"),
        ({"assignment": Assignment(target=212, legacy=5000, p_value=0.5)}, NOW, "212 of 500 units of target"),
        (
            {"assignment": Assignment(target=212, legacy=90, p_value=0.5, mirrored=300)},
            NOW,
            "90 of 500 units of legacy",
        ),
        ({"comparisons": BY_USERS}, NOW, "not proven: errors"),
        ({"comparisons": (BY_USERS[0], *EVIDENCE.comparisons[1:])}, NOW, "not proven: quality"),
        ({"comparisons": EVIDENCE.comparisons[1:]}, NOW, "not proven: quality unknown"),
        ({"lost": "3 events of the gateway are lost"}, NOW, "3 events of the gateway are lost"),
        ({"as_of": NOW - timedelta(hours=1)}, NOW, "the newest evidence is 1.0 h old"),
    ],
)
def test_what_holds_a_ramp_goes_on_holding_it(change: dict[str, Any], now: datetime, reason: str) -> None:
    decision = decide(PLAN, STATUS, replace(EVIDENCE, **({"as_of": now} | change)), now=now)

    assert isinstance(decision, Hold)
    assert any(told.startswith(reason) for told in decision.reasons), decision.reasons


# --- the error rate of both ways together

ERRORS_ONLY = RolloutPlan(
    workload="support",
    rollout=Rollout(stages=STAGES, level=0.2, limits=Limits(errors=0.02), shadow_top_up=0.6),
    metrics=("errors",),
)


def stream(seed: int, n: int, *, target: float, legacy: float, share: float = 0.1) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Simulate units whose requests are all drawn; the arms fail these shares, independently of each other."""
    rng = np.random.default_rng(seed)
    treated, fails, legacy_fails = (rng.random(n) < chance for chance in (share, target, legacy))
    at = [T0 + timedelta(minutes=number) for number in range(n)]
    units = UNITS.conform(
        pl.DataFrame(
            {"seen_at": at, "treated": treated, "errors": np.where(treated, fails, legacy_fails).astype(float)}
        )
    ).with_columns(moved=False, fell_back=False)
    drawn = pl.DataFrame({"seen_at": at, "legacy_failed": legacy_fails, "target_failed": fails}).with_columns(
        asked=~pl.col("legacy_failed"),
        target_failed=pl.when(~pl.col("legacy_failed")).then("target_failed"),
    )
    return units, PAIRS.conform(drawn.filter(~pl.Series(treated)))


def proven_at(
    plan: RolloutPlan, units: pl.DataFrame, pairs: pl.DataFrame, looks: range, *, widened: float = 1.0
) -> int | None:
    """Return after how many units errors are proven at first, looked at in turn; None where never."""
    for n in looks:
        now = T0 + timedelta(minutes=n)
        seen, drawn = (each.filter(pl.col("seen_at") < now) for each in (units, pairs))
        compared = compare(plan, 0, windows_of(seen, plan, entered_at=T0, now=now))
        [errors] = topped_up(plan, 0, compared, drawn)
        if errors.is_proven(widened=widened):
            return n
    return None


AT_LOOKS = range(400, 4_001, 400)
STRICT = replace(ERRORS_ONLY, rollout=ERRORS_ONLY.rollout.model_copy(update={"level": 0.05}))


def z_proves(differences: np.ndarray[Any, np.dtype[np.float64]], *, limit: float, alpha: float) -> bool:
    """Ask the textbook test of one look."""
    error = differences.std(ddof=1) / math.sqrt(differences.size)
    return bool(error and differences.mean() + stats.norm.isf(alpha) * error < limit)


@pytest.mark.parametrize("legacy", [0.0, 0.3])
def test_pairs_prove_a_target_at_the_limit_at_most_at_their_part_of_the_level(legacy: float) -> None:
    """150 streams of 4,000 mirrored requests, looked at ten times: a textbook test of the same ones exceeds the bound.

    What legacy failed nobody asks the target, and it counts as failed by both.
    """
    rng, alpha, limit, streams = np.random.default_rng(5), STRICT.proof_level("errors", share=0.1), 0.02, 150
    [by_users] = [replace(each, proof_limit=limit) for each in BY_USERS if each.metric == "errors"]
    blank = mirrored(AT_LOOKS[-1])
    wrong = by_z = 0
    for _ in range(streams):
        legacy_fails, fails = (rng.random(blank.height) < chance for chance in (legacy, limit / (1 - legacy)))
        differences = np.where(legacy_fails, 0.0, fails.astype(float))
        drawn = blank.with_columns(legacy_failed=legacy_fails, asked=~legacy_fails, target_failed=fails | legacy_fails)
        wrong += any(topped_up(STRICT, 0, [by_users], drawn.head(n))[0].is_proven(widened=1.0) for n in AT_LOOKS)
        by_z += any(z_proves(differences[:n], limit=limit, alpha=alpha) for n in AT_LOOKS)
    bound = stats.binom.ppf(0.999, streams, alpha)
    assert wrong <= bound < by_z


def test_at_low_traffic_a_good_target_is_proven_earlier() -> None:
    looks = range(200, 8_001, 200)
    off = replace(ERRORS_ONLY, rollout=ERRORS_ONLY.rollout.model_copy(update={"shadow_top_up": 0.0}))
    times = []
    for seed in range(5):
        units, pairs = stream(seed, 8_000, target=0.003, legacy=0.003)
        times.append((proven_at(ERRORS_ONLY, units, pairs, looks), proven_at(off, units, pairs, looks)))
    assert all(with_them is not None for with_them, _ in times)
    assert all(without is None or with_them * 2 <= without for with_them, without in times if with_them)
    units, pairs = stream(1, 2_000, target=0.003, legacy=0.003)
    compared = topped_up(
        ERRORS_ONLY, 0, compare(ERRORS_ONLY, 0, windows_of(units, PLAN, entered_at=T0, now=NOW)), pairs
    )
    dealt = counted_in(assignment_of(ERRORS_ONLY, 0, units), compared)
    assert 150 < dealt.target < 250 < dealt.mirrored


def test_both_ways_share_the_level_and_only_where_both_are_open() -> None:
    level = PLAN.rollout.level
    assert [PLAN.proof_level(metric, share=0.1) for metric in ("errors", "contract", "cost")] == [level / 2] * 3
    assert [PLAN.proof_level(metric, share=0.1) for metric in ("quality", "safety", "ttft", "latency")] == [level] * 4
    assert {PLAN.proof_level(metric, share=share) for metric in METRICS for share in (None, 1.0)} == {level}
    assert {OFF.proof_level(metric, share=0.1) for metric in METRICS} == {level}
    units, _ = stream(7, 3000, target=0.01, legacy=0.01)
    at_half = RolloutPlan(workload="support", rollout=Rollout(stages=STAGES, level=level / 2), metrics=("errors",))
    declared = replace(PLAN, metrics=("errors",))
    [halved], [shared] = (
        compare(plan, 0, windows_of(units, plan, entered_at=T0, now=NOW)) for plan in (at_half, declared)
    )
    assert halved.proof is not None
    assert shared.proof is not None
    assert shared.proof.upper == halved.proof.upper
