"""What the gateway does with a request, LiteLLM apart."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.breaker import LEAST_REFERENCE
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import PromptTemplate, unchanged
from anven_pipelines.domain.prompts import AdaptedPrompt, candidate_part, found_prompt, version_of
from anven_pipelines.gateway.exchange import Usage
from anven_pipelines.gateway.feedback import Said
from anven_pipelines.gateway.shadow import Shadows
from anven_pipelines.ingest.gateway_events import read_batch
from tests.gateway_proxy import WITHIN_S
from tests.gateway_service import asked, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.gateway.exchange import Exchange
    from anven_pipelines.gateway.service import GatewayService


TEMPLATES: dict[str, Any] = {"profile": None, "templates": [{}]}
BROKEN = AdaptedPrompt(
    strategy="templates",
    transformation=TEMPLATES,
    description="broken",
    version=version_of("templates", TEMPLATES),
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[GatewayService]:
    """A worker whose target has a prompt that cannot be applied, as one of a later version may be."""
    with served(tmp_path, prompt=BROKEN) as service:
        yield service


def test_a_mistake_while_a_prompt_is_adapted_is_no_success_of_the_targets(
    service: GatewayService, tmp_path: Path
) -> None:
    data = asked()
    messages = data["messages"]
    exchange = service.begin(0.0)
    service.deal(data, {}, exchange)
    assert (data["model"], data["messages"]) == ("support--legacy", messages)
    exchange.http_status = 200
    exchange.ended(1.0, is_complete=True, is_disconnected=False)
    service.told(exchange, Usage())
    assert service.recorder.log.flush()
    [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["intended"], event["served"], event["status"], event["why"], event["error_class"]) == (
        "target",
        "legacy",
        "ok",
        "fallback",
        "NotDealt",
    )
    assert service.mistakes.count == 1


FUNCTION = {"name": "look_up", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
DESK = PromptTemplate(name="desk", user="hello", slots=(), tools=(TOOL,))
WITH_TOOLS = found_prompt(
    [candidate_part(DESK, unchanged(DESK).model_copy(update={"params": {"temperature": None}}))],
    profile=TargetProfile(language="German"),
    description="",
)
ASKED_WITH: dict[str, Any] = {"functions": [FUNCTION], "temperature": 1, "max_completion_tokens": 9, "seed": 3}


def test_a_request_is_put_in_the_form_that_was_proven_and_legacy_gets_it_as_it_was(tmp_path: Path) -> None:
    """The old form of tools is the target's no more, and a request with other tools is of no proven prompt."""
    with served(tmp_path, prompt=WITH_TOOLS) as service:
        data, other = asked(**ASKED_WITH), asked(tools=[])
        for each in (data, other):
            service.deal(each, {}, service.begin(0.0))
        assert service.mistakes.count == 0
    assert [each["content"] for each in data["messages"]] == ["Answer in German.", "hello"]
    assert [each["content"] for each in other["messages"]] == ["hello"]
    told = {name: data[name] for name in ("tools", "max_tokens", "seed")}
    assert told == {"tools": [TOOL], "max_tokens": 9, "seed": 3}
    assert not {"functions", "temperature", "max_completion_tokens"} & data.keys()
    [back] = data["fallbacks"]
    assert {name: back.get(name) for name in ("functions", "temperature", "max_completion_tokens")} == {
        name: ASKED_WITH[name] for name in ("functions", "temperature", "max_completion_tokens")
    }
    assert (back["tools"], back["max_tokens"], "seed" in back) == (None, None, False)


def test_a_request_in_a_form_that_nobody_logged_reaches_the_target_as_it_is_under_the_arms_prompt(
    tmp_path: Path,
) -> None:
    """Its logs name no tools, so nothing is proven of calls with some; docs/gateway.md says what to do."""
    unlogged = DESK.model_copy(update={"tools": ()})
    prompt = found_prompt(
        [candidate_part(unlogged, unchanged(unlogged))], profile=TargetProfile(language="German"), description=""
    )
    with served(tmp_path, prompt=prompt) as service:
        data, exchange = asked(tools=[TOOL]), service.begin(0.0)
        service.deal(data, {}, exchange)
    assert data["model"].endswith("--target")
    assert (data["messages"], data["tools"]) == (asked()["messages"], [TOOL])
    assert exchange.prompt_versions["target"] == prompt.version


