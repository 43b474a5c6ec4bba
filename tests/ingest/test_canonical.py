from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.request_log import JSON_COLUMNS, REQUEST_LOG, LineCount, pseudonym

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.ingest.readers import LogBatch

GOOD: dict[str, Any] = {
    "request_id": "r-1",
    "ts": "2026-11-20T08:30:00.250+02:00",
    "application": "support",
    "endpoint": "/v1/chat/completions",
    "provider": "openai",
    "model": "gpt-4o-2024-08-06",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my parcel?"}],
    "params": {"temperature": 0.0, "max_tokens": 64, "stop": None},
    "context": ["It is in Köln."],
    "output": "In Köln.",
    "tool_calls": [],
    "finish_reason": "stop",
    "ground_truth": "Köln",
    "input_tokens": 21,
    "output_tokens": 4,
    "cached_tokens": 0,
    "ttft_ms": 120.5,
    "latency_ms": 300,
    "cost_usd": 0.00012,
    "user": "jane@example.org",
    "conversation_id": "c-9",
    "tags": {"task": "parcel"},
}


def line_of(**change: object) -> bytes:
    return json.dumps(GOOD | change).encode()


def test_a_full_line_becomes_a_row(read: Callable[..., LogBatch]) -> None:
    batch = read(line_of())
    assert batch.count == LineCount(1, 1, 0, 0)
    assert batch.rows.schema == REQUEST_LOG.schema
    assert batch.rows.row(0, named=True) == {
        "request_id": "r-1",
        "ts": datetime(2026, 11, 20, 6, 30, 0, 250_000, tzinfo=UTC),
        "application": "support",
        "endpoint": "/v1/chat/completions",
        "provider": "openai",
        "model": "gpt-4o-2024-08-06",
        "messages": '[{"content":"Be brief.","role":"system"},{"content":"Where is my parcel?","role":"user"}]',
        "params": '{"max_tokens":64,"temperature":0.0}',
        "context": '["It is in Köln."]',
        "output": "In Köln.",
        "tool_calls": None,
        "finish_reason": "stop",
        "status": "ok",
        "error": None,
        "ground_truth": "Köln",
        "input_tokens": 21,
        "output_tokens": 4,
        "cached_tokens": 0,
        "ttft_ms": 120.5,
        "latency_ms": 300.0,
        "cost_usd": 0.00012,
        "user_hash": pseudonym("jane@example.org"),
        "conversation_id": "c-9",
        "tags": '{"task":"parcel"}',
        "source_file": "log.jsonl",
        "source_line": 1,
    }


def test_what_a_line_does_not_say_is_null(read: Callable[..., LogBatch]) -> None:
    row = read(b'{"prompt": "Hi", "model": null}').rows.row(0, named=True)
    said = {name: value for name, value in row.items() if value is not None}
    assert said == {
        "messages": '[{"content":"Hi","role":"user"}]',
        "status": "unanswered",
        "source_file": "log.jsonl",
        "source_line": 1,
    }


