from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.request_log import LineCount, pseudonym
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.ingest.readers import LogBatch

RESPONSE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "created": 1_795_163_401,
    "model": "support",
    "object": "chat.completion",
    "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "Hello!"}}],
    "usage": {
        "prompt_tokens": 8,
        "completion_tokens": 2,
        "total_tokens": 10,
        "completion_tokens_details": None,
        "prompt_tokens_details": {"audio_tokens": None, "cached_tokens": 4},
    },
}
# What a proxy logs of a streamed call: `openai/gpt-4o-mini` behind the public name `support`.
PAYLOAD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "litellm_call_id": "call-1",
    "trace_id": "session-1",
    "session_id": "",
    "call_type": "acompletion",
    "cache_hit": False,
    "stream": True,
    "status": "success",
    "custom_llm_provider": "openai",
    "startTime": 1_795_163_400.5,
    "endTime": 1_795_163_401.3125,
    "completionStartTime": 1_795_163_400.625,
    "response_time": 0.125,
    "model": "openai/gpt-4o-mini",
    "model_group": "support",
    "response_cost": 0.001,
    "response_cost_failure_debug_info": None,
    "total_tokens": 10,
    "prompt_tokens": 8,
    "completion_tokens": 2,
    "request_tags": ["team:blue", "User-Agent: python-httpx"],
    "end_user": "jane",
    "user_agent": "python-httpx/0.28.1",
    "requester_ip_address": "192.0.2.7",
    "messages": [{"role": "user", "content": "Hi"}],
    "response": RESPONSE,
    "error_str": None,
    "error_information": {"error_code": "", "error_class": "", "error_message": ""},
    "model_parameters": {
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "jane",
    },
    "metadata": {
        "user_api_key_alias": "helpdesk",
        "user_api_key_team_alias": "support-team",
        "user_api_key_user_id": "owner",
        "user_api_key_end_user_id": "jane",
        "requester_ip_address": "192.0.2.7",
        "spend_logs_metadata": None,
        "requester_metadata": {
            "ground_truth": "Hello!",
            "context": ["c"],
            "task": "greeting",
            "channel": "chat",
            "tags": ["team:blue"],
            "trace_id": "session-1",
            "session_id": "session-1",
            "headers": {"x-api-key": "not-to-be-kept"},
            "used_client_oauth_token": False,
        },
    },
}
FAILURE: dict[str, Any] = {
    "id": "call-1",
    "stream": None,
    "status": "failure",
    "completionStartTime": PAYLOAD["endTime"],
    "response_cost": 0.0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "response": {},
    "error_str": "Slow down.",
    "error_information": {"error_code": "429", "error_class": "RateLimitError", "error_message": "Slow down."},
}


BRIEFED = '[{"content":"Be brief.","role":"system"},{"content":"Hi","role":"user"}]'


def tags(**fields: object) -> str:
    return canonical_json({"call_id": "call-1", "requested_model": "support", **fields})


def with_metadata(**fields: object) -> dict[str, Any]:
    return {"metadata": {**PAYLOAD["metadata"], **fields}}


def told(**fields: object) -> dict[str, Any]:
    return with_metadata(requester_metadata=fields)


def test_a_line_with_everything_becomes_a_row(read: Callable[..., LogBatch]) -> None:
    batch = read(json.dumps(PAYLOAD).encode(), "litellm")
    assert batch.count == LineCount(1, 1, 0, 0)
    assert batch.rows.row(0, named=True) == {
        "request_id": "chatcmpl-1",
        "ts": datetime(2026, 11, 20, 8, 30, 0, 500_000, tzinfo=UTC),
        "application": "helpdesk",
        "endpoint": "/v1/chat/completions",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "messages": '[{"content":"Hi","role":"user"}]',
        "params": '{"temperature":0.5}',
        "context": '["c"]',
        "output": "Hello!",
        "tool_calls": None,
        "finish_reason": "stop",
        "status": "ok",
        "error": None,
        "ground_truth": "Hello!",
        "input_tokens": 8,
        "output_tokens": 2,
        "cached_tokens": 4,
        "ttft_ms": 125.0,
        "latency_ms": 812.5,
        "cost_usd": 0.001,
        "user_hash": pseudonym("jane"),
        "conversation_id": "session-1",
        "tags": '{"call_id":"call-1","channel":"chat","request_tags":["team:blue"],'
        '"requested_model":"support","task":"greeting"}',
        "source_file": "log.jsonl",
        "source_line": 1,
    }


