"""Every golden item has exactly one answer, failure or unmatched row, wherever the answers come from."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.completion import Failure
from anven_pipelines.domain.golden import GOLDEN
from anven_pipelines.domain.inference import (
    ANSWERS,
    CompletionRequest,
    conserved,
    join_recorded,
    legacy_answers_of,
    merge_answers,
    requests_for,
    settled,
    work_key,
)
from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.spec_target import EndpointTarget, JobTarget

TARGET = EndpointTarget(engine="endpoint", model="open-3b", url="http://127.0.0.1:8000/v1")


def messages(text: str) -> str:
    return canonical_json([{"role": "user", "content": text}])


def golden(*ids: str, **columns: Any) -> pl.DataFrame:
    rows = [{"id": each, "source_prompt": messages(f"question {each}"), "source_output": f"old {each}"} for each in ids]
    return GOLDEN.conform(pl.DataFrame(rows).with_columns(**{name: pl.lit(value) for name, value in columns.items()}))


def call(request_id: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "messages": messages(f"question {request_id}"),
        "output": f"new {request_id}",
        "finish_reason": "stop",
        "status": "ok",
        "model": "open-3b",
        **changes,
    }


def recorded(*calls: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(calls, schema=REQUEST_LOG.schema)


def row(item_id: str, status: str = "answered", **changes: Any) -> dict[str, Any]:
    return {"item_id": item_id, "status": status, "attempts": 1, **changes}


def kept(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ANSWERS.schema)


class TestRequests:
    def test_a_golden_item_is_asked_as_it_was_logged(self) -> None:
        items = golden("a", model_config='{"temperature":0.2,"top_k":40}')
        assert requests_for(items, carry_over(), TARGET) == [
            CompletionRequest(
                "a", [{"role": "user", "content": "question a"}], {"temperature": 0.2, "top_k": 40}
            )
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("logged", "replaced", "asked"),
        [
            (None, {}, {}),
            ("null", {"max_tokens": 5}, {"max_tokens": 5}),
            ('{"max_tokens":900,"seed":1}', {"max_tokens": 5}, {"max_tokens": 5, "seed": 1}),
            ('{"logprobs":true,"seed":1}', {"logprobs": None}, {"seed": 1}),
            ('{"model":"gpt","stream":true,"stream_options":{},"messages":[]}', {"stream": True}, {}),
        ],
    )
    def test_the_targets_params_replace_the_logged_ones(
        self, logged: str | None, replaced: dict[str, Any], asked: dict[str, Any]
    ) -> None:
        items = golden("a", model_config=logged)
        [request] = requests_for(items, carry_over(), TARGET.model_copy(update={"params": replaced}))
        assert request.params == asked


class TestJoinRecorded:
    @pytest.mark.parametrize("join", ["request_id", "prompt"])
    def test_every_item_gets_its_answer_in_golden_order(self, join: Any) -> None:
        log = recorded(
            call("a", input_tokens=3, output_tokens=2, ttft_ms=1.5, latency_ms=9.0, cost_usd=0.1),
            call("c"),
            call("b", output=None, tool_calls='[{"id":"x"}]'),
            call("not golden"),
        )
        answers = join_recorded(golden("c", "a", "b"), log, join=join)
        assert answers.schema == ANSWERS.schema
        assert answers["item_id"].to_list() == ["c", "a", "b"]
        assert answers["status"].to_list() == ["answered"] * 3
        assert answers["output"].to_list() == ["new c", "new a", None]
        assert answers.row(1, named=True) == row(
            "a", reason=None, output="new a", tool_calls=None, finish_reason="stop", model="open-3b", input_tokens=3,
            output_tokens=2, cached_tokens=None, tokens_computed=False, ttft_ms=1.5, latency_ms=9.0, cost_usd=0.1,
            attempts=None,
        )  # fmt: skip
        assert answers["tokens_computed"].to_list() == [None, False, None]

    @pytest.mark.parametrize(
        ("calls", "status", "reason"),
        [
            ([], "unmatched", "no recorded answer has this request id"),
            ([call("b"), call(None)], "unmatched", "no recorded answer has this request id"),
            (
                [call("a"), call("a", output="other"), call("a", output="third")],
                "unmatched",
                "3 different recorded answers have this request id; one is needed",
            ),
            ([call("a", status="error", output=None, error="HTTP 500")], "failed", "HTTP 500"),
            ([call("a", status="error", output=None)], "failed", "recorded as an error without a message"),
            ([call("a", status="unanswered", output=None)], "failed", "the recorded request has no response"),
            ([call("a", output=None)], "failed", "the recorded response holds neither text nor tool calls"),
            (
                [call("a", output=None, tool_calls="[]")],
                "failed",
                "the recorded response holds neither text nor tool calls",
            ),
        ],
    )
    def test_an_item_without_one_answer_says_why(self, calls: list[dict[str, Any]], status: str, reason: str) -> None:
        [answer] = join_recorded(golden("a"), recorded(*calls), join="request_id").to_dicts()
        assert (answer["status"], answer["reason"]) == (status, reason)
        assert {name for name, value in answer.items() if value is not None} == {"item_id", "status", "reason"}

    @pytest.mark.parametrize(
        "other",
        [
            call("a"),
            call("a", latency_ms=7.0, source_line=9),
            call("a", status="error", output=None, error="HTTP 503"),
            call("a", status="unanswered", output=None),
            call("a", output=None),
        ],
    )
    def test_a_repeated_or_retried_call_is_one_answer(self, other: dict[str, Any]) -> None:
        for calls in ([call("a"), other], [other, call("a")]):
            [answer] = join_recorded(golden("a"), recorded(*calls), join="request_id").to_dicts()
            assert (answer["status"], answer["output"]) == ("answered", "new a")

    def test_of_equal_answers_the_first_in_the_log_counts(self) -> None:
        calls = [call("a", source_file="x", source_line=line, latency_ms=float(line)) for line in (3, 1, 2)]
        assert join_recorded(golden("a"), recorded(*calls), join="request_id")["latency_ms"].to_list() == [1.0]

    def test_an_empty_text_is_an_answer(self) -> None:
        answers = join_recorded(golden("a"), recorded(call("a", output="")), join="request_id")
        assert answers["status"].to_list() == ["answered"]

    def test_items_of_the_same_prompt_share_its_answer(self) -> None:
        items = golden("a", "b", source_prompt=messages("same"))
        answers = join_recorded(items, recorded(call("x", messages=messages("same"))), join="prompt")
        assert answers["output"].to_list() == ["new x", "new x"]

    def test_a_prompt_matches_only_as_a_whole(self) -> None:
        answers = join_recorded(golden("a"), recorded(call("a", messages=messages("question A"))), join="prompt")
        assert answers["reason"].to_list() == ["no recorded answer has exactly these messages"]

    @given(ids=st.lists(st.sampled_from("abcdef"), unique=True), calls=st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["ok", "error", "unanswered"]), st.sampled_from("xy")),
        max_size=12,
    ))  # fmt: skip
    def test_no_item_is_lost_or_repeated(self, ids: list[str], calls: list[tuple[str, str, str]]) -> None:
        log = recorded(*(call(each, status=status, output=text) for each, status, text in calls))
        answers = join_recorded(golden(*ids) if ids else GOLDEN.empty(), log, join="request_id")
        assert answers["item_id"].to_list() == ids
        assert (answers["reason"].is_null() == (answers["status"] == "answered")).all()


class TestLegacyAnswers:
    def test_the_legacy_arm_is_what_the_golden_rows_carry(self) -> None:
        items = golden("b", "a", input_tokens=5, output_tokens=4, ttft_ms=2.0, latency_ms=8.0, cost_usd=0.01)
        answers = legacy_answers_of(items)
        assert answers["item_id"].to_list() == ["b", "a"]
        assert answers.row(0, named=True) == row(
            "b", reason=None, output="old b", tool_calls=None, finish_reason=None, model=None, input_tokens=5,
            output_tokens=4, cached_tokens=None, tokens_computed=False, ttft_ms=2.0, latency_ms=8.0, cost_usd=0.01,
            attempts=None,
        )  # fmt: skip

    def test_a_golden_row_without_an_answer_is_a_failure(self) -> None:
        [answer] = legacy_answers_of(golden("a", source_output=None)).to_dicts()
        assert (answer["status"], answer["reason"]) == ("failed", "the log holds neither text nor tool calls")


class TestMergeAnswers:
    def test_each_item_gets_its_row_in_order(self) -> None:
        merged = merge_answers(["b", "a"], kept(row("a", output="1"), row("b", "failed", reason="busy: x"), row("z")))
        assert merged["item_id"].to_list() == ["b", "a"]
        assert merged["status"].to_list() == ["failed", "answered"]

    @pytest.mark.parametrize(
        ("rows", "winner"),
        [
            ([row("a", output="1"), row("a", output="1")], row("a", output="1")),
            ([row("a", "failed", reason="r", attempts=9), row("a", output="1")], row("a", output="1")),
            (
                [row("a", "failed", reason="old"), row("a", "failed", reason="new", attempts=6)],
                row("a", "failed", reason="new", attempts=6),
            ),
            ([row("a", output="2", attempts=2), row("a", output="1", attempts=1)], row("a", output="1", attempts=1)),
            ([row("a", output="2"), row("a", output="1")], row("a", output="1")),
        ],
    )
    def test_of_several_rows_one_stays_whatever_their_order(
        self, rows: list[dict[str, Any]], winner: dict[str, Any]
    ) -> None:
        for order in (rows, rows[::-1]):
            assert merge_answers(["a"], kept(*order)).equals(kept(winner))

    @given(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from(["answered", "failed"]), st.integers(1, 3)), min_size=1
        )
    )
    def test_merging_twice_or_in_another_order_changes_nothing(self, rows: list[tuple[str, str, int]]) -> None:
        frame = kept(*(row(each, status, attempts=attempts) for each, status, attempts in rows))
        ids = sorted(set(frame["item_id"]))
        merged = merge_answers(ids, frame)
        assert merge_answers(ids, merged).equals(merged)
        assert merge_answers(ids, pl.concat([frame.reverse(), merged])).equals(merged)

    @pytest.mark.parametrize(
        ("ids", "rows", "message"),
        [
            (["a", "b"], [row("a")], "2 items went in, 1 came out .* 1 have none of these, the first is 'b'"),
            (["a"], [row("a", "pending")], "the first is 'a'"),
            (["a", "a"], [row("a")], "1 item ids stand more than once, the first is 'a'"),
        ],
    )
    def test_a_lost_row_is_an_error(self, ids: list[str], rows: list[dict[str, Any]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            merge_answers(ids, kept(*rows))

    def test_a_repeated_row_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="1 items went in, 2 came out"):
            conserved(["a"], kept(row("a", output="1"), row("a", output="2")))


class TestSettled:
    @pytest.mark.parametrize(
        ("rows", "is_settled"),
        [
            (row("a"), True),
            (row("a", "failed", reason=Failure("bad_request", "no", 400).reason), True),
            (row("a", "failed", reason=Failure("busy", "slow down", 429).reason), False),
            (row("a", "failed", reason=Failure("timeout", "no whole answer").reason), False),
            (row("a", "failed", reason=Failure("refused", "bad key", 401).reason), False),
        ],
    )
    def test_only_what_may_change_is_asked_again(self, rows: dict[str, Any], is_settled: bool) -> None:
        assert (settled(kept(rows)).height == 1) == is_settled


class TestWorkKey:
    KEY = work_key(golden_digest="g", prompt_digest="p", target=TARGET, epoch="")

    @pytest.mark.parametrize("change", [{"model": "other"}, {"url": "http://other/v1"}, {"params": {"max_tokens": 1}}])
    def test_what_changes_the_answer_changes_the_key(self, change: dict[str, Any]) -> None:
        target = TARGET.model_copy(update=change)
        assert work_key(golden_digest="g", prompt_digest="p", target=target, epoch="") != self.KEY

    @pytest.mark.parametrize("change", [{"golden_digest": "h"}, {"prompt_digest": "q"}, {"epoch": "2"}])
    def test_another_dataset_prompt_or_epoch_has_another_key(self, change: dict[str, Any]) -> None:
        assert (
            work_key(**{"golden_digest": "g", "prompt_digest": "p", "target": TARGET, "epoch": "", **change})
            != self.KEY
        )

    @pytest.mark.parametrize("change", [{"concurrency": 1}, {"max_attempts": 1}, {"api_key_env": "KEY"}])
    def test_how_the_endpoint_is_asked_does_not_change_the_key(self, change: dict[str, Any]) -> None:
        target = TARGET.model_copy(update=change)
        assert work_key(golden_digest="g", prompt_digest="p", target=target, epoch="") == self.KEY

    @pytest.mark.parametrize(
        ("change", "is_same"),
        [
            ({"weights": "s3://bucket/models/m"}, True),
            ({"weights": "oci:///models/m"}, True),
            ({"licence": "MIT"}, True),
            ({"digest": "1" * 64}, False),
            ({"revision": "2"}, False),
            ({"precision": "float32"}, False),
        ],
    )
    def test_weights_count_by_their_digest_wherever_they_lie(self, change: dict[str, Any], is_same: bool) -> None:
        declared = {"engine": "vllm-job", "model": "m", "weights": "/m", "digest": "0" * 64, "licence": "Apache-2.0"}
        one, other = (
            work_key(golden_digest="g", prompt_digest="p", target=JobTarget.model_validate(target), epoch="")
            for target in (declared, declared | change)
        )
        assert (one == other) is is_same
