"""A freeze keeps every call that qualifies, counts every other one, and depends on nothing but the calls."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import canonical_json, digest_of_rows
from anven_pipelines.domain.errors import EmptyGolden, InvalidInput
from anven_pipelines.domain.golden import GOLDEN, Freeze, freeze
from anven_pipelines.domain.holdout import Seen
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.spec import Migration
from anven_pipelines.spec_grading import Judge, RagasGrader

START = datetime(2026, 11, 1, tzinfo=UTC)
PROMPT = canonical_json([{"role": "user", "content": "How much is 6 x 7?"}])


def question(number: int) -> str:
    return canonical_json([{"role": "user", "content": f"How much is {number} x 7?"}])


def migration(*, applications: list[str] | None = None, **golden: Any) -> Migration:
    return Migration.model_validate(
        {
            "workload": "support",
            "legacy": {"model": "gpt-4o", "logs": "logs/*.jsonl", "applications": applications},
            "target": {"engine": "recorded", "model": "ANVEN-3b-instruct", "answers": "answers.jsonl"},
            "grading": [{"kind": "number"}],
            "golden": {"size": "all", **golden},
        }
    )


def call(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number:04}",
        "ts": START + timedelta(minutes=number),
        "application": "chat",
        "provider": "openai",
        "model": "gpt-4o",
        "messages": question(number),
        "output": "42",
        "ground_truth": "42",
        "status": "ok",
        "source_file": "day-1.jsonl",
        "source_line": number,
        **changes,
    }


def log(*calls: dict[str, Any]) -> pl.DataFrame:
    return REQUEST_LOG.conform(pl.DataFrame(list(calls), infer_schema_length=None))


def frozen(calls: list[dict[str, Any]], spec: Migration | None = None, *, needed: int = 0) -> Freeze:
    return freeze(log(*calls), spec or migration(), needed=needed)


def test_a_qualifying_call_becomes_a_golden_row_with_all_that_was_logged() -> None:
    measured = {
        "latency_ms": 900.0,
        "ttft_ms": 80.0,
        "input_tokens": 12,
        "output_tokens": 3,
        "cached_tokens": 4,
        "cost_usd": 0.01,
    }
    stated = {
        "ground_truth": "42",
        "finish_reason": "stop",
        "endpoint": "/v1/chat/completions",
        "tags": '{"task":"arithmetic"}',
    }
    row = frozen([call(6, params='{"seed":1}', context='["a"]', **measured, **stated)]).rows.row(0, named=True)
    assert row == {
        "id": "r0006",
        "source_prompt": PROMPT,
        "input_context": '["a"]',
        "model_config": '{"seed":1}',
        "source_output": "42",
        "tool_calls": None,
        "ground_truth": "42",
        "finish_reason": "stop",
        "automated_score": None,
        "human_score": None,
        "notes": None,
        "cluster": "r0006",
        "split": "sealed",
        "application": "chat",
        "endpoint": "/v1/chat/completions",
        "task": "arithmetic",
        "length_band": "short",
        "risk": "unknown",
        "language": "unknown",
        "role": "traffic",
        "weight": 1.0,
        **measured,
    }


def test_a_judged_metric_needs_no_ground_truth() -> None:
    judged = migration().model_copy(
        update={"grading": [RagasGrader(kind="ragas", judge=Judge(model="judge", url="http://127.0.0.1:1/v1"))]}
    )
    assert frozen([call(1, ground_truth=None)], judged).rows.height == 1


def test_a_log_without_ground_truth_is_told_what_is_missing() -> None:
    with pytest.raises(EmptyGolden, match="the graders compare with a ground truth"):
        frozen([call(1, ground_truth=None), call(2, ground_truth=None)])


def test_rows_have_the_published_schema_and_stand_in_the_order_of_their_ids() -> None:
    rows = frozen([call(n) for n in (3, 1, 2)]).rows
    assert rows.schema == GOLDEN.schema
    assert rows["id"].to_list() == ["r0001", "r0002", "r0003"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ground_truth": None}, "no ground truth"),
        ({"application": "batch"}, "other application"),
        ({"application": None}, "other application"),
        ({"model": "gpt-4o-mini"}, "other model"),
        ({"model": None}, "other model"),
        ({"model": "azure/gpt-4o"}, "other model"),
        ({"status": "error", "output": None}, "error"),
        ({"status": "unanswered", "output": None}, "unanswered"),
        ({"status": None}, "status unknown"),
        ({"messages": None}, "no prompt"),
        ({"messages": "[]"}, "no prompt"),
        ({"output": None}, "no output"),
        ({"output": ""}, "no output"),
        ({"output": None, "tool_calls": "[]"}, "no output"),
    ],
)
def test_a_call_that_does_not_qualify_is_counted_under_its_reason(change: dict[str, Any], reason: str) -> None:
    result = frozen([call(1), call(2, **change)], migration(applications=["chat"]))
    assert result.rows["id"].to_list() == ["r0001"]
    assert result.exclusions == {reason: 1}


def test_a_tool_call_without_text_is_an_answer() -> None:
    result = frozen([call(1, output=None, tool_calls='[{"function":{"name":"lookup"}}]')])
    assert result.rows["source_output"].to_list() == [None]
    assert result.exclusions == {}


def test_the_legacy_model_may_be_named_with_its_provider() -> None:
    spec = migration()
    named = spec.model_copy(update={"legacy": spec.legacy.model_copy(update={"model": "openai/gpt-4o"})})
    calls = [call(1), call(2, provider="azure"), call(3, provider=None, model="openai/gpt-4o"), call(4, provider=None)]
    assert frozen(calls, named).rows["id"].to_list() == ["r0001", "r0003"]


def test_a_call_without_an_id_gets_one_from_what_was_asked_and_answered() -> None:
    first, again = (
        frozen([call(1, request_id=missing, source_file=file, ts=ts)]).rows["id"].item()
        for missing, file, ts in ((None, "a.jsonl", START), ("", "b.jsonl", None))
    )
    other = frozen([call(1, request_id=None, output="43")]).rows["id"].item()
    assert first.startswith("row-")
    assert len(first) == len("row-") + 16
    assert first == again != other


def test_calls_that_say_the_same_under_one_id_collapse_to_the_earliest() -> None:
    late, early = call(1, ts=START + timedelta(days=1), latency_ms=5.0), call(1, ts=START, latency_ms=9.0)
    result = frozen([late, early, call(1, ts=None), call(2)])
    assert result.rows["latency_ms"].to_list() == [9.0, None]
    assert result.exclusions == {"identical duplicate": 2}


@pytest.mark.parametrize("ts", [START, None])
def test_which_of_two_equal_calls_stays_does_not_depend_on_their_order(ts: datetime | None) -> None:
    logged = [
        call(1, ts=ts, latency_ms=latency, source_line=line) for line, latency in enumerate((5.0, 9.0, None, 7.0))
    ]
    assert len({digest_of_rows(frozen(logged[turn:] + logged[:turn]).rows) for turn in range(len(logged))}) == 1


@pytest.mark.parametrize("change", [{"output": "41"}, {"ground_truth": "41"}, {"params": "{}"}, {"context": "[]"}])
def test_calls_that_contradict_each_other_under_one_id_are_all_left_out(change: dict[str, Any]) -> None:
    result = frozen([call(1), call(1), call(1, **change), call(2)])
    assert result.rows["id"].to_list() == ["r0002"]
    assert result.exclusions == {"ambiguous request id": 3}


def test_a_failed_attempt_under_the_same_id_does_not_make_the_answer_ambiguous() -> None:
    result = frozen([call(1, status="error", output=None), call(1)])
    assert result.rows["id"].to_list() == ["r0001"]
    assert result.exclusions == {"error": 1}


@pytest.mark.parametrize(
    ("change", "band"),
    [
        ({"input_tokens": 499}, "short"),
        ({"input_tokens": 500}, "medium"),
        ({"input_tokens": 1_999}, "medium"),
        ({"input_tokens": 2_000}, "long"),
        ({"messages": [{"role": "user", "content": "é" * 1_999}]}, "short"),
        (
            {"messages": [{"role": "system", "content": "é" * 1_000}, {"role": "user", "content": "é" * 1_000}]},
            "medium",
        ),
        ({"messages": [{"role": "user", "content": "é" * 8_000}]}, "long"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "é" * 2_000}]}]}, "medium"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x" * 9_000}}]}]},
            "short",
        ),
        ({"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "go on"}]}, "short"),
    ],
)
def test_the_length_band_has_fixed_bounds(change: dict[str, Any], band: str) -> None:
    as_logged = {name: canonical_json(value) if name == "messages" else value for name, value in change.items()}
    assert frozen([call(1, **as_logged)]).rows["length_band"].to_list() == [band]


def test_a_missing_stratum_is_unknown() -> None:
    rows = frozen([call(1, application=None, endpoint=None, tags='{"team":"a"}')], migration(strata=["task"])).rows
    assert rows.select("application", "endpoint", "task").row(0) == ("unknown", "unknown", "unknown")


@pytest.mark.parametrize(
    ("size", "needed", "expected"),
    [("all", 0, 700), (1, 0, 1), (700, 0, 700), ("auto", 0, 500), ("auto", 620, 620), ("auto", 5_000, 700)],
)
def test_the_size_follows_the_migration_file(size: str | int, needed: int, expected: int) -> None:
    result = frozen([call(n) for n in range(700)], migration(size=size), needed=needed)
    assert result.rows.height == expected
    assert result.exclusions.get("not drawn", 0) == 700 - expected


def test_auto_stops_at_two_thousand() -> None:
    assert frozen([call(n) for n in range(2_100)], migration(size="auto"), needed=5_000).rows.height == 2_000


def test_a_size_beyond_the_log_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidInput, match=r"golden\.size is 9, but 3 distinct logged calls qualify"):
        frozen([call(n) for n in range(3)], migration(size=9))


def test_no_qualifying_call_is_refused_with_what_was_found() -> None:
    calls = [
        call(1, model="gpt-4"),
        call(2, model="gpt-4"),
        call(3, status="error"),
        call(4, provider=None, model="o1"),
    ]
    with pytest.raises(EmptyGolden) as caught:
        frozen(calls)
    message = str(caught.value)
    assert "none of 4 logged calls qualifies" in message
    assert "other model 3, error 1" in message
    assert "Models found: openai/gpt-4 2, o1 1, openai/gpt-4o 1" in message
    assert "Set legacy.model" in message


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(EmptyGolden, match="none of 0 logged calls"):
        freeze(REQUEST_LOG.empty(), migration(), needed=0)


def test_a_freeze_that_loses_a_call_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"0 golden rows \+ 2 left out are not 3 candidates"):
        Freeze(rows=GOLDEN.empty(), exclusions={"error": 2}, candidates=3, facts={})


def test_another_seed_draws_other_calls_and_seals_others() -> None:
    calls = [call(n) for n in range(200)]
    first, same, other = (frozen(calls, migration(size=100, seed=seed)).rows for seed in (1, 1, 2))
    assert first.equals(same)
    assert first["id"].to_list() != other["id"].to_list()
    both = first.join(other, on="id")
    assert (both["split"] != both["split_right"]).any()


def test_a_holdout_of_one_seals_everything() -> None:
    calls = [call(n, application=f"app-{n % 7}") for n in range(50)]
    assert set(frozen(calls, migration(holdout=1.0)).rows["split"]) == {"sealed"}


def test_strata_of_one_item_share_the_holdout_between_them() -> None:
    calls = [call(n, application=f"app-{n}") for n in range(100)]
    assert frozen(calls, migration(holdout=0.25)).facts["sealed"] == 25


def test_facts_account_for_every_stratum() -> None:
    calls = [call(n, application="a" if n < 60 else "b") for n in range(100)]
    facts = frozen(calls, migration(size=50, holdout=0.2)).facts
    assert facts["strata"] == [
        {"application": "a", "calls": 60, "available": 60, "drawn": 30, "sealed": 6},
        {"application": "b", "calls": 40, "available": 40, "drawn": 20, "sealed": 4},
    ]
    assert (facts["available"], facts["drawn"], facts["sealed"], facts["open"]) == (100, 50, 10, 40)
    assert json.loads(canonical_json(facts)) == facts


def test_near_duplicates_become_one_item_that_weighs_as_many_calls() -> None:
    calls = [call(n, messages=PROMPT) for n in range(4)] + [call(n) for n in range(10, 16)]
    result = frozen(calls)
    assert sorted(result.rows["weight"]) == [1.0] * 6 + [4.0]
    assert result.exclusions == {"near duplicate": 3}
    assert (result.facts["available"], result.facts["calls"]) == (7, 10)
    assert frozen(calls, migration(near_duplicates="keep")).rows["weight"].to_list() == [1.0] * 10


def test_who_asks_and_how_the_answer_travels_make_no_other_prompt() -> None:
    asked = ['{"temperature":0,"user":"a","seed":1}', '{"stream":true,"temperature":0}', '{"temperature":1}']
    result = frozen([call(n, messages=PROMPT, params=params) for n, params in enumerate(asked)])
    assert sorted(result.rows["weight"]) == [1.0, 2.0]


def test_risk_and_language_come_from_the_tags_first() -> None:
    spec = migration(strata=["risk", "language"]).model_copy(update={"risk": "medium"})
    german = canonical_json([{"role": "user", "content": "Wie viel kostet das Zimmer pro Nacht mit Frühstück?"}])
    calls = [
        call(1, tags='{"risk":"High","language":"pt"}', messages=german),
        call(2, messages=german),
        call(3),
    ]
    rows = frozen(calls, spec).rows
    assert rows.select("risk", "language").rows() == [("high", "pt"), ("medium", "de"), ("medium", "unknown")]
    assert set(frozen(calls, migration(near_duplicates="keep")).rows["language"]) == {"pt", "unknown"}


def test_quotas_add_items_that_stand_for_no_traffic() -> None:
    edge, probe = '{"edge_case":true}', '{"adversarial":true}'
    calls = [call(n) for n in range(50)] + [call(n, tags=edge) for n in range(50, 60)]
    calls += [call(n, tags=probe) for n in range(60, 70)]
    declared = log(*(call(n, model=None, application=None) for n in range(70, 75)))
    spec = migration(size=20, holdout=0.5, quotas={"edge_case": 4, "adversarial": 12})
    result = freeze(log(*calls), spec, needed=0, adversarial=declared)
    by_role = result.rows.group_by("role").agg(pl.len(), pl.col("weight").sum(), (pl.col("split") == "sealed").sum())
    assert sorted(by_role.rows()) == [
        ("adversarial", 12, 0.0, 6),
        ("edge_case", 4, 0.0, 2),
        ("traffic", 20, pytest.approx(60), 10),
    ]
    edges = result.rows.filter(pl.col("role") == "edge_case")
    assert all("r0050" <= name < "r0060" for name in edges["id"])
    assert result.exclusions == {"adversarial beyond the quota": 3, "not drawn": 36}
    assert result.facts["quotas"]["adversarial"] == {"wanted": 12, "found": 15, "drawn": 12, "sealed": 6}


def test_adversarial_calls_are_no_traffic_even_without_a_quota() -> None:
    result = frozen([call(1), call(2, tags='{"adversarial":true}')])
    assert result.rows["id"].to_list() == ["r0001"]
    assert result.exclusions == {"adversarial beyond the quota": 1}


def test_a_burnt_call_is_known_by_its_id_where_the_log_has_gained_conversations() -> None:
    calls = [call(n, conversation_id=f"k{n}") for n in range(40)]
    burnt = {f"r{n:04}" for n in range(10)}
    again = freeze(log(*calls), migration(holdout=1.0), needed=0, seen=Seen(frozenset(burnt))).rows
    assert set(again.filter(split="open")["id"]) == burnt


def test_a_conversation_that_was_burnt_is_not_sealed_again_nor_is_its_near_duplicate() -> None:
    calls = [call(n, conversation_id=f"k{n // 2}") for n in range(40)]
    first = frozen(calls, migration(size=20, holdout=1.0))
    burnt = set(first.rows["cluster"])
    assert len(burnt) == 10
    again = freeze(log(*calls), migration(size=20, holdout=1.0), needed=0, seen=Seen(frozenset(burnt)))
    assert not burnt & set(again.rows["cluster"])
    assert again.facts["sealed"] == 20
    twin = call(99, messages=question(0), conversation_id="new")
    every = freeze(log(twin, *calls), migration(holdout=1.0), needed=0, seen=Seen(frozenset(["k0"]))).rows
    assert every.filter(pl.col("cluster").is_in(["k0", "new"]))["split"].unique().to_list() == ["open"]
    assert every.filter(pl.col("split") == "sealed").height == 38


def test_what_stood_open_stays_open_while_others_are_left_and_is_drawn_in_its_turn() -> None:
    calls = [call(n) for n in range(400)]
    first = frozen(calls, migration(size=200, holdout=0.25)).rows
    shown = Seen(burnt=frozenset(first.filter(split="sealed")["id"]), shown=frozenset(first.filter(split="open")["id"]))
    again = freeze(log(*calls), migration(size=200, holdout=0.25), needed=0, seen=shown).rows
    assert not set(again.filter(split="sealed")["id"]) & set(first["id"])
    assert (again["split"] == "sealed").sum() == 50
    assert set(again.filter(split="open")["id"]) == set(first.filter(split="open")["id"])


def test_the_next_draw_over_the_same_calls_is_the_same_version_for_as_long_as_nothing_was_opened() -> None:
    calls = [call(n, application="ab"[n % 3 > 0], conversation_id=f"k{n // 2}") for n in range(120)]
    first = frozen(calls, migration(holdout=0.25))
    shown = Seen(shown=frozenset(first.rows.filter(split="open")["cluster"]))
    again = freeze(log(*calls), migration(holdout=0.25), needed=0, seen=shown)
    assert again.rows.equals(first.rows)
    assert (again.facts, again.seen) == (first.facts, 90)


def test_auto_allows_for_conversations_and_weights() -> None:
    calls = [call(n, conversation_id=f"k{n // 5}") for n in range(1_500)]
    result = frozen(calls, migration(size="auto"), needed=600)
    # 600 x (1 + (5 - 1) x 0.1) = 840, and some for the conversation that the test imagines against the claim.
    assert 840 < result.rows.height < 1_100
    assert re.search(r"times 1\.[5-8]\d for conversations and weights", result.facts["size_rule"])


# Small alphabets make duplicates, conversations across strata and ambiguous ids likely.
logged_calls = st.lists(
    st.fixed_dictionaries(
        {
            "request_id": st.sampled_from([None, *(f"r{n}" for n in range(40))]),
            "application": st.sampled_from(["a", "b", "c", None]),
            "model": st.sampled_from(["gpt-4o"] * 8 + ["gpt-4", None]),
            "status": st.sampled_from(["ok"] * 8 + ["error", "unanswered", None]),
            "conversation_id": st.sampled_from([None, None, "k1", "k2", "k3", ""]),
            "output": st.sampled_from(["1"] * 12 + ["2", "", None]),
            "messages": st.sampled_from([PROMPT] * 12 + [None]),
            "tags": st.sampled_from([None, '{"task":"x"}', '{"task":"y"}']),
            "latency_ms": st.sampled_from([None, 1.0, 2.0]),
            "ground_truth": st.sampled_from(["1"] * 12 + [None]),
        }
    ),
    min_size=1,
    max_size=60,
)
strata = st.lists(st.sampled_from(["application", "task", "length_band"]), unique=True)


def as_log(calls: list[dict[str, Any]]) -> pl.DataFrame:
    sources = [{"provider": "openai", "source_file": "a", "source_line": n} for n in range(len(calls))]
    return log(*({**entry, **source} for entry, source in zip(calls, sources, strict=True)))


def qualifies(entry: dict[str, Any]) -> bool:
    filled = entry["output"] and entry["messages"] and entry["ground_truth"]
    return bool(entry["model"] == "gpt-4o" and entry["status"] == "ok" and filled)


@settings(max_examples=12, deadline=None)
@given(logged_calls, strata, st.randoms(use_true_random=False), st.floats(0.05, 1.0))
def test_every_call_is_kept_or_counted_and_order_and_files_change_nothing(
    calls: list[dict[str, Any]], by: list[str], random: Any, holdout: float
) -> None:
    spec = migration(strata=by, holdout=holdout)
    try:
        first = freeze(as_log(calls), spec, needed=0)
    except EmptyGolden:
        usable = {entry["request_id"] for entry in calls if qualifies(entry)}
        assert not usable or all(
            len({entry["output"] for entry in calls if qualifies(entry) and entry["request_id"] == name}) > 1
            for name in usable
        )
        return
    assert first.candidates == len(calls) == first.rows.height + sum(first.exclusions.values())
    shuffled = random.sample(calls, len(calls))
    second = freeze(as_log(shuffled).with_columns(source_file=pl.lit("elsewhere")), spec, needed=0)
    assert digest_of_rows(first.rows) == digest_of_rows(second.rows)
    assert first.exclusions == second.exclusions
    assert first.facts == second.facts
    assert first.rows.group_by("cluster").agg(pl.col("split").n_unique())["split"].max() == 1


drawable = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.integers(0, 25)), min_size=1, max_size=80
)


@settings(max_examples=12, deadline=None)
@given(drawable, strata, st.integers(0, 99), st.data())
def test_each_stratum_of_single_calls_keeps_its_share_within_one_item(
    shape: list[tuple[str, str, int]], by: list[str], seed: int, data: st.DataObject
) -> None:
    calls = [call(n, application=app, tags=f'{{"task":"{task}"}}') for n, (app, task, _) in enumerate(shape)]
    size = data.draw(st.integers(1, len(calls)))
    result = frozen(calls, migration(size=size, strata=by, seed=seed))
    assert result.rows.height == size
    for stratum in result.facts["strata"]:
        assert abs(stratum["drawn"] - stratum["available"] * size / len(calls)) < 1


@settings(max_examples=12, deadline=None)
@given(drawable, strata, st.integers(0, 99), st.data())
def test_conversations_are_drawn_and_sealed_whole(
    shape: list[tuple[str, str, int]], by: list[str], seed: int, data: st.DataObject
) -> None:
    calls = [
        call(n, application=app, tags=f'{{"task":"{task}"}}', conversation_id=f"k{talk}")
        for n, (app, task, talk) in enumerate(shape)
    ]
    turns = Counter(f"k{talk}" for _, _, talk in shape)
    size = data.draw(st.integers(1, len(calls)))
    result = frozen(calls, migration(size=size, strata=by, seed=seed))
    drawn = result.rows.group_by("cluster").agg(pl.len(), pl.col("split").n_unique())
    assert dict(drawn.select("cluster", "len").iter_rows()) == {name: turns[name] for name in drawn["cluster"]}
    assert drawn["split"].max() == 1
    overshoot = len(result.facts["strata"]) * (max(turns.values()) - 1)
    assert size <= result.rows.height <= size + overshoot
    assert result.rows["weight"].sum() == pytest.approx(len(calls), abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(drawable, strata, st.floats(0.01, 1.0), st.integers(0, 99))
def test_the_sealed_share_is_reached_and_overshot_by_less_than_a_conversation_a_stratum(
    shape: list[tuple[str, str, int]], by: list[str], holdout: float, seed: int
) -> None:
    calls = [
        call(n, application=app, tags=f'{{"task":"{task}"}}', conversation_id=f"k{talk}" if talk < 10 else None)
        for n, (app, task, talk) in enumerate(shape)
    ]
    result = frozen(calls, migration(strata=by, holdout=holdout, seed=seed))
    target = math.ceil(round(holdout * len(calls), 9))
    longest = max(result.rows.group_by("cluster").len()["len"].to_list())
    assert target <= result.facts["sealed"] <= target + len(result.facts["strata"]) * (longest - 1)
    assert result.facts["sealed"] + result.facts["open"] == len(calls)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=80), st.floats(0.01, 1.0))
def test_single_calls_are_sealed_in_proportion_within_one_item(applications: list[str], holdout: float) -> None:
    result = frozen([call(n, application=app) for n, app in enumerate(applications)], migration(holdout=holdout))
    target = math.ceil(round(holdout * len(applications), 9))
    assert result.facts["sealed"] == target
    for stratum in result.facts["strata"]:
        assert abs(stratum["sealed"] - stratum["available"] * target / len(applications)) < 1
