"""How long a machine has been up: what tells real time from a clock that somebody set."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Uptime(NamedTuple):
    """A moment of one machine since it was started; no clock that is set moves it.

    Attributes:
        boot: Names the start of the machine; moments of two starts cannot be compared.
        seconds: Since that start, time asleep included.
    """

    boot: str
    seconds: float

    def since(self, earlier: Uptime | None) -> timedelta | None:
        """Return the time that has gone by since an earlier moment; None where it was of another start or unknown."""
        if earlier is None or earlier.boot != self.boot:
            return None
        return timedelta(seconds=self.seconds - earlier.seconds)

    def written(self) -> dict[str, Any]:
        """Return the moment as a part of an event's payload; `uptime_in` reads it."""
        return {"uptime": {"boot": self.boot, "seconds": self.seconds}}


def uptime_in(payload: Mapping[str, Any]) -> Uptime | None:
    """Return the moment that an event's payload tells; None where it tells none."""
    told = payload.get("uptime")
    return None if told is None else Uptime(told["boot"], told["seconds"])