CASES: list[tuple[str, dict[str, Any], dict[str, object]]] = [
    ("application told by the caller", told(application="shop"), {"application": "shop"}),
    ("application as a tag", {"request_tags": ["application: router"]}, {"application": "router"}),
    ("application is the team", with_metadata(user_api_key_alias=None), {"application": "support-team"}),
    ("no application", {"metadata": {}}, {"application": None, "ground_truth": None, "context": None}),
    (
        "task as a tag",
        {**told(), "request_tags": ["task:intent"]},
        {"tags": tags(request_tags=["task:intent"], task="intent")},
    ),
    (
        "what the SDK's caller tells",
        with_metadata(spend_logs_metadata={"ground_truth": "Hey!"}),
        {"ground_truth": "Hey!"},
    ),
    ("a ground truth that is JSON", told(ground_truth={"a": 1}), {"ground_truth": '{"a":1}'}),
    ("a ground truth that is null", told(ground_truth=None), {"ground_truth": None}),
    ("session beside the trace", {"session_id": "s"}, {"conversation_id": "s"}),
    ("conversation told by the caller", told(conversation_id="c"), {"conversation_id": "c"}),
    (
        "no end user",
        {"end_user": None, "model_parameters": {}, **with_metadata(user_api_key_end_user_id=None)},
        {"user_hash": None},
    ),
    ("end user of the key", {"end_user": "", "model_parameters": {}}, {"user_hash": pseudonym("jane")}),
    (
        "user of the parameters",
        {"end_user": None, "model_parameters": {"user": "x"}, "metadata": {}},
        {"user_hash": pseudonym("x")},
    ),
    (
        "not streamed",
        {"stream": None, "model_parameters": {"stream": False}, "completionStartTime": PAYLOAD["endTime"]},
        {"ttft_ms": None, "latency_ms": 812.5},
    ),
    ("no first token", {"completionStartTime": PAYLOAD["endTime"]}, {"ttft_ms": None}),
    (
        "no times",
        {"startTime": None, "endTime": None, "completionStartTime": None},
        {"ttft_ms": None, "latency_ms": None, "ts": datetime(2026, 11, 20, 8, 30, 1, tzinfo=UTC)},
    ),
    (
        "cache hit",
        {"cache_hit": True, "response_cost": 0.0},
        {
            "ttft_ms": None,
            "latency_ms": None,
            "cost_usd": 0.0,
            "tags": tags(cache_hit=True, channel="chat", request_tags=["team:blue"], task="greeting"),
        },
    ),
    ("unknown cost", {"response_cost": 0.0}, {"cost_usd": None}),
    ("no cost", {"response_cost": None}, {"cost_usd": None}),
    (
        "no usage",
        {"response": {**RESPONSE, "usage": None}},
        {"input_tokens": None, "output_tokens": None, "cached_tokens": None},
    ),
    (
        "failure",
        FAILURE,
        {
            "status": "error",
            "error": "HTTP 429 RateLimitError: Slow down.",
            "model": "gpt-4o-mini",
            "output": None,
            "input_tokens": None,
            "output_tokens": None,
            "cost_usd": None,
            "ttft_ms": None,
            "latency_ms": 812.5,
            "ground_truth": "Hello!",
            "user_hash": pseudonym("jane"),
            "request_id": "call-1",
        },
    ),
    (
        "failure without a status",
        {**FAILURE, "error_information": {"error_code": "", "error_class": "ReadError", "error_message": "cut"}},
        {"status": "error", "error": "ReadError: cut"},
    ),
    ("failure in words", {**FAILURE, "error_information": None}, {"status": "error", "error": "Slow down."}),
    ("failure that says nothing", {**FAILURE, "error_information": None, "error_str": None}, {"status": "error"}),
    (
        "failure after the first token",
        {**FAILURE, "completionStartTime": 1_795_163_400.75, "prompt_tokens": 13, "response_cost": 0.2},
        {"ttft_ms": 250.0, "input_tokens": None, "cost_usd": None},
    ),
    ("no response", {"response": None}, {"status": "unanswered", "model": "gpt-4o-mini", "output": None}),
    (
        "a snapshot of the model",
        {"response": {**RESPONSE, "model": "gpt-4o-mini-2024-07-18"}, "model": "gpt-4o-mini", "model_group": ""},
        {"model": "gpt-4o-mini-2024-07-18"},
    ),
    (
        "a model behind a slash",
        {"model": "openrouter/meta/llama", "custom_llm_provider": "openrouter"},
        {"model": "meta/llama", "provider": "openrouter"},
    ),
    ("no provider", {"custom_llm_provider": None}, {"provider": None, "model": "openai/gpt-4o-mini"}),
    (
        "refusal",
        {"response": {**RESPONSE, "choices": [{"message": {"role": "assistant", "content": None, "refusal": "No."}}]}},
        {"output": "No.", "finish_reason": None},
    ),
    (
        "responses",
        {
            "call_type": "aresponses",
            "messages": "Hi",
            "model_parameters": {"instructions": "Be brief."},
            "response": {
                "object": "response",
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hey."}]}],
            },
        },
        {"endpoint": "/v1/responses", "output": "Hey.", "messages": BRIEFED, "params": "{}"},
    ),
    (
        "instructions in the response",
        {
            "call_type": "responses",
            "model_parameters": {},
            "response": {"object": "response", "instructions": "Be brief.", "output": []},
        },
        {"messages": BRIEFED},
    ),
    (
        "text completion",
        {"call_type": "text_completion", "response": {"choices": [{"text": "a"}]}},
        {"endpoint": "/v1/completions", "output": "a", "messages": '[{"content":"Hi","role":"user"}]'},
    ),
    (
        "a text as prompt",
        {"call_type": "atext_completion", "messages": "Say", "response": {"choices": [{"text": "a"}]}},
        {"messages": '[{"content":"Say","role":"user"}]'},
    ),
]


