"""The Parquet parts in which ingested events lie: written small, one an ingestion, and merged so that they stay few.

A part of one level holds what `MERGED` parts of the level below it held. So each row is written anew at most once a
level, and after n ingestions there are some 45 parts and n / 4,096 of the highest level. The order of the events stays.
A merge holds its rows in memory and gives at most `MOST_ROWS`; what would make it larger stays a part of its own.
"""

from __future__ import annotations

import re
import uuid
from io import BytesIO
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from anven_pipelines.domain.table import Table

SUFFIX: Final = ".parquet"
MERGED: Final = 16
"""Parts of one level that become one of the next."""
HIGHEST: Final = 3
"""Level that is not merged any more: rewriting ever larger parts would hold up a look."""
MOST_ROWS: Final = 1_000_000
"""Rows that a merge gives at most; it takes them into memory, some 0.2 GB of them, all at once."""

_MERGED_NAME: Final = re.compile(r"merged-(\d+)-")


class Merge(NamedTuple):
    """Which parts become one: all from a place in the list on, and the level of the new one."""

    start: int
    level: int


def due_merge(parts: Sequence[str]) -> Merge | None:
    """Return what is to be merged with one more part that is about to be written behind these; None where nothing is.

    Levels fall along the list, so those of the lowest stand last; a merge that fills up a level takes that one along.
    """
    start, level = len(parts), 0
    while level < HIGHEST:
        below = start
        while below and _level_of(parts[below - 1]) == level:
            below -= 1
        if start - below + 1 < MERGED:
            break
        start, level = below, level + 1
    return Merge(start, level) if level else None


def within(merge: Merge, rows: Sequence[int], new: int) -> Merge | None:
    """Return the merge without the oldest parts with which it would give too many rows; None where it has none left.

    Args:
        merge: What is due.
        rows: How many each of its parts holds.
        new: How many the part holds that is about to be written behind these.
    """
    start, total = len(rows), new
    while start and total + rows[start - 1] <= MOST_ROWS:
        start -= 1
        total += rows[start]
    return None if start == len(rows) else merge._replace(start=merge.start + start)


def new_name(parts: Sequence[str], merge: Merge | None) -> str:
    """Return a name that no part has ever had."""
    drawn = uuid.uuid4().hex[:8]
    return f"part-{len(parts):06d}-{drawn}{SUFFIX}" if merge is None else f"merged-{merge.level}-{drawn}{SUFFIX}"


def scan(folder: Path, parts: Iterable[str], table: Table = GATEWAY_EVENTS) -> pl.LazyFrame:
    """Return the rows of these parts as a table, in their order; a column that a part lacks is null."""
    paths = [folder / part for part in parts]
    if not paths:
        return table.empty().lazy()
    return pl.scan_parquet(paths, schema=table.schema, missing_columns="insert", extra_columns="ignore")


def rows_of(folder: Path, part: str) -> int:
    """Return how many rows a part holds; they are not read."""
    found: int = pl.scan_parquet(folder / part).select(pl.len()).collect().item()
    return found


def to_parquet(events: pl.DataFrame) -> bytes:
    """Return the bytes of a part."""
    buffer = BytesIO()
    events.write_parquet(buffer)
    return buffer.getvalue()


def _level_of(part: str) -> int:
    found = _MERGED_NAME.match(part)
    return int(found[1]) if found else 0
