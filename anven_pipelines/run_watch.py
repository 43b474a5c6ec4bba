"""Follows a run's event log while it runs and tells what happens."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

STARTED: Final = "started"
DONE: Final = "done"
_INTERVAL_S: Final = 0.25
_NO_NEWS: Final = (
    "Dependencies for step",  # of each step behind a failed one, which has been told already
    "[pipes]",  # Dagster on how it was spoken to by a worker, whose end our own error tells
)


class Told(NamedTuple):
    """Something that happened while a run went on."""

    step: str
    text: str
    warning: bool = False


class RunWatch:
    """Polls the event log of one run from a thread; everything written is told before it closes."""

    def __init__(self, instance: dg.DagsterInstance, tell: Callable[[Told], None]) -> None:
        """Choose the run's id.

        Args:
            instance: Whose event log is read.
            tell: Is called from the watching thread, and at last from the one that closes. What it raises an OSError on
                is told again at the next look; the last look raises.
        """
        self.run_id = str(uuid.uuid4())
        self._instance = instance
        self._tell = tell
        self._cursor: str | None = None
        self._untold: deque[dg.EventLogEntry] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the rest and stop."""
        self._stop.set()
        self._thread.join()
        self._tell_new()

    def _follow(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            # The log cannot be read now or nothing be told, as on a full disk: the next look does it, the last raises.
            with suppress(OSError, SQLAlchemyError):
                self._tell_new()

    def _tell_new(self) -> None:
        connection = self._instance.get_records_for_run(self.run_id, cursor=self._cursor)
        self._cursor = connection.cursor
        self._untold.extend(record.event_log_entry for record in connection.records)
        while self._untold:
            self._tell_entry(self._untold[0])
            self._untold.popleft()

    def _tell_entry(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        step = entry.step_key or ""
        if event is None and (entry.user_message.startswith(_NO_NEWS) or int(entry.level) < logging.INFO):
            return
        if event is None:
            self._tell(Told(step, entry.user_message, warning=int(entry.level) >= logging.WARNING))
        elif event.event_type == dg.DagsterEventType.STEP_START:
            self._tell(Told(step, STARTED))
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            self._tell(Told(step, DONE))
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                self._tell(Told(step, f"check {check.check_name} failed: {check.description}", warning=True))
