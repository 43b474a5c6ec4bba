"""How what was found in an answer is compared with the ground truth."""

from __future__ import annotations

import json
import unicodedata
from typing import Final, Literal, NamedTuple

from anven_pipelines.domain.number_answer import is_close, number_of, only_number

# Only marks that end or enclose a sentence: not -, %, # or /, and no leading point, so that -5 is not 5, C# not C.
_LEADING: Final = " \"'`*_([{<«‹“”„‘’¿¡"  # noqa: RUF001 - typographic quotes are meant
_TRAILING: Final = " \"'`*_)]}>»›“”‘’.,;:!?…。"  # noqa: RUF001 - typographic quotes are meant


class Comparison(NamedTuple):
    """What counts as equal."""

    how: Literal["exact", "text", "number"]
    tolerance: float


def is_equal(found: object, ground_truth: str, comparison: Comparison) -> bool | None:
    """Compare a text or a JSON value with the ground truth; None where numbers are compared and it has none."""
    if comparison.how == "number":
        value, needed = number_of(found), only_number(ground_truth)
        return None if value is None or needed is None else is_close(value, needed, comparison.tolerance)
    form = normalised if comparison.how == "text" else str
    return form(_as_text(found)) == form(_same_layout(ground_truth, found))


def normalised(text: str) -> str:
    """Reduce a text to what counts in a comparison: Unicode NFKC, no case, single spaces, no edge punctuation.

    A text of nothing but punctuation stays, so that `?` does not equal `!`.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = " ".join(folded.split())
    return spaced.lstrip(_LEADING).rstrip(_TRAILING) or spaced


def _as_text(value: object) -> str:
    """Write a JSON value as text: a string as it is, anything else as canonical JSON, in which a NaN may stay."""
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    )


def _same_layout(ground_truth: str, found: object) -> str:
    """Write the ground truth of a list or object as canonical JSON, so that layout and key order do not count."""
    if not isinstance(found, dict | list):
        return ground_truth
    try:
        return _as_text(json.loads(ground_truth))
    except (ValueError, RecursionError):
        return ground_truth
