"""What the canary benchmark is fed with, what the other controllers see of it, and what a unit can tell at most."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from scipy import stats

from anven_pipelines.stats.boundaries import beta_binomial_weight, plausible_counts
from anven_pipelines.stats.confidence_sequence import N_OPT
from benchmarks.canary_controllers import Simulated, Units
from benchmarks.canary_p95 import ranks_of, told_of_p95
from benchmarks.canary_peers import FEWEST, MannWhitney, Threshold, t_test
from benchmarks.canary_recorded import equal_of, main
from benchmarks.recorded_streams import BLOCK, Recording, World, drawn, stages_of

RATE = 240
ALPHA = 0.001


def recording() -> Recording:
    """Invent 150 requests, of which each third block fails; each has a time of its own."""
    failed = np.arange(150) % 150 >= 100
    times = np.where(failed, np.nan, np.arange(150.0) + 1)
    return Recording(failed, times, 10 * times)


def units_of(hours: int, *, rng: np.random.Generator) -> Units:
    """Deal a stage's units at one half."""
    treated = rng.random(hours * RATE) < 0.5
    return Units(0.5, hours, treated, ~treated)


def test_a_block_follows_the_recording_and_its_end_is_followed_by_its_beginning() -> None:
    places = drawn(recording(), 4_020, BLOCK, np.random.default_rng(1))
    assert len(places) == 4_020
    steps = np.diff(places) % 150
    inside = np.arange(1, 4_020) % BLOCK != 0
    assert (steps[inside] == 1).all()
    assert (steps[~inside] != 1).any()
    assert (np.diff(places)[inside] == -149).any()
    assert np.bincount(places, minlength=150).min() > 0


def test_bursts_meet_both_arms_alike_unless_they_are_apart() -> None:
    one, apart = (
        list(stages_of(World(1_200, "x", "x", apart=apart), {"x": recording()}, np.random.default_rng(2)))
        for apart in (False, True)
    )
    assert not any(stage.excess.any() for stage in one if stage.excess is not None)
    excess = np.concatenate([stage.excess for stage in apart if stage.excess is not None])
    assert len(excess) == 96 * 1_200
    assert np.abs(excess).mean() == pytest.approx(4 / 9, abs=0.03)  # one fails and the other does not
    assert excess.mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("burst", [1, BLOCK])
def test_failures_that_are_mixed_in_meet_the_target_alone_and_are_as_many_as_stated(burst: int) -> None:
    steady = Recording(np.zeros(150, bool), np.ones(150), np.ones(150))
    world = World(1_200, "steady", "steady", bursts="x", mixed=0.3, burst=burst)
    stages = list(stages_of(world, {"steady": steady, "x": recording()}, np.random.default_rng(3)))
    for stage in stages:
        errors, treated = stage.bad["errors"], stage.units.treated
        assert not errors[~treated].any()
        assert (np.isnan(stage.bad["ttft"]) == (errors > 0)).all()
        assert stage.excess is not None
        assert (errors[treated] == stage.excess[treated]).all()
    found = np.concatenate([stage.excess for stage in stages if stage.excess is not None])
    assert found.mean() == pytest.approx(0.1, abs=0.02)
    in_a_row = (found[1:] * found[:-1]).mean() / found.mean()
    assert in_a_row == pytest.approx(0.1 if burst == 1 else 1, abs=0.05)


def test_times_are_later_by_what_a_world_adds() -> None:
    usual, late = (
        next(stages_of(world, {"x": recording()}, np.random.default_rng(4))).bad
        for world in (World(RATE, "x", "x"), World(RATE, "x", "x", ttft_ms=7, latency_share=0.5))
    )
    ttft, latency = late["ttft"] - usual["ttft"], late["latency"] / usual["latency"]
    assert set(ttft[~np.isnan(ttft)]) == {0.0, 7.0}
    assert set(np.round(latency[~np.isnan(latency)], 1)) >= {1.0, 1.5}


def test_excess_is_that_of_the_recent_window_where_it_is_more() -> None:
    units = units_of(12, rng=np.random.default_rng(5))
    late = np.arange(12 * RATE) >= 6 * RATE
    stage = Simulated(units, {}, late.astype(np.float64))
    assert stage.excess_at(6 * RATE) == 0
    assert stage.excess_at(9 * RATE) == 1
    assert Simulated(units, {}, (~late).astype(np.float64)).excess_at(12 * RATE) == 0.5
    assert Simulated(units, {}).excess_at(1) is None


