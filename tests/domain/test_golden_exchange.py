"""Golden datasets that come in from other tools and leave for them."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.golden import GOLDEN, NOTHING_SEEN
from anven_pipelines.domain.golden_exchange import (
    dataset_card,
    imported_rows,
    json_records,
    jsonl,
    mlflow_records,
    of_mlflow,
)
from anven_pipelines.domain.holdout import Seen
from anven_pipelines.spec import Golden
from tests.builders import golden_of

SMALLEST = {"id": "a", "source_prompt": [{"role": "user", "content": "x?"}], "source_output": "x"}


def imported(*rows: Any, holdout: float = 1.0, seed: int = 1, seen: Seen = NOTHING_SEEN) -> pl.DataFrame:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return imported_rows(json_records(text), Golden(holdout=holdout, seed=seed, strata=["task"]), seen=seen)


def full() -> pl.DataFrame:
    measured = {"latency_ms": [1.5, None, 0.0], "input_tokens": [3, None, 0], "automated_score": [0.5, None, 1.0]}
    texts = {"notes": ["größer\nzwei", None, ""], "input_context": ["[1]", None, '"x"'], "split": ["sealed", *"oo"]}
    return golden_of(3, **measured, **texts | {"split": ["sealed", "open", "open"]})


def test_the_smallest_row_gets_its_defaults() -> None:
    (row,) = imported(SMALLEST).iter_rows(named=True)
    assert row["source_prompt"] == '[{"content":"x?","role":"user"}]'
    assert (row["cluster"], row["split"], row["application"], row["ground_truth"]) == ("a", "sealed", "unknown", None)


def test_json_lines_come_back_as_they_left() -> None:
    assert imported(*jsonl(full()).splitlines()).equals(full())


def test_mlflow_records_come_back_as_they_left() -> None:
    records = mlflow_records(full())
    assert records[0]["expectations"] == {"expected_response": "0"}
    assert all(isinstance(tag, str) for record in records for tag in record["tags"].values())
    assert imported_rows(of_mlflow(records), Golden()).equals(full())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "line 2: no JSON object"),
        ("[1]", "line 2: no JSON object"),
        ({"id": ""}, "line 2: id is missing"),
        ({"id": "a"}, "line 1: id 'a' stands 2 times; line 2: id 'a' stands 2 times"),
        ({"id": 7}, "line 2: id is 7; text is needed"),
        ({"source_prompt": "hello"}, "line 2: source_prompt is 'hello'; a JSON list is needed"),
        ({"source_prompt": []}, "line 2: source_prompt is .*"),
        ({"model_config": [1]}, r"line 2: model_config is '\[1\]'; a JSON object is needed"),
        ({"source_output": None}, "line 2: source_output is missing, and so are tool_calls"),
        ({"latency_ms": -1}, "line 2: latency_ms is -1; a finite number"),
        ({"input_tokens": 1.5}, "line 2: input_tokens is 1.5; a whole number"),
        ({"latency_ms": True}, "line 2: latency_ms is True"),
        ({"human_score": 3}, "line 2: human_score is 3; a score from 0 to 1"),
        ({"split": "test"}, "line 1: split is None; .*line 2: split is 'test'"),
        ({"role": "Traffic"}, "line 2: role is 'Traffic'; traffic, edge_case, adversarial are known"),
        ({"weight": 0}, "line 2: weight is 0.0 and role traffic: .* more than 0 is needed"),
        ({"role": "edge_case", "weight": 2}, "line 2: weight is 2.0 and role edge_case: .* so 0 is needed"),
        ({"cluster": ""}, "line 2: cluster is empty; name the conversation"),
        ({"question": "x"}, "line 2: unknown fields question; known are id"),
        ('{"id": "b", "latency_ms": NaN}', "line 2: no JSON object"),
    ],
)
def test_a_bad_row_is_told_by_line_and_reason_and_nothing_comes_in(row: Any, reason: str) -> None:
    bad = row if isinstance(row, str) else SMALLEST | {"id": "b"} | row
    if row == {"source_prompt": []}:
        bad = {"id": "b", "source_output": "x"}
        reason = "line 2: source_prompt is missing"
    with pytest.raises(InvalidInput, match=reason) as refused:
        imported(SMALLEST, bad)
    assert "nothing was imported" in str(refused.value)


def test_an_empty_file_is_refused_and_many_bad_rows_are_told_in_short() -> None:
    with pytest.raises(InvalidInput, match="the file holds none"):
        imported()
    with pytest.raises(InvalidInput, match=r"7 of 7 rows are no golden items \(line 1: .*line 5: .*; and 2 more\)"):
        imported(*["{"] * 7)


def test_whole_conversations_are_sealed_until_the_share_is_reached() -> None:
    rows = [SMALLEST | {"id": str(at), "cluster": str(at // 2)} for at in range(20)]
    frame = imported(*rows, holdout=0.25)
    splits = frame.group_by("cluster").agg(pl.col("split").n_unique())
    assert splits["split"].max() == 1
    assert (frame["split"] == "sealed").sum() == 6
    assert imported(*reversed(rows), holdout=0.25).equals(frame)
    assert not imported(*rows, holdout=0.25, seed=2).equals(frame)


def test_an_import_seals_by_stratum_and_role_and_nothing_that_was_seen() -> None:
    tasks = [SMALLEST | {"id": f"{task}{at}", "task": task} for task in "xy" for at in range(20)]
    probes = [SMALLEST | {"id": f"p{at}", "role": "adversarial"} for at in range(20)]
    seen = Seen(burnt=frozenset(f"x{at}" for at in range(10)), shown=frozenset(f"p{at}" for at in range(10)))
    frame = imported(*tasks, *probes, holdout=0.25, seen=seen)
    held = frame.filter(split="sealed")
    assert held["id"].str.head(1).value_counts().sort("id").rows() == [("p", 5), ("x", 5), ("y", 5)]
    assert not set(held["id"]) & (seen.burnt | seen.shown)
    assert frame.filter(role="adversarial")["weight"].unique().to_list() == [0.0]


def test_the_card_names_each_split_that_is_there_and_every_column() -> None:
    card = dataset_card("support", "d" * 64, full())
    assert card.startswith("---\npretty_name: Golden dataset of support\n")
    assert "  - split: open\n    path: data/open.parquet\n  - split: sealed\n    path: data/sealed.parquet\n---" in card
    assert all(f"| `{column.name}` |" in card for column in GOLDEN.columns)
    assert "sealed.parquet" not in dataset_card("support", "d" * 64, full().filter(split="open"))


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1).filter(str.strip),
            st.none() | st.text(),
            st.none() | st.floats(0, 1e9, allow_nan=False),
            st.none() | st.floats(0, 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_row_survives_json_lines(rows: list[tuple[str, str | None, float | None, float | None]]) -> None:
    output, notes, latency, score = (list(column) for column in zip(*rows, strict=True))
    columns = {"source_output": output, "notes": notes, "latency_ms": latency, "human_score": score}
    typed = {name: pl.Series(column, dtype=GOLDEN.schema[name]) for name, column in columns.items()}
    frame = golden_of(len(rows), **typed)
    assert imported(*jsonl(frame).split("\n")[:-1]).equals(frame)
