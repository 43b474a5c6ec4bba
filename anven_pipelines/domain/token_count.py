"""Tokens of a prompt or an answer: as a server counted them, else bytes in their place, so that a limit holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OTHER_TOKENIZER: Final = 1.5
"""Tokens of the target for one of the legacy model, at most: a smaller vocabulary cuts text finer."""


class TokenCount(NamedTuple):
    """Tokens of one answer.

    Attributes:
        sent: Of the prompt.
        written: Of the answer.
        computed: Whether any of them is not the server's count.
    """

    sent: int
    written: int
    computed: bool


def count_tokens(messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> TokenCount:
    """Return what an answer counts, each byte as one token where its server counts none.

    Zeros would hold no limit on tokens or money. Text has no more tokens than bytes; what is not in the text may have:
    reasoning that the server hides, an image that stands there as its URL, tools among the parameters.

    Args:
        messages: As they were sent.
        answer: A row of ANSWERS.
    """
    sent, written = answer["input_tokens"], answer["output_tokens"]
    return TokenCount(
        sent=_bytes(canonical_json(messages)) if sent is None else sent,
        written=_bytes((answer["output"] or "") + (answer["tool_calls"] or "")) if written is None else written,
        computed=bool(answer["tokens_computed"]) or sent is None or written is None,
    )


def most_tokens(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], *, per_byte: float) -> int:
    """Return a bound on the tokens of a prompt and its tools; an image that stands there as its URL may have more."""
    return math.ceil(per_byte * _bytes(canonical_json([messages, params.get("tools") or params.get("functions")])))


def tokens_per_byte(
    logged: Iterable[tuple[Sequence[Mapping[str, Any]], Mapping[str, Any], int | None]],
) -> float:
    """Return the most tokens that the target counts for a byte of prompts like these: 1 where nothing was counted.

    Args:
        logged: Messages, parameters and prompt tokens, counted by the legacy model's server, of each call.
    """
    shares = [
        tokens / most_tokens(messages, params, per_byte=1.0)
        for messages, params, tokens in logged
        if tokens is not None
    ]
    return min(1.0, OTHER_TOKENIZER * max(shares, default=1.0))


def spent_words(tokens: int, usd: float | None, *, computed: bool) -> str:
    """Say what was spent: `50 tokens, 0.0012 USD`, or what it is at most where tokens were not counted but computed."""
    told = f"{tokens:,} tokens" + ("" if usd is None else f", {usd:.4f} USD")
    return f"at most {told} (bytes where the server counts no tokens)" if computed else told


def _bytes(text: str) -> int:
    return len(text.encode())
