"""The gateway's event log: written off the request's path, by a thread of each worker process into its segments."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.gateway.segments import LogLimits, Segments

if TYPE_CHECKING:
    from pathlib import Path

    from anven_pipelines.domain.gateway_event import GatewayEvent

_BATCH: Final = 500
_IDLE_S: Final = 0.1
_RETRY_S: Final = 0.5


class LogStatus(NamedTuple):
    """What became of the events so far, and what keeps them from the disk."""

    written: int
    dropped: int
    waiting: int
    problem: str | None


class EventLog:
    """Takes events of one worker at once and writes them in a thread of its own."""

    def __init__(self, folder: Path, *, worker: str, limits: LogLimits | None = None) -> None:
        """Open the log; the first segment is made with the first event.

        Args:
            folder: Made where it is missing.
            worker: Name of this process, never used by another; part of the file names.
            limits: Bounds.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._limits = limits or LogLimits()
        self._queue: queue.Queue[GatewayEvent | threading.Event] = queue.Queue(self._limits.queued)
        self._segments = Segments(folder, worker, self._limits)
        self._dropped = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="anven-event-log", daemon=True)
        self._thread.start()

    def append(self, event: GatewayEvent) -> bool:
        """Take an event without waiting; return False where it is dropped because too many wait."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._dropped += 1
            return False
        return True

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was taken is on the disk; return False where that did not come about in time."""
        reached = threading.Event()
        try:
            self._queue.put(reached, timeout=timeout_s)
        except queue.Full:
            return False
        return reached.wait(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, close the segment and end the thread."""
        self._stopping.set()
        self._thread.join(timeout_s)

    @property
    def status(self) -> LogStatus:
        """What became of the events so far."""
        segments = self._segments
        return LogStatus(segments.written, self._dropped + segments.dropped, self._queue.qsize(), segments.problem)

    def _run(self) -> None:
        pending: list[GatewayEvent] = []
        waiting: list[threading.Event] = []
        while True:
            self._take(pending, waiting)
            if pending and self._segments.write(pending):
                pending = []
            if not pending and waiting and self._segments.sync():
                for reached in waiting:
                    reached.set()
                waiting = []
            self._segments.rest()
            if self._stopping.is_set() and (self._queue.empty() or pending):
                self._segments.dropped += len(pending)
                self._segments.close()
                return
            if pending:  # the disk refuses: events gather in the queue, and when it is full they are dropped
                self._stopping.wait(_RETRY_S)

    def _take(self, pending: list[GatewayEvent], waiting: list[threading.Event]) -> None:
        block = not pending and not self._stopping.is_set()
        with suppress(queue.Empty):
            while len(pending) < _BATCH:
                each = self._queue.get(block=block, timeout=_IDLE_S)
                block = False
                if isinstance(each, threading.Event):
                    waiting.append(each)
                    return  # what came after it is not waited for
                pending.append(each)
