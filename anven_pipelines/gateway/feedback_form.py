"""Reads a feedback as it comes over the wire; whatever is wrong with it is told at once, in one error."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from anven_pipelines.gateway.feedback import OUTCOME, Said
from anven_pipelines.gateway.refusals import Refusal, body_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_ID: Final = 256
"""Longest request id, in characters: of LiteLLM's `MAX_LITELLM_CALL_ID_LENGTH` (1.106.2), as clients choose theirs."""

_LONGEST_KEY: Final = 200
_ID: Final = re.compile(rf"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]{{1,{LONGEST_ID}}}")
"""All that a header can carry as an id, and so all that LiteLLM takes for one, such as a space that does not break."""


class Feedback(NamedTuple):
    """What a user or a program says of an answer."""

    request_id: str
    """`x-litellm-call-id` of the answer."""
    said: Said
    key: str | None
    """Idempotency key."""


def read_feedback(body: bytes, *, key: str | None) -> Feedback | Refusal:
    """Return a feedback, or why it is none: 400 for a body that is no JSON object, 422 for what such a one says.

    Args:
        body: Of the request.
        key: Its header `Idempotency-Key`.
    """
    if refusal := body_refusal(body):
        return refusal
    try:
        document = json.loads(body, object_pairs_hook=_without_duplicates, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of JSON and UTF-8: ValueErrors
        return Refusal(400, f"the body is no JSON object: {error}", "invalid_json")
    problems = {name: f"{name} is unknown; known are {', '.join(_FIELDS)}" for name in document if name not in _FIELDS}
    for name, (fits, needed) in _FIELDS.items():
        value = document.get(name)
        if not fits(value) and (value is not None or name == "request_id"):
            problems[name] = f"{name} is {_shown(value) if name in document else 'missing'}; {needed} is needed"
    if key is not None and not (key.isprintable() and 1 <= len(key) <= _LONGEST_KEY):
        told = f"{len(key)} characters; 1 to {_LONGEST_KEY} printable ones are needed"
        problems["Idempotency-Key"] = f"Idempotency-Key has {told}"
    said = Said(document.get("score"), document.get("outcome"), document.get("safe"))
    if not problems and said == Said(None, None, None):
        problems["score"] = "nothing is said of the answer; at least one of score, outcome and safe is needed"
    if problems:
        return Refusal(422, "; ".join(problems.values()), "invalid_feedback", next(iter(problems)))
    score = None if said.score is None else float(said.score)
    return Feedback(document["request_id"], said._replace(score=score), key)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_outcome(value: object) -> bool:
    return isinstance(value, str) and OUTCOME.fullmatch(value) is not None


def _is_safe(value: object) -> bool:
    return isinstance(value, bool)


_FIELDS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "request_id": (_is_id, f"the answer's x-litellm-call-id, a text of 1 to {LONGEST_ID} characters, none of control,"),
    "score": (_is_score, "a number from 0 (worst) to 1 (best)"),
    "outcome": (_is_outcome, "a name of at most 64 letters, digits and _ . : -, such as resolved,"),
    "safe": (_is_safe, "true or false"),
}
"""What each field may be, and how that is said."""


def _shown(value: object) -> str:
    """Return what a value is; a text only by its length, as nobody has redacted it."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return "beyond what a number can be"
    return json.dumps(value)[:40]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "a name stands there twice"
        raise ValueError(message)
    return found


def _no_number(constant: str) -> NoReturn:
    message = f"{constant} is no number of JSON's"
    raise ValueError(message)
