from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from anven_pipelines.domain.exposure import exposure_of
from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, GatewayEvent

SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def request(ended_s: float, latency_ms: float | None = 100, **change: Any) -> GatewayEvent:
    values: dict[str, Any] = {"kind": "request", "intended": "target", "served": "target", "latency_ms": latency_ms}
    at = SINCE + timedelta(seconds=ended_s)
    return GatewayEvent(event_id=str(ended_s), ts=at, worker="w", seq=1, **(values | change))


def events(*found: GatewayEvent) -> pl.DataFrame:
    return pl.DataFrame([each.to_row() for each in found], schema=GATEWAY_EVENTS.schema)


def test_it_lasts_from_the_first_to_the_last_request_that_the_bad_target_was_dealt() -> None:
    found = exposure_of(
        events(
            request(0.05),  # asked before it turned bad
            request(1.5, 500),
            request(3, 500, why="fallback", served="legacy"),
            request(4, 2000),
            request(5, intended="legacy", served="legacy"),
            request(6, why="breaker", served="legacy"),
        ),
        since=SINCE,
    )

    assert found is not None
    assert found.first_bad_at == SINCE + timedelta(seconds=1)
    assert (found.last_dealt_s, found.bad, found.rescued, found.breaker_s) == (1.5, 3, 1, None)


def test_a_breaker_that_tripped_since_is_told_and_one_before_is_not() -> None:
    def trip(at_s: float) -> GatewayEvent:
        return request(at_s, kind="breaker", outcome="open", intended=None, latency_ms=None)

    hung = request(30, 29_000)
    assert exposure_of(events(trip(-1), hung), since=SINCE).breaker_s is None  # type: ignore[union-attr]
    assert exposure_of(events(trip(-1), hung, trip(3)), since=SINCE).breaker_s == 2  # type: ignore[union-attr]


def test_a_target_without_a_request_since_exposed_nobody() -> None:
    assert exposure_of(events(request(-1), request(2, intended="legacy")), since=SINCE) is None
