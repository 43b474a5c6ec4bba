"""Notices of rollouts, as a Dagster resource: who has been told what, and the delivery of the rest.

The outbox is the audit log itself: every change stands there before the gateway hears of it, so that no kill between a
change and its notice loses one, and no step ever waits for a receiver. Of each receiver a small file says up to which
event it was told, and how it fares; it is written after each delivery, so that a kill in between tells it twice, under
the same id.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from pydantic import Field, TypeAdapter, ValidationError

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import AnvenError, UnknownWorkload
from anven_pipelines.domain.notice import hold_stream, notices_of
from anven_pipelines.domain.rollout_status import status_of, stream_of
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.notice_delivery import LONGEST_S, Unwanted, name_of, send
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.resources.told import Told, claimed
from anven_pipelines.spec_notify import Receiver

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.notice import Notice

MOST_WAITING: Final = 100
"""Notices that wait for a receiver at most; of more the oldest are dropped, and counted."""
DELIVER_S: Final = 30.0
"""Longest time that one delivery goes on sending to a receiver that answers."""
TOLD_OF: Final = timedelta(days=1)
"""A receiver that is new is told what happened in this time."""
DEAD_AFTER: Final = 5
"""Failures in a row after which a receiver is called dead; it is tried on."""
UNWANTED_AFTER: Final = 3
"""Refusals after which a notice that the receiver itself does not take is dropped."""

_RECEIVERS: Final[TypeAdapter[list[Receiver]]] = TypeAdapter(list[Receiver])


class Notices(dg.ConfigurableResource[None]):
    """Tells receivers of rollouts, each at its own pace."""

    state: StateStore
    migrations: Migrations
    folder: str = Field(description="Where it stands who was told what; whoever delivers shares it.")

    def is_due(self, workload: str, *, now: datetime) -> bool:
        """Return whether a delivery has something to do; a receiver that is new is taken down.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        events = self._events(workload)
        return any(
            self._waiting(workload, receiver, told, events)[0] and told.is_due(now)
            for receiver, told in self._told(workload, events, now=now)
        )

    def deliver(self, workload: str, *, now: datetime) -> list[dict[str, Any]]:
        """Send what waits, to all receivers at the same time; return what `report` does.

        It takes at most a minute, whatever the receivers do.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        events, problems = self._events(workload), dict[str, str]()

        def tell(receiver: Receiver) -> None:
            try:
                self._deliver_to(workload, receiver, events, now)
            except (AnvenError, OSError) as error:  # it cannot be written down how the receiver fares
                problems[_file(receiver)] = str(error)

        threads = [
            threading.Thread(target=tell, args=(receiver,), daemon=True)
            for receiver, told in self._told(workload, events, now=now)
            if told.is_due(now)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + DELIVER_S + 2 * LONGEST_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self._report(workload, problems, now=now)

    def report(self, workload: str, *, now: datetime) -> list[dict[str, Any]]:
        """Return of each receiver: its name, what waits for it, what it never got, and why it cannot be told.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        return self._report(workload, {}, now=now)

    def _report(self, workload: str, problems: dict[str, str], *, now: datetime) -> list[dict[str, Any]]:
        events = self._events(workload)
        return [
            {
                "receiver": name_of(receiver),
                "waiting": len(self._waiting(workload, receiver, told, events)[0]),
                "dropped": told.dropped,
                "failures": told.failures,
                "problem": problems.get(_file(receiver), told.problem),
                "next_at": told.next_at,
                "dead": told.failures >= DEAD_AFTER,
            }
            for receiver, told in self._told(workload, events, now=now)
        ]

    def _deliver_to(self, workload: str, receiver: Receiver, events: list[Event], now: datetime) -> None:
        """Send a receiver what waits for it, in order, until one fails or the time is over."""
        begun = time.monotonic()
        with self._claim(workload, receiver) as is_mine:
            told = self._read(workload, receiver) if is_mine else None
            if told is None:
                return
            waiting, dropped = self._waiting(workload, receiver, told, events)
            told = replace(told, dropped=told.dropped + dropped)
            if waiting:
                # Where it cannot be written that a notice was sent, none is: it would be sent again and again.
                told = replace(told, seq=waiting[0].seq - 1)
                self._write(workload, receiver, told)
            for notice in waiting:
                if time.monotonic() - begun > DELIVER_S:
                    break
                told = _tried(receiver, notice, told, now=now)
                self._write(workload, receiver, told)
                if told.failures:
                    return

    def _waiting(self, workload: str, receiver: Receiver, told: Told, events: list[Event]) -> tuple[list[Notice], int]:
        """Return the notices that wait for a receiver, and how many are dropped because there are too many."""
        if not events or events[-1].seq <= told.seq:
            return [], 0
        wanted = [
            notice
            for notice in notices_of(workload, events, after=told.seq)
            if receiver.only is None or notice.change in receiver.only
        ]
        return wanted[-MOST_WAITING:], max(0, len(wanted) - MOST_WAITING)

    def _events(self, workload: str) -> list[Event]:
        """Return what happened to a rollout and what held it, in the order of the log."""
        events = [*self.state.events(stream_of(workload)), *self.state.events(hold_stream(workload))]
        return sorted(events, key=lambda event: event.seq)

    def _told(self, workload: str, events: list[Event], *, now: datetime) -> list[tuple[Receiver, Told]]:
        """Return each receiver and how it fares."""
        found = []
        for receiver in self._receivers(workload):
            told = self._read(workload, receiver)
            if told is None:
                told = Told(max((event.seq for event in events if event.ts < now - TOLD_OF), default=0))
                self._write(workload, receiver, told)
            found.append((receiver, told))
        return found

    def _receivers(self, workload: str) -> list[Receiver]:
        """Return who is told: as the file says, and where it is gone or broken as it said when the attempt began."""
        try:
            return list(self.migrations.of(workload).migration.rollout.notify)
        except UnknownWorkload:
            planned = status_of(self.state.events(stream_of(workload))).planned or {}
        try:
            return _RECEIVERS.validate_python(planned.get("rollout", {}).get("notify", []))
        except ValidationError:
            return []  # another release wrote it

    def _read(self, workload: str, receiver: Receiver) -> Told | None:
        return Told.from_bytes(self._files(workload).read(_file(receiver)))

    def _write(self, workload: str, receiver: Receiver, told: Told) -> None:
        self._files(workload).write(_file(receiver), told.to_bytes())

    def _files(self, workload: str) -> DurableFolder:
        return DurableFolder(str(Path(self.folder) / workload), {})

    def _claim(self, workload: str, receiver: Receiver) -> AbstractContextManager[bool]:
        return claimed(Path(self.folder) / workload / f".{_file(receiver)}.lock")


def _tried(receiver: Receiver, notice: Notice, told: Told, *, now: datetime) -> Told:
    """Send a notice; return how the receiver fares then."""
    try:
        send(receiver, notice)
    except Unwanted as error:
        if told.failures + 1 >= UNWANTED_AFTER:
            return Told(notice.seq, dropped=told.dropped + 1)
        return told.failed(str(error), now=now)
    except AnvenError as error:
        return told.failed(str(error), now=now)
    return Told(notice.seq, dropped=told.dropped)


def _file(receiver: Receiver) -> str:
    return f"{receiver.kind}-{digest_of(receiver.model_dump(mode='json'))[:16]}.json"
