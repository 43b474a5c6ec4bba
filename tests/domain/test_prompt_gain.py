"""What is proven to be gained and what is proven to be kept: by hand, and over thousands of simulated workloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anven_pipelines.domain.prompt_gain import Compared, judge_gains, judge_guard, level_of_look
from anven_pipelines.stats.paired import design_effect, difference_interval
from anven_pipelines.stats.proportions import failure_bound

RUNS = 400


def compared(
    *,
    both: int = 0,
    lost: int = 0,
    gained: int = 0,
    neither: int = 0,
    size: int = 1,
    template: str = "desk",
    first: int = 0,
) -> Compared:
    """Build 0/1 scores from the four cells; neighbours are in one conversation of `size`, numbered from `first`."""
    before = [1.0] * both + [1.0] * lost + [0.0] * gained + [0.0] * neither
    after = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return Compared(template, np.array(before), np.array(after), first + np.arange(len(before)) // size)


@pytest.mark.parametrize(("earlier", "share"), [(0, 1 / 2), (1, 1 / 6), (2, 1 / 12), (9, 1 / 110)])
def test_the_kth_look_gets_its_share_of_the_level(earlier: int, share: float) -> None:
    assert level_of_look(0.05, earlier=earlier) == pytest.approx(0.05 * share)


def test_all_looks_together_stay_below_the_level() -> None:
    shares = [level_of_look(0.05, earlier=earlier) for earlier in range(5000)]
    assert 0.0499 < sum(shares) < 0.05


def test_a_gain_is_proven_by_its_lower_bound() -> None:
    [gain] = judge_gains([compared(both=40, lost=1, gained=30, neither=29)], level=0.05)
    assert gain.proven
    assert (gain.n, gain.level) == (100, 0.05)
    assert [gain.before, gain.after] == pytest.approx([0.41, 0.70])
    assert gain.interval is not None
    assert gain.interval.estimate == pytest.approx(0.29)
    assert 0.19 < gain.interval.lower < 0.29  # Wald: .29 - 1.645 * sqrt(.31 - .29 ** 2) / 10 = .212
    assert gain.reason.startswith("0.410 before, 0.700 after on 100 items: +0.290, at least +0.2")
    assert "not proven" not in gain.reason


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (compared(both=40, lost=10, gained=12, neither=38), "a gain is not proven"),
        (compared(both=40, gained=0, neither=60), "a gain is not proven"),
        (compared(both=50, lost=20, neither=30), "a gain is not proven"),
        (compared(gained=9), "9 validation items are too few to prove anything"),
        (compared(), "0 validation items are too few to prove anything"),
        (compared(gained=60, neither=40, size=20), "too few to prove anything (100 pairs in 5 clusters"),
    ],
    ids=["noise", "nothing moved", "worse", "nine pairs", "no pairs", "five conversations"],
)
def test_what_is_not_proven_is_no_gain(scores: Compared, said: str) -> None:
    [gain] = judge_gains([scores], level=0.05)
    assert not gain.proven
    assert said in gain.reason


def test_the_level_is_shared_out_over_the_templates() -> None:
    close = compared(both=40, lost=5, gained=14, neither=41)
    [alone] = judge_gains([close], level=0.05)
    among = judge_gains([close] * 4, level=0.05)
    assert alone.proven
    assert [gain.level for gain in among] == [0.0125] * 4
    assert not any(gain.proven for gain in among)
    assert judge_gains([], level=0.05) == []


def test_items_of_one_conversation_count_for_less() -> None:
    cells: dict[str, Any] = {"both": 60, "lost": 6, "gained": 18, "neither": 36}
    [alone] = judge_gains([compared(**cells)], level=0.05)
    [together] = judge_gains([compared(**cells, size=6)], level=0.05)
    assert alone.interval is not None
    assert together.interval is not None
    assert (alone.proven, together.proven) == (True, False)
    assert together.interval.lower < alone.interval.lower
    assert together.interval.estimate == alone.interval.estimate


def test_a_gain_as_json_is_plain_and_rounded() -> None:
    few, many = judge_gains([compared(gained=3), compared(both=40, gained=30, neither=30)], level=0.05)
    assert few.to_json()["gain"] is None
    assert many.to_json() | {"gain": None, "reason": ""} == {
        "template": "desk",
        "n": 100,
        "before": 0.4,
        "after": 0.7,
        "gain": None,
        "level": 0.025,
        "proven": True,
        "reason": "",
        "unmeasured": {"before": 0, "after": 0},
    }


def without(scores: Compared, *, before: slice = slice(0), after: slice = slice(0)) -> Compared:
    """Take away what was measured of some items."""
    for side, items in ((scores.before, before), (scores.after, after)):
        side[items] = np.nan
    return scores


@pytest.mark.parametrize(
    ("scores", "means", "proven", "told"),
    [
        (without(compared(both=40, gained=30, neither=30), before=slice(5)), (0.4, 0.7), True, "5 before"),
        (without(compared(both=40, gained=30, neither=30), before=slice(40, 70)), (0.7, 0.7), False, "30 before"),
        (without(compared(both=40, gained=30, neither=30), after=slice(20, 70)), (0.4, 0.2), False, "50 after"),
        (without(compared(both=40, gained=30, neither=30), before=slice(100), after=slice(100)), (1, 0), False, "100 "),
    ],
    ids=["right ones before", "wrong ones before", "after", "all"],
)
def test_what_was_not_measured_counts_against_the_candidate(
    scores: Compared, means: tuple[float, float], proven: bool, told: str
) -> None:
    [gain] = judge_gains([scores], level=0.05)
    assert (gain.before, gain.after) == pytest.approx(means)
    assert gain.proven == proven
    assert told in gain.reason.partition("; not measured: ")[2]


def test_missing_answers_of_equal_prompts_claim_nothing_whatever_they_hide() -> None:
    """A third of the answers before is lost, most often the right ones; as wrong ones they would claim in each run."""
    rng, level, runs = np.random.default_rng(14), 0.10, 200
    before, after = (drawn(rng, runs, 90, 1, probability=0.6) for _ in range(2))
    before[(rng.random(before.shape) < 0.5) & (before == 1)] = np.nan
    items = np.arange(90)
    claims = naive = 0
    for one, other in zip(before, after, strict=True):
        claims += judge_gains([Compared("", one, other, items)], level=level)[0].proven
        naive += judge_gains([Compared("", np.nan_to_num(one), other, items)], level=level)[0].proven
    assert claims / runs <= level + monte_carlo_error(level, runs)
    assert naive / runs > 0.9, "the rule would not be needed"


def test_the_guard_is_kept_where_the_bound_lies_within_the_margin() -> None:
    guard = judge_guard([compared(both=99, lost=1, gained=10)], margin=0.05, level=0.05)
    assert (guard.status, guard.right, guard.lost) == ("kept", 100, 1)
    assert guard.bound == pytest.approx(failure_bound(1, 100, level=0.95))
    assert guard.bound == pytest.approx(0.0466, abs=0.0001)  # Clopper and Pearson's table: 1 of 100
    assert guard.reason == "1 of 100 right answers are lost, at most 4.7%; a margin of 5.0% is kept"


@pytest.mark.parametrize(
    ("scores", "status"),
    [
        ([compared(both=98, lost=2, gained=90)], "broken"),  # at most 6.2 %
        ([compared(both=58)], "broken"),  # no loss in 58 leaves 5.03 % possible
        ([compared(both=59)], "kept"),  # in 59 4.95 %
        ([compared(both=30), compared(both=29, template="router", first=30)], "kept"),
        ([compared(both=58, gained=500)], "broken"),
    ],
    ids=["two lost", "58 kept", "59 kept", "59 of two templates", "gains make up for nothing"],
)
def test_the_guard_proves_or_breaks(scores: list[Compared], status: str) -> None:
    assert judge_guard(scores, margin=0.05, level=0.05).status == status


@pytest.mark.parametrize("scores", [[compared(gained=50, neither=50)], [compared()]])
def test_where_nothing_was_right_nothing_can_be_lost(scores: list[Compared]) -> None:
    guard = judge_guard(scores, margin=0.05, level=0.05)
    assert (guard.status, guard.right, guard.bound) == ("kept", 0, None)


def test_an_answer_that_is_only_partly_right_afterwards_is_lost() -> None:
    before, after = np.ones(100), np.ones(100)
    after[:30] = 0.99
    before[90:] = 0.99  # was not right: nothing to guard
    guard = judge_guard([Compared("desk", before, after, np.arange(100))], margin=0.2, level=0.05)
    assert (guard.status, guard.right, guard.lost) == ("broken", 90, 30)


def test_what_was_not_measured_is_never_kept() -> None:
    """Of 59 answers one is missing: 58 are too few to keep a margin of 5 %, and what is missing is no 59th."""
    margin = {"margin": 0.05, "level": 0.05}
    no_before = judge_guard([without(compared(both=59), before=slice(1))], **margin)
    assert (no_before.status, no_before.right, no_before.lost, no_before.unmeasured) == ("broken", 58, 0, 0)
    no_after = judge_guard([without(compared(both=59), after=slice(1))], **margin)
    assert (no_after.status, no_after.right, no_after.lost, no_after.unmeasured) == ("broken", 59, 1, 1)
    neither = judge_guard([without(compared(both=99, neither=1), before=slice(99, 100))], **margin)
    assert (neither.right, neither.lost, neither.unmeasured) == (100, 1, 1), "it may have been right"
    assert "1 of 100 right answers are lost, 1 of them not measured, at most 4.7%" in neither.reason


def test_the_guard_counts_conversations_that_fail_together_as_one() -> None:
    alone = judge_guard([compared(both=190, lost=10)], margin=0.12, level=0.05)
    together = judge_guard([compared(both=190, lost=10, size=10)], margin=0.12, level=0.05)
    assert (alone.status, together.status) == ("kept", "broken")
    # One of 20 conversations is lost: with the variance's factor G / (G - 1) the effect is 10, a bound of 1 of 20.
    assert together.bound == pytest.approx(failure_bound(1, 20, level=0.95), abs=0.03)


def test_conversations_without_any_loss_are_taken_for_one_item_each() -> None:
    guard = judge_guard([compared(both=200, size=10)], margin=0.1, level=0.05)
    assert guard.status == "broken"
    assert guard.bound == pytest.approx(failure_bound(0, 20, level=0.95))


def test_fractions_of_effective_items_are_not_rounded_away() -> None:
    """Eight losses, five of them in one conversation of six, are worth 2.3 losses: more than two."""
    before, after = np.ones(120), np.ones(120)
    after[[*range(5), 30, 36, 42]] = 0.0
    clusters = np.repeat(np.arange(20), 6)
    effect = design_effect(after, before, clusters=clusters)
    assert 2 < 8 / effect < 2.5
    guard = judge_guard([Compared("desk", before, after, clusters)], margin=0.1, level=0.05)
    assert guard.bound is not None
    assert guard.bound > failure_bound(2, round(120 / effect), level=0.95)


def test_a_conversation_in_which_two_templates_ask_is_one() -> None:
    """The cluster is that of the one golden dataset: 30 conversations prove 9.5 %, not 4.9 % as 60 would."""
    one, other = compared(both=30, template="desk"), compared(both=30, template="router")
    guard = judge_guard([one, other], margin=0.05, level=0.05)
    assert (guard.status, guard.right) == ("broken", 60)
    assert guard.bound == pytest.approx(failure_bound(0, 30, level=0.95))


def drawn(
    rng: np.random.Generator, runs: int, clusters: int, size: int, *, probability: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw 0/1 scores of conversations whose items are alike: a third of the items repeat their conversation."""
    shared = rng.random((runs, clusters, 1)) < probability
    own = rng.random((runs, clusters, size)) < probability
    repeats = rng.random((runs, clusters, size)) < 1 / 3
    return np.where(repeats, shared, own).astype(np.float64).reshape(runs, clusters * size)