SPELLINGS: list[tuple[dict[str, object], str, object]] = [
    ({"messages": json.dumps(GOOD["messages"])}, "messages", canonical_json(GOOD["messages"])),
    ({"params": '{"b": 1, "a": 2}'}, "params", '{"a":2,"b":1}'),
    ({"context": "A passage."}, "context", '"A passage."'),
    ({"context": {"z": 1, "a": [1.50]}}, "context", '{"a":[1.5],"z":1}'),
    ({"tool_calls": [{"id": 1}]}, "tool_calls", '[{"id":1}]'),
    ({"request_id": 77}, "request_id", "77"),
    ({"ground_truth": 18}, "ground_truth", "18"),
    ({"ground_truth": {"b": 1, "a": [True]}}, "ground_truth", '{"a":[true],"b":1}'),
    ({"input_tokens": 21.0}, "input_tokens", 21),
    ({"ts": 1_795_163_400}, "ts", datetime(2026, 11, 20, 8, 30, tzinfo=UTC)),
    ({"ts": 1_795_163_400.25}, "ts", datetime(2026, 11, 20, 8, 30, 0, 250_000, tzinfo=UTC)),
    ({"ts": 1_795_163_400_250}, "ts", datetime(2026, 11, 20, 8, 30, 0, 250_000, tzinfo=UTC)),
    ({"ts": "1795163400"}, "ts", datetime(2026, 11, 20, 8, 30, tzinfo=UTC)),
    ({"ts": "2026-11-20T08:30:00Z"}, "ts", datetime(2026, 11, 20, 8, 30, tzinfo=UTC)),
    ({"ts": "2026-11-20T08:30:00"}, "ts", datetime(2026, 11, 20, 8, 30, tzinfo=UTC)),
    ({"ts": "2026-11-20T08:30:00"}, "tags", '{"task":"parcel","ts_zone":"assumed UTC"}'),
    ({"ts": "2026-11-20T08:30:00-0500"}, "tags", '{"task":"parcel"}'),
    ({"team": "blue", "tags": {"task": "x", "n": None}}, "tags", '{"task":"x","team":"blue"}'),
    ({"tags": {"task": "x", "n": None}}, "tags", '{"n":null,"task":"x"}'),
    ({"task": "from the line", "tags": {"task": "from the tags"}}, "tags", '{"task":"from the tags"}'),
    ({"error": {"code": 500}, "output": None}, "status", "error"),
    ({"error": {"code": 500}, "output": None}, "error", '{"code":500}'),
    ({"output": None, "tool_calls": [{"id": 1}]}, "status", "ok"),
    ({"output": ""}, "status", "ok"),
    ({"status": "error"}, "status", "error"),
    ({"user": None, "user_hash": "jane@example.org"}, "user_hash", pseudonym("jane@example.org")),
    ({"user": None, "user_hash": pseudonym("jane")}, "user_hash", pseudonym("jane")),
    ({"user": 4711}, "user_hash", pseudonym("4711")),
    ({"output": "nul \0 and 😀"}, "output", "nul \0 and 😀"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, "status", "ok"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "status", "ok"),
    ({"output": "[1, nan, Infinity,]"}, "output", "[1, nan, Infinity,]"),
]


@pytest.fixture(scope="module")
def spelled(read: Callable[..., LogBatch]) -> LogBatch:
    """All spellings in one file, the first of them in its first line."""
    return read(
        b"\n".join(
            line_of(**({"request_id": f"r-{number}"} | change)) for number, (change, _, _) in enumerate(SPELLINGS)
        )
    )


@pytest.mark.parametrize(("line", "column", "value"), [(n, *case[1:]) for n, case in enumerate(SPELLINGS, start=1)])
def test_a_value_may_be_written_in_several_ways(spelled: LogBatch, line: int, column: str, value: object) -> None:
    (row,) = spelled.rows.filter(source_line=line).rows(named=True)
    assert row[column] == value