def test_a_mirrored_request_is_put_in_that_form_too(tmp_path: Path) -> None:
    with served(tmp_path, share=0.0, shadow=1.0, prompt=WITH_TOOLS) as service:
        exchange = service.begin(0.0)
        service.deal(asked(**ASKED_WITH), {}, exchange)
        shadow = exchange.shadow
    assert shadow is not None
    assert {name: value for name, value in shadow.items() if name != "messages"} == {
        "tools": [TOOL], "max_tokens": 9, "seed": 3,
    }  # fmt: skip


def test_a_feedback_that_is_delivered_again_is_no_new_evidence(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        for score, key in ((1.0, "up"), (0.0, "down"), (1.0, "up"), (0.25, None), (0.25, None)):
            service.feedback("a", Said(score, None, None), key=key)
        lines = service.metric_lines()
        assert sum_of(lines, "anven_quality_score_count") == 3
        assert sum_of(lines, "anven_quality_score_sum") == 1.25


def test_a_mistake_while_a_request_is_mirrored_leaves_legacys_request_and_its_event_whole(tmp_path: Path) -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]  # too deep for a copy
    with served(tmp_path, share=0.0, shadow=1.0) as service:
        data, exchange = asked(tools=nested), service.begin(0.0)
        service.deal(data, {}, exchange)
        assert data["model"] == "support--legacy"
        assert data["cache"]["namespace"].startswith("support:legacy:")
        assert exchange.shadow is None
        assert service.mistakes.count == 1
        exchange.http_status = 200
        exchange.ended(1.0, is_complete=True, is_disconnected=False)
        service.told(exchange, Usage())
        assert service.recorder.log.flush()
        [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["intended"], event["served"], event["status"]) == ("legacy", "legacy", "ok")
    assert event["flags"] == ["mirrored"]  # it was drawn, whatever came of it


@pytest.mark.parametrize(
    ("status", "is_disconnected", "mirrored"),
    [(200, False, True), (499, False, True), (200, True, True), (500, False, False)],
    ids=["answered", "closed", "hung up", "failed"],
)
def test_what_is_mirrored_hangs_on_no_outcome_but_legacys_failure(
    service: GatewayService, *, status: int, is_disconnected: bool, mirrored: bool
) -> None:
    ended: list[Exchange] = []
    service.after = ended.append
    exchange = service.begin(0.0)
    service.deal(asked(), {}, exchange)
    exchange.http_status, exchange.usage = status, Usage()
    exchange.ended(1.0, is_complete=not is_disconnected, is_disconnected=is_disconnected)
    service.ended(exchange)
    assert ended == ([exchange] if mirrored else [])


def test_a_drawn_request_that_the_targets_prompt_does_not_fit_counts_as_its_failure(tmp_path: Path) -> None:
    with served(tmp_path, share=0.0, shadow=1.0, prompt=BROKEN) as service:
        exchange = service.begin(0.0)
        service.deal(asked(), {}, exchange)
        Shadows(service, {}, tmp_path).mirror(exchange)
        assert service.recorder.log.flush()
        [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["kind"], event["status"], event["error_class"]) == ("shadow", "error", "NotDealt")
    assert (event["intended"], event["request_id"], event["served"]) == ("legacy", "a", None)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("messages", [{}, {"messages": None}], ids=["none", "null"])
def test_a_request_without_messages_is_dealt_all_the_same(
    tmp_path: Path, messages: dict[str, Any], *, share: float
) -> None:
    with served(tmp_path, share=share, shadow=1.0) as service:
        data = {name: value for name, value in asked().items() if name != "messages"} | messages
        service.deal(data, {}, service.begin(0.0))
        assert data["model"] == ("support--target" if share else "support--legacy")
        assert service.mistakes.count == 0


def test_a_target_that_hangs_is_seen_after_a_restart_at_100_percent_though_legacy_answers_nothing_any_more(
    tmp_path: Path,
) -> None:
    with served(tmp_path, share=0.0) as service:
        for _ in range(LEAST_REFERENCE):
            exchange = service.begin(0.0)
            service.deal(asked(), {}, exchange)
            exchange.http_status, exchange.usage = 200, Usage()
            exchange.ended(0.1, is_complete=True, is_disconnected=False)
            service.ended(exchange)
    with served(tmp_path, share=1.0) as service:
        for _ in range(6):
            service.deal(asked(), {}, service.begin(time.perf_counter() - 2.0))  # legacy took 0.1 s
        until = time.monotonic() + WITHIN_S
        while service.breakers.reason("support") is None and time.monotonic() < until:
            time.sleep(0.01)
        assert service.breakers.reason("support") == "latency"


def sum_of(lines: list[str], name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
