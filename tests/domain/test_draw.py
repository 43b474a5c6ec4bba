"""Weights stand for the traffic, burnt conversations are never sealed, quotas come on top."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.draw import edge_cases, fill_quota, sealed, strata_without_sealed, traffic_items


def key(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()


def pool(calls: list[int], *, seed: int = 0, **columns: Any) -> pl.DataFrame:
    """Build one single-turn item for each entry: how many calls it stands for."""
    frame = pl.DataFrame(
        {"id": [f"i{at:04}" for at in range(len(calls))], "calls": calls}
        | {"stratum": "{}", "burnt": False, "edge_case": False, "characters": 100}
        | columns
    ).with_columns(pl.col("calls").cast(pl.Int64))
    frame = frame if "seen" in columns else frame.with_columns(seen="burnt")
    named = frame if "cluster" in columns else frame.with_columns(cluster="id")
    return named.with_columns(
        draw_key=pl.Series([key(seed, "draw", each) for each in named["cluster"]]),
        seal_key=pl.Series([key(seed, "seal", each) for each in named["cluster"]]),
    )


def test_drawing_everything_weighs_each_item_by_its_calls() -> None:
    drawn = traffic_items(pool([5, 1, 1, 3]), 4).sort("id")
    assert drawn["weight"].to_list() == [5, 1, 1, 3]


def test_without_repeated_prompts_all_items_of_a_stratum_weigh_the_same() -> None:
    strata = ["a"] * 60 + ["b"] * 30
    drawn = traffic_items(pool([1] * 90, stratum=strata), 45)
    assert drawn.group_by("stratum").agg(pl.len(), pl.col("weight").unique()).sort("stratum").rows() == [
        ("a", 30, [2.0]),
        ("b", 15, [2.0]),
    ]


def test_a_prompt_that_is_half_the_traffic_is_always_drawn_and_weighs_as_much() -> None:
    for seed in range(20):
        drawn = traffic_items(pool([200, *[1] * 200], seed=seed), 20)
        heavy = drawn.filter(pl.col("id") == "i0000")["weight"]
        assert heavy.to_list() == [pytest.approx(200, rel=0.35)]
        assert drawn["weight"].sum() == pytest.approx(400, abs=1e-3)


def test_a_stratum_too_small_for_an_item_still_counts_in_the_sum() -> None:
    drawn = traffic_items(pool([1] * 101, stratum=["a"] * 100 + ["b"]), 10)
    assert set(drawn["stratum"]) == {"a"}
    assert drawn["weight"].sum() == pytest.approx(101, abs=1e-3)


def test_the_weighted_mean_of_many_draws_is_that_of_the_traffic() -> None:
    """Scores go with how often a prompt is asked and with its stratum, so equal weights would be 9 points off."""
    rng = np.random.default_rng(7)
    calls = np.minimum(rng.zipf(1.8, 300), 60)
    strata = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1])
    scores = (rng.random(300) < np.where(calls > 2, 0.95, 0.6) - 0.2 * (strata == "b")).astype(float)
    truth = float(np.average(scores, weights=calls))
    frames = (
        traffic_items(pool(calls.tolist(), seed=seed, stratum=strata.tolist(), score=scores.tolist()), 60)
        for seed in range(80)
    )
    means = np.array([[np.average(each["score"], weights=each["weight"]), each["score"].mean()] for each in frames])
    error = means.std(axis=0) / np.sqrt(len(means))
    assert abs(means[:, 0].mean() - truth) < 4 * error[0]
    assert abs(scores.mean() - truth) > 8 * error[0]


def test_conversations_of_all_lengths_have_the_same_chance() -> None:
    turns = [1] * 40 + [4] * 40
    clusters = [f"k{at:02}" for at, length in enumerate(turns) for _ in range(length)]
    seen = np.zeros(2)
    for seed in range(60):
        drawn = traffic_items(pool([1] * len(clusters), seed=seed, cluster=clusters), 50)
        seen += [drawn.filter(pl.col("cluster") < "k40")["cluster"].n_unique(), drawn.height]
    singles, height = seen / 60
    assert singles == pytest.approx((height - singles) / 4, rel=0.1)


def test_burnt_conversations_are_drawn_last_and_never_sealed() -> None:
    burnt = [at < 30 for at in range(100)]
    few = sealed(traffic_items(pool([1] * 100, burnt=burnt), 60), 0.5)
    assert not few["burnt"].any()
    every = sealed(traffic_items(pool([1] * 100, burnt=burnt), 100), 0.5)
    assert every.filter("burnt")["split"].unique().to_list() == ["open"]
    assert every["split"].eq("sealed").sum() == 50
    rest = sealed(traffic_items(pool([1] * 100, burnt=burnt), 100), 1.0)
    assert rest["split"].eq("sealed").sum() == 70
    assert sealed(traffic_items(pool([1] * 9, burnt=True), 9), 1.0)["split"].eq("open").all()


def test_each_stratum_seals_by_its_size_up_to_its_fresh_items_and_the_rest_goes_where_there_are_more() -> None:
    strata = ["a"] * 320 + ["b"] * 80
    for fresh_in_b, expected in ((80, [80, 20]), (20, [80, 20]), (5, [95, 5]), (0, [100, 0])):
        seen = [at >= 320 + fresh_in_b for at in range(400)]
        drawn = sealed(traffic_items(pool([1] * 400, stratum=strata, burnt=seen), 400), 0.25)
        counts = [drawn.filter(stratum=stratum, split="sealed").height for stratum in "ab"]
        assert counts == expected
        assert strata_without_sealed(drawn, 0.25) == ([] if fresh_in_b else ["b"])


def test_a_stratum_too_small_for_a_sealed_item_is_not_missed() -> None:
    drawn = sealed(traffic_items(pool([1] * 101, stratum=["a"] * 100 + ["b"]), 101), 0.1)
    assert strata_without_sealed(drawn, 0.1) == []


def test_a_conversation_with_one_burnt_turn_still_adds_its_weight() -> None:
    drawn = traffic_items(pool([2] * 50, burnt=[at < 30 for at in range(50)]), 40)
    assert drawn["burnt"].sum() == 20
    assert drawn["weight"].sum() == pytest.approx(100, abs=1e-3)


def test_edge_cases_are_tagged_extreme_or_rare() -> None:
    found = edge_cases(
        pool(
            [1] * 300,
            characters=[1, *[100] * 298, 9_000],
            stratum=["a"] * 150 + ["b"] * 148 + ["c"] * 2,
            edge_case=[at == 10 for at in range(300)],
        )
    ).sort("id")
    assert found.select("id", "told").rows() == [("i0000", False), ("i0010", True), ("i0298", False), ("i0299", False)]


def test_prompts_of_one_length_are_no_edge_cases() -> None:
    assert edge_cases(pool([1] * 300)).is_empty()


def test_a_quota_takes_the_told_first_and_a_conversations_marked_turns_together() -> None:
    marked = pool([1] * 6, cluster=["k1", "k1", "k2", "k3", "k4", "k4"]).with_columns(
        told=pl.Series([False] * 4 + [True] * 2)
    )
    assert set(fill_quota(marked, 1, role="edge_case")["cluster"]) == {"k4"}
    drawn = fill_quota(marked, 3, role="edge_case")
    assert drawn["cluster"].n_unique() == 2
    assert set(drawn["role"]) == {"edge_case"}
    assert set(drawn["weight"]) == {0.0}
    assert fill_quota(marked, 0, role="edge_case").is_empty()
    assert fill_quota(marked.clear(), 5, role="edge_case").is_empty()