BAD: list[tuple[bytes, str]] = [
    (b"{", "is not JSON: Expecting property name enclosed in double quotes at column 2; one JSON object is needed"),
    (b'{"prompt": "a"} {"prompt": "b"}', "is not JSON: Extra data at column 17; one JSON object is needed"),
    (b'{"prompt": "a",}', "is not JSON: Expecting property name enclosed in double quotes at column 16; one JSON"),
    (b'{"prompt": "a", "latency_ms": NaN}', "is not JSON: holds the literal NaN, which JSON does not have"),
    (b'{"prompt": "a", "x": [-Infinity]}', "is not JSON: holds the literal -Infinity, which JSON does not have"),
    (b'{"prompt": "a", "x": nan}', "is not JSON: Expecting value at column 22"),
    (b'{"prompt": "\\ud800"}', "is not JSON: holds half a surrogate pair"),
    (b'{"prompt": "a\tb"}', "is not JSON: Invalid control character at column 14"),
    (b'["prompt"]', "is a list; one JSON object is needed"),
    (b'"prompt"', "is text; one JSON object is needed"),
    (b"null", "is null; one JSON object is needed"),
    (b"17", "is a number; one JSON object is needed"),
    (b'{"prompt": "a", "prompt": "b"}', "names a field twice; each field once is needed"),
    (b'{"prompt": "\xff"}', "is not UTF-8 at byte 13 (invalid start byte); UTF-8 text is needed"),
    (b'{"prompt": "\0"}', "holds a NUL byte; UTF-8 text is needed"),
    (b'\xef\xbb\xbf{"prompt": "a"}', "is not JSON: Expecting value at column 1"),
    (b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b', "b": "\\ud800"}', "is nested too deeply to be read"),
    (b"{}", "messages is missing; a list of {role, content} is needed"),
    (b'{"prompt": 3}', "prompt is 3; text is needed"),
    (line_of(messages=[]), "messages is empty; a list of {role, content} is needed"),
    (line_of(messages="Hi"), "messages is text; a list of {role, content} is needed"),
    (line_of(messages={"role": "user"}), "messages is an object; a list of {role, content} is needed"),
    (line_of(messages=[{"content": "Hi"}]), "messages holds an entry without a role; each needs {role, content}"),
    (line_of(messages=["Hi"]), "messages holds an entry without a role; each needs {role, content}"),
    (line_of(messages=[{"role": "user", "content": 3}]), "messages holds a content that is neither text nor a list"),
    (line_of(messages=json.dumps([{"role": "user", "content": "\ud800"}])), "messages is text"),
    (line_of(params=[1]), "params is a list; an object is needed"),
    (line_of(params="temperature=0"), "params is text; an object is needed"),
    (line_of(params=0).replace(b'"params": 0', b'"params": {"top_p": 1e999}'), "params is not JSON: Out of range"),
    (line_of(tool_calls={"id": 1}), "tool_calls is an object; a list is needed"),
    (line_of(tags=["a"]), "tags is a list; an object is needed"),
    (line_of(request_id=1.5), "request_id is 1.5; text or a whole number is needed"),
    (line_of(application=3), "application is 3; text is needed"),
    (line_of(output={"answer": 1}), "output is an object; text is needed"),
    (line_of(status="fine"), 'status is "fine"; ok, error or unanswered is needed'),
    (line_of(ts="yesterday"), 'ts is "yesterday"; ISO 8601, or seconds or milliseconds since 1970, is needed'),
    (line_of(ts="2026-02-30T00:00:00Z"), 'ts is "2026-02-30T00:00:00Z"; ISO 8601'),
    (line_of(ts="infinity"), 'ts is "infinity"; ISO 8601'),
    (line_of(ts=-1), "ts is -1; ISO 8601"),
    (line_of(ts=1e30), "ts is 1e30; ISO 8601"),
    (line_of(ts=True), "ts is true; ISO 8601"),
    (line_of(input_tokens=-3), "input_tokens is -3; a whole number of 0 or more is needed"),
    (line_of(output_tokens=1.5), "output_tokens is 1.5; a whole number of 0 or more is needed"),
    (line_of(cached_tokens="12"), "cached_tokens is text; a whole number of 0 or more is needed"),
    (line_of(input_tokens=10**30), "input_tokens is 1000000000000000000000000000000; a whole number"),
    (line_of(output_tokens=True), "output_tokens is true; a whole number of 0 or more is needed"),
    (line_of(latency_ms=-0.5), "latency_ms is -0.5; a finite number of 0 or more is needed"),
    (line_of(ttft_ms="12 ms"), "ttft_ms is text; a finite number of 0 or more is needed"),
    (line_of(cost_usd=[1]), "cost_usd is a list; a finite number of 0 or more is needed"),
    (line_of(latency_ms=0).replace(b'"latency_ms": 0', b'"latency_ms": 1e999'), "latency_ms is 1e999; a finite"),
    (line_of(user=None, user_hash=3), "user_hash is 3; text is needed"),
]


@pytest.fixture(scope="module")
def mixed(read: Callable[..., LogBatch]) -> LogBatch:
    """A good line before each bad one, and one more at the end."""
    return read(
        b"\n".join(b"%b\n%b" % (line_of(request_id=f"good-{number}"), bad) for number, (bad, _) in enumerate(BAD))
        + b"\n"
        + line_of()
    )


