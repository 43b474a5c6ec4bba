"""Arrival times of a trace that others have published, or that the user has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.errors import UnreadableSource

if TYPE_CHECKING:
    from pathlib import Path

    from anven_pipelines.domain.arrivals import FloatArray

# Names of the arrival column, in lower case: Azure, BurstGPT, Vidur and others.
_COLUMNS: Final = ("timestamp", "arrived_at", "arrival_time", "arrival_timestamp")


def read_trace(path: Path) -> FloatArray:
    """Read the arrival times of a trace.

    Args:
        path: CSV with a header and a column `timestamp`, `arrived_at`, `arrival_time` or `arrival_timestamp`, in
            any case: seconds, or ISO 8601.

    Returns:
        Seconds since the first arrival, ascending, shape (n,).

    Raises:
        UnreadableSource: The file cannot be read, has no such column, or holds a time that is none.
    """
    try:
        table = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy")
    except (OSError, pl.exceptions.PolarsError) as error:
        message = f"{path}: cannot be read as CSV ({str(error).splitlines()[0]}); an arrival trace is needed"
        raise UnreadableSource(message) from error
    named = {name.strip().lower(): name for name in table.columns}
    column = next((named[name] for name in _COLUMNS if name in named), None)
    if column is None:
        message = f"{path}: has the columns {', '.join(table.columns)}; one of {', '.join(_COLUMNS)} is needed"
        raise UnreadableSource(message)
    texts = table.get_column(column).str.strip_chars()
    times = _seconds(texts)
    if (bad := times.is_null() | ~times.is_finite().fill_null(value=False)).any():
        row = int(bad.arg_max() or 0)
        found = f"{path}: {column} is {texts[row]!r} in row {row + 1}"
        message = f"{found}; seconds, or ISO 8601 throughout, are needed"
        raise UnreadableSource(message)
    if times.is_empty():
        message = f"{path}: holds no arrivals; a row for each call is needed"
        raise UnreadableSource(message)
    since_first: FloatArray = (times - times.min()).sort().to_numpy()
    return since_first


def _seconds(texts: pl.Series) -> pl.Series:
    """Read a column of numbers, or of times with or without a zone, as seconds; null where a text is neither."""
    seconds = texts.cast(pl.Float64, strict=False)
    if texts.is_empty() or seconds[0] is not None:
        return seconds
    # Azure writes seven decimals, which is more than a microsecond.
    plain = texts.str.replace("T", " ").str.replace("Z$", "+00:00").str.replace(r"(\.\d{6})\d+", "$1")
    zoned = plain.str.contains(r"[+-]\d{2}:?\d{2}$")
    moments = pl.select(
        pl.when(zoned)
        .then(plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", time_unit="us", strict=False).dt.replace_time_zone(None))
        .otherwise(plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False))
    ).to_series()
    return moments.dt.epoch("us") / 1e6
