"""The event log from which all state is derived, as a Dagster resource."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from anven_pipelines.domain.events import Event, Verification
    from anven_pipelines.resources.event_database import EventDatabase


class StateStore(dg.ConfigurableResource[None]):
    """Appends events, reads them back and verifies that none was tampered with."""

    url: str = Field(
        description="SQLAlchemy URL: sqlite:///.anven/state.db or postgresql+psycopg2://host/database.", repr=False
    )

    def append(self, *, stream: str, kind: str, key: str, payload: Mapping[str, Any], now: datetime) -> Event:
        """Add an event to the end of the log; it is durable when this returns.

        Idempotent: the same key with the same kind and payload returns the event that stands already.

        Raises:
            InvalidInput: the event cannot be written, or its key stands in the stream with other content.
            TamperedLog: the log's head was removed.
            UnavailableService: the database cannot be reached.
        """
        return self._database.append(stream=stream, kind=kind, key=key, payload=payload, now=now)

    def events(self, stream: str | None = None, kind: str | None = None) -> list[Event]:
        """Return the events of a stream and kind (all where None), oldest first."""
        return self._database.events(stream, kind)

    def events_under(self, prefix: str) -> list[Event]:
        """Return the events of all streams whose name begins so, oldest first."""
        return self._database.events_under(prefix)

    def latest(self, stream: str, kind: str | None = None) -> Event | None:
        """Return the newest event of a stream and kind; None where there is none."""
        return self._database.latest(stream, kind)

    def verify(self) -> Verification:
        """Check every event and the head against the hash chain, as of one moment."""
        return self._database.verify()

    def require_intact(self) -> None:
        """Verify the log before anything is decided on it or added to it.

        Raises:
            TamperedLog: an event or the head is not what was appended.
            UnavailableService: the database cannot be reached.
        """
        self._database.require_intact()

    @cached_property
    def _database(self) -> EventDatabase:
        # SQLAlchemy takes 0.2 s to import, which loading the code location need not.
        from anven_pipelines.resources.event_database import EventDatabase  # noqa: PLC0415 - see above

        return EventDatabase(self.url)
