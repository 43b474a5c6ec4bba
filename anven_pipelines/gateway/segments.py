"""The files of the gateway's logs: append-only JSONL segments, one set per worker process, and the room they take.

A segment is `<worker>-<number>.jsonl.open` while it is written and `<worker>-<number>.jsonl` afterwards. A line counts
once its newline is there; what a killed writer leaves behind it is a torn tail, which no reader takes for an event. No
process appends to another's segment, so a torn tail never gets a line glued to it.

The folder stays below a bound: the oldest segments that were ingested go first, and where none is left new events
are dropped and counted. `seq` of the events shows each gap. Of a ring the oldest go, ingested or not.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from anven_pipelines.resources.durable_folder import flush_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPEN: Final = ".jsonl.open"
CLOSED: Final = ".jsonl"
INGESTED: Final = ".ingested"
"""Suffix of the file that says up to which byte a segment was ingested."""

ABANDONED_AFTER_S: Final = 3600.0
"""Age of the last write after which an open segment of another worker has no writer left."""

_log = logging.getLogger("anven.gateway")


@dataclass(frozen=True)
class LogLimits:
    """Bounds of the log.

    Attributes:
        segment_bytes: A segment is closed when it is larger ...
        segment_s: ... or older.
        total_bytes: Largest size of all segments in the folder.
        queued: Most events that wait to be written.
        sync_s: Longest time that a written event may wait for the disk.
        mode: Permissions of the segments.
        is_ring: Whether the oldest segments make room though nobody has ingested them.
    """

    segment_bytes: int = 8 * 2**20
    segment_s: float = 60.0
    total_bytes: int = 2**30
    queued: int = 50_000
    sync_s: float = 1.0
    mode: int = 0o640
    is_ring: bool = False


class Line(Protocol):
    """What can be written to a segment."""

    def to_line(self) -> bytes:
        """Write it as one line, its end included."""
        ...


class Segments:
    """The files of one worker; used by one thread alone."""

    def __init__(self, folder: Path, worker: str, limits: LogLimits) -> None:
        """Prepare the first segment, which is made with the first line."""
        self.written = 0
        self.dropped = 0
        self.problem: str | None = None
        self._folder = folder
        self._worker = worker
        self._limits = limits
        self._number = 0
        self._file: int | None = None
        self._path = folder
        self._size = 0
        self._opened_at = self._synced_at = time.monotonic()
        self._is_synced = True

    def write(self, events: Sequence[Line]) -> bool:
        """Append whole lines; return False where nothing of them could be kept and they should be tried again."""
        lines = b"".join(event.to_line() for event in events)
        try:
            if not self._has_room(len(lines)):
                self.dropped += len(events)
                return True
            self._append(lines)
        except OSError as error:
            self._note(f"cannot write to {self._folder}: {error.strerror or error}; events wait in memory")
            self._abandon()
            return False
        self.written += len(events)
        self._note(None)
        return True

    def sync(self) -> bool:
        """Bring what was written to the disk."""
        if self._file is None or self._is_synced:
            return True
        try:
            os.fsync(self._file)
        except OSError as error:
            self._note(f"cannot flush {self._path}: {error.strerror or error}")
            return False
        self._is_synced = True
        self._synced_at = time.monotonic()
        return True

    def rest(self) -> None:
        """Do what is due with time: flush, and close a segment that is old or large."""
        if self._file is None:
            return
        now = time.monotonic()
        if not self._is_synced and now - self._synced_at >= self._limits.sync_s:
            self.sync()
        if self._size >= self._limits.segment_bytes or now - self._opened_at >= self._limits.segment_s:
            self.close()

    def close(self) -> None:
        """Close the segment under its final name."""
        if self._file is None:
            return
        self.sync()
        file, self._file = self._file, None  # the descriptor is gone, whatever the system says of its closing
        try:
            os.close(file)
        except OSError as error:
            self._note(f"cannot close {self._path}: {error.strerror or error}; its last lines may be lost")
        with suppress(OSError):
            self._path.rename(self._path.with_name(self._path.name.removesuffix(OPEN) + CLOSED))
            flush_folder(self._folder)

    def _append(self, lines: bytes) -> None:
        if self._file is None:
            self._number += 1
            self._path = self._folder / f"{self._worker}-{self._number:06d}{OPEN}"
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, self._limits.mode)
            self._size, self._opened_at, self._synced_at = 0, time.monotonic(), time.monotonic()
            flush_folder(self._folder)
        done = 0
        while done < len(lines):  # a write may be cut short, by a full disk above all
            done += os.write(self._file, lines[done:])
        self._size += len(lines)
        if self._is_synced:
            self._is_synced, self._synced_at = False, time.monotonic()

    def _abandon(self) -> None:
        """Cut off what a failed write left and go on in a new segment: nothing may be glued to half a line."""
        if self._file is None:
            return
        with suppress(OSError):
            os.ftruncate(self._file, self._size)
        path, is_empty = self._path, self._size == 0
        self.close()
        if is_empty:  # each try makes one
            with suppress(OSError):
                path.with_name(stem_of(path) + CLOSED).unlink()

    def _has_room(self, more: int) -> bool:
        if self._file is not None and self._size + more <= self._limits.segment_bytes:
            return True  # looked at once per segment: the bound is kept to within one segment of each worker
        limits = self._limits
        if make_room(self._folder, more=limits.segment_bytes, total_bytes=limits.total_bytes, is_ring=limits.is_ring):
            return True
        held, do = ("are being written", "") if limits.is_ring else ("were not ingested", "ingest them, or ")
        self._note(
            f"{self._folder} holds {limits.total_bytes:,} bytes that {held}; what is new is dropped: "
            f"{do}give the log more room"
        )
        return False

    def _note(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            _log.error("event log: %s", problem)
        self.problem = problem


def make_room(folder: Path, *, more: int, total_bytes: int, is_ring: bool = False) -> bool:
    """Remove the oldest ingested segments, of a ring any, until so many more bytes fit; return whether they do."""
    sizes: dict[Path, tuple[float, int]] = {}
    for path in segments_in(folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            sizes[path] = (status.st_mtime, status.st_size)
    total = sum(size for _, size in sizes.values())
    for path, (changed, size) in sorted(sizes.items(), key=lambda each: each[1]):
        if total + more <= total_bytes:
            return True
        is_done = path.name.endswith(CLOSED) or time.time() - changed > ABANDONED_AFTER_S
        if is_done and (is_ring or ingested_bytes(path) >= size):
            path.unlink(missing_ok=True)
            mark_of(path).unlink(missing_ok=True)
            total -= size
    return total + more <= total_bytes


def segments_in(folder: Path) -> list[Path]:
    """Return every segment of every worker, by name; a segment is listed once, open or closed."""
    return sorted(path for path in folder.glob("*.jsonl*") if path.name.endswith((OPEN, CLOSED)))


def stem_of(path: Path) -> str:
    """Return a segment's name, the same before and after it is closed."""
    return path.name.removesuffix(OPEN).removesuffix(CLOSED)


def mark_of(path: Path) -> Path:
    """Return the file that says how much of a segment was ingested."""
    return path.with_name(stem_of(path) + INGESTED)


def ingested_bytes(path: Path) -> int:
    """Return up to which byte a segment was ingested; 0 where nobody has said so."""
    try:
        return int(mark_of(path).read_text())
    except (FileNotFoundError, ValueError):
        return 0
