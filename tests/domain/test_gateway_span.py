"""What the span of a request says, and what it does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.domain.gateway_span import ServedModel, request_span, served_model

MODELS = {
    "legacy": ServedModel("openai", "gpt-4o"),
    "target": ServedModel("hosted_vllm", "ANVEN-3b", "vllm", 8000),
}
EVENT: dict[str, Any] = {
    "event_id": "w-7",
    "kind": "request",
    "ts": datetime(2026, 11, 20, tzinfo=UTC),
    "worker": "w",
    "seq": 7,
    "workload": "support",
    "attempt": 2,
    "generation": 5,
    "stage": 1,
    "share": 0.25,
    "unit": "a1" * 16,
    "bucket": 0.125,
    "intended": "target",
    "served": "target",
    "request_id": "call-1",
    "status": "ok",
    "stream": True,
    "ttft_ms": 120.0,
    "latency_ms": 900.0,
    "input_tokens": 40,
    "output_tokens": 7,
    "cost_usd": 0.5,
    "cached": False,
    "finish_reason": "stop",
    "contract_ok": True,
    "prompt_version": "p1",
}


def attributes(**changes: Any) -> dict[str, Any]:
    return request_span(GatewayEvent(**{**EVENT, **changes}), MODELS).attributes  # type: ignore[arg-type]


def test_an_answered_request_says_who_was_asked_who_answered_and_what_it_took() -> None:
    span = request_span(GatewayEvent(**EVENT), MODELS)  # type: ignore[arg-type]
    assert (span.name, span.failed) == ("chat ANVEN-3b", False)
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hosted_vllm",
        "gen_ai.request.model": "ANVEN-3b",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "ANVEN-3b",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 7,
        "server.address": "vllm",
        "server.port": 8000,
        "anven.event_id": "w-7",
        "anven.kind": "request",
        "anven.workload": "support",
        "anven.attempt": 2,
        "anven.generation": 5,
        "anven.stage": 1,
        "anven.share": 0.25,
        "anven.intended": "target",
        "anven.served": "target",
        "anven.request_id": "call-1",
        "anven.status": "ok",
        "anven.ttft_ms": 120.0,
        "anven.cost_usd": 0.5,
        "anven.cached": False,
        "anven.contract_ok": True,
        "anven.prompt_version": "p1",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"served": "legacy", "why": "fallback", "error_class": "Timeout"},
            {"gen_ai.request.model": "ANVEN-3b", "gen_ai.response.model": "gpt-4o", "anven.error_class": "Timeout"},
        ),
        (
            {"served": "legacy", "why": "killed"},
            {"gen_ai.request.model": "gpt-4o", "anven.intended": "target", "anven.why": "killed"},
        ),
        ({"served": "legacy", "why": "breaker"}, {"gen_ai.provider.name": "openai", "anven.intended": "target"}),
        ({"served": None, "status": "error", "error_class": "RateLimitError"}, {"error.type": "RateLimitError"}),
        ({"served": None, "status": "error"}, {"error.type": "_OTHER"}),
        ({"kind": "shadow", "intended": "legacy"}, {"gen_ai.request.model": "ANVEN-3b", "anven.kind": "shadow"}),
        ({"flags": ("no_unit",)}, {"anven.flags": ("no_unit",)}),
    ],
)
def test_what_went_otherwise_is_told(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = attributes(**changes)
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"served": "legacy", "why": "fallback", "error_class": "Timeout"}, "error.type"),  # the operation ended well
        ({"status": "disconnected", "error_class": "Timeout"}, "error.type"),
        ({"served": "legacy", "why": "killed"}, "server.address"),  # the provider's own
        ({"served": None}, "gen_ai.response.model"),
        ({"input_tokens": None}, "gen_ai.usage.input_tokens"),
        ({"finish_reason": None}, "gen_ai.response.finish_reasons"),
        ({"ttft_ms": None}, "anven.ttft_ms"),
        ({}, "anven.flags"),
    ],
)
def test_what_is_not_so_or_was_not_measured_is_left_out(changes: dict[str, Any], absent: str) -> None:
    assert absent not in attributes(**changes)


def test_nothing_stands_for_a_user() -> None:
    assert not {"anven.unit", "anven.bucket"} & set(attributes())
    assert EVENT["unit"] not in attributes().values()


def test_its_names_are_those_of_the_conventions() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in attributes() if name.startswith("gen_ai.")} <= known


def test_only_an_error_of_the_clients_fails_the_span() -> None:
    failed = {
        status: request_span(GatewayEvent(**{**EVENT, "status": status}), MODELS).failed  # type: ignore[arg-type]
        for status in ("ok", "error", "disconnected")
    }
    assert failed == {"ok": False, "error": True, "disconnected": False}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/gpt-4o", ServedModel("openai", "gpt-4o")),
        ("azure/ours", ServedModel("azure.ai.openai", "ours")),
        ("hosted_vllm/org/model", ServedModel("hosted_vllm", "org/model")),
    ],
)
def test_providers_are_named_as_the_conventions_do(name: str, expected: ServedModel) -> None:
    assert served_model(name) == expected
