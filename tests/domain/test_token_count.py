"""Tokens that a server counted stand as they are; where it counted none, bytes do, and it is said."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.token_count import TokenCount, count_tokens, spent_words

MESSAGES = [{"role": "user", "content": "h\u00e9"}]
BYTES = len('[{"content":"h..","role":"user"}]')
ANSWER = {"output": "\u00fc", "tool_calls": None, "input_tokens": 7, "output_tokens": 3, "tokens_computed": False}


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, TokenCount(7, 3, computed=False)),
        ({"input_tokens": 0, "output_tokens": 0}, TokenCount(0, 0, computed=False)),
        ({"input_tokens": None}, TokenCount(BYTES, 3, computed=True)),
        ({"output_tokens": None}, TokenCount(7, 2, computed=True)),
        ({"output_tokens": None, "output": None, "tool_calls": "[{}]"}, TokenCount(7, 4, computed=True)),
        ({"output_tokens": None, "output": None}, TokenCount(7, 0, computed=True)),
        ({"tokens_computed": True}, TokenCount(7, 3, computed=True)),
    ],
)
def test_bytes_stand_for_what_was_not_counted(change: dict[str, Any], count: TokenCount) -> None:
    assert count_tokens(MESSAGES, ANSWER | change) == count


def test_what_was_computed_is_told_as_at_most() -> None:
    assert spent_words(1200, None, computed=False) == "1,200 tokens"
    assert spent_words(1200, 0.5, computed=False) == "1,200 tokens, 0.5000 USD"
    told = "at most 1,200 tokens, 0.5000 USD (bytes where the server counts no tokens)"
    assert spent_words(1200, 0.5, computed=True) == told
