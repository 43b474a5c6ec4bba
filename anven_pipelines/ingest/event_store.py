"""Takes the gateway's event log in: every whole line once, whatever is killed when.

What was read lies as Parquet parts beside a manifest, which names the parts and, for each segment, the byte up to
which it was read. The manifest is replaced in one step after a part is written, so rows and progress never disagree:
a part that a killed ingestion left behind stands in no manifest, and its lines are read again. Merging parts
(`event_parts.py`) is the same step: those that were merged leave the manifest as the new one enters it.
"""

from __future__ import annotations

import fcntl
import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.errors import CorruptArtifact, UnavailableService
from anven_pipelines.ingest.event_parts import SUFFIX, due_merge, new_name, rows_of, scan, to_parquet, within
from anven_pipelines.ingest.gateway_events import EVENTS, read_batch
from anven_pipelines.ingest.segment_marks import mark_ingested
from anven_pipelines.resources.durable_folder import DurableFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anven_pipelines.ingest.event_parts import Merge
    from anven_pipelines.ingest.gateway_events import BadLine, Batch, Stream

MANIFEST: Final = "gateway_events.json"

LOCK_S: Final = 5.0
"""Longest wait for another process's ingestion; one that was stopped may hold the store's lock for ever."""
_LOCK_EVERY_S: Final = 0.05


class Ingested(NamedTuple):
    """What one ingestion took in; `unmarked` says why the gateway was not told that it may remove it."""

    events: int
    duplicates: int
    bad_lines: tuple[BadLine, ...]
    torn: Mapping[str, int]
    unmarked: str | None = None


@dataclass(frozen=True)
class Contents:
    """What a store holds at one moment, read when it is asked for.

    Attributes:
        rows: `GATEWAY_EVENTS`, each id once.
        repeats: Worker and numbers of the events that were left out.
    """

    rows: pl.LazyFrame
    repeats: Mapping[str, list[int]]

    def of(self, workload: str, *, attempt: int) -> pl.DataFrame:
        """Return a workload's events of one attempt, with its feedback, and those that name no attempt."""
        is_open = (pl.col("kind") == "feedback") & pl.col("workload").is_null()  # of whose request is not known yet
        is_of = (pl.col("workload") == workload) | is_open
        wanted = self.rows.filter(is_of, (pl.col("attempt") == attempt) | pl.col("attempt").is_null())
        return attributed(wanted.collect()).filter(pl.col("workload") == workload)

    def numbers(self) -> pl.DataFrame:
        """Return `worker`, `seq` and `ts` of every event that came, also of repeats, whose `ts` is NULL.

        What a worker's numbers lack it meant to write and did not.
        """
        kept = self.rows.select("worker", "seq", "ts").collect()
        rows = [(worker, seq, None) for worker, each in self.repeats.items() for seq in each]
        repeats = pl.DataFrame(rows, schema=kept.schema, orient="row")
        return pl.concat([kept, repeats]).unique(["worker", "seq"], keep="first", maintain_order=True)


