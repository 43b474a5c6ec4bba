"""The driver against a real HTTP server on loopback: it never waits for an answer, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.domain.load import LOAD_REQUESTS
from anven_pipelines.domain.load_plan import Due, LoadPlan
from anven_pipelines.resources.load_driver import Driven, drive_load
from anven_pipelines.spec_target import EndpointTarget
from tests.nano_server import nano_server
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WARM_UP = [CompletionRequest("warm", [{"role": "user", "content": "warm up"}], {})]


def evenly(rate: float, seconds: float, *, first_s: float = 0.0) -> LoadPlan:
    times = first_s + np.arange(round(rate * seconds)) / rate
    requests = [
        CompletionRequest(f"item-{at}", [{"role": "user", "content": f"question {at}"}], {"max_tokens": 8})
        for at in range(times.size)
    ]
    return LoadPlan(rate, seconds, [Due(at, request) for at, request in zip(times.tolist(), requests, strict=True)])


def drive(
    url: str, *plans: LoadPlan, cap: int = 256, tell: Callable[[str], None] = lambda _: None, **server: Any
) -> Driven:
    following = chain(plans, repeat(None))
    return drive_load(
        EndpointTarget.model_validate(
            {"engine": "endpoint", "model": "m", "url": url, "max_attempts": 1, "timeout": "20s"} | server
        ),
        arm="target",
        warm_up=WARM_UP,
        next_plan=lambda _: next(following),
        cap=cap,
        tell=tell,
        environ={"TARGET_KEY": "s3cret"},
    )


def test_each_request_is_sent_when_due_and_measured_from_then() -> None:
    reply = Reply("one two three four", delay_s=0.2, chunk_delay_s=0.05)
    with ScriptedEndpoint(lambda _: reply) as endpoint:
        driven = drive(endpoint.url, evenly(10.0, 2.0))
    (rows,) = driven.rows
    assert driven.silent is None
    assert rows.schema == LOAD_REQUESTS.schema
    assert rows["number"].to_list() == list(range(20))
    assert rows["status"].unique().to_list() == ["answered"]
    assert (rows["arm"][0], rows["rate"][0], rows["item_id"][3]) == ("target", 10.0, "item-3")
    assert rows["due_s"].to_list() == pytest.approx([at / 10 for at in range(20)])
    assert (rows["ttft_ms"] >= 200.0).all()
    # Bounds that hold however late a busy machine is: it takes longer, and a piece read late shortens the gap after it.
    assert (rows["latency_ms"] - rows["lag_ms"] >= 349.0).all()
    assert rows["inter_token_ms"].max() >= 49.0  # type: ignore[operator] # mypy: it is a number
    assert (rows["inter_token_ms"] * 3 <= rows["latency_ms"] - rows["ttft_ms"] + 1.0).all()
    # The mean holds the wait for the stream's end, which is no gap; that is long in a few of them at most.
    assert (rows["longest_gap_ms"] - rows["inter_token_ms"]).median() >= -1.0  # type: ignore[operator] # mypy: a number
    assert rows["longest_gap_ms"].max() >= 49.0  # type: ignore[operator] # as above
    assert (rows["longest_gap_ms"] <= rows["latency_ms"] - rows["ttft_ms"] + 1.0).all()
    assert (rows["output_tokens"] == 4).all()
    assert (rows["lag_ms"] >= 0).all()
    assert endpoint.asked["warm up"] == 1
    assert not rows["item_id"].is_in(["warm"]).any()
    assert {ask.body["max_tokens"] for ask in endpoint.asks if ask.prompt != "warm up"} == {8}


def test_no_request_waits_for_an_answer_however_many_are_open() -> None:
    all_open = threading.Event()

    def held(ask: Ask) -> Reply:
        if endpoint.most_in_flight == 300:
            all_open.set()
        if ask.prompt != "warm up":
            all_open.wait(60)
        return Reply()

    with ScriptedEndpoint(held) as endpoint:
        driven = drive(endpoint.url, evenly(150.0, 2.0), cap=480, timeout="2m")
    assert all_open.is_set()  # each answer waited for the last request
    assert driven.rows[0]["status"].unique().to_list() == ["answered"]


def test_a_server_that_stalls_for_a_second_is_seen_by_everyone_who_was_due_meanwhile() -> None:
    """The proof against coordinated omission: who waits for an answer before the next request sees one slow request."""
    arrived: dict[int, float] = {}
    released: list[float] = []
    all_here = threading.Event()
    stalled = range(20, 40)  # due from 1 s to 1.95 s

    def stalling(ask: Ask) -> Reply:
        if ask.prompt == "warm up":
            return Reply()
        number = int(ask.prompt.removeprefix("question "))
        arrived[number] = time.perf_counter()
        if number in stalled:
            if arrived.keys() >= set(stalled):
                released.append(time.perf_counter())
                all_here.set()
            all_here.wait(15)
        return Reply()

    with ScriptedEndpoint(stalling) as endpoint:
        (rows,) = drive(endpoint.url, evenly(20.0, 3.0)).rows
    assert all_here.is_set()  # none of them waited for another's answer
    # By the server's clock: nothing arrives before it is due, so the rate began no later than this.
    began = min(at - rows["due_s"][number] for number, at in arrived.items())
    during = rows.filter(pl.col("number").is_in(list(stalled)))
    left_ms = (released[0] - began - during["due_s"]) * 1e3
    assert (left_ms[0], left_ms[-1]) >= (949.0, 0.0)
    assert (during["latency_ms"] >= left_ms - 1.0).all()


def test_a_request_that_leaves_late_is_slow_and_the_drivers_delay_is_told() -> None:
    with ScriptedEndpoint() as endpoint:
        (rows,) = drive(endpoint.url, evenly(20.0, 1.0, first_s=-2.0)).rows  # due before the driver could start
    assert (rows["lag_ms"] >= 0.9e3).all()
    assert (rows["latency_ms"] > rows["lag_ms"]).all()
    assert (rows["ttft_ms"] >= 0.9e3).all()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("oops", status=500), "server_error: HTTP 500: "),
        (Reply("slow down", status=429, headers={"Retry-After": "1"}), "busy: HTTP 429: "),
        (Reply("not this", status=400), "bad_request: HTTP 400: "),
        (Reply(breaks="before"), "broken_answer: "),
        (Reply("a b c d", breaks="midway"), "broken_answer: "),
        (Reply("a b c d", breaks="error"), "broken_answer: the engine died"),
        (Reply(delay_s=30), "timeout: no whole answer within 5 s"),
    ],
)
def test_an_error_is_a_miss_with_its_reason_and_is_not_asked_again(reply: Reply, reason: str) -> None:
    def every_other(ask: Ask) -> Reply:
        return reply if ask.prompt in {"question 1", "question 3"} else Reply("fine")

    with ScriptedEndpoint(every_other) as endpoint:
        (rows,) = drive(endpoint.url, evenly(10.0, 0.6), timeout="5s").rows
    assert rows["status"].to_list() == ["answered", "failed", "answered", "failed", "answered", "answered"]
    failed = rows.filter(pl.col("status") == "failed")
    assert all(each.startswith(reason) for each in failed["reason"])
    assert failed.select(pl.col("ttft_ms", "latency_ms").is_null().all()).row(0) == (True, True)
    assert endpoint.asked["question 1"] == 1


def test_a_server_that_is_gone_is_told_and_nothing_is_sent() -> None:
    with ScriptedEndpoint(lambda _: Reply("down", status=503)) as endpoint:
        driven = drive(endpoint.url, evenly(10.0, 1.0))
    assert driven.rows == []
    assert driven.silent is not None
    assert driven.silent.startswith("none of 1 warm-up requests was answered; the last failed: server_error: HTTP 503")
    assert len(endpoint.asks) == 1
    gone = drive(endpoint.url, evenly(10.0, 1.0))
    assert gone.silent is not None
    assert "unreachable" in gone.silent


def test_the_safety_cap_holds_requests_back_and_counts_them() -> None:
    with ScriptedEndpoint(lambda ask: Reply(delay_s=0.0 if ask.prompt == "warm up" else 5.0)) as endpoint:
        (rows,) = drive(endpoint.url, evenly(40.0, 0.5), cap=5).rows
        assert endpoint.most_in_flight == 5
    assert rows["status"].to_list() == ["answered"] * 5 + ["unsent"] * 15
    assert set(rows["reason"].drop_nulls()) == {"5 requests were unanswered, as many as load.max_in_flight allows"}


def test_rates_follow_each_other_once_the_one_before_has_been_answered() -> None:
    told: list[str] = []
    seen: list[int] = []
    all_open = threading.Event()

    def held(_: Ask) -> Reply:
        if endpoint.most_in_flight == 10:
            all_open.set()
        if len(endpoint.asks) > 6:  # the warm-up and the first rate
            all_open.wait(15)
        return Reply()

    with ScriptedEndpoint(held) as endpoint:
        following = chain([evenly(10.0, 0.5), evenly(20.0, 0.5)], repeat(None))

        def next_plan(done: Sequence[pl.DataFrame]) -> LoadPlan | None:
            seen.append(sum(rows.height for rows in done))
            return next(following)

        driven = drive_load(
            EndpointTarget(engine="endpoint", model="m", url=endpoint.url, max_attempts=1),
            arm="legacy",
            warm_up=WARM_UP,
            next_plan=next_plan,
            cap=100,
            tell=told.append,
            environ={},
        )
        assert endpoint.most_in_flight == 10
    assert seen == [0, 5, 15]
    assert [rows["rate"][0] for rows in driven.rows] == [10.0, 20.0]
    assert told[0] == "legacy at 10/s: all of 5 requests: 5 done, 0 of them without an answer, 0 in flight"


def test_a_long_rate_tells_how_far_it_is() -> None:
    told: list[str] = []
    with ScriptedEndpoint() as endpoint:
        drive(endpoint.url, evenly(2.0, 8.0), tell=told.append)
    assert len(told) == 2
    assert re.match(r"target at 2/s: [5-8] of 8 s, 16 requests: ", told[0])


# Pydantic says so of LiteLLM's types when they are first used; as an error it would fail the one request.
@pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict class:UserWarning")
def test_the_same_body_is_sent_as_by_a_batch_of_answers(tmp_path: Any) -> None:
    from anven_pipelines.resources.llm_client import LlmClient  # noqa: PLC0415 - LiteLLM, for this test alone
    from tests.fakes.folder_checkpoint import FolderCheckpoint  # noqa: PLC0415

    plan = evenly(10.0, 0.1)
    with ScriptedEndpoint() as endpoint:
        target = EndpointTarget(engine="endpoint", model="m", url=endpoint.url)
        answers = LlmClient().answer(
            target, [plan.due[0].request], checkpoint=FolderCheckpoint(tmp_path / "c"), progress=lambda _: None
        )
        (rows,) = drive(endpoint.url, plan).rows
    assert [*answers["reason"], *rows["reason"]] == [None, None]
    bodies = [ask.body for ask in endpoint.asks if ask.prompt == "question 0"]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]


def test_a_key_is_sent_and_a_missing_one_is_named() -> None:
    with ScriptedEndpoint(api_key="s3cret") as endpoint:
        assert drive(endpoint.url, evenly(10.0, 0.2), api_key_env="TARGET_KEY").silent is None
        with pytest.raises(InvalidInput, match="OTHER_KEY is not set"):
            drive(endpoint.url, evenly(10.0, 0.2), api_key_env="OTHER_KEY")


class Interrupted(BaseException):
    """What Dagster's signal handler raises."""