def monte_carlo_error(level: float, runs: int) -> float:
    return 3 * float(np.sqrt(level * (1 - level) / runs))


@pytest.mark.parametrize(("clusters", "size"), [(60, 1), (30, 3)])
def test_equal_candidates_of_several_templates_claim_anything_no_more_often_than_the_level(
    clusters: int, size: int
) -> None:
    rng, level, templates = np.random.default_rng(11), 0.10, 4
    labels = np.repeat(np.arange(clusters), size)
    sides = [
        [drawn(rng, RUNS, clusters, size, probability=0.6) for _ in range(2)] for _ in range(templates)
    ]  # by template: before, after
    claims = 0
    for run in range(RUNS):
        looked = [Compared(str(at), before[run], after[run], labels) for at, (before, after) in enumerate(sides)]
        claims += any(gain.proven for gain in judge_gains(looked, level=level))
    assert claims > 0, "a test that never claims anything proves nothing about its level"
    assert claims / RUNS <= level + monte_carlo_error(level, RUNS)


def test_repeated_looks_at_the_same_items_claim_anything_no_more_often_than_the_level() -> None:
    """Six candidates, one after the other, on the same items: without the looks' shares every third run claims."""
    rng, level, looks, n, runs = np.random.default_rng(12), 0.20, 6, 80, 200
    before = drawn(rng, runs, n, 1, probability=0.5)
    claims = naive = 0
    for run in range(runs):
        after = drawn(rng, looks, n, 1, probability=0.5)
        lower = [
            difference_interval(each, before[run], level=1 - 2 * level_of_look(level, earlier=earlier)).lower
            for earlier, each in enumerate(after)
        ]
        claims += max(lower) > 0
        naive += any(difference_interval(each, before[run], level=1 - 2 * level).lower > 0 for each in after)
    assert claims / runs <= level + monte_carlo_error(level, runs)
    assert naive / runs > level + monte_carlo_error(level, runs), "the shares would not be needed"


@pytest.mark.parametrize(("clusters", "size", "rate"), [(150, 1, 0.04), (60, 4, 0.08), (100, 3, 0.03)])
def test_the_guards_bound_covers_the_share_that_is_lost(clusters: int, size: int, rate: float) -> None:
    rng, level = np.random.default_rng(13), 0.10
    after = 1 - drawn(rng, RUNS, clusters, size, probability=rate)
    before, labels = np.ones(clusters * size), np.repeat(np.arange(clusters), size)
    bounds = [judge_guard([Compared("", before, each, labels)], margin=0.5, level=level).bound for each in after]
    missed = sum(bound is not None and bound < rate for bound in bounds)
    assert missed / RUNS <= level + monte_carlo_error(level, RUNS)
