from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.request_log import LineCount, pseudonym
from anven_pipelines.ingest.streams import BrokenStreamError, assemble

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.ingest.readers import LogBatch

REQUEST: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0.5,
    "top_p": None,
    "stream": False,
    "user": "jane",
    "metadata": {"application": "support", "task": "greeting"},
}
RESPONSE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_795_163_400,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello!", "refusal": None}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "Hey!"}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
FAILURE = {"error": {"message": "Slow down.", "type": "tokens", "code": "rate_limit_exceeded"}}
HTML = "<html>Bad gateway</html>"


def message(**fields: object) -> dict[str, Any]:
    return RESPONSE | {"choices": [{"index": 0, "message": {"role": "assistant"} | fields, "finish_reason": "stop"}]}


def events(*chunks: object, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


def chunk(finish_reason: str | None = None, **delta: object) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


RESPONSES_REQUEST = {
    "model": "gpt-4.1",
    "instructions": "Be brief.",
    "input": [
        {"type": "message", "role": "user", "content": "Add."},
        {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "3"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ],
}
RESPONSES_BODY = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_795_163_400,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "gpt-4.1-2025-04-14",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hidden"}]},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "It is "}, {"type": "output_text", "text": "3."}],
        },
        {"type": "function_call", "call_id": "call_2", "name": "add", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 30, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 1}},
}


def test_a_line_with_everything_becomes_a_row(read: Callable[..., LogBatch]) -> None:
    line = {
        "method": "POST",
        "path": "/v1/chat/completions?api-version=1",
        "headers": {"Authorization": "Bearer not-to-be-kept"},
        "request": REQUEST,
        "response": RESPONSE,
        "status": 200,
        "ts": "2026-11-20T08:30:00.5Z",
        "latency_ms": 812.5,
        "ttft_ms": 120,
        "cost_usd": 0.001,
        "provider": "openai",
        "request_id": "req-1",
        "conversation_id": "conv-1",
        "ground_truth": "Hello!",
        "context": ["c"],
        "tags": {"team": "blue"},
    }
    batch = read(json.dumps(line).encode(), "openai")
    assert batch.count == LineCount(1, 1, 0, 0)
    assert batch.rows.row(0, named=True) == {
        "request_id": "req-1",
        "ts": datetime(2026, 11, 20, 8, 30, 0, 500_000, tzinfo=UTC),
        "application": "support",
        "endpoint": "/v1/chat/completions",
        "provider": "openai",
        "model": "gpt-4o-2024-08-06",
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
        "ttft_ms": 120.0,
        "latency_ms": 812.5,
        "cost_usd": 0.001,
        "user_hash": pseudonym("jane"),
        "conversation_id": "conv-1",
        "tags": '{"application":"support","requested_model":"gpt-4o","task":"greeting","team":"blue"}',
        "source_file": "log.jsonl",
        "source_line": 1,
    }


