"""Where the right answers come from, and which verdicts are stale when they change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.events import GENESIS, Event, Head, follow
from anven_pipelines.domain.ground_truth import (
    LABELLED,
    agreed_labels,
    changed_truths,
    explain_stale_verdict,
    labels_stream,
    read_truths,
    with_truths,
)
from anven_pipelines.domain.request_log import REQUEST_LOG
from tests.builders import golden_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def events(stream: str, *payloads: dict[str, Any]) -> list[Event]:
    head, made = GENESIS, []
    for payload in payloads:
        event = follow(head, stream=stream, kind=LABELLED, key=str(head.seq), payload=payload, now=NOW)
        head = Head(event.seq, event.hash)
        made.append(event)
    return made


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", '{"id": "b", "ground_truth": "2"}\n\n{"id": "a", "ground_truth": "x, y"}\n'),
        ("t.csv", 'note,id,ground_truth\n,b,2\nunsure,a,"x, y"\n'),
    ],
)
def test_a_file_gives_one_truth_an_id_in_the_order_of_the_ids(name: str, text: str) -> None:
    assert read_truths(text, name=name).rows.rows() == [("a", "x, y"), ("b", "2")]


def test_both_forms_of_one_truth_have_one_digest() -> None:
    as_json = read_truths('{"id": "a", "ground_truth": "1"}', name="t.jsonl")
    assert as_json.digest == read_truths("id,ground_truth\na,1\n", name="t.csv").digest
    assert as_json.digest != read_truths("id,ground_truth\na,2\n", name="t.csv").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file holds none"),
        ("{broken", "line 1: id and ground_truth are needed"),
        ('{"id": 7, "ground_truth": "1"}', "line 1: id and ground_truth are needed"),
        ('{"id": "a", "ground_truth": " "}', "line 1: id and ground_truth are needed"),
        ('["a", "1"]', "line 1: id and ground_truth are needed"),
        ('{"id": "a", "ground_truth": "1"}\n{"id": "a", "ground_truth": "2"}', "line 2: id 'a' has another"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken_over(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_truths(text, name="t.jsonl")


def test_each_persons_latest_label_counts_and_a_dispute_is_no_truth() -> None:
    said = [("a", "1", "ann"), ("a", "2", "ann"), ("a", "2", "bob"), ("b", "1", "ann"), ("b", "2", "bob")]
    labels = [{"id": item, "ground_truth": truth, "by": by, "note": ""} for item, truth, by in said]
    found = agreed_labels(events(labels_stream("w"), *labels))
    assert found.rows.rows() == [("a", "2")]
    assert found.disputed == ("b",)


def calls() -> pl.DataFrame:
    return REQUEST_LOG.conform(pl.DataFrame({"request_id": ["a", "b", None], "ground_truth": ["old", "old", "old"]}))


def test_truths_replace_what_the_log_says_and_a_call_without_one_has_none() -> None:
    found = with_truths(calls(), read_truths("id,ground_truth\na,new\nz,other\n", name="t.csv"))
    assert found["ground_truth"].to_list() == ["new", None, None]
    assert found.columns == calls().columns


def test_truths_of_another_log_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"none of the 1 ground truths \(z, ...\) has the request id"):
        with_truths(calls(), read_truths("id,ground_truth\nz,1\n", name="t.csv"))


def test_no_truth_at_all_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match="no ground truth yet, and people disagree on 0 items; add labels"):
        with_truths(calls(), agreed_labels([]))


def test_a_verdict_is_stale_where_a_truth_it_used_has_changed() -> None:
    signed, (verdict,) = golden_of(3), events("sign_off/w", {"verdict": "GO", "run": "0123456789"})
    corrected = golden_of(4, ground_truth=["0", "one", None, "3"])
    assert changed_truths(signed, golden_of(4)) == []
    assert changed_truths(signed, corrected) == ["item-00001", "item-00002"]
    assert explain_stale_verdict(verdict, []) is None
    assert explain_stale_verdict(verdict, changed_truths(signed, corrected)) == (
        "the verdict GO of 2026-11-21 (run 01234567) is stale: the ground truth of 2 of its items has changed since "
        "(item-00001, item-00002); sign off again"
    )
