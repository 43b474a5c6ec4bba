"""Tokens of an answer: as its server counted them, else bytes in their place, so that a limit holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.domain.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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


def spent_words(tokens: int, usd: float | None, *, computed: bool) -> str:
    """Say what was spent: `50 tokens, 0.0012 USD`, or what it is at most where tokens were not counted but computed."""
    told = f"{tokens:,} tokens" + ("" if usd is None else f", {usd:.4f} USD")
    return f"at most {told} (bytes where the server counts no tokens)" if computed else told


def _bytes(text: str) -> int:
    return len(text.encode())
