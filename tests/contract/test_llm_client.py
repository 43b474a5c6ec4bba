"""The client against a real HTTP server that misbehaves by script; only waiting is replaced."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.inference import ANSWERS, CompletionRequest
from anven_pipelines.resources.endpoint import ask_endpoint
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.resources.pace import Pace
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint, answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.resources.answer_batch import Progress

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
KEY = "s3cret-key-of-the-team"
HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass
class RecordedSleep:
    """Waits for nothing and remembers how long it should have."""

    waits: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


@dataclass
class Asker:
    """Asks a scripted endpoint into a checkpoint of its own."""

    checkpoint: FolderCheckpoint
    sleep: RecordedSleep = field(default_factory=RecordedSleep)
    progress: list[Progress] = field(default_factory=list)

    def ask(self, url: str, requests: list[CompletionRequest], **target: Any) -> pl.DataFrame:
        return ask_endpoint(
            EndpointTarget(engine="endpoint", model="open-3b", url=url, **target),
            requests,
            checkpoint=self.checkpoint,
            progress=self.progress.append,
            environ={"TARGET_KEY": KEY},
            pace=Pace(sleep=self.sleep, now=lambda: NOW, jitter=lambda: 0.0),
        )


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(FolderCheckpoint(tmp_path / "checkpoint"))


def requests(*prompts: str, **params: Any) -> list[CompletionRequest]:
    return [CompletionRequest(f"id of {prompt}", [{"role": "user", "content": prompt}], params) for prompt in prompts]


def numbered(count: int) -> list[CompletionRequest]:
    return requests(*(f"prompt {number}" for number in range(count)))


def for_prompt(prompt: str, *replies: Reply) -> Callable[[Ask], Reply]:
    """Answer one prompt by these replies in turn, the last for ever, and all others well."""
    return lambda ask: replies[min(ask.nth, len(replies)) - 1] if ask.prompt == prompt else Reply("fine")


def only(answers: pl.DataFrame, prompt: str) -> dict[str, Any]:
    return answers.row(by_predicate=pl.col("item_id") == f"id of {prompt}", named=True)


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def test_every_request_is_answered_in_order(asker: Asker) -> None:
    with ScriptedEndpoint(answering({"2 + 2": "it is four"}, cached_tokens=1)) as endpoint:
        answers = asker.ask(endpoint.url, [*requests("2 + 2"), *numbered(40)], concurrency=4)
    assert answers.schema == ANSWERS.schema
    assert answers["item_id"].to_list() == ["id of 2 + 2", *(f"id of prompt {number}" for number in range(40))]
    assert answers["status"].unique().to_list() == ["answered"]
    first = answers.row(0, named=True)
    latency, ttft = first.pop("latency_ms"), first.pop("ttft_ms")
    assert 0 < ttft <= latency
    assert first == {
        "item_id": "id of 2 + 2",
        "status": "answered",
        "reason": None,
        "output": "it is four",
        "tool_calls": None,
        "finish_reason": "stop",
        "model": "open-3b",
        "input_tokens": 3,
        "output_tokens": 3,
        "cached_tokens": 1,
        "tokens_computed": False,
        "cost_usd": None,
        "attempts": 1,
    }


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [
        (Reply("too long", status=400), "bad_request: HTTP 400: too long", 1),
        (Reply("no", status=422), "bad_request: HTTP 422: no", 1),
        (Reply("flagged", status=403), "refused: HTTP 403: flagged", 1),
        (Reply("slow", status=408), "timeout: HTTP 408: slow", 2),
        (Reply("conflict", status=409), "busy: HTTP 409: conflict", 2),
        (Reply("slow down", status=429), "busy: HTTP 429: slow down", 2),
        (Reply("oops", status=500), "server_error: HTTP 500: oops", 2),
        (Reply("down", status=503), "server_error: HTTP 503: down", 2),
        (Reply(delay_s=30), "timeout: no whole answer within 1 s", 2),
        (Reply(text="a b c d", chunk_delay_s=30), "timeout: no whole answer within 1 s", 2),
        (Reply(breaks="before"), "broken_answer: Connection error", 2),
        (Reply("a b c d", breaks="midway"), "broken_answer: ", 2),
        (Reply("a b c d", breaks="error"), "broken_answer: the engine died", 2),
        (Reply("a b c d", breaks="garbage"), "broken_answer: ", 2),
        (Reply("a b c d", breaks="end"), "broken_answer: the answer ended without a finish_reason, after 4 ch", 2),
        (Reply("whole", finish_reason=None), "broken_answer: the answer ended without a finish_reason", 2),
        (Reply("<html>\n\nlog in", breaks="page"), "broken_answer: the server answered with a page (text/html)", 2),
        (Reply("<p>\ndata: für\n\n</p>", breaks="page"), "broken_answer: the server answered with a page (", 2),
        (Reply("<p>\ndata: no\n\n</p>", breaks="page"), "broken_answer: the server answered with a page (", 2),
        (Reply("a b c d", breaks="end", headers=HTML), "broken_answer: the answer ended without a finish_reason, a", 2),
        (Reply("a b c d", breaks="garbage", headers=HTML), "broken_answer: Expecting", 2),
        (Reply("a b", headers={"Content-Type": "application/json"}), "broken_answer: the server answered with ", 2),
        (Reply("whole", finish_reason=None, streams=False), "broken_answer: the answer ended without a finish_r", 2),
    ],
)
def test_one_broken_item_fails_with_its_reason_and_the_others_are_answered(
    asker: Asker, reply: Reply, reason: str, attempts: int
) -> None:
    with ScriptedEndpoint(for_prompt("broken", reply)) as endpoint:
        asker.ask(endpoint.url, requests("before"))  # the endpoint has shown which form of request it takes
        answers = asker.ask(
            endpoint.url, requests("before", "ok", "broken", "fine"), concurrency=1, max_attempts=2, timeout="1s"
        )
        assert endpoint.asked["broken"] == attempts
    assert answers["status"].to_list() == ["answered", "answered", "failed", "answered"]
    broken = only(answers, "broken")
    assert broken["reason"].startswith(reason)
    assert broken["attempts"] == attempts
    assert (broken["output"], broken["latency_ms"], broken["ttft_ms"]) == (None, None, None)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429),
        Reply(status=502),
        Reply(breaks="before"),
        Reply("a b", breaks="midway"),
        Reply("a b", breaks="error"),
        Reply("a b", breaks="end"),
    ],
)
def test_what_passes_is_asked_until_it_has_passed(asker: Asker, reply: Reply) -> None:
    with ScriptedEndpoint(for_prompt("flaky", reply, reply, Reply("whole answer"))) as endpoint:
        answers = asker.ask(endpoint.url, requests("flaky"))
    flaky = only(answers, "flaky")
    assert (flaky["status"], flaky["output"], flaky["attempts"]) == ("answered", "whole answer", 3)
    assert asker.sleep.waits == [0.25, 0.5]


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7.0), ("Fri, 20 Nov 2026 12:00:42 GMT", 42.0), ("soon", 0.25), ("0", 0.0)]
)
def test_retry_after_is_honoured(asker: Asker, header: str, wait: float) -> None:
    busy = Reply(status=429, headers={"Retry-After": header})
    with ScriptedEndpoint(for_prompt("busy", busy, Reply("done"))) as endpoint:
        answers = asker.ask(endpoint.url, requests("busy"))
    assert answers["output"].to_list() == ["done"]
    assert asker.sleep.waits == [wait]


def test_who_asks_for_an_hour_is_left_to_a_later_run(asker: Asker) -> None:
    closed = Reply("quota used up", status=429, headers={"Retry-After": "3600"})
    with ScriptedEndpoint(for_prompt("busy", closed, Reply("done"))) as endpoint:
        assert asker.ask(endpoint.url, requests("busy"))["status"].to_list() == ["failed"]
        assert asker.sleep.waits == []
        assert asker.ask(endpoint.url, requests("busy"))["output"].to_list() == ["done"]


def test_no_more_requests_are_in_flight_than_allowed(asker: Asker) -> None:
    with ScriptedEndpoint(answering({}, delay_s=0.05)) as endpoint:
        asker.ask(endpoint.url, numbered(30), concurrency=5)
        assert endpoint.most_in_flight == 5


def test_a_stream_that_says_it_is_a_page_is_read_as_what_it_is(asker: Asker) -> None:
    """Flask says so of every stream whose type nobody names."""
    with ScriptedEndpoint(lambda _: Reply("a whole answer", headers=HTML)) as endpoint:
        [answer] = asker.ask(endpoint.url, requests("a")).to_dicts()
    assert (answer["output"], answer["attempts"]) == ("a whole answer", 1)
    assert 0 < answer["ttft_ms"] <= answer["latency_ms"]


def test_time_to_first_token_is_the_servers_delay(asker: Asker) -> None:
    with ScriptedEndpoint(answering({}, delay_s=0.3, chunk_delay_s=0.2)) as endpoint:
        answers = asker.ask(endpoint.url, requests("a b"), concurrency=1)  # "echo: a b": three pieces, two delays
    [(ttft, latency)] = answers.select("ttft_ms", "latency_ms").rows()
    assert 300 <= ttft <= 600  # bounds for a loaded machine: neither a chunk nor the answer's end passes for it
    assert 350 <= latency - ttft <= 900


def test_uncounted_tokens_stay_unknown(asker: Asker) -> None:
    with ScriptedEndpoint(answering({}, usage=False)) as endpoint:
        [answer] = asker.ask(endpoint.url, requests("a")).to_dicts()
    assert answer["output"] == "echo: a"
    assert [answer[name] for name in ("input_tokens", "output_tokens", "cached_tokens", "tokens_computed")] == [
        None
    ] * 4


@pytest.mark.parametrize(
    ("reply", "is_streamed", "is_counted", "asks"),
    [
        (Reply("fine", refuses=("stream_options",)), True, False, 2),
        (Reply("fine", refuses=("stream_options", "stream")), False, True, 3),
        (Reply("fine", streams=False), False, True, 1),
    ],
    ids=["refuses stream_options", "refuses stream", "does not stream"],
)
def test_a_simpler_endpoint_is_asked_more_simply(
    asker: Asker, reply: Reply, is_streamed: bool, is_counted: bool, asks: int
) -> None:
    with ScriptedEndpoint(lambda _: reply) as endpoint:
        answers = asker.ask(endpoint.url, numbered(6), concurrency=1)
        assert endpoint.asked["prompt 0"] == asks
        assert [endpoint.asked[f"prompt {number}"] for number in range(1, 6)] == [1] * 5
    assert answers["output"].to_list() == ["fine"] * 6
    assert answers["ttft_ms"].is_not_null().to_list() == [is_streamed] * 6
    assert answers["input_tokens"].is_not_null().to_list() == [is_counted] * 6
    assert answers["latency_ms"].null_count() == 0
    assert answers["attempts"].to_list() == [asks, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("streams", [True, False])
def test_tool_calls_are_kept_whole(asker: Asker, streams: bool) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    with ScriptedEndpoint(
        lambda _: Reply("", tool_calls=(call,), finish_reason="tool_calls", streams=streams)
    ) as endpoint:
        [answer] = asker.ask(endpoint.url, requests("weather?")).to_dicts()
    assert json.loads(answer["tool_calls"]) == [call]
    assert (answer["output"], answer["finish_reason"]) == (None, "tool_calls")
    assert (answer["ttft_ms"] is not None) == streams


def test_a_request_arrives_as_it_was_built(asker: Asker) -> None:
    params = {
        "temperature": 0.2,
        "max_tokens": 50,
        "logprobs": True,
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "user": "u-1",
        "top_k": 40,  # vLLM's own
        "guided_json": {"type": "object"},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief.", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "go"},
    ]
    with ScriptedEndpoint() as endpoint:
        asker.ask(endpoint.url, [CompletionRequest("i", messages, params)])
        [ask] = endpoint.asks
    assert ask.body == {
        "model": "open-3b",
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **params,
    }


@pytest.mark.parametrize("model", ["gpt-5-pro", "o3-mini", "org/open-3b"])
def test_a_model_name_is_sent_as_it_stands(asker: Asker, model: str) -> None:
    with ScriptedEndpoint() as endpoint:
        ask_endpoint(
            EndpointTarget(engine="endpoint", model=model, url=endpoint.url),
            requests("a", max_tokens=5, temperature=0.5),
            checkpoint=asker.checkpoint,
            progress=asker.progress.append,
            environ={},
        )
        [ask] = endpoint.asks
    assert (ask.body["model"], ask.body["max_tokens"], ask.body["temperature"]) == (model, 5, 0.5)


class TestKey:
    def test_the_key_comes_from_the_named_variable(self, asker: Asker) -> None:
        with ScriptedEndpoint(api_key=KEY) as endpoint:
            answers = asker.ask(endpoint.url, requests("a"), api_key_env="TARGET_KEY")
        assert answers["status"].to_list() == ["answered"]

    def test_a_server_without_keys_needs_none(self, asker: Asker) -> None:
        with ScriptedEndpoint() as endpoint:
            assert asker.ask(endpoint.url, requests("a"))["status"].to_list() == ["answered"]

    def test_the_resource_reads_the_environment(self, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TARGET_KEY", KEY)
        with ScriptedEndpoint(api_key=KEY) as endpoint:
            target = EndpointTarget(engine="endpoint", model="m", url=endpoint.url, api_key_env="TARGET_KEY")
            answers = LlmClient().answer(
                target, requests("a"), checkpoint=asker.checkpoint, progress=asker.progress.append
            )
        assert answers["status"].to_list() == ["answered"]

    def test_a_missing_key_is_named_before_anything_is_asked(self, asker: Asker) -> None:
        with ScriptedEndpoint() as endpoint:
            with pytest.raises(InvalidInput, match="the environment variable OTHER_KEY is not set or empty"):
                asker.ask(endpoint.url, requests("a"), api_key_env="OTHER_KEY")
            assert endpoint.asks == []

    def test_a_key_never_reaches_a_reason_a_log_or_an_error(
        self, asker: Asker, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with ScriptedEndpoint(api_key="another") as endpoint, pytest.raises(InvalidInput) as caught:
            asker.ask(endpoint.url, requests("a"), api_key_env="TARGET_KEY")
        echoing = for_prompt("b", Reply(f"key {KEY} has no quota", status=500))
        with ScriptedEndpoint(echoing) as endpoint:
            answers = asker.ask(endpoint.url, requests("b"), api_key_env="TARGET_KEY", max_attempts=1)
        assert answers["reason"].to_list() == ["server_error: HTTP 500: key [secret] has no quota"]
        shown = capfd.readouterr()
        assert "Incorrect API key provided: [secret]" in str(caught.value)
        assert KEY not in f"{caught.value}{caplog.text}{shown.out}{shown.err}{asker.checkpoint.load().to_dicts()}"


class TestRefusal:
    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_refused_batch_ends_with_one_error(self, asker: Asker, status: int) -> None:
        with ScriptedEndpoint(lambda _: Reply("unknown", status=status)) as endpoint:
            with pytest.raises(
                InvalidInput, match=rf"refused 3 requests in a row.*HTTP {status}: unknown.*check the key"
            ):
                asker.ask(endpoint.url, numbered(50), concurrency=2)
            assert len(endpoint.asks) <= 4
        assert asker.checkpoint.load().is_empty()
        assert asker.sleep.waits == []

    def test_a_batch_of_one_is_refused_too(self, asker: Asker) -> None:
        with ScriptedEndpoint(api_key="another") as endpoint, pytest.raises(InvalidInput):
            asker.ask(endpoint.url, requests("a"))

    def test_answers_from_before_a_refusal_are_kept_and_the_next_run_asks_the_rest(self, asker: Asker) -> None:
        let_in = {f"prompt {number}" for number in range(10)}
        with ScriptedEndpoint(lambda ask: Reply(status=200 if ask.prompt in let_in else 401)) as endpoint:
            with pytest.raises(InvalidInput):
                asker.ask(endpoint.url, numbered(50), concurrency=1)
            assert asker.checkpoint.load()["status"].to_list() == ["answered"] * 10
        with ScriptedEndpoint() as endpoint:
            answers = asker.ask(endpoint.url, numbered(50))
            assert len(endpoint.asks) == 40
        assert answers["status"].to_list() == ["answered"] * 50

    def test_a_single_refused_item_is_its_own_failure(self, asker: Asker) -> None:
        refused = {"prompt 3", "prompt 4", "prompt 7"}
        with ScriptedEndpoint(lambda ask: Reply(status=403 if ask.prompt in refused else 200)) as endpoint:
            answers = asker.ask(endpoint.url, numbered(10), concurrency=1)
            assert answers.filter(pl.col("status") == "failed").height == 3
            again = asker.ask(endpoint.url, numbered(10), concurrency=1)  # asks three known failures in a row
        assert again.filter(pl.col("status") == "failed")["attempts"].to_list() == [2, 2, 2]


class TestOutage:
    @pytest.mark.parametrize(
        ("count", "did"), [(1, "did not answer the only request"), (40, r"answered none of the last \d requests")]
    )
    def test_a_server_that_is_not_there_is_one_error(self, asker: Asker, count: int, did: str) -> None:
        with pytest.raises(UnavailableService, match=f"{did}.*see that the endpoint is up"):
            asker.ask(f"http://127.0.0.1:{closed_port()}/v1", numbered(count), max_attempts=3)
        assert asker.checkpoint.load().is_empty()
        assert 2 * min(count, 3) <= len(asker.sleep.waits) <= 24

    def test_a_host_that_is_not_there_is_one_error(self, asker: Asker) -> None:
        with pytest.raises(UnavailableService):
            asker.ask("http://nowhere.invalid/v1", numbered(5), max_attempts=1)

    def test_a_server_that_fails_every_item_is_given_up(self, asker: Asker) -> None:
        with ScriptedEndpoint(lambda _: Reply("down", status=503)) as endpoint:
            with pytest.raises(UnavailableService, match=r"the last failed with 'server_error: HTTP 503: down'"):
                asker.ask(endpoint.url, numbered(200), concurrency=4, max_attempts=2)
            assert len(endpoint.asks) <= 50

    def test_a_run_after_an_outage_asks_only_what_is_missing(self, asker: Asker) -> None:
        with ScriptedEndpoint() as endpoint:
            asker.ask(endpoint.url, numbered(5))
        with pytest.raises(UnavailableService, match="5 answers are kept"):
            asker.ask(endpoint.url, numbered(9), max_attempts=2)
        with ScriptedEndpoint() as endpoint:
            answers = asker.ask(endpoint.url, numbered(9))
            assert len(endpoint.asks) == 4
        assert answers["output"].to_list() == [f"echo: prompt {number}" for number in range(9)]


class TestResume:
    def test_what_is_settled_is_not_asked_again(self, asker: Asker) -> None:
        replies = {"bad": Reply(status=400), "flaky": Reply(status=503)}
        batch = [*numbered(3), *requests("bad", "flaky")]
        with ScriptedEndpoint(lambda ask: replies.get(ask.prompt, Reply("fine"))) as endpoint:
            first = asker.ask(endpoint.url, batch, concurrency=1, max_attempts=2)
        with ScriptedEndpoint() as endpoint:
            second = asker.ask(endpoint.url, batch, concurrency=1)
            assert endpoint.asked == {"flaky": 1}
        assert first["status"].to_list() == ["answered", "answered", "answered", "failed", "failed"]
        assert second["status"].to_list() == ["answered", "answered", "answered", "failed", "answered"]
        assert second["attempts"].to_list() == [1, 1, 1, 1, 3]
        assert first.head(4).equals(second.head(4))

    def test_a_finished_batch_asks_nothing_and_loads_no_litellm(self, asker: Asker) -> None:
        with ScriptedEndpoint() as endpoint:
            answers = asker.ask(endpoint.url, numbered(4))
        assert asker.ask("http://nowhere.invalid/v1", numbered(4)).equals(answers)

    def test_an_empty_batch_is_empty(self, asker: Asker) -> None:
        assert asker.ask("http://nowhere.invalid/v1", []).equals(ANSWERS.empty())


def test_progress_counts_up_to_the_total(asker: Asker) -> None:
    with ScriptedEndpoint(for_prompt("bad", Reply(status=400))) as endpoint:
        asker.ask(endpoint.url, numbered(4))
        asker.progress.clear()
        asker.ask(endpoint.url, [*numbered(7), *requests("bad")])
    done = [each.done for each in asker.progress]
    assert done == sorted(done)
    last = asker.progress[-1]
    assert (last.done, last.total, last.failed) == (8, 8, 1)
    assert last.tokens == 3 * (2 + 1)  # "prompt 4" and "fine", three items of this run


def test_a_fresh_interpreter_runs_a_batch_without_a_word(tmp_path: Path) -> None:
    program = f"""
