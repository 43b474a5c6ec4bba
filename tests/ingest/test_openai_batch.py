from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.request_log import LineCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.ingest.readers import LogBatch


def request(custom_id: object, **fields: object) -> dict[str, Any]:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Question {custom_id}"}], "max_tokens": 9}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | fields


def result(custom_id: object, answer: str = "Answer", **fields: object) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    body = {"id": "chatcmpl-9", "model": "gpt-4o-2024-08-06", "created": 1_795_163_400, "choices": [choice]}
    response = {"status_code": 200, "request_id": "req_9", "body": body | {"usage": {"prompt_tokens": 5}}}
    return {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": None} | fields


def failed(custom_id: object) -> dict[str, Any]:
    body = {"error": {"code": "context_length_exceeded", "message": "Too long."}}
    return result(custom_id, response={"status_code": 400, "request_id": "req_9", "body": body})


def expired(custom_id: object) -> dict[str, Any]:
    return result(custom_id, response=None, error={"code": "batch_expired", "message": "Not done within 24 h."})


def jsonl(*lines: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, lines)).encode()


def test_requests_and_results_are_paired_over_all_files(read: Callable[..., LogBatch]) -> None:
    batch = read(
        {
            "error.jsonl": jsonl(failed("c")),
            "input.jsonl": jsonl(
                request("a", tags={"task": "qa"}), request("b"), request("c"), request("d"), request("e")
            ),
            "output.jsonl": jsonl(result("b", "Second"), result("a", "First"), expired("d")),
        },
        "openai-batch",
    )
    assert batch.count == LineCount(9, 9, 0, 0)
    assert batch.rows.select("request_id", "status", "output", "error", "source_file", "source_line").rows() == [
        ("a", "ok", "First", None, "input.jsonl", 1),
        ("b", "ok", "Second", None, "input.jsonl", 2),
        ("c", "error", None, "HTTP 400 context_length_exceeded: Too long.", "input.jsonl", 3),
        ("d", "error", None, "batch_expired: Not done within 24 h.", "input.jsonl", 4),
        ("e", "unanswered", None, None, "input.jsonl", 5),
    ]
    first = batch.rows.row(0, named=True)
    assert first["endpoint"] == "/v1/chat/completions"
    assert first["messages"] == '[{"content":"Question a","role":"user"}]'
    assert first["params"] == '{"max_tokens":9}'
    assert first["model"] == "gpt-4o-2024-08-06"
    assert first["tags"] == '{"requested_model":"gpt-4o","task":"qa"}'
    assert first["input_tokens"] == 5
    assert first["latency_ms"] is None


@pytest.mark.parametrize(
    ("lines", "reasons", "rows"),
    [
        ([result("x")], {1: "custom_id x has no request; the input file of the batch is needed"}, []),
        (
            [request("x"), request("x", url="/v1/completions"), result("x")],
            {2: "custom_id x is already requested at log.jsonl:1; once is needed"},
            [("x", "ok", "Answer")],
        ),
        (
            [request("x"), result("x", "First"), result("x", "Second")],
            {3: "custom_id x is already answered at log.jsonl:2; once is needed"},
            [("x", "ok", "First")],
        ),
        (
            [request("x"), expired("x"), result("x", "Retried")],
            {2: "custom_id x is already answered at log.jsonl:3; once is needed"},
            [("x", "ok", "Retried")],
        ),
        ([{"body": {}}], {1: "custom_id is missing; text is needed"}, []),
        ([request(7)], {1: "custom_id is 7; text is needed"}, []),
        (
            [{"custom_id": "x"}],
            {1: "is neither a batch request nor a result; body, or response or error, is needed"},
            [],
        ),
        (
            [request("x", url="/v1/embeddings"), result("x")],
            dict.fromkeys([1, 2], "endpoint /v1/embeddings is not a text generation call"),
            [],
        ),
        ([request("x", body="Hi")], {1: "request is missing; the request body is needed"}, []),
        ([request("x", body={"model": "m"})], {1: "messages is missing; a list of {role, content} is needed"}, []),
    ],
)
def test_a_line_without_a_place_is_quarantined_with_its_reason(
    read: Callable[..., LogBatch], lines: list[dict[str, Any]], reasons: dict[int, str], rows: list[tuple[str, ...]]
) -> None:
    batch = read(jsonl(*lines), "openai-batch")
    assert dict(batch.rejected.select("source_line", "reason").iter_rows()) == reasons
    assert batch.rejected.get_column("raw").to_list() == [jsonl(lines[number - 1]) for number in reasons]
    assert batch.rows.select("request_id", "status", "output").rows() == rows
    assert batch.count == LineCount(len(lines), len(lines) - len(reasons), len(reasons), 0)


def test_raw_bytes_are_kept_as_they_were(read: Callable[..., LogBatch]) -> None:
    lines = [
        json.dumps(request("x", url="/v1/embeddings", note='Köln\n"\\x41" 😀'), ensure_ascii=False).encode(),
        json.dumps(result("x", 'Köln\n"\\x41" 😀'), ensure_ascii=False).encode(),
        json.dumps(result("y", 'Köln\n"\\x41" 😀'), ensure_ascii=False).encode(),
    ]
    assert read(b"\n".join(lines), "openai-batch").rejected.get_column("raw").to_list() == lines


def test_a_repeated_line_is_a_duplicate_and_no_second_request(read: Callable[..., LogBatch]) -> None:
    batch = read({"a.jsonl": jsonl(request("x"), result("x")), "b.jsonl": jsonl(request("x"))}, "openai-batch")
    assert batch.count == LineCount(3, 2, 0, 1)


def test_an_empty_source_has_no_lines(read: Callable[..., LogBatch]) -> None:
    assert read(b"\n", "openai-batch").count == LineCount()


LINE = st.one_of(
    st.builds(request, st.sampled_from("abcd"), url=st.sampled_from(["/v1/chat/completions", "/v1/embeddings"])),
    st.builds(result, st.sampled_from("abcde"), st.sampled_from(["One", "Two"])),
    st.builds(expired, st.sampled_from("abcde")),
    st.just({"custom_id": "a"}),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(LINE, max_size=30), st.integers(1, 7))
def test_every_line_is_in_a_row_or_rejected_or_a_duplicate(
    read: Callable[..., LogBatch], lines: list[dict[str, Any]], batch_lines: int
) -> None:
    written = [json.dumps(line).encode() for line in lines]
    batch = read(b"\n".join(written), "openai-batch", batch_lines=batch_lines)
    assert batch.count.read == len(lines)
    assert batch.count.duplicates == len(lines) - len(set(written))
    assert batch.count.rejected == batch.rejected.height
    assert all(written[number - 1] == raw for number, raw in batch.rejected.select("source_line", "raw").iter_rows())
