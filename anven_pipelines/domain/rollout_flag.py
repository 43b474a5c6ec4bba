"""Flags of domain experts: what somebody saw in production and wants looked at before more users get the target.

A flag is opened and closed by people, each with a reason, and stands in the rollout's log. It belongs to the workload
and not to an attempt: neither a roll back nor a new start closes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ID_DIGITS = 8


class Flag(NamedTuple):
    """One open flag."""

    id: str
    who: str
    reason: str
    at: datetime

    @property
    def words(self) -> str:
        """It in words."""
        return f"flag {self.id} of {self.who}, open since {self.at:%Y-%m-%d %H:%M} UTC: {self.reason}"


def flag_id(*told: str) -> str:
    """Return the id of a flag from all that tells it from others: short, as people type it."""
    return digest_of(list(told))[:_ID_DIGITS]


def flag_to_close(flags: tuple[Flag, ...], wanted: str | None) -> str:
    """Return the id of the flag that is meant: the wanted one, or the only one that is open.

    Raises:
        InvalidInput: no such flag is open, or several are and none is named.
    """
    opened = [flag.id for flag in flags]
    if wanted is None and len(opened) == 1:
        return opened[0]
    if wanted is None or wanted not in opened:
        found = "missing" if wanted is None else repr(wanted)
        message = f"flag is {found}; the id of an open flag is needed: {', '.join(opened) or 'none is open'}"
        raise InvalidInput(message)
    return wanted


def opened(flags: tuple[Flag, ...], payload: Mapping[str, Any], *, at: datetime) -> tuple[Flag, ...]:
    """Return the open flags after an event `flagged`."""
    if any(flag.id == payload["flag"] for flag in flags):
        return flags
    return (*flags, Flag(payload["flag"], payload["who"], payload["reason"], at))


def closed(flags: tuple[Flag, ...], payload: Mapping[str, Any]) -> tuple[Flag, ...]:
    """Return the open flags after an event `unflagged`; one that another person closed first is closed."""
    return tuple(flag for flag in flags if flag.id != payload["flag"])
