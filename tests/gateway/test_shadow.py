"""What mirrored requests ask, and what they may have cost."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.prompts import Call
from anven_pipelines.gateway.shadow_request import MOST_TOKENS, most_usd, shadow_request
from anven_pipelines.spec_values import Price

PRICE = Price(input_usd_per_million=1, output_usd_per_million=2, source="test")
MESSAGES = [{"role": "user", "content": "four"}]


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
