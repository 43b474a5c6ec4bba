"""Lines of the gateway's event log."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, GatewayEvent, parse_event

EVENT = GatewayEvent(
    event_id="w1-1",
    kind="request",
    ts=datetime(2026, 11, 20, 12, 0, 0, 123456, UTC),
    worker="w1",
    seq=1,
    workload="support",
    attempt=1,
    generation=4,
    stage=0,
    share=0.05,
    unit="ab" * 16,
    bucket=0.01,
    intended="target",
    served="legacy",
    request_id="r1",
    status="ok",
    error_class="InternalServerError",
    why="fallback",
    stream=False,
    latency_ms=812.5,
    input_tokens=40,
    output_tokens=12,
    cost_usd=0.0002,
    cached=False,
    finish_reason="stop",
    contract_ok=True,
    prompt_version="0" * 64,
)


@given(
    st.floats(0, 1e9) | st.none(),
    st.integers(0, 10**12) | st.none(),
    st.text() | st.none(),
    st.booleans() | st.none(),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
def test_a_line_reads_back_as_written(
    latency: float | None, tokens: int | None, text: str | None, flag: bool | None, flags: tuple[str, ...]
) -> None:
    event = replace(
        EVENT, latency_ms=latency, input_tokens=tokens, error_class=text, unit=text, contract_ok=flag, flags=flags
    )
    line = event.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_event(line) == event


def test_rows_are_the_described_table() -> None:
    assert [column.name for column in GATEWAY_EVENTS.columns] == [each.name for each in fields(GatewayEvent)]
    frame = pl.DataFrame([EVENT.to_row()], schema=GATEWAY_EVENTS.schema)
    assert frame.row(0, named=True)["ts"] == EVENT.ts
    assert frame["ttft_ms"].to_list() == [None]


@pytest.mark.parametrize(
    "change", [{"latency_ms": float("nan")}, {"cost_usd": float("inf")}, {"score": 1.5}, {"seq": -1}, {"bucket": -0.1}]
)
def test_a_number_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(change))} is .*or null"):
        replace(EVENT, **change)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no zone"):
        replace(EVENT, ts=datetime(2026, 11, 20))  # noqa: DTZ001 - that is the case


def line_with(**change: Any) -> bytes:
    return json.dumps({**json.loads(EVENT.to_line()), **change}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (EVENT.to_line()[:50], "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[1]\n", "the line is list"),
        (b'{"kind": "request"}', "lacks event_id, seq, ts, worker"),
        (line_with(colour="red"), "has colour, which is unknown"),
        (line_with(kind="reply"), "kind is 'reply'; one of request, shadow"),
        (line_with(intended="both"), "intended is 'both'"),
        (line_with(latency_ms="12"), "latency_ms is '12'; int or float"),
        (line_with(input_tokens=True), "input_tokens is True; int"),
        (line_with(latency_ms=float("nan")), "latency_ms is nan"),
        (line_with(ts="yesterday"), "ts is 'yesterday'"),
        (line_with(ts="2026-11-20T12:00:00"), "has no zone"),
        (line_with(flags="late"), "flags is 'late'; a list"),
        (line_with(seq=None), "seq"),
    ],
)
def test_a_bad_line_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse_event(line)
