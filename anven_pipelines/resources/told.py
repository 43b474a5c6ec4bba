"""How far a receiver of the audit log has been told: a small file each, its waits after failures, and its lock.

The log itself is the outbox. The file is written after each delivery, so that a kill in between delivers twice, which
every receiver can tell: by a notice's id, or by what an MLflow run holds already.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import UnavailableService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST_WAIT: Final = timedelta(seconds=15)
"""Wait after a failure; it doubles with each further one ..."""
LONGEST_WAIT: Final = timedelta(hours=1)
"""... up to this."""


@dataclass(frozen=True)
class Told:
    """How a receiver fares.

    Attributes:
        seq: Number of the last event that it was told, or that is not for it.
        failures: In a row.
        next_at: When it is tried again; None at once.
        problem: The last failure; None after a success.
        dropped: Notices that it never got.
    """

    seq: int
    failures: int = 0
    next_at: str | None = None
    problem: str | None = None
    dropped: int = 0

    def is_due(self, now: datetime) -> bool:
        """Return whether it may be tried now; a wait that no failure gives is of another clock."""
        if self.next_at is None:
            return True
        left = datetime.fromisoformat(self.next_at) - now
        return left <= timedelta(0) or left > LONGEST_WAIT

    def failed(self, problem: str, *, now: datetime) -> Told:
        """Return how it fares after one more failure."""
        wait = min(FIRST_WAIT * 2 ** min(self.failures, 20), LONGEST_WAIT)
        return replace(self, failures=self.failures + 1, problem=problem, next_at=(now + wait).isoformat())

    def to_bytes(self) -> bytes:
        """Write it for a file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, text: bytes | None) -> Told | None:
        """Read what `to_bytes` wrote; None for no file, and for a damaged one, whose receiver is told anew."""
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Let one process at a time tell a receiver; False where another is at it.

    Raises:
        UnavailableService: the lock's file cannot be opened, so that nobody can be told.
    """
    try:
        lock = path.open("w")
    except OSError as error:
        message = f"{path} cannot be locked ({error.strerror}), so nothing is delivered; whoever delivers writes there"
        raise UnavailableService(message) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
