"""Append-only progress of long work: rows that were bought once are never bought again."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import polars as pl

from anven_pipelines.resources.durable_folder import path_name

if TYPE_CHECKING:
    from anven_pipelines.domain.table import Table
    from anven_pipelines.resources.durable_folder import DurableFolder

_log = logging.getLogger(__name__)


def parquet_of(frame: pl.DataFrame) -> bytes:
    """Return the frame as Parquet bytes, compressed with zstd."""
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


@dataclass(frozen=True)
class Checkpoint:
    """Rows of one unit of work, kept in small parts that are each atomic and durable.

    A part's name is the digest of its bytes. So appending the same rows again changes nothing, processes can
    append at the same time, and a part that a disk or a hand has damaged is known by its name. Rows that may
    legitimately repeat therefore need a column that tells them apart.
    """

    folder: DurableFolder
    path: str
    table: Table

    def append(self, frame: pl.DataFrame) -> None:
        """Keep the rows; when this returns, they survive a killed process and a power cut.

        Raises:
            UnavailableService: the rows could not be kept.
        """
        if not frame.is_empty():
            data = parquet_of(self.table.conform(frame))
            self.folder.write(f"{self.path}/{hashlib.sha256(data).hexdigest()}.parquet", data)

    def load(self) -> pl.DataFrame:
        """Return all rows kept so far with the table's schema, ordered by part name.

        A part that does not match its digest, or cannot be read as the table, is set aside with the suffix
        `.corrupt` and logged: its rows count as not done.
        """
        uris = [f"{self.path}/{name}" for name in self.folder.names(self.path) if name.endswith(".parquet")]
        frames = (self._rows(uri, data) for uri, data in sorted(self.folder.read_all(uris).items()))
        return pl.concat([self.table.empty(), *(frame for frame in frames if frame is not None)])

    def _rows(self, uri: str, data: bytes) -> pl.DataFrame | None:
        if hashlib.sha256(data).hexdigest() != uri.rsplit("/", 1)[-1].removesuffix(".parquet"):
            self._set_aside(uri, "its bytes do not match its digest")
            return None
        try:
            return self.table.conform(pl.read_parquet(BytesIO(data)))
        except pl.exceptions.PolarsError as error:
            self._set_aside(uri, f"it does not hold the table {self.table.name} ({error})")
            return None

    def _set_aside(self, uri: str, reason: str) -> None:
        self.folder.rename(uri, f"{uri}.corrupt")
        _log.warning("%s was set aside: %s; its rows will be done again", self.folder.location(uri), reason)


class Remembered:
    """A checkpoint that is read once: what this process appends it knows.

    Rows that another process appends meanwhile are not seen; they are asked for again and kept twice, which merging
    takes for one. Several threads may append at once.
    """

    def __init__(self, kept: Checkpoint) -> None:
        self._kept = kept
        self._rows: pl.DataFrame | None = None
        self._lock = threading.Lock()

    def append(self, frame: pl.DataFrame) -> None:
        """Keep the rows; when this returns, they are durable."""
        self._kept.append(frame)
        with self._lock:
            self._rows = pl.concat([self._known(), self._kept.table.conform(frame)])

    def load(self) -> pl.DataFrame:
        """Return all rows known so far."""
        with self._lock:
            return self._known()

    def _known(self) -> pl.DataFrame:
        if self._rows is None:
            self._rows = self._kept.load()
        return self._rows


def checkpoint(folder: DurableFolder, key: str, table: Table) -> Checkpoint:
    """Return the progress that a store keeps under a key, such as the digest of the work's inputs."""
    return Checkpoint(folder, f"checkpoints/{path_name(key)}", table)
