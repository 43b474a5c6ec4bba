"""What mirrored requests ask, and what they may spend."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from anven_pipelines.domain.prompts import Call
from anven_pipelines.gateway.shadow import Purse
from anven_pipelines.gateway.shadow_request import MOST_TOKENS, most_usd, shadow_request
from anven_pipelines.spec_gateway import Shadow
from anven_pipelines.spec_values import Price

TODAY = date(2026, 11, 20)
PRICE = Price(input_usd_per_million=1, output_usd_per_million=2, source="test")
MESSAGES = [{"role": "user", "content": "four"}]


def test_calls_of_a_day_are_capped_and_the_next_day_starts_anew() -> None:
    purse = Purse(Shadow(calls_per_day=2))
    assert [purse.take(TODAY) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        purse.give_back(0.0)
    assert not purse.take(TODAY)
    assert purse.take(date(2026, 11, 21))


def test_no_more_than_so_many_are_in_flight() -> None:
    purse = Purse(Shadow(at_once=1))
    assert [purse.take(TODAY), purse.take(TODAY)] == [True, False]
    purse.give_back(0.0)
    assert purse.take(TODAY)


def test_spending_is_capped() -> None:
    purse = Purse(Shadow(usd_per_day=0.01))
    assert purse.take(TODAY)
    purse.give_back(0.011)
    assert not purse.take(TODAY)


def test_a_cap_of_nothing_mirrors_nothing() -> None:
    assert not Purse(Shadow(calls_per_day=0)).take(TODAY)
    assert not Purse(Shadow(usd_per_day=0.0)).take(TODAY)


def test_the_targets_parameters_come_before_the_clients_and_nothing_of_its_user_is_mirrored() -> None:
    data = {
        "model": "support",
        "messages": MESSAGES,
        "max_tokens": 9,
        "temperature": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "ada",
        "metadata": {"conversation_id": "c"},
        "safety_identifier": "ada",
        "fallbacks": ["other"],
        "litellm_call_id": "x",
    }
    asked = shadow_request(data, Call([{"role": "user", "content": "adapted"}], {"temperature": 0}))
    assert asked == {
        "messages": [{"role": "user", "content": "adapted"}],
        "max_tokens": 9,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }


def test_a_mirrored_request_is_its_own_whatever_becomes_of_the_first() -> None:
    data: dict[str, Any] = {"messages": MESSAGES, "tools": [{"type": "function"}]}
    asked = shadow_request(data, Call(data["messages"], {}))
    data["tools"][0].clear()
    assert asked["tools"] == [{"type": "function"}]


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 100, "max_completion_tokens": 50}, 50),
        ({}, MOST_TOKENS),
        ({"max_tokens": None}, MOST_TOKENS),
        ({"max_tokens": "100", "n": True}, MOST_TOKENS),
        ({"max_tokens": -1}, MOST_TOKENS),
        ({"max_tokens": 10**400}, 10**12),
    ],
)
def test_what_a_request_may_have_cost_is_bounded_by_its_bytes_and_its_limit(
    limits: dict[str, Any], tokens: int
) -> None:
    found = most_usd(PRICE, {"messages": MESSAGES, **limits})
    least = (len(b"four") + 2 * tokens) / 1e6
    assert least < found < least + 600 / 1e6


def test_without_a_price_there_is_nothing_to_reckon_with() -> None:
    assert most_usd(None, {"messages": MESSAGES}) == 0.0
