"""From raw lines to lines that hold one strict JSON object each, and the reasons of the others.

DuckDB reads JSON more kindly than the standard (NaN, Infinity, a comma before a bracket) and may be given
only valid UTF-8, so both are settled here, before a format is read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.request_log import REJECTED_LINES

if TYPE_CHECKING:
    import duckdb


def _refuse_constant(literal: str) -> float:
    """Refuse NaN and the infinities."""
    message = f"holds the literal {literal}, which JSON does not have"
    raise ValueError(message)


STRICT_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)  # json.loads makes a decoder per call

# What DuckDB accepts beyond the standard. It may also stand within a string, so a hit is only a suspicion.
_SUSPECT: Final = r"(?i)[:,\[]\s*[-+]?(?:nan|inf)|,\s*[}\]]"

_VERDICTS: Final = """
    SELECT
        n,
        json_valid(line) AS valid,
        CASE WHEN json_valid(line) THEN json_type(line) END AS type,
        CASE WHEN json_valid(line) THEN len(json_keys(line)) - len(list_distinct(json_keys(line))) END AS repeated
    FROM decoded
    ORDER BY n
"""


class Screened(NamedTuple):
    """Sound lines (source_file, source_line, raw, line) and the rejected ones."""

    lines: pl.DataFrame
    rejected: pl.DataFrame


def screen(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> Screened:
    """Part the lines that hold one strict JSON object from the others.

    Args:
        connection: In-memory DuckDB.
        lines: source_file, source_line, raw.
    """
    read = _decode(lines).with_row_index("n")
    connection.register("decoded", read.select("n", "line").to_arrow())
    verdicts = pl.DataFrame(connection.sql(_VERDICTS).to_arrow_table())
    connection.unregister("decoded")
    read = read.with_columns(verdicts.select("valid", "type", "repeated"))
    unsure = pl.col("line").is_not_null() & (~pl.col("valid") | pl.col("line").str.contains(_SUSPECT))
    # Few lines are unsure, and only Python's strict parser can say where they break: hence a loop.
    read = read.with_columns(
        pl.when(unsure).then(pl.col("line")).map_elements(_json_fault, return_dtype=pl.String).alias("json_fault")
    ).with_columns(reason=_reason())
    sound = pl.col("reason").is_null()
    return Screened(
        read.filter(sound).select("source_file", "source_line", "raw", "line"),
        REJECTED_LINES.conform(read.filter(~sound)),
    )


def _decode(lines: pl.DataFrame) -> pl.DataFrame:
    """Add `line`, the text of `raw`, and `fault` where the bytes are not text."""
    nul = pl.col("raw").bin.contains(b"\0")
    try:
        text = lines.get_column("raw").cast(pl.String)
        faults = pl.lit(None, pl.String)
    except pl.exceptions.ComputeError:  # one bad line fails the whole cast: look at each of this batch
        texts, why = zip(*map(_text, lines.get_column("raw").to_list()), strict=True)
        text = pl.Series(texts, dtype=pl.String)
        faults = pl.lit(pl.Series(why, dtype=pl.String))
    return lines.with_columns(
        line=pl.when(~nul).then(pl.lit(text)),
        fault=pl.when(nul).then(pl.lit("holds a NUL byte; UTF-8 text is needed")).otherwise(faults),
    )


def _text(raw: bytes) -> tuple[str | None, str | None]:
    try:
        return raw.decode(), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 at byte {error.start + 1} ({error.reason}); UTF-8 text is needed"


def _json_fault(line: str) -> str | None:
    """Say why a line is not strict JSON; None if it is."""
    try:
        STRICT_JSON.decode(line)
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}; one JSON object is needed"
    except ValueError as error:
        return f"is not JSON: {error}; one JSON object is needed"
    except RecursionError:
        return "is nested too deeply to be read; one JSON object is needed"
    return None


def _reason() -> pl.Expr:
    """Return the first reason to reject a line."""
    kinds = {"ARRAY": "a list", "VARCHAR": "text", "NULL": "null", "BOOLEAN": "true or false"}
    kind = pl.col("type").replace_strict(kinds, default="a number", return_dtype=pl.String)
    surrogate = "is not JSON: holds half a surrogate pair such as \\ud800, which is no text; whole text is needed"
    return pl.coalesce(
        "fault",
        "json_fault",
        pl.when(~pl.col("valid")).then(pl.lit(surrogate)),
        pl.when(pl.col("type") != "OBJECT").then(pl.format("is {}; one JSON object is needed", kind)),
        pl.when(pl.col("repeated") > 0).then(pl.lit("names a field twice; each field once is needed")),
    )
