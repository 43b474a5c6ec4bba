from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.nano.demand import APPLICATIONS, TrafficPlan, plan_traffic
from anven_pipelines.nano.gateway_logs import GatewayLog
from anven_pipelines.nano.traffic import Pace, TrafficSummary, _parser, drive, main
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from anven_pipelines.nano.exchange import Exchange

REPOSITORY = Path(__file__).resolve().parents[2]


def plan_of(count: int, seconds: float = 0.1, **changes: Any) -> TrafficPlan:
    return plan_traffic(np.linspace(0, seconds, count), **{"split": "golden", "seed": 5, **changes})


def driven(plan: TrafficPlan, script: Any, **options: Any) -> tuple[TrafficSummary, list[Exchange], ScriptedEndpoint]:
    exchanges: list[Exchange] = []
    with ScriptedEndpoint(script) as endpoint:
        summary = asyncio.run(drive(plan, url=endpoint.url, model="legacy-nano", write=exchanges.append, **options))
    return summary, exchanges, endpoint


def test_every_planned_call_is_sent_once_measured_and_written() -> None:
    plan = plan_of(40)
    done: list[tuple[int, int]] = []
    summary, exchanges, endpoint = driven(
        plan,
        lambda ask: Reply("one two three", delay_s=0.02, chunk_delay_s=0.005, cached_tokens=3),
        progress=lambda ended, total: done.append((ended, total)),
    )
    assert (summary.sent, summary.failed) == (40, 0)
    assert sorted(exchange.call for exchange in exchanges) == sorted(plan.calls)
    assert len(endpoint.asks) == 40
    assert done == [(ended, 40) for ended in range(1, 41)]
    assert len({exchange.call_id for exchange in exchanges}) == 40
    for exchange in exchanges:
        assert exchange.error is None
        assert exchange.response is not None
        assert exchange.response["choices"][0]["message"]["content"] == "one two three"
        assert exchange.response["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
        assert exchange.first_token_at is not None
        assert exchange.first_token_at - exchange.started_at >= 0.02
        assert exchange.first_token_at <= exchange.ended_at
        assert exchange.ended_at - exchange.started_at >= 0.03  # two waits between three pieces
        assert abs(exchange.started_at - time.time()) < 20


def test_the_server_gets_the_legacy_prompt_of_a_named_user() -> None:
    plan = plan_of(3)
    _, _, endpoint = driven(plan, lambda ask: Reply())
    by_user_turn = {ask.prompt: ask.body for ask in endpoint.asks}
    for call in plan.calls:
        (body,) = (body for prompt, body in by_user_turn.items() if call.item.question in prompt)
        assert (body["model"], body["user"], body["stream"]) == ("legacy-nano", call.user, True)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert call.item.context in body["messages"][1]["content"]


def test_failures_are_kept_with_what_the_server_said() -> None:
    replies = {
        "busy": Reply("slow down", status=429, headers={"Retry-After": "1"}),
        "cut": Reply("a b c d", breaks="midway"),
        "gone": Reply(breaks="before"),
        "dies": Reply("a b c d", breaks="error"),
        "mumbles": Reply("a b c d", breaks="garbage"),
        "stops": Reply("a b c d", breaks="end"),
        "well": Reply("fine"),
    }
    calls = [call._replace(user=user) for call, user in zip(plan_of(7).calls, replies, strict=True)]
    summary, exchanges, _ = driven(TrafficPlan(tuple(calls)), lambda ask: replies[ask.body["user"]])
    found = {exchange.call.user: exchange for exchange in exchanges}
    assert (summary.sent, summary.failed) == (7, 6)
    assert found["busy"].http_status == 429
    assert found["busy"].error == {"message": "slow down", "type": "scripted", "code": None}
    assert found["busy"].first_token_at is None
    assert found["busy"].response is None
    assert (found["gone"].http_status, found["gone"].first_token_at) == (None, None)
    assert found["gone"].error is not None
    assert found["gone"].error["type"] == "RemoteProtocolError"
    assert found["cut"].first_token_at is not None
    assert found["cut"].response is not None
    assert found["cut"].response["choices"][0]["message"]["content"] == "a b "
    assert found["dies"].error == {"message": "the engine died", "code": 500}
    assert found["stops"].error is not None
    assert found["stops"].error["code"] == "stream_cut"
    assert found["mumbles"].error is not None
    assert found["mumbles"].error["type"] == "BrokenStreamError"
    assert found["well"].error is None


def test_an_error_page_is_kept_as_text() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(502)
            self.end_headers()
            self.wfile.write(b"<html>Bad gateway</html>")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
            pass

        do_GET = do_POST  # noqa: N815 - the base class's naming

    exchanges: list[Exchange] = []
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        asyncio.run(drive(plan_of(1), url=url, model="m", write=exchanges.append))
        server.shutdown()
        thread.join()
    assert (exchanges[0].http_status, exchanges[0].error) == (502, {"message": "<html>Bad gateway</html>"})


def test_a_server_that_counts_no_tokens_leaves_none() -> None:
    _, exchanges, _ = driven(plan_of(1), lambda ask: Reply(usage=False))
    assert exchanges[0].response is not None
    assert exchanges[0].response.get("usage") is None


def test_a_server_that_does_not_stream_has_no_first_token() -> None:
    _, exchanges, _ = driven(plan_of(1), lambda ask: Reply("whole", streams=False))
    assert exchanges[0].first_token_at is None
    assert exchanges[0].response is not None
    assert exchanges[0].response["choices"][0]["message"]["content"] == "whole"


def test_slow_answers_hold_no_later_call_back() -> None:
    summary, exchanges, endpoint = driven(plan_of(20, 0.2), lambda ask: Reply(delay_s=0.5))
    assert endpoint.most_in_flight == 20
    assert summary.late_s < 0.3
    starts = sorted(exchange.started_at for exchange in exchanges)
    assert 0.15 < starts[-1] - starts[0] < 0.5


def test_calls_in_flight_are_bounded_and_the_wait_is_told() -> None:
    summary, _, endpoint = driven(plan_of(12, 0.01), lambda ask: Reply(delay_s=0.1), pace=Pace(most_in_flight=3))
    assert endpoint.most_in_flight == 3
    assert summary.late_s > 0.2


def test_a_plan_can_be_compressed() -> None:
    plan = plan_of(5, 60.0)
    before = time.time()
    summary, exchanges, _ = driven(plan, lambda ask: Reply(), pace=Pace(speed=200))
    assert len(exchanges) == 5
    assert summary.seconds >= 0.3  # 60 s of plan
    for exchange in exchanges:  # a busy machine is late by what the summary says, and never early
        due = before + exchange.call.at_s / 200
        assert due <= exchange.started_at < due + summary.late_s + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "a base URL such as"),
        ({"url": "ftp://127.0.0.1/v1"}, "a base URL such as"),
        ({"url": "http://[::1/v1"}, "a base URL such as"),
        ({"url": "http:///v1"}, "a base URL such as"),
        ({"pace": Pace(speed=0)}, "a finite speed and timeout above 0"),
        ({"pace": Pace(speed=math.nan)}, "a finite speed and timeout above 0"),
        ({"pace": Pace(speed=math.inf)}, "a finite speed and timeout above 0"),
        ({"pace": Pace(timeout_s=0)}, "a finite speed and timeout above 0"),
        ({"pace": Pace(timeout_s=math.nan)}, "a finite speed and timeout above 0"),
        ({"pace": Pace(most_in_flight=0)}, "at least one call in flight"),
    ],
)
def test_what_cannot_be_driven_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        asyncio.run(drive(plan_of(1), **{"url": "http://127.0.0.1:9/v1", "model": "m", "write": print, **options}))