CASES: list[tuple[str, dict[str, Any], dict[str, object]]] = [
    ("bodies alone", {}, {"endpoint": "/v1/chat/completions", "request_id": "chatcmpl-1", "latency_ms": None}),
    ("the response's time", {}, {"ts": datetime(2026, 11, 20, 8, 30, tzinfo=UTC)}),
    ("the line's time first", {"timestamp": 1_795_163_401}, {"ts": datetime(2026, 11, 20, 8, 30, 1, tzinfo=UTC)}),
    ("bodies as JSON text", {"request": json.dumps(REQUEST), "response": json.dumps(RESPONSE)}, {"output": "Hello!"}),
    ("bodies within body", {"request": {"body": REQUEST}, "response": {"body": RESPONSE}}, {"output": "Hello!"}),
    ("text within body", {"response": {"status_code": 200, "body": json.dumps(RESPONSE)}}, {"output": "Hello!"}),
    ("the request as body", {"request": None, "body": REQUEST}, {"status": "ok", "user_hash": pseudonym("jane")}),
    ("user beside the bodies", {"user": "john"}, {"user_hash": pseudonym("john")}),
    (
        "safety identifier",
        {"request": {**REQUEST, "user": None, "safety_identifier": "x"}},
        {"user_hash": pseudonym("x")},
    ),
    ("request id in a header", {"response": FAILURE, "headers": {"x-request-id": "h"}}, {"request_id": "h"}),
    ("azure", {"path": "/openai/deployments/d/chat/completions"}, {"endpoint": "/v1/chat/completions"}),
    ("full url", {"url": "https://host/v1/chat/completions"}, {"endpoint": "/v1/chat/completions"}),
    (
        "parts",
        {"response": message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])},
        {"output": "ab"},
    ),
    ("refusal", {"response": message(content=None, refusal="No.")}, {"output": "No.", "status": "ok"}),
    ("tool call", {"response": message(content=None, tool_calls=[CALL])}, {"output": None, "status": "ok"}),
    ("empty answer", {"response": message(content="")}, {"output": "", "status": "ok"}),
    (
        "function call",
        {"response": message(content=None, function_call=CALL["function"])},
        {"tool_calls": '[{"function":{"arguments":"{\\"a\\": 1}","name":"add"},"type":"function"}]'},
    ),
    (
        "error",
        {"status": 429, "response": FAILURE},
        {"status": "error", "error": "HTTP 429 rate_limit_exceeded: Slow down."},
    ),
    ("error of status 200", {"status": 200, "response": FAILURE}, {"error": "rate_limit_exceeded: Slow down."}),
    ("error as text", {"response": {"error": "boom"}}, {"status": "error", "error": "boom"}),
    ("error beside the bodies", {"response": None, "error": {"message": "timed out"}}, {"error": "timed out"}),
    ("error page", {"status": 502, "response": HTML}, {"status": "error", "error": f"HTTP 502: {HTML}"}),
    ("error without a body", {"status": 500, "response": None}, {"status": "error", "error": "HTTP 500"}),
    ("error in words", {"status": "failed", "response": None}, {"status": "error"}),
    ("error within the wrapper", {"response": {"status_code": 500, "body": None}}, {"error": "HTTP 500"}),
    ("model of an error", {"response": FAILURE}, {"model": "gpt-4o", "input_tokens": None}),
    ("no response", {"response": None}, {"status": "unanswered", "model": "gpt-4o", "output": None}),
    ("an empty response", {"response": ""}, {"status": "unanswered"}),
    (
        "legacy completion",
        {
            "path": "/v1/completions",
            "request": {"model": "i", "prompt": "Say"},
            "response": {"choices": [{"text": "a"}]},
        },
        {"endpoint": "/v1/completions", "messages": '[{"content":"Say","role":"user"}]', "output": "a", "params": "{}"},
    ),
    (
        "one prompt in a list",
        {
            "request": {"model": "i", "prompt": ["Say"]},
            "response": {"choices": [{"text": "a", "finish_reason": "length"}]},
        },
        {"endpoint": "/v1/completions", "messages": '[{"content":"Say","role":"user"}]', "finish_reason": "length"},
    ),
    (
        "responses",
        {"path": "/v1/responses", "request": RESPONSES_REQUEST, "response": RESPONSES_BODY},
        {
            "endpoint": "/v1/responses",
            "messages": json.dumps(
                [
                    {"content": "Be brief.", "role": "system"},
                    {"content": "Add.", "role": "user"},
                    {
                        "content": None,
                        "role": "assistant",
                        "tool_calls": [
                            {"function": {"arguments": "{}", "name": "add"}, "id": "call_1", "type": "function"}
                        ],
                    },
                    {"content": "3", "role": "tool", "tool_call_id": "call_1"},
                    {"id": "rs_1", "role": "assistant", "summary": [], "type": "reasoning"},
                ],
                separators=(",", ":"),
            ),
            "output": "It is 3.",
            "tool_calls": '[{"function":{"arguments":"{}","name":"add"},"id":"call_2","type":"function"}]',
            "finish_reason": "completed",
            "input_tokens": 30,
            "output_tokens": 5,
            "cached_tokens": 1,
            "status": "ok",
        },
    ),
    (
        "responses that fail",
        {
            "request": {"input": "Hi"},
            "response": {"object": "response", "error": {"code": "e", "message": "m"}, "output": []},
        },
        {"endpoint": "/v1/responses", "status": "error", "error": "e: m", "output": None},
    ),
    (
        "stream",
        {"response": events(chunk(content="Hel"), chunk(content="lo"), chunk("stop"), {"usage": {"prompt_tokens": 3}})},
        {"output": "Hello", "finish_reason": "stop", "input_tokens": 3, "output_tokens": None, "status": "ok"},
    ),
    (
        "stream within body",
        {"response": {"status_code": 200, "body": events(chunk("stop", content="Hi"))}},
        {"output": "Hi", "request_id": "c", "model": "m"},
    ),
    (
        "stream that is cut",
        {"response": events(chunk(content="Hel"), end="")},
        {"output": "Hel", "status": "error", "error": "stream_cut: the stream ends before the answer is finished"},
    ),
    (
        "stream that tears a surrogate pair apart",
        {"response": events(chunk(content="\ud83d"), chunk("stop", content="\ude00"))},
        {"output": "😀"},
    ),
]


