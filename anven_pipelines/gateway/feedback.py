"""Tells the same feedback that is delivered again from a mind that was changed."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

REPEAT_S: Final = 10.0
"""The same words on the same request, without a key, are a repeated delivery for so long after the last time."""

OUTCOME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""What an outcome may be: a name. A sentence may hold what nobody redacted."""

_REMEMBERED: Final = 100_000
_V = TypeVar("_V")


class Said(NamedTuple):
    """What a feedback says."""

    score: float | None
    outcome: str | None
    safe: bool | None


class _Last(NamedTuple):
    said: Said
    event_id: str
    at_s: float


class FeedbackId(NamedTuple):
    """The id of a feedback's event, and whether this worker has given it before."""

    event_id: str
    is_repeat: bool


class FeedbackIds:
    """Gives each feedback the id of its event; a repeated delivery has that of the first, and is ingested once."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._last: OrderedDict[str, _Last] = OrderedDict()
        self._keyed: OrderedDict[str, None] = OrderedDict()

    def id_of(self, request_id: str, said: Said, *, key: str | None, now_s: float) -> FeedbackId:
        """Return the id of a feedback.

        Up, down and up again are three, also within seconds: only what was said last can be repeated.

        Args:
            request_id: The request that it is about.
            said: What it says.
            key: Idempotency key of the client; all deliveries with it are one, in every worker and after a restart.
            now_s: Monotonic time.
        """
        if key is not None:
            event_id = f"feedback-{uuid.uuid5(uuid.NAMESPACE_OID, repr((request_id, key))).hex}"
            is_repeat = event_id in self._keyed
            _hold(self._keyed, event_id, None)
            if not is_repeat:
                self._last.pop(request_id, None)  # what was said without a key is no longer the last
            return FeedbackId(event_id, is_repeat)
        last = self._last.pop(request_id, None)
        is_repeat = last is not None and last.said == said and now_s - last.at_s <= REPEAT_S
        event_id = last.event_id if last is not None and is_repeat else f"feedback-{uuid.uuid4().hex}"
        _hold(self._last, request_id, _Last(said, event_id, now_s))
        return FeedbackId(event_id, is_repeat)


def _hold(held: OrderedDict[str, _V], name: str, value: _V) -> None:
    """Take in the newest, and let go of the oldest where there are too many."""
    held[name] = value
    held.move_to_end(name)
    if len(held) > _REMEMBERED:
        held.popitem(last=False)
