"""Whom a request belongs to, and where it goes when the target must not be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anven_pipelines.domain.traffic import Route
from anven_pipelines.gateway.assignment import NO_UNIT, Unit, assign, unit_of

KEY = b"sixteen bytes or more of it"
ALL = Route("support", attempt=1, generation=1, stage=0, share=1.0)


@pytest.mark.parametrize(
    ("data", "headers", "kind", "unit"),
    [
        ({"user": "ada"}, {}, "user", Unit("ada", is_named=True)),
        ({"user": "ada"}, {"x-anven-user": "bob"}, "user", Unit("bob", is_named=True)),
        ({"user": "ada"}, {"x-anven-conversation": "c1"}, "user", Unit("ada", is_named=True)),
        ({"user": "ada"}, {"x-anven-conversation": "c1"}, "conversation", Unit("c1", is_named=True)),
        ({"metadata": {"conversation_id": "c2"}}, {}, "conversation", Unit("c2", is_named=True)),
        ({"user": "ada", "metadata": None}, {}, "conversation", Unit("ada", is_named=True)),
        ({"litellm_call_id": "r1"}, {}, "user", Unit("r1", is_named=False)),
        ({"user": "", "litellm_call_id": "r1"}, {}, "user", Unit("r1", is_named=False)),
        ({"user": 7, "litellm_call_id": "r1"}, {}, "user", Unit("r1", is_named=False)),
    ],
)
def test_the_unit_is_the_first_that_is_named(
    data: dict[str, Any], headers: dict[str, str], kind: Any, unit: Unit
) -> None:
    assert unit_of(data, headers, kind=kind) == unit


def test_a_request_is_asked_of_the_arm_it_is_dealt_to() -> None:
    dealt = assign(KEY, ALL, Unit("ada", is_named=True), breaker_open=False)
    assert (dealt.intended, dealt.asked, dealt.why, dealt.flags) == ("target", "target", None, ())
    none = assign(KEY, replace(ALL, share=0.0), Unit("ada", is_named=True), breaker_open=False)
    assert (none.intended, none.asked, none.why) == ("legacy", "legacy", None)
    assert none.bucket == dealt.bucket


@pytest.mark.parametrize(
    ("route", "breaker_open", "why"),
    [
        (replace(ALL, killed=True), False, "killed"),
        (ALL, True, "breaker"),
        (replace(ALL, killed=True), True, "killed"),
    ],
)
def test_kill_switch_and_breaker_change_who_is_asked_and_not_who_was_meant(
    route: Route, breaker_open: bool, why: str
) -> None:
    dealt = assign(KEY, route, Unit("ada", is_named=True), breaker_open=breaker_open)
    assert (dealt.intended, dealt.asked, dealt.why) == ("target", "legacy", why)


def test_who_was_meant_for_legacy_has_no_reason_to_be_there() -> None:
    route = replace(ALL, share=0.0, killed=True)
    assert assign(KEY, route, Unit("ada", is_named=True), breaker_open=True).why is None


def test_a_request_that_names_nobody_is_flagged() -> None:
    assert assign(KEY, ALL, Unit("r1", is_named=False), breaker_open=False).flags == (NO_UNIT,)
