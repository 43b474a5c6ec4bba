"""The running gateway where clients and arms send what is unusual: refusals, and the parameters of requests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from anven_pipelines.domain.rollout_mirrored import pairs_of
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.ingest.gateway_events import read_batch
from anven_pipelines.spec_rollout import Rollout
from tests.gateway_proxy import KEY, Arms, Gateway, gateway
from tests.scripted_endpoint import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anven_pipelines.domain.traffic import Route
    from tests.scripted_endpoint import Ask

pytestmark = pytest.mark.timeout(400)

WORKLOADS: dict[str, dict[str, Any]] = {name: {} for name in ("both", "hidden", "one", "mirrored")} | {
    "spent": {"gateway": {"shadow": {"usd_per_day": 0.0001}}},
    "limited": {"gateway": {"legacy": {"rpm": 2}}},
    "rescued": {"gateway": {"target": {"rpm": 2}}},
    "wordy": {"gateway": {"legacy": {"tpm": 6}}},
    "crowded": {"gateway": {"target": {"rpm": 2}}},
}

TOO_LONG = Reply("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.", status=400)
"""What LiteLLM makes a ContextWindowExceededError of."""
POLICY = Reply("invalid_request_error: content_policy_violation", status=400)
"""What it makes a ContentPolicyViolationError of."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway"), WORKLOADS, host="127.0.0.2") as started:
        yield started


@pytest.fixture
def gate(running: Gateway) -> Iterator[Gateway]:
    yield running
    fresh = Arms()
    running.arms.legacy, running.arms.target = fresh.legacy, fresh.target


