"""Follows a run's event log while it runs and tells what happens."""

from __future__ import annotations

import logging
import threading
import uuid
from typing import TYPE_CHECKING, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_INTERVAL_S: Final = 0.25


class RunWatch:
    """Polls the event log of one run from a thread; everything written is told before it closes."""

    def __init__(self, instance: dg.DagsterInstance, tell: Callable[[str, str, bool], None]) -> None:
        """Choose the run's id; `tell` gets the step, the text and whether it is a warning."""
        self.run_id = str(uuid.uuid4())
        self._instance = instance
        self._tell = tell
        self._cursor: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> RunWatch:
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
            self._tell_new()

    def _tell_new(self) -> None:
        connection = self._instance.get_records_for_run(self.run_id, cursor=self._cursor)
        self._cursor = connection.cursor
        for record in connection.records:
            self._tell_entry(record.event_log_entry)

    def _tell_entry(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        step = entry.step_key or ""
        if event is None:
            self._tell(step, entry.user_message, entry.level >= logging.WARNING)
        elif event.event_type == dg.DagsterEventType.STEP_START:
            self._tell(step, "started", False)
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            self._tell(step, "done", False)
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                self._tell(step, f"check {check.check_name} failed: {check.description}", True)
