"""Parts of the event store stay few, in their order, whatever was merged before."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl
import pytest

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS
from anven_pipelines.ingest.event_parts import HIGHEST, MERGED, MOST_ROWS, Merge, due_merge, new_name, scan, within

if TYPE_CHECKING:
    from pathlib import Path


def test_a_merge_is_due_when_a_level_is_full_and_takes_along_the_level_that_it_fills() -> None:
    one = [f"part-{place:06d}-ab.parquet" for place in range(MERGED - 1)]
    higher = [f"merged-1-{place:08x}.parquet" for place in range(MERGED - 1)]
    assert due_merge([]) is None
    assert due_merge(one[:-1]) is None
    assert due_merge(one) == Merge(0, 1)
    assert due_merge([*higher[:-1], *one]) == Merge(MERGED - 2, 1)
    assert due_merge([*higher, *one]) == Merge(0, 2)
    assert due_merge([*higher, *one[:-1]]) is None


def test_the_thousands_of_parts_of_an_earlier_release_become_one_at_once() -> None:
    assert due_merge([f"part-{place:06d}-ab.parquet" for place in range(4_000)]) == Merge(0, 1)


def test_ten_thousand_ingestions_leave_few_parts_and_write_each_row_once_a_level() -> None:
    parts: list[str] = []
    rows: dict[str, list[int]] = {}  # which ingestions' rows a part holds
    written = 0
    for ingestion in range(10_000):
        merge = due_merge(parts)
        name = new_name(parts, merge)
        start = len(parts) if merge is None else merge.start
        rows[name] = [*(each for part in parts[start:] for each in rows.pop(part)), ingestion]
        written += len(rows[name])
        parts[start:] = [name]
    assert [each for part in parts for each in rows[part]] == list(range(10_000))
    assert len(parts) <= HIGHEST * (MERGED - 1) + 10_000 // MERGED**HIGHEST
    assert written <= (HIGHEST + 1) * 10_000
    assert all(len(rows[left]) >= len(rows[right]) for left, right in pairwise(parts))


@pytest.mark.parametrize(
    ("rows", "new", "start"),
    [
        ([1, 2, 3], 4, 5),
        ([MOST_ROWS - 9, 2, 3], 4, 5),
        ([MOST_ROWS - 8, 2, 3], 4, 6),
        ([2, MOST_ROWS, 3], 4, 7),
        ([2, 3, MOST_ROWS], 4, None),
        ([1, 2, 3], MOST_ROWS, None),
    ],
)
def test_a_merge_takes_the_newest_parts_that_it_has_room_for(rows: list[int], new: int, start: int | None) -> None:
    assert within(Merge(5, 2), rows, new) == (None if start is None else Merge(start, 2))


def test_a_part_that_lacks_a_column_or_has_one_more_is_read_all_the_same(tmp_path: Path) -> None:
    rows = pl.DataFrame({"event_id": ["a", "b"]}, schema={"event_id": pl.String})
    rows.with_columns(pl.lit(1).alias("of_later")).write_parquet(tmp_path / "old.parquet")
    found = scan(tmp_path, ["old.parquet"]).collect()
    assert found.schema == GATEWAY_EVENTS.schema
    assert found["event_id"].to_list() == ["a", "b"]
    assert found["score"].null_count() == 2


def test_a_part_that_is_gone_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(tmp_path, ["gone.parquet"]).collect()