@pytest.fixture(scope="module")
def table(read: Callable[..., LogBatch]) -> LogBatch:
    lines = [{"n": name, **PAYLOAD, **change} for name, change, _ in CASES]
    return read("\n".join(map(json.dumps, lines)).encode(), "litellm")


@pytest.mark.parametrize(
    ("line", "expected"), [pytest.param(n, case[2], id=case[0]) for n, case in enumerate(CASES, start=1)]
)
def test_a_line_may_be_written_in_several_ways(table: LogBatch, line: int, expected: dict[str, object]) -> None:
    assert table.rejected.filter(source_line=line).get_column("reason").to_list() == []
    (row,) = table.rows.filter(source_line=line).rows(named=True)
    assert {name: row[name] for name in expected} == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"call_type": None}, "call_type is missing; a StandardLoggingPayload of LiteLLM is needed"),
    ({"call_type": "aembedding"}, "call_type aembedding is not a text generation call that is read"),
    ({"call_type": "pass_through_endpoint"}, "call_type pass_through_endpoint is not"),
    ({"status": "pending"}, "status is pending; success or failure is needed"),
    ({"status": None}, "status is missing; success or failure is needed"),
    ({"startTime": "2026-11-20"}, "startTime is text; seconds since 1970 are needed"),
    ({"endTime": [1]}, "endTime is a list; seconds since 1970 are needed"),
    ({"completionStartTime": True}, "completionStartTime is true; seconds since 1970 are needed"),
    ({"endTime": 1_795_163_400.25}, "endTime is before startTime; a time that passed is needed"),
    ({"completionStartTime": 1_795_163_400.25}, "ttft_ms is -250.0; a finite number of 0 or more is needed"),
    ({"metadata": []}, "metadata is a list; an object is needed"),
    ({"request_tags": "a"}, "request_tags is text; a list is needed"),
    ({"model_parameters": 7}, "model_parameters is 7; an object is needed"),
    ({"messages": [{"role": "user", "content": "redacted-by-litellm"}]}, "messages are redacted; log them with"),
    ({"messages": None}, "messages is missing"),
    ({"messages": []}, "messages is empty"),
    ({"messages": "Hi"}, "messages is text; a list of {role, content} is needed"),
    ({"response": {"text": "redacted-by-litellm"}}, "response holds neither choices nor an error; one is needed"),
    ({"response": "Hello!"}, "response is text that is neither JSON nor an event stream"),
    ({"response": 7}, "response is 7; a response body is needed"),
    ({"response": {**RESPONSE, "usage": {"prompt_tokens": -1}}}, "input_tokens is -1"),
    ({"response_cost": "0.1 $"}, "cost_usd is text"),
    ({"end_user": {"id": 1}}, "user is an object; text or a whole number is needed"),
]