def test_a_log_that_cannot_be_written_ends_the_drive() -> None:
    def write(exchange: Exchange) -> None:
        message = "disk full"
        raise OSError(message)

    with ScriptedEndpoint() as endpoint, pytest.raises(OSError, match="disk full"):
        asyncio.run(drive(plan_of(3), url=endpoint.url, model="m", write=write))


def test_conversations_have_one_user_one_application_and_one_to_four_calls() -> None:
    plan = plan_of(2000)
    conversations = defaultdict(list)
    for call in plan.calls:
        conversations[call.conversation_id].append(call)
    sizes = Counter(len(calls) for calls in conversations.values())
    assert set(sizes) == {1, 2, 3, 4}
    for calls in conversations.values():
        assert len({(call.user, call.application) for call in calls}) == 1
    assert {(call.application, call.item.task) for call in plan.calls} == {
        (application.name, application.task) for application in APPLICATIONS
    }


def test_a_few_users_do_much_of_the_asking() -> None:
    calls = Counter(call.user for call in plan_of(4000).calls)
    assert len(calls) > 30
    assert sum(count for _, count in calls.most_common(4)) > 4 * 4000 / 40 * 3  # the top tenth ask thrice their share


def test_applications_get_their_shares_and_no_question_is_asked_twice() -> None:
    plan = plan_of(3000)
    counts = Counter(call.application for call in plan.calls)
    assert [counts[application.name] / 3000 for application in APPLICATIONS] == pytest.approx(
        [application.share for application in APPLICATIONS], abs=0.05
    )
    assert len({call.item.item_id for call in plan.calls}) == 3000