def test_it_listens_at_the_address_that_was_named_alone(gate: Gateway) -> None:
    url = gate.client.base_url
    assert url.host == "127.0.0.2"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url.copy_with(host="127.0.0.1"), trust_env=False)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (TOO_LONG, "ContextWindowExceededError"),
        (POLICY, "ContentPolicyViolationError"),
        (Reply("the request is too large", status=413), None),
        (Reply("max_tokens is no number", status=422), None),
    ],
    ids=["too long", "policy", "413", "422"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_whose_requests_both_arms_refuse_trips_no_breaker(
    gate: Gateway, reply: Reply, error: str | None, *, stream: bool
) -> None:
    gate.routed("both", 1.0)
    gate.arms.target = gate.arms.legacy = lambda _: reply
    answers = [gate.ask("both", "ada", stream=stream) for _ in range(8)]  # six failures in a row trip it
    assert all(400 <= answer.status_code < 500 for answer in answers)
    events = gate.events(*(answer.headers["x-litellm-call-id"] for answer in answers))
    assert set(events["status"]) == {"error"}
    assert error is None or set(events["error_class"]) == {error}
    assert gate.status()["breakers"]["both"] is None


@pytest.mark.parametrize(
    "reply",
    [TOO_LONG, POLICY, *(Reply("it cannot be", status=status) for status in (400, 401, 413, 422, 429, 500))],
    ids=["too long", "policy", "400", "401", "413", "422", "429", "500"],
)
@pytest.mark.parametrize("length", [0, 600], ids=["short", "long enough to be compressed"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_both_arms_give_is_the_same_whichever_was_asked(
    gate: Gateway, reply: Reply, length: int, *, stream: bool
) -> None:
    def failing(arm: str) -> Callable[[Ask], Reply]:
        return lambda _: replace(reply, text=f"hidden--{arm}: {reply.text}{' at all' * (length // 7)}")

    gate.arms.target, gate.arms.legacy = failing("target"), failing("legacy")
    asked = len(gate.target.asks)
    of_legacy = _asked(gate, 0.0, stream=stream)
    assert len(gate.target.asks) == asked
    of_target = _asked(gate, 1.0, stream=stream)
    assert len(gate.target.asks) == asked + 1  # no breaker made the comparison an empty one
    assert reply.text in of_target.json()["error"]["message"]
    assert of_target.status_code == of_legacy.status_code
    assert of_target.content == of_legacy.content
    assert sorted(of_target.headers) == sorted(of_legacy.headers)


def _asked(gate: Gateway, share: float, *, stream: bool) -> httpx.Response:
    gate.routed("hidden", share)
    return gate.ask("hidden", "ada", stream=stream)


def test_what_the_target_alone_refuses_counts_against_it(gate: Gateway) -> None:
    gate.routed("one", 1.0)
    gate.arms.target = lambda _: TOO_LONG
    answers = [gate.ask("one", "ada") for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    gate.until(lambda: gate.status()["breakers"]["one"] == "errors")


def pairs(gate: Gateway, workload: str, route: Route) -> list[dict[str, Any]]:
    """Pair what the gateway wrote under a route, looked at an hour later."""
    plan = RolloutPlan(workload=workload, rollout=Rollout(shadow_top_up=0.5), metrics=METRICS)
    events = read_batch(gate.started.events, {}).events.filter(workload=workload)
    now = datetime.now(UTC) + timedelta(hours=1)
    return pairs_of(events, plan, generation=route.generation, now=now).to_dicts()


def test_what_comes_above_the_requests_of_a_minute_is_refused(gate: Gateway) -> None:
    gate.routed("limited", 0.0)
    asked = len(gate.legacy.asks)
    answers = [gate.ask("limited", f"user {number}") for number in range(6)]  # they may meet two minutes
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 2 <= len(refused) <= 4
    assert len(gate.legacy.asks) - asked == 6 - len(refused)
    assert "RPM limit=2" in refused[0].text
    assert "limited--" not in refused[0].text
    events = gate.events(*(answer.headers["x-litellm-call-id"] for answer in refused))
    assert events.select("intended", "status", "error_class").unique().rows() == [("legacy", "error", "RateLimitError")]


def test_what_comes_above_the_tokens_of_a_minute_is_refused(gate: Gateway) -> None:
    gate.routed("wordy", 0.0)
    assert gate.ask("wordy", "ada").status_code == 200
    gate.until(lambda: "TPM limit=6" in gate.ask("wordy", "ada").text)


def test_legacy_answers_what_comes_above_the_targets_limit_which_counts_against_the_target(gate: Gateway) -> None:
    gate.routed("rescued", 1.0)
    asked = len(gate.target.asks)
    answers = [gate.ask("rescued", f"user {number}") for number in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    reached = len(gate.target.asks) - asked
    assert 2 <= reached <= 4
    events = gate.events(*(answer.headers["x-litellm-call-id"] for answer in answers))
    above = events.filter(error_class="RateLimitError")
    assert above.height == 6 - reached
    assert above.select("intended", "served", "status", "why").unique().rows() == [
        ("target", "legacy", "ok", "fallback")
    ]


def test_mirrored_requests_use_up_none_of_the_limit_of_the_targets_users(gate: Gateway) -> None:
    route = gate.routed("crowded", 0.0, shadow=1.0)
    mirrored = [gate.ask("crowded", f"user {number}").headers["x-litellm-call-id"] for number in range(6)]
    gate.events(*mirrored, kind="shadow")
    above = [pair["target_failed"] for pair in pairs(gate, "crowded", route)].count(True)
    assert 2 <= above <= 4  # their own limit holds for them; they may meet two minutes
    gate.routed("crowded", 1.0)
    answer = gate.ask("crowded", "ada")
    [event] = gate.events(answer.headers["x-litellm-call-id"]).iter_rows(named=True)
    assert (event["served"], event["why"], event["error_class"]) == ("target", None, None)


def test_a_mirrored_request_is_the_request_without_its_user(gate: Gateway) -> None:
    gate.routed("mirrored", 0.0, shadow=1.0)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    asked: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.25,
        "top_p": 0.5,
        "stop": ["END"],
        "seed": 3,
        "response_format": {"type": "json_object"},
        "tools": [tool],
        "tool_choice": "auto",
        "top_k": 5,
    }
    named = {"safety_identifier": "ada", "prompt_cache_key": "ada", "metadata": {"conversation_id": "of ada"}}
    gate.ask("mirrored", "ada", content="Q: whole?", stream=True, **asked, **named)
    gate.until(lambda: gate.target.asked["adapted whole?"] == 1)
    body = gate.target.asks[-1].body
    assert {name: body.get(name) for name in asked} == asked
    assert body["stream"] is True
    assert "ada" not in str({**body, "messages": None})


@pytest.mark.parametrize(
    ("reply", "stream", "found"),
    [
        (Reply('{"answer": "target"}'), False, ("ok", True)),
        (Reply('{"answer": "target"}'), True, ("ok", True)),
        (Reply("one two three four", breaks="error"), True, ("error", None)),
    ],
    ids=["plain", "stream", "broken stream"],
)
def test_a_request_is_mirrored_in_the_way_that_the_client_asked(
    gate: Gateway, reply: Reply, found: tuple[str, bool | None], *, stream: bool
) -> None:
    route = gate.routed("mirrored", 0.0, shadow=1.0)
    gate.arms.target = lambda _: reply
    answer = gate.ask("mirrored", "ada", content="Q: alike?", stream=stream)
    assert "target" not in answer.text
    request_id = answer.headers["x-litellm-call-id"]
    [request] = gate.events(request_id).iter_rows(named=True)
    [shadow] = gate.events(request_id, kind="shadow").iter_rows(named=True)
    assert (request["flags"], request["status"]) == (["mirrored"], "ok")
    assert (shadow["status"], shadow["contract_ok"]) == found
    assert (shadow["stream"], shadow["unit"]) == (stream, request["unit"])
    assert (shadow["output_tokens"] is None) == (found[0] == "error")
    [pair] = pairs(gate, "mirrored", route)
    assert (pair["asked"], pair["legacy_failed"], pair["target_failed"]) == (True, False, found[0] == "error")
    assert pair["target_broke"] == (None if found[1] is None else not found[1])


def test_a_client_that_leaves_legacys_stream_does_not_make_it_one_without_form(gate: Gateway) -> None:
    """The part that came is no JSON; the target is asked for all of it."""
    route = gate.routed("mirrored", 0.0, shadow=1.0)
    gate.arms.legacy = lambda _: Reply('{"answer": "one two three"}', chunk_delay_s=0.7)
    before = gate.events_of("mirrored").height
    body = {"model": "mirrored", "user": "ada", "messages": [{"role": "user", "content": "Q: left?"}], "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        httpx.Client(base_url=gate.started.url, headers=headers, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        next(answer.iter_bytes())
    request = gate.next_event("mirrored", after=before)
    assert (request["status"], request["contract_ok"], request["flags"]) == ("disconnected", None, ["mirrored"])
    gate.events(request["request_id"], kind="shadow")
    [pair] = pairs(gate, "mirrored", route)
    assert (pair["left"], pair["legacy_broke"], pair["target_broke"]) == (True, None, False)


def test_a_mirrored_request_of_unknown_cost_is_charged_what_it_may_have_cost(gate: Gateway) -> None:
    route = gate.routed("spent", 0.0, shadow=1.0)
    gate.target.asked.clear()
    gate.arms.target = lambda _: Reply("boom", status=500)
    first = gate.ask("spent", "ada", content="Q: dear?", max_tokens=100)  # 200 micro-dollars for the answer alone
    gate.events(first.headers["x-litellm-call-id"], kind="shadow")
    later = [gate.ask("spent", user, content="Q: dear?", max_tokens=100) for user in ("bob", "cy", "di")]
    gate.events(*(answer.headers["x-litellm-call-id"] for answer in later))
    assert gate.target.asked["adapted dear?"] == 1
    # What the cap kept from the target is a pair all the same, as it binds where the target is dear or fails.
    assert [(pair["asked"], pair["target_failed"]) for pair in pairs(gate, "spent", route)] == [
        (True, True),
        *[(False, None)] * 3,
    ]


def test_a_thumb_that_is_changed_twice_is_three_feedbacks_and_a_retry_is_none(gate: Gateway) -> None:
    [known] = [gate.ask("both", "ada").headers["x-litellm-call-id"]]

    def thumb(score: int, key: str | None = None) -> None:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"request_id": known, "score": score}
        assert gate.client.post("/anven/feedback", json=body, headers=headers).status_code == 202

    for score in (1, 1, 0, 1):
        thumb(score)
    for score, key in ((0, "first"), (0, "first"), (0, "second")):
        thumb(score, key)
    gate.until(lambda: gate.events(known, kind="feedback").height >= 5)
    assert gate.events(known, kind="feedback").sort("seq")["score"].to_list() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[]", 400, "the body is a list"),
        (b"", 400, "the body is no JSON object"),
        (b'{"request_id": ', 400, "JSON"),  # LiteLLM's words
        (b'{"request_id": "x", "score": NaN}', 400, "NaN"),
        (b'{"request_id": "x", "score": 1, "score": 0}', 400, "twice"),
        (b'{"request_id": "x"}', 422, "nothing is said"),
        (b'{"request_id": "x", "score": 2}', 422, "score is 2"),
        (b'{"request_id": "x", "score": "1"}', 422, "score is a text"),
        (b'{"request_id": "x", "safe": 1}', 422, "safe is 1"),
        (b'{"request_id": "x", "thumb": 1}', 422, "thumb is unknown"),
        (b'{"request_id": "x", "outcome": "call Ada at 5"}', 422, "a name of at most 64 letters"),
    ],
)
@pytest.mark.parametrize("form", ["application/json", "application/x-www-form-urlencoded"])
def test_a_feedback_that_is_none_is_one_clear_error(
    gate: Gateway, body: bytes, status: int, message: str, form: str
) -> None:
    answer = gate.client.post("/anven/feedback", content=body, headers={"Content-Type": form})
    error = answer.json()["error"]
    assert answer.status_code == status
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"[]", b'["x"]', b'"x"', b"1", b"null", b"NaN", b"\xff", b"{"])
def test_a_chat_that_is_no_object_is_a_bad_request(gate: Gateway, body: bytes) -> None:
    answer = gate.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("messages", ["hi", [], ["hi"], {}, [{"role": "user", "content": 3}], [{"content": "hi"}]])
