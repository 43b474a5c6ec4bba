from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.request_log import LineCount, pseudonym
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import LogFile
from anven_pipelines.nano.demand import plan_traffic
from anven_pipelines.nano.gateway_logs import GatewayFormat, GatewayLog
from anven_pipelines.nano.traffic import drive
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from pathlib import Path

    from anven_pipelines.nano.exchange import Exchange

FORMATS: tuple[GatewayFormat, ...] = get_args(GatewayFormat)
CALL = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"order": "A1"}'}}
REPLIES = {  # by the user who asks
    "well": Reply("fine", delay_s=0.01),
    "counted": Reply("one two", cached_tokens=4),
    "uncounted": Reply("one two", usage=False),
    "tool": Reply("", tool_calls=(CALL,), finish_reason="tool_calls"),
    "busy": Reply("slow down", status=429),
    "cut": Reply("a b c d", breaks="midway"),
    "gone": Reply(breaks="before"),
    "dies": Reply("a b c d", breaks="error"),
    "unstreamed": Reply("whole", streams=False),
    "unicode": Reply('Grüße \u2028 "quoted" \U0001f600'),
}
USERS = list(REPLIES)


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    plan = plan_traffic(np.linspace(0, 0.1, len(USERS)), split="golden", seed=2)
    calls = tuple(call._replace(user=user) for call, user in zip(plan.calls, USERS, strict=True))
    found: list[Exchange] = []
    with ScriptedEndpoint(lambda ask: REPLIES[ask.body["user"]]) as endpoint:
        asyncio.run(drive(plan._replace(calls=calls), url=endpoint.url, model="legacy-nano", write=found.append))
    return sorted(found, key=lambda exchange: USERS.index(exchange.call.user))


def read_back(path: Path, log_format: GatewayFormat) -> tuple[list[dict[str, Any]], LineCount]:
    (batch,) = read_logs([LogFile(str(path), path.name, "undated")], log_format=log_format)
    assert batch.rejected.rows(named=True) == []
    return batch.rows.rows(named=True), batch.count


def expected(exchange: Exchange) -> dict[str, Any]:
    """Return the row that a call must become, made by hand from what was measured."""
    call, error = exchange.call, exchange.error
    response = exchange.response or {}
    message = response["choices"][0]["message"] if "choices" in response else {}
    usage = response.get("usage") or {}
    first = exchange.first_token_at
    text = None
    if error is not None:
        code = "" if exchange.http_status in {None, 200} else f"HTTP {exchange.http_status} "
        text = f"{code}{error.get('code') or error.get('type')}: {error['message']}"
    return {
        "request_id": response.get("id") or exchange.call_id,
        "ts": exchange.started_at,
        "application": call.application,
        "endpoint": "/v1/chat/completions",
        "provider": "openai",
        "model": "legacy-nano",
        "messages": canonical_json(exchange.body["messages"]),
        "params": '{"max_tokens":64,"temperature":0}',
        "context": None,
        "output": message.get("content"),
        "tool_calls": canonical_json(message["tool_calls"]) if message.get("tool_calls") else None,
        "finish_reason": response["choices"][0].get("finish_reason") if "choices" in response else None,
        "status": "ok" if error is None else "error",
        "error": text,
        "ground_truth": call.item.answer,
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        "ttft_ms": None if first is None else pytest.approx((first - exchange.started_at) * 1000, abs=0.002),
        "latency_ms": pytest.approx((exchange.ended_at - exchange.started_at) * 1000, abs=0.002),
        "cost_usd": None,
        "user_hash": pseudonym(call.user),
        "conversation_id": call.conversation_id,
        "tags": {"task": call.item.task},
        "source_file": "calls.jsonl",
        "source_line": USERS.index(call.user) + 1,
    }


@pytest.mark.parametrize("log_format", FORMATS)
def test_what_is_written_is_read_back_field_by_field(
    log_format: GatewayFormat, exchanges: list[Exchange], tmp_path: Path
) -> None:
    with GatewayLog(tmp_path / "calls.jsonl", log_format) as log:
        for exchange in exchanges:
            log.write(exchange)
    rows, count = read_back(tmp_path / "calls.jsonl", log_format)
    assert count == LineCount(len(USERS), len(USERS))
    for row, exchange in zip(rows, exchanges, strict=True):
        wanted = expected(exchange)
        if log_format == "openai":
            wanted["request_id"] = exchange.call_id
        else:
            if wanted["request_id"] != exchange.call_id:
                wanted["tags"]["call_id"] = exchange.call_id
            if exchange.error is not None:  # LiteLLM logs no part of an answer that failed
                wanted |= dict.fromkeys(("output", "finish_reason", "tool_calls"))
                wanted |= {"request_id": row["request_id"], "tags": {"task": exchange.call.item.task}}
                assert row["request_id"] == exchange.call_id
        wanted["tags"] = canonical_json(wanted["tags"])
        wanted["ts"] = datetime.fromtimestamp(exchange.started_at, UTC)
        assert abs(row["ts"] - wanted.pop("ts")).total_seconds() < 2e-6
        assert {name: row[name] for name in wanted} == wanted
        assert set(row) == {*wanted, "ts"}


def test_the_cases_are_what_they_are_called(exchanges: list[Exchange]) -> None:
    failed = [exchange.call.user for exchange in exchanges if exchange.error is not None]
    assert failed == ["busy", "cut", "gone", "dies"]
    assert [exchange.call.user for exchange in exchanges if exchange.first_token_at is None] == [
        "busy",
        "gone",
        "unstreamed",
    ]


@pytest.mark.parametrize("log_format", FORMATS)
def test_what_was_not_measured_has_no_field(
    log_format: GatewayFormat, exchanges: list[Exchange], tmp_path: Path
) -> None:
    bare = replace(exchanges[0], first_token_at=None, response={"id": "x", "choices": []}, http_status=None)
    with GatewayLog(tmp_path / "calls.jsonl", log_format) as log:
        log.write(bare)
    line = json.loads((tmp_path / "calls.jsonl").read_text(encoding="utf-8"))
    absent = {"ttft_ms", "status"} if log_format == "openai" else {"completionStartTime", "prompt_tokens"}
    assert not absent & set(line)


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("torn", [b'{"id": "half', b"x" * 200_000, b""], ids=["short", "long", "none"])
def test_a_torn_line_is_cut_off_before_more_is_appended(
    torn: bytes, log_format: GatewayFormat, exchanges: list[Exchange], tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "calls.jsonl"
    with GatewayLog(path, log_format) as log:
        log.write(exchanges[0])
        log.write(exchanges[1])
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(torn)
    with GatewayLog(path, log_format) as log:
        log.write(exchanges[2])
    assert path.read_bytes().startswith(whole)
    assert read_back(path, log_format)[1] == LineCount(3, 3)


def test_a_file_of_one_torn_line_starts_anew(exchanges: list[Exchange], tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_bytes(b"half")
    with GatewayLog(tmp_path / "calls.jsonl", "openai") as log:
        log.write(exchanges[0])
    assert (tmp_path / "calls.jsonl").read_bytes().startswith(b'{"request_id"')


def test_a_line_that_the_disk_takes_only_in_part_leaves_nothing(
    exchanges: list[Exchange], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with GatewayLog(tmp_path / "calls.jsonl", "openai") as log:
        log.write(exchanges[0])
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(OSError, match=r"10 of .* bytes of a line could be written; free some space"):
            log.write(exchanges[1])
    assert read_back(tmp_path / "calls.jsonl", "openai")[1] == LineCount(1, 1)
