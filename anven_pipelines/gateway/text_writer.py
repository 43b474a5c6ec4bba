"""The process that redacts and writes a worker's texts: `python -m anven_pipelines.gateway.text_writer`.

It is one of its own because redaction computes in Python for milliseconds, in which no thread of the gateway's process
could serve a request. Texts come through its standard input, a pipe, and never touch a disk before they are redacted.
The first line says where and how; each further one is a text. It tells what became of them on its standard output,
and ends when its input does: a gateway that was killed loses nothing that it had handed over.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import RedactionFailed
from anven_pipelines.domain.gateway_text import TEXT_LIMIT, GatewayText, counted
from anven_pipelines.gateway.segments import LogLimits, Segments
from anven_pipelines.resources.redactor import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RECORD_SECONDS: Final = 4.0
"""Longest time for all texts of one request."""

NICENESS: Final = 10
_READ_BYTES: Final = 2**16
_LOOK_S: Final = 0.2
_RETRY_S: Final = 0.5
_LEAST_SEGMENTS: Final = 4


@dataclass
class Redaction:
    """The redaction of one request's texts."""

    redactor: Redactor
    until: float
    found: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def of(self, value: Any) -> Any:  # noqa: ANN401 - JSON
        """Return a JSON value with each of its strings redacted.

        Raises:
            RedactionFailed: one of them could not be, or there was no time for all.
        """
        if isinstance(value, dict):
            return {key: self.of(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.of(each) for each in value]
        if not isinstance(value, str):
            return value
        if time.monotonic() > self.until:
            message = "a request's texts took too long"
            raise RedactionFailed(message)
        redacted = self.redactor.redact(value, limit=TEXT_LIMIT)
        self.found.update(redacted.found)
        self.cut += redacted.is_cut
        return redacted.text


def redacted_text(record: Mapping[str, Any], redactor: Redactor, *, worker: str, seq: int) -> GatewayText:
    """Redact what the gateway handed over; where that fails, nothing of the text is in what is returned."""
    known: dict[str, Any] = {name: record[name] for name in ("kind", "workload", "request_id", "left_out")}
    known |= {"event_id": f"text-{worker}-{seq}", "worker": worker, "seq": seq}
    known["ts"] = datetime.fromisoformat(record["ts"])
    redaction = Redaction(redactor, time.monotonic() + RECORD_SECONDS)
    try:
        messages, answer = redaction.of(record["messages"]), redaction.of(record["answer"])
    except RedactionFailed as error:
        return GatewayText(**known, problem=str(error))
    return GatewayText(
        **known,
        messages=None if messages is None else json.dumps(messages, ensure_ascii=False),
        answer=None if answer is None else json.dumps(answer, ensure_ascii=False),
        found=counted(redaction.found),
        cut=redaction.cut,
    )


class Writer:
    """Redacts and writes line after line."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        """Load the redactors.

        Args:
            told: `folder`, `worker`, `total_bytes` and `patterns`, the further patterns of each workload.

        Raises:
            RedactionFailed: presidio-analyzer cannot be loaded.
        """
        self._redactors = {name: Redactor(patterns) for name, patterns in told["patterns"].items()}
        self._worker = f"{told['worker']}-{os.getpid()}"
        most = told["total_bytes"]
        # A ring: an answer whose text is gone has no score, and nothing else depends on one. Of so many segments that a
        # small one has a tail to lose.
        segment_bytes = min(LogLimits.segment_bytes, most // _LEAST_SEGMENTS)
        limits = LogLimits(segment_bytes=segment_bytes, total_bytes=most, mode=0o600, is_ring=True)
        self._segments = Segments(Path(told["folder"]), self._worker, limits)
        self._seq = 0
        self._failed = 0

    def write(self, line: bytes) -> None:
        """Redact and write one text; a disk that refuses is tried again for as long as the gateway lives."""
        record = json.loads(line)
        self._seq += 1
        text = redacted_text(record, self._redactors[record["workload"]], worker=self._worker, seq=self._seq)
        self._failed += text.problem is not None
        while not self._segments.write([text]):
            if not _tell(self.status):
                return
            time.sleep(_RETRY_S)

    def rest(self) -> None:
        """Do what is due with time."""
        self._segments.rest()

    def close(self) -> None:
        """Close the segment."""
        self._segments.close()

    @property
    def status(self) -> dict[str, Any]:
        """What became of the texts so far; a failed one is written too, without its text."""
        segments = self._segments
        return {
            "written": max(0, segments.written - self._failed),
            "failed": self._failed,
            "dropped": segments.dropped,
            "problem": segments.problem,
        }


def _lines(descriptor: int) -> Iterator[bytes | None]:
    """Yield each whole line, and None where none came for a while; a line without an end was not handed over."""
    buffer = bytearray()
    while True:
        ready, _, _ = select.select([descriptor], [], [], _LOOK_S)
        if not ready:
            yield None
            continue
        if not (data := os.read(descriptor, _READ_BYTES)):
            return
        buffer += data
        if b"\n" in data:
            *whole, buffer = buffer.split(b"\n")
            yield from map(bytes, whole)


def _tell(status: Mapping[str, Any]) -> bool:
    """Tell the gateway; False where it is gone."""
    try:
        os.write(1, json.dumps(status).encode() + b"\n")
    except OSError:
        return False
    return True


def run(descriptor: int) -> None:
    """Serve until the input ends."""
    lines = _lines(descriptor)
    first = next((line for line in lines if line), None)
    if first is None:
        return
    writer = Writer(json.loads(first))
    os.nice(NICENESS)  # loading is done
    told: dict[str, Any] | None = None
    for line in lines:
        if line:
            writer.write(line)
        writer.rest()
        if writer.status != told:
            told = writer.status
            _tell(told)
    writer.close()
    _tell(writer.status)


def main() -> int:
    """Serve, and return the exit status; what goes wrong is told by its name alone, as its words may quote a text."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they are for the gateway, whose end ends the input
        signal.signal(name, signal.SIG_IGN)
    gc.set_threshold(700, 10, 10)  # the gateway's own are off: gateway/collection.py
    try:
        run(sys.stdin.fileno())
    except RedactionFailed as error:
        _tell({"problem": str(error)})
        return 1
    except Exception as error:  # noqa: BLE001 - the traceback stays out of the gateway's log
        _tell({"problem": f"the process that redacts ended: {type(error).__name__}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
