"""What a judge model is given for each item, and the table of what it found.

An item that cannot be judged still stands in the list: the judge resource answers it with a reason.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.grading import Grade

JUDGED: Final = pl.Schema({"item_id": pl.String, "score": pl.Float64, "reason": pl.String})


class JudgeItem(NamedTuple):
    """One answer to judge."""

    item_id: str
    question: str | None
    """The last user message; None where there is none."""
    contexts: tuple[str, ...]
    """The passages the answer must rest on; empty where none was logged."""
    response: str
    """The answer; empty where the model gave an empty one."""


def judge_items(answers: pl.DataFrame, golden: pl.DataFrame) -> list[JudgeItem]:
    """Build the judge's items for one arm; an item without an answer is left out, there is nothing to judge.

    Args:
        answers: Columns item_id, status, output.
        golden: Columns id, source_prompt, input_context.
    """
    answered = answers.filter(pl.col("status") == "answered").select("item_id", "output")
    rows = golden.select(pl.col("id").alias("item_id"), "source_prompt", "input_context").join(
        answered, on="item_id", how="inner", validate="1:1", maintain_order="left"
    )
    return [
        JudgeItem(item_id, question_of(prompt), contexts_of(context), output or "")
        for item_id, prompt, context, output in rows.iter_rows()  # a loop: nested JSON, before calls of seconds
    ]


def judged_frame(items: Sequence[JudgeItem], grades: Sequence[Grade]) -> pl.DataFrame:
    """Put the judge's grades into the table that `grade_rows` takes."""
    rows = [(item.item_id, given.score, given.reason) for item, given in zip(items, grades, strict=True)]
    return pl.DataFrame(rows, schema=JUDGED, orient="row")


def question_of(source_prompt: str | None) -> str | None:
    """Return the text of the last user message; None where there is none."""
    messages = _parsed(source_prompt)
    if not isinstance(messages, list):
        return None
    asked = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    text = _text_of(asked[-1].get("content")) if asked else ""
    return text if text.strip() else None


def contexts_of(input_context: str | None) -> tuple[str, ...]:
    """Return the passages of a logged context.

    A list gives one passage per element, anything else is one passage. A string stands for itself, an object for
    its `text` or `content`, else for its JSON. A context that is not JSON is one passage of plain text.
    """
    if input_context is None:
        return ()
    parsed = _parsed(input_context, otherwise=input_context)
    passages = parsed if isinstance(parsed, list) else [parsed]
    return tuple(text for text in map(_passage, passages) if text.strip())


def _passage(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case {"text": str(text)} | {"content": str(text)}:
            return text
        case _:
            return canonical_json(value)


def _text_of(content: object) -> str:
    """Return a message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""


def _parsed(text: str | None, *, otherwise: object = None) -> Any:  # noqa: ANN401 - JSON is any of its types
    """Read JSON; `otherwise` stands for what is not JSON."""
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return otherwise