@pytest.fixture(scope="module")
def table(read: Callable[..., LogBatch]) -> LogBatch:
    lines = [{"n": name, "request": REQUEST, "response": RESPONSE} | change for name, change, _ in CASES]
    return read("\n".join(map(json.dumps, lines)).encode(), "openai")


@pytest.mark.parametrize(
    ("line", "expected"), [pytest.param(n, case[2], id=case[0]) for n, case in enumerate(CASES, start=1)]
)
def test_a_line_may_be_written_in_several_ways(table: LogBatch, line: int, expected: dict[str, object]) -> None:
    assert table.rejected.filter(source_line=line).get_column("reason").to_list() == []
    (row,) = table.rows.filter(source_line=line).rows(named=True)
    assert {name: row[name] for name in expected} == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"path": "/v1/embeddings"}, "endpoint /v1/embeddings is not a text generation call"),
    (
        {"path": "/v1/threads/t/messages", "request": None},
        "endpoint /v1/threads/t/messages is not a text generation call",
    ),
    ({"path": "/v1/chat/completions", "method": "GET"}, "endpoint /v1/chat/completions is not a text generation call"),
    ({"request": None}, "request is missing; the request body is needed"),
    ({"request": "not JSON"}, "request is text; the request body is needed"),
    ({"request": [REQUEST]}, "request is a list; the request body is needed"),
    ({"request": {"model": "m"}}, "request holds neither messages nor prompt and names no endpoint; one is needed"),
    ({"path": "/v1/chat/completions", "request": {"model": "m"}}, "messages is missing"),
    ({"request": {"prompt": ["a", "b"]}}, "prompt is a list of 2; one text is needed"),
    ({"request": {"prompt": [1, 2, 3]}}, "prompt is a list of 3; one text is needed"),
    ({"request": {"prompt": 7}}, "messages is missing"),
    ({"path": "/v1/responses", "request": {"model": "m"}}, "messages is empty"),
    ({"response": HTML}, "response is text that is neither JSON nor an event stream; a response body is needed"),
    ({"response": 7}, "response is 7; a response body is needed"),
    ({"response": [RESPONSE]}, "response is a list; a response body is needed"),
    ({"response": {"object": "list", "data": []}}, "response holds neither choices nor an error; one is needed"),
    ({"response": {"choices": []}}, "response holds neither choices nor an error; one is needed"),
    ({"response": "data: {\n\n"}, "response: the stream's event 1 is not JSON; one JSON object per event is needed"),
    ({"response": "data: [1]\n\n"}, "response: the stream's event 1 is no object; one JSON object per event is needed"),
    ({"response": events({"choices": ["a"]})}, "response: the stream's events have an unknown shape"),
    ({"response": events(chunk("stop", content="\ud83d"))}, "response: the stream's text or numbers cannot be stored"),
    ({"response": RESPONSE | {"usage": {"prompt_tokens": -1}}}, "input_tokens is -1; a whole number of 0 or more"),
    ({"response": message(content=7)}, "output is 7; text is needed"),
    ({"latency_ms": -3}, "latency_ms is -3; a finite number of 0 or more is needed"),
    ({"ts": "soon"}, 'ts is "soon"; ISO 8601'),
    ({"user": ["jane"]}, "user is a list; text or a whole number is needed"),
]