@pytest.mark.parametrize(("number", "line", "reason"), [(2 * n, *case) for n, case in enumerate(BAD, start=1)])
def test_a_bad_line_is_quarantined_with_its_reason(mixed: LogBatch, number: int, line: bytes, reason: str) -> None:
    (rejected,) = mixed.rejected.filter(source_line=number).rows(named=True)
    assert rejected["reason"].startswith(reason)
    assert (rejected["source_file"], rejected["raw"]) == ("log.jsonl", line)


def test_bad_lines_leave_the_others_alone(mixed: LogBatch) -> None:
    assert mixed.count == LineCount(2 * len(BAD) + 1, len(BAD) + 1, len(BAD), 0)
    assert mixed.rows.get_column("source_line").to_list() == list(range(1, 2 * len(BAD) + 2, 2))


def test_a_reason_shows_no_text_of_the_line(read: Callable[..., LogBatch]) -> None:
    secret = "sk-not-to-be-shown"
    lines = [line_of(messages=secret), line_of(params=secret), line_of(input_tokens=secret), line_of(output=[secret])]
    reasons = read(b"\n".join(lines)).rejected.get_column("reason").to_list()
    assert len(reasons) == 4
    assert not any(secret in reason for reason in reasons)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBER = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}), min_size=1
)
PARAMS = st.dictionaries(TEXT, JSON_VALUE.filter(lambda value: value is not None), max_size=3)
CONTEXT = JSON_VALUE.filter(lambda value: value is not None)
COUNT = st.none() | st.integers(0, 10**12)
MEASURE = st.none() | st.floats(0, 1e12)


def optional_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str | None]:
    return st.none() | values.map(canonical_json)


ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(REQUEST_LOG.schema, st.none() | TEXT),
        "ts": st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis adds the zone
        "messages": MESSAGES.map(canonical_json),
        "params": optional_json(PARAMS),
        "context": optional_json(CONTEXT),
        "tool_calls": optional_json(st.lists(JSON_VALUE, min_size=1, max_size=2)),
        "tags": optional_json(st.dictionaries(TEXT, JSON_VALUE, max_size=3)),
        "status": st.sampled_from(["ok", "error", "unanswered"]),
        "user_hash": st.none() | TEXT.map(pseudonym),
        **dict.fromkeys(["input_tokens", "output_tokens", "cached_tokens"], COUNT),
        **dict.fromkeys(["ttft_ms", "latency_ms", "cost_usd"], MEASURE),
        "source_file": st.just("log.jsonl"),
        "source_line": st.just(0),
    }
)


@settings(max_examples=6, deadline=None)
@given(st.lists(ROW, min_size=5, max_size=30, unique_by=repr))
def test_rows_that_are_written_are_read_again_as_they_were(
    read: Callable[..., LogBatch], rows: list[dict[str, Any]]
) -> None:
    table = pl.DataFrame(rows, schema=REQUEST_LOG.schema).with_columns(
        source_line=pl.int_range(1, len(rows) + 1, dtype=pl.Int64)
    )
    batch = read(table.drop("source_file", "source_line").write_ndjson().encode())
    assert batch.rejected.get_column("reason").to_list() == []
    assert batch.rows.equals(table)


@settings(max_examples=6, deadline=None)
@given(st.lists(JSON_VALUE, min_size=10, max_size=60))
def test_equal_json_is_equal_text(read: Callable[..., LogBatch], values: list[Any]) -> None:
    lines = [json.dumps({"prompt": str(n), "context": [value]}).encode() for n, value in enumerate(values)]
    texts = read(b"\n".join(lines)).rows.get_column("context").to_list()
    assert texts == [canonical_json([value]) for value in values]


def test_json_columns_are_written_canonically(read: Callable[..., LogBatch]) -> None:
    row = read(line_of(tool_calls=[{"b": 1, "a": 2}])).rows.row(0, named=True)
    assert [row[name] for name in JSON_COLUMNS] == [canonical_json(json.loads(row[name])) for name in JSON_COLUMNS]
