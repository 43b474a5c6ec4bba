"""The Parquet parts in which ingested events lie: written small, one an ingestion, and merged so that they stay few.

A part of one level holds what `MERGED` parts of the level below it held. So each row is written anew at most once a
level, and after n ingestions there are some 45 parts and n / 4,096 of the highest level. The order of the events stays.
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


def to_parquet(events: pl.DataFrame) -> bytes:
    """Return the bytes of a part."""
    buffer = BytesIO()
    events.write_parquet(buffer)
    return buffer.getvalue()


def _level_of(part: str) -> int:
    found = _MERGED_NAME.match(part)
    return int(found[1]) if found else 0
