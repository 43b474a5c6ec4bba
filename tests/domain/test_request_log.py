from __future__ import annotations

from datetime import date

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.request_log import (
    JSON_COLUMNS,
    REJECTED_LINES,
    REQUEST_LOG,
    UNDATED,
    LineCount,
    log_day,
    pseudonym,
)


@pytest.mark.parametrize(
    ("path", "day"),
    [
        ("logs/2026-11-20.jsonl", "2026-11-20"),
        ("logs/2026/11/20/part-0.jsonl.gz", "2026-11-20"),
        ("logs/calls_2026_11_20.jsonl", "2026-11-20"),
        ("logs/calls-20261120.jsonl", "2026-11-20"),
        ("logs/20261120T0630.jsonl", "2026-11-20"),
        ("s3://logs/dt=2026-11-20/part.jsonl.zst", "2026-11-20"),
        ("logs/year=2026/month=11/day=20/part.jsonl", "2026-11-20"),
        ("logs/year=2026/month=3/day=7/part.jsonl", "2026-03-07"),
        ("archive-2026-01-01/2026-11-20.jsonl", "2026-11-20"),
        ("2026-11-20/retry-2026-13-45.jsonl", "2026-11-20"),
        ("2024-02-29.jsonl", "2024-02-29"),
        ("2026-02-29.jsonl", UNDATED),
        ("2026-11-31.jsonl", UNDATED),
        ("year=2026/month=0/day=1/a.jsonl", UNDATED),
        ("2026-1120.jsonl", UNDATED),
        ("2026-11_20.jsonl", UNDATED),
        ("chunk-1202611209.jsonl", UNDATED),
        ("99991231.jsonl", UNDATED),
        ("requests.jsonl", UNDATED),
        ("", UNDATED),
    ],
)
def test_a_log_files_day_is_the_real_day_named_in_its_path(path: str, day: str) -> None:
    assert log_day(path) == day


@given(st.dates(date(1970, 1, 1), date(2099, 12, 31)), st.sampled_from(["%Y-%m-%d", "%Y/%m/%d", "%Y_%m_%d", "%Y%m%d"]))
def test_every_day_is_read_in_every_spelling(day: date, spelling: str) -> None:
    assert log_day(f"llm/{day.strftime(spelling)}/part-7.jsonl.gz") == day.isoformat()


def test_counts_that_add_up_are_added() -> None:
    assert LineCount(10, 6, 3, 1) + LineCount(2, 2, 0, 0) == LineCount(12, 8, 3, 1)


@pytest.mark.parametrize("parts", [(10, 6, 3, 0), (10, 6, 3, 2), (0, 1, -1, 0), (1, 0, 0, 0)])
def test_a_count_that_loses_or_invents_lines_cannot_be_made(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{parts[0]} lines read, but {parts[1]} \\+"):
        LineCount(*parts)


def test_a_pseudonym_is_stable_and_does_not_show_the_user() -> None:
    assert pseudonym("jane@example.org") == pseudonym("jane@example.org")
    assert pseudonym("jane@example.org") != pseudonym("john@example.org")
    assert pseudonym("jane@example.org").startswith("sha256:")
    assert "jane" not in pseudonym("jane@example.org")


@pytest.mark.parametrize("table", [REQUEST_LOG, REJECTED_LINES], ids=lambda table: str(table.name))
def test_every_column_says_what_it_means(table: object) -> None:
    columns = getattr(table, "columns", ())
    assert columns
    assert all(column.description.endswith(".") for column in columns)


def test_json_columns_are_text_columns_of_the_table() -> None:
    assert all(REQUEST_LOG.schema[name] == pl.String for name in JSON_COLUMNS)