@pytest.fixture(scope="module")
def mixed(read: Callable[..., LogBatch]) -> LogBatch:
    lines = [json.dumps({"n": n, **PAYLOAD, **change}) for n, (change, _) in enumerate(BAD)]
    good = [json.dumps({"n": -n, **PAYLOAD}) for n in range(1, len(BAD) + 1)]
    return read("\n".join(line for pair in zip(lines, good, strict=True) for line in pair).encode(), "litellm")


@pytest.mark.parametrize(("number", "reason"), [pytest.param(n, case[1], id=case[1]) for n, case in enumerate(BAD)])
def test_a_line_that_is_no_call_is_quarantined_with_its_reason(mixed: LogBatch, number: int, reason: str) -> None:
    (rejected,) = mixed.rejected.filter(source_line=2 * number + 1).rows(named=True)
    assert reason in rejected["reason"]
    assert rejected["raw"] == json.dumps({"n": number, **PAYLOAD, **BAD[number][0]}).encode()


def test_bad_lines_leave_the_others_alone(mixed: LogBatch) -> None:
    assert mixed.count == LineCount(2 * len(BAD), len(BAD), len(BAD), 0)
    assert mixed.rejected.get_column("source_line").is_sorted()


def test_lines_that_are_no_payload_are_all_kept(read: Callable[..., LogBatch]) -> None:
    lines = [b"{", b'{"a": 1}', b"[]", b"\xff", json.dumps(PAYLOAD).encode(), json.dumps(PAYLOAD).encode()]
    batch = read(b"\n".join(lines), "litellm")
    assert batch.count == LineCount(6, 1, 4, 1)
    assert batch.rejected.get_column("raw").to_list() == lines[:4]


def test_no_raw_user_no_header_and_no_address_reaches_a_row(table: LogBatch) -> None:
    text = table.rows.write_ndjson()
    for secret in ("jane", "not-to-be-kept", "192.0.2.7", "python-httpx", "owner"):
        assert secret not in text