import sys
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.folder_checkpoint import FolderCheckpoint
from pathlib import Path
assert not {{"litellm", "openai", "httpx"}} & set(sys.modules), "imported too early"
target = EndpointTarget(engine="endpoint", model="m", url=sys.argv[1], max_attempts=1)
requests = [CompletionRequest(f"p{{n}}", [dict(role="user", content=f"p{{n}}")], {{}}) for n in range(30)]
checkpoint = FolderCheckpoint(Path({str(tmp_path)!r}))
answers = LlmClient().answer(target, requests, checkpoint=checkpoint, progress=lambda _: None)
ttft = answers["ttft_ms"]
print(answers["status"].value_counts().sort("status").rows(), ttft.max() < 8 * ttft.median())
"""
    script = for_prompt("p7", Reply("oops", status=500))
    with ScriptedEndpoint(script) as endpoint:
        ran = subprocess.run([sys.executable, "-c", program, endpoint.url], capture_output=True, text=True, check=True)
    # LiteLLM takes 2 s for a first call and 0.6 s for a first error. With the warm-up the slowest first token took 2
    # times the median, without it 24 times.
    assert ran.stdout.strip() == "[('answered', 29), ('failed', 1)] True"
    assert ran.stderr == ""


def established_to(url: str) -> list[str]:
    """Return the kernel's lines of the connections to a server on loopback."""
    address = f"0100007F:{int(url.removesuffix('/v1').rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return [line for line in lines if line.split()[2:4] == [address, "01"]]


def test_a_batch_leaves_no_connection_open(asker: Asker) -> None:
    held: list[str] = []

    def script(ask: Ask) -> Reply:
        held[:] = established_to(endpoint.url)
        return Reply("fine")

    with ScriptedEndpoint(script) as endpoint:
        asker.ask(endpoint.url, numbered(40), concurrency=8)
        assert held
        assert established_to(endpoint.url) == []
