"""The gateway as it runs: a real LiteLLM proxy with our plugin in front of two scripted arms."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from anven_pipelines.ingest.event_store import EventStore, attributed
from tests.gateway_proxy import KEY, Arms, Gateway, gateway
from tests.scripted_endpoint import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)

WORKLOADS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        "sticky",
        "live",
        "file",
        "kill",
        "rescue",
        "burst",
        "slow",
        "hang",
        "stream",
        "told",
        "hidden",
        "lost",
        "counted",
        "cached",
    )
} | {
    "shadow": {"gateway": {"shadow": {"calls_per_day": 5}}},
    "talks": {"gateway": {"unit": "conversation"}},
    "plain": {"prompt": {}},
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), WORKLOADS) as started:
        started.routed("plain", 0.5)
        for number in range(8):  # the first request of an arm and of a stream is slow
            started.ask("plain", f"warm {number}")
            started.ask("plain", f"warm {number}", stream=True)
        yield started


@pytest.fixture
def gate(running: Gateway) -> Iterator[Gateway]:
    yield running
    fresh = Arms()
    running.arms.legacy, running.arms.target = fresh.legacy, fresh.target


def ids(*responses: httpx.Response) -> list[str]:
    return [response.headers["x-litellm-call-id"] for response in responses]


def user_on(gate: Gateway, workload: str, arm: str) -> str:
    """Return a user that the present share gives to an arm."""
    return next(user for user in (f"user {number}" for number in range(200)) if gate.arm(workload, user) == arm)


def test_users_keep_their_arm_and_the_share_is_kept(gate: Gateway) -> None:
    gate.routed("sticky", 0.3)
    with ThreadPoolExecutor(8) as pool:
        first, second = (list(pool.map(lambda number: gate.arm("sticky", f"u{number}"), range(300))) for _ in range(2))
    assert first == second
    assert 60 <= first.count("target") <= 120  # 90 are expected; four standard deviations are 32

    gate.routed("sticky", 0.6)
    with ThreadPoolExecutor(8) as pool:
        wider = list(pool.map(lambda number: gate.arm("sticky", f"u{number}"), range(300)))
    assert all(now == "target" for before, now in zip(first, wider, strict=True) if before == "target")
    assert wider.count("target") > first.count("target")

    gate.routed("sticky", 0.3, attempt=2)
    with ThreadPoolExecutor(8) as pool:
        anew = list(pool.map(lambda number: gate.arm("sticky", f"u{number}"), range(300)))
    assert anew != first


def test_each_event_says_who_was_meant_and_who_answered(gate: Gateway) -> None:
    gate.routed("told", 0.5, attempt=3, stage=2)
    answers = [gate.ask("told", f"user {number}") for number in range(12)]
    events = gate.events(*ids(*answers))
    served = {row["request_id"]: row["served"] for row in events.iter_rows(named=True)}
    for answer in answers:
        [choice] = answer.json()["choices"]
        assert json.loads(choice["message"]["content"])["answer"] == served[answer.headers["x-litellm-call-id"]]
    assert events.select(
        "workload", "attempt", "stage", "share", "status", "contract_ok", "finish_reason"
    ).unique().rows() == [("told", 3, 2, 0.5, "ok", True, "stop")]
    assert (events["intended"] == events["served"]).all()
    assert ((events["bucket"] < 0.5) == (events["intended"] == "target")).all()
    assert events["unit"].str.len_chars().unique().to_list() == [32]
    by_arm = {row["served"]: row for row in events.iter_rows(named=True)}
    assert by_arm["legacy"]["cost_usd"] == pytest.approx((2 * 10 + 2 * 30) / 1e6)
    assert by_arm["target"]["cost_usd"] == pytest.approx((2 * 1 + 2 * 2) / 1e6)
    assert by_arm["legacy"]["prompt_version"] != by_arm["target"]["prompt_version"]


def test_the_target_is_asked_with_the_adapted_prompt_and_legacy_with_the_applications(gate: Gateway) -> None:
    gate.routed("told", 1.0)
    gate.ask("told", "ada", content="Q: what is new?")
    assert gate.target.asks[-1].prompt == "adapted what is new?"
    gate.routed("told", 0.0)
    gate.ask("told", "ada", content="Q: what is new?")
    assert gate.legacy.asks[-1].prompt == "Q: what is new?"


def test_a_prompt_that_no_rewrite_fits_is_answered_by_legacy_and_counted_to_the_target(gate: Gateway) -> None:
    gate.routed("told", 1.0)
    answer = gate.ask("told", "ada", content="something else")
    assert gate.legacy.asks[-1].prompt == "something else"
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["intended"], event["served"], event["why"]) == ("target", "legacy", "fallback")
    assert (event["status"], event["error_class"]) == ("ok", "PromptUnfit")


def test_a_change_of_the_share_acts_within_a_second_and_loses_no_request(gate: Gateway) -> None:
    gate.routed("live", 0.0)
    done = threading.Event()
    seen: list[tuple[float, str]] = []

    def keep_asking(number: int) -> None:
        while not done.is_set():
            start = time.monotonic()
            answer = gate.arm("live", f"user {number}")  # raises for anything but an answer
            seen.append((start, answer))

    delays = []
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(keep_asking, number) for number in range(4)]
        for share, arm in ((1.0, "target"), (0.0, "legacy")) * 3:
            changed = time.monotonic()
            gate.route("live", share)
            gate.until(partial(acts, seen, arm, changed))
            delays.append(max((start - changed for start, served in seen if served != arm), default=0.0))
        done.set()
        for client in clients:
            client.result()
    assert median(delays) < 1  # the machine may stop for longer than that now and then


def acts(seen: list[tuple[float, str]], arm: str, since: float) -> bool:
    """Return whether the last answers of all that were asked since came from one arm."""
    last = [served for start, served in seen if start > since][-40:]
    return len(last) == 40 and set(last) == {arm}


@pytest.mark.parametrize("content", ['{"version": 1, "rou', "", '{"version": 1, "routes": {"file": {"share": 2}}}'])
def test_a_bad_traffic_file_changes_nothing_and_is_told(gate: Gateway, content: str) -> None:
    gate.routed("file", 1.0)
    gate.write(content)
    gate.until(lambda: gate.status()["traffic_problem"] is not None)
    assert gate.arm("file", "ada") == "target"
    gate.routed("file", 0.0)
    assert gate.status()["traffic_problem"] is None
    assert gate.arm("file", "ada") == "legacy"


def test_the_kill_switch_sends_everything_to_legacy(gate: Gateway) -> None:
    gate.routed("kill", 1.0)
    assert gate.arm("kill", "ada") == "target"
    gate.routed("kill", 1.0, killed=True)
    answer = gate.ask("kill", "ada")
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["intended"], event["served"], event["why"]) == ("target", "legacy", "killed")
    assert event["error_class"] is None


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply("boom", status=500), "InternalServerError"),
        (Reply("slow down", status=429), "RateLimitError"),
        (Reply(breaks="before"), "InternalServerError"),
        (Reply("no such field", status=400), "BadRequestError"),
    ],
    ids=["500", "429", "hangs up", "400"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_legacy_rescues_what_the_target_fails_and_the_failure_stays_the_targets(
    gate: Gateway, reply: Reply, error: str, *, stream: bool
) -> None:
    gate.routed("rescue", 1.0)
    gate.arms.target = lambda _: reply
    answer = gate.ask("rescue", "ada", content="Q: as asked", stream=stream)
    assert answer.status_code == 200
    assert "legacy" in answer.text
    assert gate.legacy.asks[-1].prompt == "Q: as asked"
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["intended"], event["served"], event["why"]) == ("target", "legacy", "fallback")
    assert (event["status"], event["error_class"], event["stream"]) == ("ok", error, stream)
    assert event["cost_usd"] == pytest.approx((3 * 10 + 2 * 30) / 1e6)


def test_a_target_that_hangs_is_rescued_at_its_timeout_and_the_clients_wait_is_counted(gate: Gateway) -> None:
    gate.routed("hang", 1.0)
    gate.arms.target = lambda _: Reply("late", delay_s=20.0)
    answer = gate.ask("hang", "ada")
    assert "legacy" in answer.text
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["intended"], event["served"], event["error_class"]) == ("target", "legacy", "Timeout")
    assert event["latency_ms"] >= 5_000  # the timeout that its migration file declares


def test_what_both_arms_refuse_is_an_error_of_the_clients(gate: Gateway) -> None:
    gate.routed("rescue", 1.0)
    gate.arms.target = gate.arms.legacy = lambda _: Reply("unknown field", status=400)
    answer = gate.ask("rescue", "ada")
    assert answer.status_code == 400
    assert "rescue--" not in answer.text
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["status"], event["error_class"], event["served"]) == ("error", "BadRequestError", None)
    assert gate.status()["breakers"]["rescue"] is None


def test_a_stream_is_timed_as_the_client_waits(gate: Gateway) -> None:
    gate.routed("stream", 1.0)
    gate.arms.target = lambda _: Reply("one two three", delay_s=0.4, chunk_delay_s=0.3)
    answer = gate.ask("stream", "ada", stream=True)
    [event] = gate.events(*ids(answer)).rows(named=True)
    assert (event["served"], event["stream"], event["contract_ok"]) == ("target", True, False)
    assert 400 <= event["ttft_ms"] <= event["latency_ms"] - 550
    assert event["output_tokens"] == 3


def test_a_stream_that_breaks_is_an_error_of_the_arm(gate: Gateway) -> None:
    gate.routed("stream", 1.0)
    gate.arms.target = lambda _: Reply("one two three four", breaks="error")
    before = gate.events_of("stream").height
    with suppress(httpx.HTTPError):
        gate.ask("stream", "breaks", stream=True)
    last = gate.next_event("stream", after=before)
    assert (last["status"], last["intended"]) == ("error", "target")
    assert last["error_class"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_is_no_error(gate: Gateway, *, stream: bool) -> None:
    gate.routed("lost", 1.0)
    whole = '{"answer": "one two three"}'  # a part of it is no JSON
    gate.arms.target = lambda _: Reply(whole, delay_s=0.0 if stream else 1.5, chunk_delay_s=0.7)
    body = {"model": "lost", "user": "ada", "messages": [{"role": "user", "content": "Q: x"}], "stream": stream}
    before, asked = gate.events_of("lost").height, len(gate.target.asks)
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        suppress(httpx.HTTPError),
        httpx.Client(base_url=gate.started.url, headers=headers, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body, timeout=0.6) as answer,
    ):
        next(answer.iter_bytes())
    gate.until(lambda: len(gate.target.asks) > asked)
    event = gate.next_event("lost", after=before)
    assert (event["status"], event["contract_ok"]) == ("disconnected", None)
    assert gate.status()["breakers"]["lost"] is None


def test_nothing_tells_the_client_which_arm_answered(gate: Gateway) -> None:
    gate.routed("hidden", 0.5)
    by_arm: dict[str, set[str]] = {}
    values: dict[str, set[str]] = {}
    for number in range(12):
        for stream in (False, True):
            answer = gate.ask("hidden", f"user {number}", stream=stream)
            arm = "target" if "target" in answer.text else "legacy"
            told = answer.text + repr(sorted(answer.headers.keys()))
            for word in ("target-model", "legacy-model", "hidden--", str(gate.target.url), str(gate.legacy.url)):
                assert word not in told
                assert word not in repr(answer.headers)
            by_arm.setdefault(arm, set()).add(repr(sorted(set(answer.headers) - {"transfer-encoding"})))
            varies = ("-id", "-ms", "-key", "date", "content-length")  # with the request, not with its arm
            values.setdefault(arm, set()).add(
                repr(sorted(pair for pair in answer.headers.items() if not pair[0].endswith(varies)))
            )
    assert by_arm["legacy"] == by_arm["target"]
    assert values["legacy"] == values["target"]


def test_an_arm_cannot_be_asked_past_the_assignment(gate: Gateway) -> None:
    asked = len(gate.target.asks)
    for arm in ("target", "legacy", "shadow"):
        assert gate.ask(f"hidden--{arm}", "ada").status_code == 400
    assert len(gate.target.asks) == asked
    models = {each["id"] for each in gate.client.get("/v1/models").json()["data"]}
    assert "hidden" in models
    assert not {name for name in models if "--" in name}


def test_a_burst_of_errors_trips_the_breaker_within_a_second_and_no_client_sees_one(gate: Gateway) -> None:
    gate.routed("burst", 1.0)
    gate.arms.target = lambda _: Reply("boom", status=500)
    asked_before = len(gate.target.asks)
    start = time.monotonic()
    answers: list[httpx.Response] = []
    while gate.status()["breakers"]["burst"] is None and time.monotonic() - start < 10:
        answers.append(gate.ask("burst", f"user {len(answers)}"))
    took = time.monotonic() - start
    assert gate.status()["breakers"]["burst"] == "errors"
    assert {answer.status_code for answer in answers} == {200}
    assert len(gate.target.asks) - asked_before == 6
    assert took < 1.0

    gate.arms.target = Arms().target
    after = gate.ask("burst", "ada")
    [event] = gate.events(*ids(after)).rows(named=True)
    assert (event["intended"], event["served"], event["why"]) == ("target", "legacy", "breaker")
    gate.route("burst", 0.9, generation=gate.routes["burst"].generation)  # the same generation: it stays open
    assert gate.arm("burst", "ada") == "legacy"
    gate.routed("burst", 1.0)
    assert gate.arm("burst", "ada") == "target"


def test_a_slow_target_trips_the_breaker_though_it_answers(gate: Gateway) -> None:
    gate.routed("slow", 0.5)
    for number in range(60):  # one by one: where the machine stalls, one of legacy's thirty is late, and not its p95
        gate.ask("slow", f"user {number}")
    gate.arms.target = lambda _: Reply('{"answer": "target"}', delay_s=4.5)
    users = [f"user {number}" for number in range(40)]
    start = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(gate.ask, "slow", user) for user in users]
        gate.until(lambda: gate.status()["breakers"]["slow"] == "latency")
        took = time.monotonic() - start
        assert {each.result().status_code for each in asked} == {200}
    assert took < 2.5  # one second above legacy is slow: seen while the answers were still awaited


def test_shadow_answers_are_written_and_never_returned(gate: Gateway) -> None:
    gate.routed("shadow", 0.0, shadow=1.0)
    answers = [gate.ask("shadow", f"user {number}", content="Q: mirrored") for number in range(9)]
    assert {json.loads(each.json()["choices"][0]["message"]["content"])["answer"] for each in answers} == {"legacy"}
    gate.until(lambda: gate.target.asked["adapted mirrored"] == 5)  # its cap for the day
    events = gate.events(*ids(*answers))
    assert set(events["served"]) == {"legacy"}
    store = EventStore(gate.started.traffic.parent / "shadows")

    def mirrored() -> int:
        store.ingest(gate.started.events)
        return store.events().filter(kind="shadow").height

    gate.until(lambda: mirrored() == 5)
    shadows = store.events().filter(kind="shadow")
    assert shadows.select("workload", "intended", "served", "status", "contract_ok").unique().rows() == [
        ("shadow", "legacy", "target", "ok", True)
    ]
    assert set(shadows["request_id"]) <= set(ids(*answers))
    assert shadows["latency_ms"].is_not_null().all()


def test_feedback_is_tied_to_its_request_and_taken_once(gate: Gateway, tmp_path: Path) -> None:
    gate.routed("told", 1.0)
    answer = gate.ask("told", "ada")
    [known] = ids(answer)
    for _ in range(2):
        taken = gate.client.post("/anven/feedback", json={"request_id": known, "score": 1, "outcome": "resolved"})
        assert (taken.status_code, taken.json()) == (202, {"recorded": True, "known_request": True})
    unknown = gate.client.post("/anven/feedback", json={"request_id": "never-seen", "score": 0})
    assert unknown.json() == {"recorded": True, "known_request": False}
    store = EventStore(tmp_path)

    def feedbacks() -> int:
        store.ingest(gate.started.events)
        return store.events().filter(kind="feedback").height

    gate.until(lambda: feedbacks() == 2)
    rows = {row["request_id"]: row for row in attributed(store.events()).filter(kind="feedback").iter_rows(named=True)}
    assert (rows[known]["workload"], rows[known]["intended"], rows[known]["score"]) == ("told", "target", 1.0)
    assert (rows[known]["outcome"], rows[known]["flags"]) == ("resolved", [])
    assert (rows["never-seen"]["workload"], rows["never-seen"]["flags"]) == (None, ["unknown_request"])


def test_the_cache_never_answers_for_the_other_arm_or_another_generation(gate: Gateway) -> None:
    last: list[httpx.Response] = []

    def asked() -> tuple[str, int, int]:
        before = len(gate.legacy.asks), len(gate.target.asks)
        last.append(gate.ask("cached", "ada", content="Q: cached?", cache={"use-cache": True}))
        arm = "target" if "target" in last[-1].text else "legacy"
        return arm, len(gate.legacy.asks) - before[0], len(gate.target.asks) - before[1]

    gate.routed("cached", 0.0)
    assert asked() == ("legacy", 1, 0)
    gate.until(lambda: asked() == ("legacy", 0, 0))
    [event] = gate.events(*ids(last[-1])).rows(named=True)
    assert (event["cached"], event["latency_ms"], event["cost_usd"], event["status"]) == (True, None, None, "ok")

    gate.routed("cached", 1.0)
    gate.arms.target = lambda _: Reply("boom", status=500)
    assert asked() == ("legacy", 1, 1)  # rescued; and legacy's words are not kept as the target's
    gate.arms.target = Arms().target
    assert asked() == ("target", 0, 1)
    gate.until(lambda: asked() == ("target", 0, 0))
    gate.routed("cached", 0.0)
    assert asked() == ("legacy", 1, 0)


def test_metrics_count_by_the_arm_that_was_meant(gate: Gateway) -> None:
    gate.routed("counted", 1.0)
    gate.arms.target = lambda _: Reply("boom", status=500)
    answers = [gate.ask("counted", f"user {number}") for number in range(2)]
    gate.events(*ids(*answers))
    text = gate.client.get("/anven/metrics").raise_for_status().text
    [line] = [each for each in text.splitlines() if each.startswith("anven_errors_total") and '"counted"' in each]
    assert 'intended="target"' in line
    assert 'error_class="InternalServerError"' in line
    assert line.endswith(" 2")
    assert re.search(r'anven_target_share\{workload="counted",worker="[^"]+"\} 1\n', text)


def test_nobody_has_the_arms_named_or_asked_by_the_proxys_look_at_its_models(gate: Gateway) -> None:
    before = len(gate.legacy.asks), len(gate.target.asks)
    answer = gate.client.get("/health")
    assert answer.status_code == 403
    assert "/anven/status" in answer.text
    assert (len(gate.legacy.asks), len(gate.target.asks)) == before
    assert gate.client.get("/health/readiness").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/anven/feedback"), ("GET", "/anven/status"), ("GET", "/v1/models")]
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-another-key"}], ids=["none", "wrong"])
def test_the_gateways_own_routes_need_the_key(gate: Gateway, method: str, path: str, headers: dict[str, str]) -> None:
    body = {"request_id": "x", "score": 1}
    answer = httpx.request(method, gate.started.url + path, json=body, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_conversation_stays_on_its_arm_whoever_speaks(gate: Gateway) -> None:
    gate.routed("talks", 0.5)

    def arm(user: str, conversation: str) -> str:
        answer = gate.client.post(
            "/v1/chat/completions",
            json={"model": "talks", "user": user, "messages": [{"role": "user", "content": "Q: hi"}]},
            headers={"x-anven-conversation": conversation},
        )
        return str(json.loads(answer.json()["choices"][0]["message"]["content"])["answer"])

    by_conversation = [{arm(f"user {user}", f"talk {talk}") for user in range(3)} for talk in range(12)]
    assert all(len(arms) == 1 for arms in by_conversation)
    assert len({next(iter(arms)) for arms in by_conversation}) == 2


def test_the_whole_gateway_made_no_mistake_of_its_own(gate: Gateway) -> None:
    status = gate.status()
    assert status["internal_errors"] == 0
    assert status["events"]["dropped"] == 0
    assert status["spans"] is None  # no endpoint is set