def test_a_seed_decides_the_plan() -> None:
    assert plan_of(100) == plan_of(100)
    assert plan_of(100) != plan_of(100, seed=6)
    assert plan_of(100) != plan_of(100, split="adversarial")


@pytest.mark.parametrize("change", [{"users": 0}, {"applications": (APPLICATIONS[0]._replace(share=0.0),)}])
def test_a_plan_without_anyone_who_asks_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="at least one of each is needed"):
        plan_of(1, **change)


def command(url: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "anven_pipelines.nano.traffic", "--url", url, "--model", "m", "--out", str(out), *more,
    ]  # fmt: skip


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    pytest.fail(f"{path} did not get {count} lines within 30 s")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_drive_that_is_stopped_leaves_whole_lines(number: int, status: int, tmp_path: Path) -> None:
    out = tmp_path / "calls.jsonl"
    with (
        ScriptedEndpoint(lambda ask: Reply("one two", delay_s=0.01)) as endpoint,
        subprocess.Popen(
            command(endpoint.url, out, "--requests", "2000", "--seconds", "60"),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        wait_for_lines(out, 20)
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == status
    written = out.read_bytes()
    assert written.endswith(b"\n")
    lines = [json.loads(line) for line in written.splitlines()]
    assert 20 <= len(lines) < 2000
    assert {line["status"] for line in lines} == {"success"}
    if number == signal.SIGINT:
        assert f"interrupted; {len(lines)} calls of 2000 are in {out}" in said
        assert "Traceback" not in said


def test_the_command_appends_a_traces_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at\n0\n5\n5.5\n60\n", encoding="utf-8")
    out = tmp_path / "logs" / "calls.jsonl"
    with ScriptedEndpoint() as endpoint:
        options = ["--url", endpoint.url, "--model", "m", "--out", str(out), "--trace", str(trace)]
        assert main([*options, "--seconds", "6", "--speed", "30", "--format", "openai"]) == 0
        assert main([*options, "--seconds", "6", "--speed", "30", "--requests", "3"]) == 0
    assert "4 calls in" in (told := capsys.readouterr().out)
    assert "3 calls in" in told
    assert out.read_bytes().count(b"\n") == 7


@pytest.mark.parametrize(("options", "sent"), [([], None), (["--api-key-env", "DESK_KEY"], "Bearer sk-desk")])
def test_the_key_of_a_named_variable_is_sent(
    options: list[str], sent: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESK_KEY", "sk-desk")
    with ScriptedEndpoint() as endpoint:
        base = ["--url", endpoint.url, "--model", "m", "--out", str(tmp_path / "calls.jsonl")]
        assert main([*base, "--requests", "2", "--seconds", "0.1", *options]) == 0
    assert [ask.headers.get("authorization") for ask in endpoint.asks] == [sent] * 2


def test_a_disk_that_fills_up_is_not_the_users_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(log: GatewayLog, exchange: Exchange) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(GatewayLog, "write", full)
    with ScriptedEndpoint() as endpoint:
        base = ["--url", endpoint.url, "--model", "m", "--out", str(tmp_path / "calls.jsonl")]
        assert main([*base, "--requests", "2", "--seconds", "0.1"]) == 3
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--trace", "/nowhere.csv"], 2, "traffic: /nowhere.csv: cannot be read as CSV"),
        (["--requests", "0"], 2, "the number of calls is 0"),
        (["--seconds", "0"], 2, "the duration is 0"),
        (["--seconds", "inf"], 2, "the duration is inf"),
        (["--speed", "nan"], 2, "a finite speed and timeout"),
        (["--url", "nonsense"], 2, "the server's URL is 'nonsense'"),
        (["--url", "http://[::1/v1"], 2, "the server's URL is 'http://[::1/v1'"),
        (["--api-key-env", "NOT_SET"], 2, "the environment variable NOT_SET is empty"),
        (["--out", "/proc/nowhere/calls.jsonl"], 3, "/proc/nowhere"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(
    options: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--out", str(tmp_path / "calls.jsonl")]
    assert main([*base, *options]) == status
    assert said in capsys.readouterr().err


def test_a_server_that_is_down_fails_every_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "calls.jsonl"
    url = "http://127.0.0.1:9/v1"  # the discard port: nothing listens
    assert main(["--url", url, "--model", "m", "--out", str(out), "--requests", "3", "--seconds", "0.1"]) == 3
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["error_information"]["error_class"] for line in lines] == ["ConnectError"] * 3
    assert "3 failed" in capsys.readouterr().out


def test_help_names_every_option() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    told = subprocess.run(
        [sys.executable, "-m", "anven_pipelines.nano.traffic", "--help"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    options = [option for action in _parser()._actions for option in action.option_strings]
    assert len(options) > 10
    assert [option for option in options if option not in told] == []
