"""What a chat completion's chunks and failures mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.completion import (
    ASKED_AGAIN,
    LONGEST_WAIT_S,
    REASON_LENGTH,
    RETRIED,
    Answer,
    AnswerInProgress,
    Failure,
    kind_of,
    retry_after_s,
    wait_s,
    without_secrets,
)

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more}


def read(*chunks: dict[str, Any]) -> Answer | Failure:
    answer = AnswerInProgress()
    for place, each in enumerate(chunks):
        answer.add(each, elapsed_ms=10.0 * (place + 1))
    return answer.whole(latency_ms=99.0)


def test_a_streamed_answer_is_put_together() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    answer = read(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "four"}),
        chunk({"content": "teen"}),
        chunk({}, "stop"),
        {"model": "m-1", "choices": [], "usage": usage},
    )
    assert answer == Answer(
        output="fourteen",
        tool_calls=None,
        finish_reason="stop",
        model="m-1",
        input_tokens=7,
        output_tokens=2,
        cached_tokens=3,
        ttft_ms=20.0,  # the second chunk: the first carries a role and no text
        latency_ms=99.0,
        longest_gap_ms=10.0,
    )
    assert answer.inter_token_ms == 79.0


def test_a_stall_in_the_middle_is_the_longest_gap() -> None:
    answer = AnswerInProgress()
    for elapsed_ms, text in [(20.0, "one"), (30.0, " two"), (35.0, ""), (630.0, " three"), (640.0, " four")]:
        answer.add(chunk({"content": text}), elapsed_ms=elapsed_ms)
    answer.add(chunk({}, "stop", usage={"completion_tokens": 4}), elapsed_ms=650.0)
    whole = answer.whole(latency_ms=650.0)
    assert isinstance(whole, Answer)
    assert whole.longest_gap_ms == 600.0
    assert whole.inter_token_ms == (650.0 - 20.0) / 3
    assert "longest_gap_ms" not in whole.row("a", attempts=1)


@pytest.mark.parametrize(
    ("tokens", "elapsed_ms"), [(1, 10.0), (None, 10.0), (5, None)], ids=["one token", "not counted", "not streamed"]
)
def test_no_time_between_tokens_is_made_up(tokens: int | None, elapsed_ms: float | None) -> None:
    answer = AnswerInProgress()
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    answer.add(chunk({"content": "all of it"}, "stop", **usage), elapsed_ms=elapsed_ms)
    whole = answer.whole(latency_ms=50.0)
    assert isinstance(whole, Answer)
    assert (whole.inter_token_ms, whole.longest_gap_ms) == (None, None)


def test_tool_calls_are_put_together_from_their_deltas() -> None:
    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return {"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}

    answer = read(
        chunk({"tool_calls": [part(0, "", id="call-a", type="function", function={"name": "weather"})]}),
        chunk({"tool_calls": [part(0, '{"city":')]}),
        chunk({"tool_calls": [part(1, "{}", id="call-b", function={"name": "time"}), part(0, '"Bern"}')]}),
        chunk({}, "tool_calls"),
    )
    assert isinstance(answer, Answer)
    assert json.loads(answer.tool_calls or "") == [
        {"id": "call-a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
        {"id": "call-b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert answer.output is None
    assert answer.ttft_ms == 10.0


def test_an_answer_that_was_not_streamed_has_no_time_to_first_token() -> None:
    answer = AnswerInProgress()
    message = {"content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    answer.add({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}, elapsed_ms=None)
    whole = answer.whole(latency_ms=5.0)
    assert isinstance(whole, Answer)
    assert (whole.ttft_ms, whole.latency_ms, whole.input_tokens) == (None, 5.0, None)
    assert json.loads(whole.tool_calls or "")[0]["function"] == {"name": "f", "arguments": "{}"}


def test_a_refusal_is_the_text_that_the_user_sees() -> None:
    answer = read(chunk({"refusal": "I cannot "}), chunk({"refusal": "help."}), chunk({}, "stop"))
    assert isinstance(answer, Answer)
    assert answer.output == "I cannot help."


def test_of_several_choices_the_first_counts() -> None:
    other = {"model": "m-1", "choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "length"}]}
    answer = read(chunk({"content": "first"}), other, chunk({}, "stop"))
    assert isinstance(answer, Answer)
    assert (answer.output, answer.finish_reason) == ("first", "stop")


def test_an_empty_answer_is_an_answer() -> None:
    answer = read(chunk({"content": ""}), chunk({}, "stop"))
    assert isinstance(answer, Answer)
    assert (answer.output, answer.ttft_ms) == ("", None)


def test_an_answer_without_its_end_is_a_failure() -> None:
    assert read(chunk({"content": "four"})) == Failure(
        "broken_answer", "the answer ended without a finish_reason, after 4 characters"
    )


def test_an_answer_that_no_one_counted_is_not_marked_as_counted() -> None:
    answer = read(chunk({"content": "four"}), chunk({}, "stop"))
    assert answer.row("i", attempts=1)["tokens_computed"] is None


@pytest.mark.parametrize(
    ("status", "kind", "retried", "asked_again"),
    [
        (400, "bad_request", False, False),
        (401, "refused", False, True),
        (402, "refused", False, True),
        (403, "refused", False, True),
        (404, "refused", False, True),
        (408, "timeout", True, True),
        (409, "busy", True, True),
        (413, "bad_request", False, False),
        (422, "bad_request", False, False),
        (429, "busy", True, True),
        (500, "server_error", True, True),
        (503, "server_error", True, True),
        (529, "server_error", True, True),
    ],
)
def test_a_status_decides_who_is_asked_again(status: int, kind: str, retried: bool, asked_again: bool) -> None:
    assert kind_of(status) == kind
    assert (kind_of(status) in RETRIED) == retried
    assert (kind_of(status) in ASKED_AGAIN) == asked_again


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 13:00:30 +0100", 30.0),
        ("Fri, 20 Nov 2026 11:59:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, now=NOW) == seconds


@given(attempt=st.integers(1, 50), jitter=st.floats(0, 1, exclude_max=True))
def test_waits_grow_up_to_their_limit(attempt: int, jitter: float) -> None:
    wait = wait_s(Failure("server_error", ""), attempt=attempt, jitter=jitter)
    longer = wait_s(Failure("server_error", ""), attempt=attempt + 1, jitter=jitter)
    assert wait is not None
    assert longer is not None
    assert 0 < wait <= longer <= LONGEST_WAIT_S


@given(seconds=st.floats(0, 300), jitter=st.floats(0, 1, exclude_max=True), attempt=st.integers(1, 50))
def test_no_wait_is_shorter_than_retry_after(seconds: float, jitter: float, attempt: int) -> None:
    wait = wait_s(Failure("busy", "", 429, seconds), attempt=attempt, jitter=jitter)
    assert wait is not None
    assert seconds <= wait <= seconds + 0.5


@pytest.mark.parametrize("failure", [Failure("bad_request", ""), Failure("refused", ""), Failure("busy", "", 429, 301)])
def test_what_waiting_would_not_mend_is_not_retried(failure: Failure) -> None:
    assert wait_s(failure, attempt=1, jitter=0.5) is None


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: s3cret-key.",
        "authorization: Bearer abc.def-ghi",
        "key sk-proj-0123456789 is unknown",
        "key sk-abc***wxyz is unknown",
        "cannot connect to http://user:pa55@host:8000/v1",
    ],
)
def test_a_reason_holds_no_secret(text: str) -> None:
    shown = without_secrets(text, secrets=["s3cret-key"])
    assert "[secret]" in shown
    assert not any(secret in shown for secret in ("s3cret-key", "abc.def-ghi", "sk-", "pa55", "wxyz"))


def test_a_reason_is_one_short_line() -> None:
    shown = without_secrets("first\nsecond " + "x" * 999, secrets=[])
    assert shown.startswith("first second x")
    assert len(shown) == REASON_LENGTH


def test_a_reason_names_kind_status_and_message() -> None:
    assert Failure("busy", "slow down", 429).reason == "busy: HTTP 429: slow down"
    assert Failure("timeout", "no whole answer within 5 s").reason == "timeout: no whole answer within 5 s"