class EventStore:
    """The events that were ingested: Parquet parts and the manifest that counts."""

    def __init__(self, folder: Path, stream: Stream = EVENTS) -> None:
        """Open the store, of events or of texts; it is made with the first ingestion."""
        self._stream = stream
        self._folder = folder
        self._files = DurableFolder(str(folder), {})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others out: an ingestion removes the parts that it has merged, and two would take lines in twice.

        Raises:
            UnavailableService: another process has kept the store to itself for `LOCK_S`.
            OSError: the store's folder takes no lock.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path, deadline = self._folder / ".lock", time.monotonic() + LOCK_S
        with path.open("w") as lock:
            while not _locked(lock):
                if time.monotonic() > deadline:
                    message = (
                        f"another process has held {path} for {LOCK_S:.3g} s; it may be stopped: let it go on or end "
                        f"it (`fuser {path}` names it)"
                    )
                    raise UnavailableService(message)
                time.sleep(_LOCK_EVERY_S)
            yield

    def ingest(self, log: Path, *, wanted: pl.Expr | None = None) -> Ingested:
        """Take in what is new in the gateway's log, once, and let the gateway remove what is in.

        One ingestion at a time, and nobody who reads meanwhile; the caller sees to that (`alone`).

        Args:
            log: Folder of the segments.
            wanted: Which rows to keep; None for all. The rest may be another reader's, so then nothing is marked as
                read.

        Raises:
            UnavailableService: nothing could be written; the same call takes it in later.
        """
        manifest = self._manifest()
        batch = read_batch(log, manifest["cursor"], self._stream)
        if wanted is not None:
            batch = replace(batch, events=batch.events.filter(wanted))
        fresh = self._unknown(batch.events, manifest["parts"])
        before = set(manifest["parts"])
        if dict(batch.cursor) != manifest["cursor"]:
            if not fresh.is_empty():
                self._add(fresh, manifest["parts"])
            manifest["cursor"] = dict(batch.cursor)
            manifest["bad_lines"] += [each._asdict() for each in batch.bad_lines]
            _note_repeats(manifest["repeats"], batch, fresh)
            self._files.write(MANIFEST, json.dumps(manifest).encode())
            self._sweep(manifest["parts"], before.difference(manifest["parts"]))
        known = batch.events.height - fresh.height
        unmarked = mark_ingested(log, batch.cursor) if wanted is None else None
        return Ingested(fresh.height, batch.duplicates + known, batch.bad_lines, batch.torn, unmarked)

    def retain(self, wanted: pl.Expr) -> pl.DataFrame:
        """Remove all rows but these for good, and return what is left; one at a time, as `ingest`.

        Files that no manifest names are removed with them, also those of a call that was killed: what goes here are
        people's words, of which the gateway's log has its own copy.

        Raises:
            UnavailableService: nothing could be written; the same call removes it later.
        """
        manifest = self._manifest()
        stored = self._scan(manifest["parts"]).collect()
        kept = stored.filter(wanted)
        if kept.height < stored.height:
            manifest["parts"] = []
            if not kept.is_empty():
                self._add(kept, manifest["parts"])
            self._files.write(MANIFEST, json.dumps(manifest).encode())
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.name not in manifest["parts"]:
                self._files.remove(path.name)
        return kept

    def rows(self) -> int:
        """Return how many rows are stored; they are not read."""
        return sum(rows_of(self._folder, part) for part in self._manifest()["parts"])

    def contents(self, log: Path | None = None) -> Contents:
        """Return all that was ingested and, where a log is named, what is new in it, which stays to be ingested."""
        manifest = self._manifest()
        stored = self._scan(manifest["parts"])
        if log is None or not log.is_dir():
            return Contents(stored, manifest["repeats"])
        batch = read_batch(log, manifest["cursor"], self._stream)
        fresh = self._unknown(batch.events, manifest["parts"])
        _note_repeats(manifest["repeats"], batch, fresh)
        return Contents(pl.concat([stored, fresh.lazy()]), manifest["repeats"])

    def events(self) -> pl.DataFrame:
        """Return everything that was ingested, as the table of its stream, each id once."""
        return self.contents().rows.collect()

    def _add(self, fresh: pl.DataFrame, parts: list[str]) -> None:
        """Write a part, with those that are due to be merged in it, and name it in their place."""
        merge = self._merge(fresh, parts)
        if merge is not None:
            name, merged = new_name(parts, merge), self._scan(parts[merge.start :]).collect()
            with suppress(UnavailableService):  # the disk may have room for what is new, if not for all of it
                self._files.write(name, to_parquet(pl.concat([merged, fresh])))
                parts[merge.start :] = [name]
                return
        name = new_name(parts, None)
        self._files.write(name, to_parquet(fresh))
        parts.append(name)

    def _merge(self, fresh: pl.DataFrame, parts: list[str]) -> Merge | None:
        merge = due_merge(parts)
        if merge is None:
            return None
        return within(merge, [rows_of(self._folder, part) for part in parts[merge.start :]], fresh.height)

    def _sweep(self, parts: list[str], merged: set[str]) -> None:
        """Remove merged parts, and what killed ingestions left behind.

        What a killed ingestion took in is in other parts by now. Events that are in none are of a manifest that was
        lost, and an older one restored: the gateway may have removed their lines, so they stay for people.
        """
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.name in parts:
                continue
            with suppress(UnavailableService, OSError, pl.exceptions.PolarsError):  # the next ingestion tries again
                if path.name in merged or self._unknown(self._scan([path.name]).collect(), parts).is_empty():
                    self._files.remove(path.name)

    def _unknown(self, events: pl.DataFrame, parts: list[str]) -> pl.DataFrame:
        """Leave out what is in: a feedback that was sent twice may come through two segments or workers."""
        if events.is_empty() or not parts:
            return events
        known = self._scan(parts).select("event_id")
        return events.lazy().join(known, on="event_id", how="anti", maintain_order="left").collect()

    def _scan(self, parts: list[str]) -> pl.LazyFrame:
        return scan(self._folder, parts, self._stream.table)

    def _manifest(self) -> dict[str, Any]:
        found = self._files.read(MANIFEST)
        if found is None:
            return {"parts": [], "cursor": {}, "bad_lines": [], "repeats": {}}
        try:
            manifest: dict[str, Any] = {"repeats": {}} | json.loads(found)
        except ValueError as error:
            message = f"{self._folder / MANIFEST} is not JSON ({error}); restore it, or remove the folder to read anew"
            raise CorruptArtifact(message) from error
        return manifest


def _locked(lock: IO[str]) -> bool:
    """Take a lock; False where another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note_repeats(repeats: dict[str, list[int]], batch: Batch, fresh: pl.DataFrame) -> None:
    """Note the numbers of events that are left out: within the batch, and beside what was ingested before."""
    known_before = batch.events.join(fresh, on="event_id", how="anti").select("worker", "seq").rows()
    for worker, seq in (*batch.repeats, *known_before):
        repeats.setdefault(worker, []).append(seq)


def attributed(events: pl.DataFrame) -> pl.DataFrame:
    """Give each feedback the arms of its request, where that is known by now.

    Args:
        events: `GATEWAY_EVENTS`, all that may hold the requests.

    Returns:
        The same rows; a feedback whose request is there carries its workload, arms and stage and loses the flag
        `unknown_request`, others keep their nulls.
    """
    taken = ("workload", "attempt", "generation", "stage", "share", "unit", "bucket", "intended", "served", "why")
    requests = events.filter(pl.col("kind") == "request", pl.col("request_id").is_not_null())
    # A client may name several requests alike: the first one is meant, as where units are counted.
    requests = requests.sort("ts", "worker", "seq").unique("request_id", keep="first").select("request_id", *taken)
    joined = events.join(requests, on="request_id", how="left", suffix="_of_request", maintain_order="left")
    is_known = (pl.col("kind") == "feedback") & pl.col("intended_of_request").is_not_null()
    filled = [pl.when(is_known).then(f"{name}_of_request").otherwise(name).alias(name) for name in taken]
    flags = pl.when(is_known).then(pl.col("flags").list.set_difference(["unknown_request"])).otherwise("flags")
    return joined.with_columns(*filled, flags.alias("flags")).select(events.columns)
