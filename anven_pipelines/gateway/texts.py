"""The gateway's side of its text log: hands texts to the process that redacts them, and keeps none itself.

Taking a text never waits. What nobody could redact in time is dropped and counted, and so is what a writer that died
had not written yet.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.gateway_text import said, spoken
from anven_pipelines.resources.redactor import MARGIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from anven_pipelines.domain.gateway_text import Kind

QUEUED: Final = 256
"""Most texts that wait to be redacted; each has at most some 300,000 characters."""

RESTART_S: Final = 5.0
"""How long a writer that died is not started again; twice as long after each that wrote nothing ..."""

MOST_DOUBLINGS: Final = 6
"""... up to so many times: 320 s."""

_COUNTS: Final = ("written", "failed", "dropped")
_LOOK_S: Final = 0.2

_log = logging.getLogger("anven.gateway")


class TextStatus(NamedTuple):
    """What became of the texts so far, and what keeps them from the disk."""

    written: int
    failed: int
    dropped: int
    waiting: int
    problem: str | None


class TextLog:
    """Takes the texts of one worker; a thread hands them over, a process redacts and writes them."""

    def __init__(
        self, folder: Path, *, worker: str, patterns: Mapping[str, Sequence[str]], total_bytes: int = 2**30
    ) -> None:
        """Start the thread, which starts the process.

        Args:
            folder: Made where it is missing, for its owner alone.
            worker: Name of the gateway's worker; part of the file names.
            patterns: Further regular expressions of each workload whose text is kept.
            total_bytes: Largest size of all segments in the folder; the oldest go.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        first = {"folder": str(folder), "worker": worker, "total_bytes": total_bytes}
        self._first = json.dumps({**first, "patterns": {name: list(each) for name, each in patterns.items()}})
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(QUEUED)
        self._dropped = 0
        self._problem: str | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # of the next two
        self._writer: _Writer | None = None
        self._ended: Counter[str] = Counter()  # what writers that died had told
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="anven-text-log", daemon=True)
        self._thread.start()

    def append(
        self,
        *,
        kind: Kind,
        ts: datetime,
        workload: str,
        request_id: str | None,
        messages: Sequence[object] | None,
        answer: Mapping[str, Any] | None,
    ) -> bool:
        """Take what was asked and answered, without waiting; return False where it is dropped as too many wait.

        Args:
            kind: Of its event.
            ts: Of its event.
            workload: One of those with patterns.
            request_id: Of its event.
            messages: As the application wrote them; None where another line has them.
            answer: OpenAI chat message; None where there was none.
        """
        kept, left_out = (None, 0) if messages is None else spoken(messages, beyond=MARGIN)
        replied, dropped = (None, 0) if answer is None else said(answer, beyond=MARGIN)
        known = {"kind": kind, "ts": ts.isoformat(), "workload": workload, "request_id": request_id}
        try:
            self._queue.put_nowait({**known, "messages": kept, "answer": replied, "left_out": left_out + dropped})
        except queue.Full:
            self._dropped += 1
            return False
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Hand over what waits and end the process; what is not written in this time is lost."""
        self._stopping.set()
        self._thread.join(timeout_s)
        writer = self._writer  # the thread, where it lives, may set another
        if writer is not None:
            if self._thread.is_alive():  # the writer takes nothing: closing its input would wait for that, too
                writer.process.kill()
            writer.end(timeout_s)

    @property
    def status(self) -> TextStatus:
        """What became of the texts so far."""
        with self._lock:
            writer, told = self._writer, self._ended.copy()
        if writer is not None:
            told.update(writer.counts)
        waiting = self._queue.qsize() + (writer.lost if writer else 0)
        problem = self._problem or (writer.told.get("problem") if writer else None)
        return TextStatus(told["written"], told["failed"], told["dropped"] + self._dropped, waiting, problem)

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty()):
            writer = self._writer
            if writer is None or writer.process.poll() is not None:
                self._replace(writer)
                continue
            try:
                record = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            writer.send(json.dumps(record, separators=(",", ":")))
        if self._writer is not None:
            self._writer.no_more()

    def _replace(self, dead: _Writer | None) -> None:
        """Start a writer, in place of one that died after a while: it may die again at once."""
        if dead is not None:
            dead.no_more()
            dead.heard.wait(RESTART_S)
            told = dead.told.get("problem")
            self._problem = told or f"the process that redacts ended with {dead.process.returncode}"
            self._forget(dead)
            _log.error("texts: %s; it is started again in %g s", self._problem, self._pause_s)
            if self._is_closed_meanwhile():
                return
        try:
            self._writer = _Writer(self._first)
        except OSError as error:
            self._problem = f"the process that redacts cannot be started: {error.strerror or error}"
            self._is_closed_meanwhile()
            return
        self._problem = None

    def _forget(self, dead: _Writer) -> None:
        """Keep what a writer that died had told, and nothing else of it."""
        counts = dead.counts
        self._failures = 0 if counts["written"] else self._failures
        counts["dropped"] += dead.lost
        with self._lock:
            self._ended.update(counts)
            self._writer = None

    @property
    def _pause_s(self) -> float:
        return RESTART_S * 2.0 ** min(self._failures, MOST_DOUBLINGS)

    def _is_closed_meanwhile(self) -> bool:
        """Wait until a writer may be started again; return whether none is needed any more."""
        pause_s = self._pause_s
        self._failures += 1
        if not self._stopping.wait(pause_s):
            return False
        self._discard()
        return True

    def _discard(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
                self._dropped += 1


class _Writer:
    """One process that redacts, and what it told."""

    def __init__(self, first: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "anven_pipelines.gateway.text_writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.told: dict[str, Any] = {}
        self.heard = threading.Event()
        self._sent = 0
        threading.Thread(target=self._listen, name="anven-text-status", daemon=True).start()
        self._put(first)

    @property
    def lost(self) -> int:
        """Texts that were handed over and of which it has told nothing."""
        return max(0, self._sent - self.counts.total())

    @property
    def counts(self) -> Counter[str]:
        """What became of the texts of which it has told."""
        return Counter({name: self.told.get(name) or 0 for name in _COUNTS})

    def send(self, line: str) -> None:
        """Hand over a text; waits while the writer is busy."""
        self._sent += 1
        self._put(line)

    def no_more(self) -> None:
        """Say that nothing more comes."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def end(self, timeout_s: float) -> None:
        """Wait for its end, and kill it where that does not come in time."""
        self.no_more()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.heard.wait(timeout_s)

    def _put(self, line: str) -> None:
        if self.process.stdin is not None:
            with suppress(OSError, ValueError):  # it died: the loop notices
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()

    def _listen(self) -> None:
        if self.process.stdout is not None:
            with self.process.stdout as told:
                for line in told:
                    with suppress(ValueError):
                        self.told |= json.loads(line)
        self.heard.set()
