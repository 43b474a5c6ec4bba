"""Step records that MLflow does not have yet, on the local disk, where they outlive outages and killed processes.

Several processes share an outbox: a record is claimed by a lock on its own file before it is delivered.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anven_pipelines.domain.errors import CorruptArtifact
from anven_pipelines.domain.tracking import StepRecord
from anven_pipelines.resources.durable_folder import flush_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


class Outbox:
    """A folder of records that MLflow does not have yet, one immutable file each, oldest first."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made until the first record is kept."""
        self.folder = folder

    def keep(self, step: StepRecord) -> Path:
        """Write the record so that it outlives a crash; the same record twice is one file."""
        text = step.to_json().encode()
        path = self.folder / f"{round(step.started.timestamp() * 1000):013d}-{_fingerprint(text)}.json"
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".tmp", delete=False) as draft:
            draft.write(text)
            draft.flush()
            os.fsync(draft.fileno())
        Path(draft.name).replace(path)
        flush_folder(self.folder)
        return path

    def waiting(self) -> list[Path]:
        """List the records, oldest first."""
        return sorted(self.folder.glob("*.json"))

    @contextmanager
    def claim(self, path: Path, *, wait: bool) -> Iterator[bool]:
        """Hold a record for this process; False if another holds it, or has delivered it meanwhile.

        The lock is on the record's own file, so it ends with the process that holds it, however that ends.
        """
        try:
            record = path.open("rb+")  # NFS locks only what is open for writing
        except FileNotFoundError:
            yield False
            return
        with record:
            try:
                fcntl.flock(record, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield path.exists()

    def read(self, path: Path) -> StepRecord:
        """Read a record back.

        Raises:
            CorruptArtifact: the bytes are not those that were written, or not a record.
        """
        text = path.read_bytes()
        if not path.stem.endswith(_fingerprint(text)):
            message = f"{path} does not hold what was written; it was cut or changed, and its run cannot be filled in"
            raise CorruptArtifact(message)
        try:
            return StepRecord.from_json(text)
        except ValueError as error:
            message = f"{path} is no step record that this version reads: {error}"
            raise CorruptArtifact(message) from error

    def set_aside(self, path: Path) -> Path:
        """Move a record that can never be delivered to where nobody trips over it."""
        aside = self.folder / "set-aside" / path.name
        aside.parent.mkdir(exist_ok=True)
        return path.replace(aside)


def _fingerprint(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