@pytest.fixture(scope="module")
def mixed(read: Callable[..., LogBatch]) -> LogBatch:
    lines: list[dict[str, Any]] = []
    for number, (change, _) in enumerate(BAD):
        good = {"request": REQUEST, "response": RESPONSE}
        lines += [good | {"request_id": number}, good | {"id": number} | change]
    return read("\n".join(map(json.dumps, lines)).encode(), "openai")


@pytest.mark.parametrize(("line", "reason"), [(2 * n, case[1]) for n, case in enumerate(BAD, start=1)])
def test_a_bad_line_is_quarantined_with_its_reason(mixed: LogBatch, line: int, reason: str) -> None:
    (rejected,) = mixed.rejected.filter(source_line=line).rows(named=True)
    assert rejected["reason"].startswith(reason)
    assert json.loads(rejected["raw"])["id"] == line // 2 - 1


def test_bad_lines_leave_the_others_alone(mixed: LogBatch) -> None:
    assert mixed.count == LineCount(2 * len(BAD), len(BAD), len(BAD), 0)


def test_no_raw_user_and_no_header_reaches_a_row(table: LogBatch) -> None:
    text = table.rows.write_ndjson()
    assert "jane" not in text
    assert "Bearer" not in text


def test_a_streams_tool_calls_are_joined_by_their_index() -> None:
    start = [{"index": 0, "id": "a", "type": "function", "function": {"name": "add", "arguments": ""}}]
    more = [{"index": 0, "function": {"arguments": '{"a":'}}, {"index": 1, "id": "b", "function": {"name": "sub"}}]
    rest = [{"index": 1, "function": {"arguments": "{}"}}, {"index": 0, "function": {"arguments": "1}"}}]
    body = assemble(events(chunk(tool_calls=start), chunk(tool_calls=more), chunk("tool_calls", tool_calls=rest)))
    assert body["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "b", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_stream_may_use_any_line_end_and_hold_comments(line_end: str) -> None:
    stream = ": keep-alive\n\nevent: x\nid: 1\n" + events(chunk(content="a\u2028b"), chunk("stop"))
    stream = stream.replace("\\u2028", "\u2028").replace("\n", line_end)
    assert assemble(stream)["choices"][0]["message"]["content"] == "a\u2028b"


def test_a_streams_choices_and_texts_are_kept_apart() -> None:
    parts = [{"choices": [{"index": index, "text": text}]} for index, text in [(1, "b"), (0, "a"), (1, "B"), (0, "A")]]
    assert [choice["text"] for choice in assemble(events(*parts))["choices"]] == ["aA", "bB"]


def test_an_error_within_a_stream_is_kept_with_what_came_before() -> None:
    body = assemble(events(chunk(content="Hel"), {"error": {"message": "overloaded"}}, end=""))
    assert body["error"] == {"message": "overloaded"}
    assert body["choices"][0]["message"]["content"] == "Hel"


def test_a_responses_stream_gives_its_final_body() -> None:
    stream = events({"type": "response.created", "response": {}}, {"type": "response.completed", "response": {"id": 1}})
    assert assemble(stream) == {"id": 1}


def test_a_responses_stream_that_is_cut_gives_what_came() -> None:
    deltas = [{"type": "response.output_text.delta", "delta": text} for text in ("Hel", "lo")]
    body = assemble(events({"type": "response.created", "response": {"id": "r"}}, *deltas, end=""))
    assert (body["id"], body["output"][0]["content"][0]["text"]) == ("r", "Hello")
    assert body["error"]["code"] == "stream_cut"


@pytest.mark.parametrize("text", ["data: {", "data: 7", 'data: {"a": NaN}', 'data: {"choices": 7}'])
def test_a_broken_stream_says_so(text: str) -> None:
    with pytest.raises(BrokenStreamError, match=r"event 1 is|unknown shape"):
        assemble(text)