def test_messages_that_are_none_reach_no_arm_and_trip_no_breaker(gate: Gateway, messages: Any) -> None:
    gate.routed("both", 1.0)
    asked = len(gate.target.asks), len(gate.legacy.asks)
    for _ in range(7):  # six failures in a row trip it
        answer = gate.client.post("/v1/chat/completions", json={"model": "both", "user": "ada", "messages": messages})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("messages")
    assert (len(gate.target.asks), len(gate.legacy.asks)) == asked
    assert gate.status()["breakers"]["both"] is None


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-another-key"}, {"Authorization": "Basic YTpi"}])
def test_a_chat_without_the_key_is_unauthorised(gate: Gateway, headers: dict[str, str]) -> None:
    body = {"model": "both", "messages": [{"role": "user", "content": "Q: hi"}]}
    answer = httpx.post(f"{gate.started.url}/v1/chat/completions", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "Authorization: Bearer" in error["message"]


def test_a_model_that_nobody_serves_is_named_and_no_arm_is(gate: Gateway) -> None:
    answer = gate.ask("unheard-of", "ada")
    assert answer.status_code == 400
    assert "model=unheard-of" in answer.json()["error"]["message"]
    assert "--" not in answer.text


def test_what_was_refused_is_not_kept_and_was_no_mistake_of_the_gateways(gate: Gateway) -> None:
    gate.client.post("/anven/feedback", json={"request_id": "last", "score": 0}).raise_for_status()
    assert gate.events("last", kind="feedback").height == 1
    assert read_batch(gate.started.events, {}).events.filter(request_id="x").is_empty()
    assert gate.status()["internal_errors"] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_an_error_that_quotes_the_request_does_not_stand_in_the_log(
    gate: Gateway, status: int, *, stream: bool
) -> None:
    gate.routed("both", 1.0)
    secret = "the secret of ada"
    gate.arms.target = gate.arms.legacy = lambda ask: Reply(f"cannot answer {ask.prompt}", status=status)
    answer = gate.ask("both", "ada", content=f"Q: {secret}", stream=stream)
    assert answer.status_code >= 400
    gate.events(answer.headers["x-litellm-call-id"])
    log = (gate.started.traffic.parent / "proxy.log").read_text()
    assert secret not in log
    assert "Error" in log