@contextmanager
def handled(number: int) -> Iterator[None]:
    def handle(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_leaves_no_thread(number: int) -> None:
    with ScriptedEndpoint(lambda ask: Reply(delay_s=0.0 if ask.prompt == "warm up" else 100.0)) as endpoint:
        before = {thread for thread in threading.enumerate() if "process_request_thread" not in thread.name}

        def interrupt() -> None:
            while endpoint.most_in_flight < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        watcher = threading.Thread(target=interrupt)
        watcher.start()
        started = time.monotonic()
        with handled(number), pytest.raises(Interrupted):
            drive(endpoint.url, evenly(10.0, 60.0), timeout="2m")
        assert time.monotonic() - started < 60  # the plan alone takes as long
        watcher.join()
        asked = len(endpoint.asks)
        after = {thread for thread in threading.enumerate() if "process_request_thread" not in thread.name}
        time.sleep(0.5)
        assert len(endpoint.asks) == asked
        assert after == before


def test_a_real_model_is_measured() -> None:
    with nano_server() as server:
        (rows,) = drive(server.url, evenly(4.0, 2.0), model=server.model).rows
    assert rows["status"].unique().to_list() == ["answered"]
    answered = rows.filter(pl.col("output_tokens") > 1)
    assert answered.height > 0
    assert (answered["inter_token_ms"] > 0).all()
    assert (rows["latency_ms"] >= rows["ttft_ms"]).all()