def test_plausible_ranks_are_those_of_the_controller() -> None:
    ranks = ranks_of(512, ALPHA)
    for n in (1, 2, 19, 20, 60, 187, 188, 400, 512):
        found = plausible_counts(n, share=0.95, alpha=ALPHA, weight=beta_binomial_weight(N_OPT, ALPHA))
        assert (ranks.fewest[n], ranks.most[n]) == (found.fewest, found.most)


def test_a_unit_tells_of_p95_what_the_nearest_pair_within_the_limit_leaves() -> None:
    legacy = np.full(100, 100.0)
    target = np.append(np.full(80, 100.0), np.full(20, 1_000.0))

    def told(limit: float, share: float) -> float:
        return told_of_p95(target, legacy, limit=limit, share=share)

    # At one half the nearest pair has 5 % of legacy endlessly late; at 5 % it has 15 points more of the target in time.
    assert told(200, 0.5) == pytest.approx(0.5 * math.log(1 / 0.95))
    assert told(200, 0.05) == pytest.approx(0.05 * (0.8 * math.log(0.8 / 0.95) + 0.2 * math.log(0.2 / 0.05)))
    assert told(900, 0.5) == 0


def test_the_t_test_is_welchs_at_the_first_look_with_enough_values() -> None:
    rng = np.random.default_rng(6)
    units = units_of(24, rng=rng)
    bad = rng.normal(units.treated * 0.3, 1)
    bad[rng.random(len(bad)) < 0.2] = np.nan
    found = t_test(units, bad)
    assert found is not None
    for n in range(units.a_look, found + 1, units.a_look):
        arms = [bad[:n][arm & ~np.isnan(bad[:n])] for arm in (units.treated[:n], ~units.treated[:n])]
        few = min(len(arm) for arm in arms) < FEWEST
        t = 0.0 if few else stats.ttest_ind(*arms, equal_var=False).statistic
        assert (t > stats.norm.isf(0.05)) == (n == found)


def test_the_threshold_counts_failed_hours_over_stages_and_sees_no_request_that_failed() -> None:
    units = units_of(4, rng=np.random.default_rng(7))
    judge = Threshold(lambda bad: float(bad.mean()), lambda target, legacy: target > legacy + 1)
    late = np.where(units.treated, 2.5, 1.0)
    assert judge(units, np.where(units.treated, np.nan, 1.0)) is None
    assert judge(units, np.where(np.arange(4 * RATE) < RATE, 1.0, late)) is None  # 3 hours of 4
    assert judge.failures == 3
    assert judge(units, late) == 2 * RATE


def test_the_rank_test_sees_the_quantile_of_each_minute_and_the_worse_side_only() -> None:
    rng = np.random.default_rng(8)
    units = units_of(3, rng=rng)
    late = rng.normal(0, 1, 3 * RATE) + np.where(units.treated & (np.arange(3 * RATE) >= RATE), 3, 0)
    for quantile in (None, 0.95):
        judge = MannWhitney(quantile)
        assert judge(units, late) == 2 * RATE
        assert judge(units, -late) is None
    # In each minute the target has one value in 20 that is late: p95 is below it, p96 is it.
    minute = np.tile(np.append(np.full(19, 1.0), 9.0), 60)
    full = Units(0.5, 1, np.tile([True, False], 1_200), np.tile([False, True], 1_200))
    bad = np.array(list(chain.from_iterable(zip(minute, np.ones(1_200), strict=True))))
    assert MannWhitney(0.95)(full, bad) is None
    assert MannWhitney(0.96)(full, bad) == 2_400


def test_equal_arms_are_pooled_over_providers_with_an_exact_interval() -> None:
    rows: list[dict[str, object]] = [
        {"equal": equal, "units_an_hour": RATE, "apart": apart, "method": "ours", "ramps": 150, "times": times}
        for equal, apart, times in ((True, False, 0), (True, False, 0), (True, True, 15), (False, False, 150))
    ]
    together, apart = equal_of(rows)
    assert (together["rolled_back"], together["lower"], together["ramps"]) == (0, 0, 300)
    assert together["upper"] == pytest.approx(1 - 0.025 ** (1 / 300))
    assert (apart["apart"], apart["rolled_back"], apart["ramps"]) == (True, 0.1, 150)


def test_a_missing_recording_is_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.setattr("sys.argv", ["canary_recorded.py", "--data", str(folder)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"{folder}/anyscale_70b.json.gz is missing; --data names the folder" in capsys.readouterr().err
