"""A tamper-evident log: each event carries a hash over itself and all that came before.

The head, the last event's number and hash, is kept apart from the events, so that cutting off the end shows too.

What it protects against: an event that was altered, removed, inserted or moved, by a hand or by a fault.
What it does not: someone with write access who recomputes every later hash and the head. Against that, write
`Verification.head` down where they cannot reach, such as a signed dossier, and compare it later.

Source:
    Haber and Stornetta (1991), "How to time-stamp a digital document", J. Cryptology 3(2), linking scheme;
    the separate head follows the signed tree head of RFC 6962.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import canonical_json, digest_of
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LONGEST_NAME: Final = 500  # fits the unique index of every database


class Head(NamedTuple):
    """The last event's number and hash."""

    seq: int
    hash: str


GENESIS: Final = Head(0, "0" * 64)
"""Head of a log without events."""


@dataclass(frozen=True)
class Event:
    """One thing that happened. Time and payload are kept as the exact text that was hashed."""

    seq: int
    ts_text: str
    stream: str
    kind: str
    key: str
    payload_json: str
    prev_hash: str
    hash: str

    @property
    def ts(self) -> datetime:
        """When it happened, in UTC."""
        return datetime.fromisoformat(self.ts_text).astimezone(UTC)

    @property
    def payload(self) -> dict[str, Any]:
        """What happened."""
        loaded: dict[str, Any] = json.loads(self.payload_json)
        return loaded


class Verification(NamedTuple):
    """What a check of the whole log found."""

    events: int
    """Events whose place in the chain was confirmed."""
    head: str
    """Hash of the last confirmed event; worth writing down elsewhere."""
    broken_seq: int | None = None
    """Number of the first event that does not fit."""
    reason: str | None = None
    """Why it does not fit."""

    @property
    def ok(self) -> bool:
        """Whether every event and the head fit."""
        return self.reason is None


def chain_hash(prev: str, event: Event) -> str:
    """Return the SHA-256, in hex, over the previous hash and everything the event says."""
    return digest_of([prev, event.seq, event.ts_text, event.stream, event.kind, event.key, event.payload_json])


def follow(head: Head, *, stream: str, kind: str, key: str, payload: Mapping[str, Any], now: datetime) -> Event:
    """Return the event that comes after the head.

    Args:
        head: The last event's number and hash; `GENESIS` for the first.
        stream: What the event is about, such as `rollout/support-answers`.
        kind: What sort of event it is.
        key: Names the event within its stream, so that writing it twice changes nothing.
        payload: JSON without NaN.
        now: When it happened, with its time zone.

    Raises:
        InvalidInput: a name is empty, too long or unprintable, the payload is not JSON, or the time has no zone.
    """
    for field, value in (("stream", stream), ("kind", kind), ("key", key)):
        if not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
            message = f"the event's {field} is {value!r}; 1 to {_LONGEST_NAME} printable characters are needed"
            raise InvalidInput(message)
    if now.tzinfo is None:
        message = f"the event's time is {now.isoformat()} without a time zone; an aware datetime is needed"
        raise InvalidInput(message)
    draft = Event(
        seq=head.seq + 1,
        ts_text=now.astimezone(UTC).isoformat(timespec="microseconds"),
        stream=stream,
        kind=kind,
        key=key,
        payload_json=_payload_json(payload),
        prev_hash=head.hash,
        hash="",
    )
    return Event(**{**vars(draft), "hash": chain_hash(head.hash, draft)})


def verify_chain(events: Iterable[Event], head: Head | None) -> Verification:
    """Walk the log in the order of its numbers and find the first event that does not fit.

    Args:
        events: All events as stored, ordered by number.
        head: The head as stored; None where it is missing.
    """
    last = GENESIS
    for event in events:  # each hash needs the one before, so rows cannot be handled at once
        if reason := _misfit(last, event):
            return Verification(last.seq, last.hash, last.seq + 1, reason)
        last = Head(event.seq, event.hash)
    if head is None:
        return Verification(last.seq, last.hash, last.seq + 1, "the head is missing")
    if head != last:
        reason = f"the log ends at event {last.seq}, but its head names event {head.seq} and hash {head.hash}"
        return Verification(last.seq, last.hash, last.seq + 1, reason)
    return Verification(last.seq, last.hash)


def _payload_json(payload: Mapping[str, Any]) -> str:
    try:
        text = canonical_json(dict(payload))
        text.encode()
    except (TypeError, ValueError) as error:
        message = (
            f"the event's payload is not JSON ({error}); text, whole and finite numbers, lists and objects are needed"
        )
        raise InvalidInput(message) from error
    return text


def _misfit(last: Head, event: Event) -> str | None:
    """Say why the event cannot follow; None where it can."""
    if event.seq != last.seq + 1:
        return f"event {last.seq + 1} is missing; event {event.seq} stands in its place"
    if event.prev_hash != last.hash:
        return f"event {event.seq} does not follow the event before it"
    if not _hash_matches(last.hash, event):
        return f"event {event.seq} was altered: its content does not match its hash"
    return None


def _hash_matches(prev: str, event: Event) -> bool:
    """Compare without failing on what a damaged database may hold: bytes, numbers, broken text."""
    texts = (event.ts_text, event.stream, event.kind, event.key, event.payload_json)
    try:
        return all(isinstance(text, str) for text in texts) and event.hash == chain_hash(prev, event)
    except UnicodeEncodeError:
        return False
