"""What the pods of a Job print: the workers' messages for the run's log, the rest for the step's own output.

Without `from __future__ import annotations`: Dagster reads the annotations of what it is given.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast

import dagster as dg
from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesDefaultMessageWriter, PipesMessage

from anven_pipelines.domain import job_status
from anven_pipelines.resources.kubernetes_api import KubernetesApi, LogLine

_OVERLAP_S: Final = 30


class _Printed(NamedTuple):
    """The last lines of a pod's output that were read, and when, by the monotonic clock."""

    lines: list[LogLine]
    read_at: float


class PodLogs(dg.PipesMessageReader):
    """Reads pods' output again and again, and passes each line on once."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._handler: dg.PipesMessageHandler | None = None
        self._opened = False
        self._read: dict[str, _Printed] = {}

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Tell the workers where to print their messages, and close the session for all of them at the end."""
        self._handler = handler
        try:
            yield {PipesDefaultMessageWriter.STDIO_KEY: PipesDefaultMessageWriter.STDERR}
        finally:
            if self._opened:  # several pods, and their restarts, each closed a session of their own
                handler.handle_message(cast("PipesMessage", {"method": "closed", "params": None}))

    def no_messages_debug_text(self) -> str:
        """Say where messages are looked for."""
        return "The messages are read from the logs of the Job's pods."

    def read(self, api: KubernetesApi, pod: Mapping[str, Any]) -> None:
        """Pass on what a pod has printed since the last reading.

        Raises:
            UnavailableService, InvalidInput: its output cannot be read.
        """
        if job_status.phase(pod) == "Pending":
            return
        uid, now = pod["metadata"]["uid"], time.monotonic()
        before = self._read.get(uid)
        # The age is by our own clock: what came after the last reading is younger, whatever the node's clock shows.
        since_s = None if before is None else int(now - before.read_at) + _OVERLAP_S
        lines = api.log(pod["metadata"]["name"], since_s=since_s)
        for line in lines[read_before(before.lines, lines) if before else 0 :]:
            self._take(line.text)
        if lines:
            self._read[uid] = _Printed(lines, now)

    def _take(self, line: str) -> None:
        message = _message_in(line)
        if message is None:
            print(line, flush=True)  # noqa: T201 - Dagster keeps the step's output
        elif self._handler is not None and message["method"] != "closed":
            self._opened = self._opened or message["method"] == "opened"
            self._handler.handle_message(message)


def read_before(before: Sequence[LogLine], lines: Sequence[LogLine]) -> int:
    """Return how many of the lines are no news: those up to the last known time, as many at that time as were known."""
    last = before[-1].at
    known_at_last = sum(line.at == last for line in before)
    here_at_last = sum(line.at == last for line in lines)
    return sum(line.at < last for line in lines) + min(known_at_last, here_at_last)


def _message_in(line: str) -> PipesMessage | None:
    if not line.startswith("{"):
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if isinstance(message, dict) and PIPES_PROTOCOL_VERSION_FIELD in message:
        return cast("PipesMessage", message)
    return None