@pytest.fixture(scope="module")
def real(read: Callable[..., LogBatch]) -> LogBatch:
    """Return what LiteLLM itself logs of calls of several kinds."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}

    def script(ask: Ask) -> Reply:
        match ask.prompt:
            case "busy":
                return Reply("slow down", status=429)
            case "cut":
                return Reply("a b c d", breaks="midway")
            case "tool":
                return Reply("", tool_calls=(call,), finish_reason="tool_calls")
            case _:
                return Reply("the sum is four", delay_s=0.02, chunk_delay_s=0.01, cached_tokens=1)

    program = Path(__file__).with_name("litellm_calls.py")
    with ScriptedEndpoint(script) as endpoint:
        ran = subprocess.run(
            [sys.executable, str(program), endpoint.url], capture_output=True, check=False, timeout=100
        )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    return read(ran.stdout, "litellm")


def test_every_payload_of_litellm_is_a_row_or_has_a_reason(real: LogBatch) -> None:
    assert real.count == LineCount(10, 8, 2, 0)
    assert [reason.split(";")[0] for reason in real.rejected.get_column("reason")] == [
        "call_type aembedding is not a text generation call that is read",
        "messages are redacted",
    ]


def row_of(batch: LogBatch, application: str) -> dict[str, Any]:
    (row,) = batch.rows.filter(application=application).rows(named=True)
    return row


def test_litellm_names_its_fields_as_they_are_read(real: LogBatch) -> None:
    row = row_of(real, "streamed")
    assert {name: row[name] for name in row if name not in {"ts", "ttft_ms", "latency_ms", "tags", "source_line"}} == {
        "request_id": "chatcmpl-scripted",
        "application": "streamed",
        "endpoint": "/v1/chat/completions",
        "provider": "openai",
        "model": "open-3b",
        "messages": '[{"content":"Add.","role":"system"},{"content":"2 + 2","role":"user"}]',
        "params": '{"temperature":0}',
        "context": None,
        "output": "the sum is four",
        "tool_calls": None,
        "finish_reason": "stop",
        "status": "ok",
        "error": None,
        "ground_truth": "4",
        "input_tokens": 4,
        "output_tokens": 4,
        "cached_tokens": 1,
        "cost_usd": None,
        "user_hash": pseudonym("jane"),
        "conversation_id": "conversation-1",
        "source_file": "log.jsonl",
    }
    assert 20 <= row["ttft_ms"] <= row["latency_ms"] - 20
    assert abs((row["ts"] - datetime.now(UTC)).total_seconds()) < 200
    tags = json.loads(row["tags"])
    assert tags.pop("call_id")
    assert tags == {"request_tags": ["team:blue"], "task": "sums"}


def test_a_real_call_that_was_not_streamed_has_no_first_token(real: LogBatch) -> None:
    row = row_of(real, "whole")
    assert (row["output"], row["ttft_ms"], row["cached_tokens"]) == ("the sum is four", None, 1)
    assert row["latency_ms"] >= 20


def test_real_failures_have_their_error_and_no_invented_count(real: LogBatch) -> None:
    for application, error in [("busy", "HTTP 429 RateLimitError: litellm.RateLimitError"), ("cut", "ReadError: ")]:
        row = row_of(real, application)
        assert row["status"] == "error"
        assert row["error"].startswith(error)
        assert (row["input_tokens"], row["output_tokens"], row["cost_usd"], row["output"]) == (None, None, None, None)
        assert row["messages"].endswith(f'{{"content":"{application}","role":"user"}}]')
        assert row["latency_ms"] > 0


def test_a_real_tool_call_and_a_real_cost(real: LogBatch) -> None:
    row = row_of(real, "tool")
    assert (row["output"], row["finish_reason"]) == (None, "tool_calls")
    assert json.loads(row["tool_calls"])[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert row_of(real, "priced")["cost_usd"] == pytest.approx(0.000225)


def test_the_other_apis_of_litellm_are_read(real: LogBatch) -> None:
    text, responses = row_of(real, "text"), row_of(real, "responses")
    assert (text["endpoint"], text["output"], text["messages"]) == (
        "/v1/completions",
        "said",
        '[{"content":"Say","role":"user"}]',
    )
    assert (responses["endpoint"], responses["output"], responses["input_tokens"]) == ("/v1/responses", "Hello", 36)
    assert text["conversation_id"] != responses["conversation_id"]  # one that LiteLLM made up per call
