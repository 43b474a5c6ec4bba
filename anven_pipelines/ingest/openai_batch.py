"""Input, output and error files of the OpenAI Batch API, paired by custom_id over all files of a source.

A request line holds custom_id, url and body; a result line holds custom_id and response or error. Order and
distribution over files do not matter, so the lines are held in DuckDB until all are read. A pair makes one row,
placed where the request stands; a request without a result is a row with status 'unanswered'. A request line may
also carry `tags`, `ground_truth` and the other fields that `openai` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.request_log import REJECTED_LINES, REQUEST_LOG
from anven_pipelines.ingest.fields import Parsed
from anven_pipelines.ingest.openai import read_openai

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

_HELD: Final = """
CREATE TEMP TABLE IF NOT EXISTS held (
    place BIGINT, source_file VARCHAR, source_line BIGINT, line VARCHAR,
    custom_id VARCHAR, is_request BOOLEAN, succeeded BOOLEAN, reason VARCHAR
)
"""

_HOLD: Final = """
INSERT INTO held
SELECT
    (SELECT count(*) FROM held) + n, source_file, source_line, line,
    line ->> 'custom_id',
    json_exists(line, '$.body'),
    coalesce(TRY_CAST(line ->> '$.response.status_code' AS INTEGER) < 400, false),
    CASE
        WHEN coalesce(json_type(line, '$.custom_id'), 'NULL') = 'NULL' THEN 'custom_id is missing; text is needed'
        WHEN json_type(line, '$.custom_id') <> 'VARCHAR'
            THEN 'custom_id is ' || shown(line -> 'custom_id') || '; text is needed'
        WHEN NOT (
            json_exists(line, '$.body') OR json_exists(line, '$.response') OR json_exists(line, '$.error'))
            THEN 'is neither a batch request nor a result; body, or response or error, is needed'
    END
FROM lines
"""

# Of several results the first success counts, of several requests the first.
_RANKED: Final = """
CREATE OR REPLACE TEMP TABLE ranked AS
SELECT *,
    row_number() OVER best AS rank,
    first_value(source_file || ':' || source_line) OVER best AS first_place
FROM held
WINDOW best AS (PARTITION BY custom_id, is_request, reason IS NULL ORDER BY succeeded DESC, place);
DROP TABLE held
"""

_REFUSED: Final = """
CREATE OR REPLACE TEMP TABLE refused AS
SELECT place, source_file, source_line, line, CASE
    WHEN reason IS NOT NULL THEN reason
    WHEN rank > 1 AND is_request
        THEN 'custom_id ' || left(custom_id, 64) || ' is already requested at ' || first_place || '; once is needed'
    WHEN rank > 1
        THEN 'custom_id ' || left(custom_id, 64) || ' is already answered at ' || first_place || '; once is needed'
    ELSE 'custom_id ' || left(custom_id, 64) || ' has no request; the input file of the batch is needed' END AS reason
FROM ranked
WHERE reason IS NOT NULL OR rank > 1 OR (NOT is_request AND NOT EXISTS (
    FROM ranked AS request
    WHERE request.is_request AND request.reason IS NULL AND request.custom_id = ranked.custom_id))
"""

_PAIRED: Final = """
CREATE OR REPLACE TEMP TABLE paired AS
SELECT row_number() OVER (ORDER BY request.place) - 1 AS pair, request.source_file, request.source_line, request.line,
    request.custom_id, result.source_file AS result_file, result.source_line AS result_line, result.line AS result
FROM (FROM ranked WHERE is_request AND rank = 1 AND reason IS NULL) AS request
LEFT JOIN (FROM ranked WHERE NOT is_request AND rank = 1 AND reason IS NULL) AS result USING (custom_id);
DROP TABLE ranked
"""

# The result joins the request under the names that the reader of `openai` knows.
_PAGE: Final = """
SELECT source_file, source_line, encode(line) AS raw, result_file, result_line, encode(result) AS result_raw,
    json_merge_patch(line, json_object(
        'request_id', custom_id, 'response', result -> 'response', 'error', result -> 'error'))::VARCHAR AS line
FROM paired WHERE pair BETWEEN $first AND $last ORDER BY pair
"""


class Paired(NamedTuple):
    """Rows and rejected lines, the lines that were looked at, and those of them that the rows are made of."""

    parsed: Parsed
    read: int
    accepted: int


def hold(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> None:
    """Keep screened lines (source_file, source_line, raw, line) until all files are read."""
    connection.execute(_HELD)
    connection.register("lines", lines.select("source_file", "source_line", "line").with_row_index("n").to_arrow())
    connection.execute(_HOLD)


def read_pairs(connection: duckdb.DuckDBPyConnection, *, batch_lines: int) -> Iterator[Paired]:
    """Pair what was held and yield its rows, at most `batch_lines` at once, then the lines that have no place."""
    connection.execute(_HELD)
    unread = _count(connection, "held")
    for statement in (_RANKED, _REFUSED, _PAIRED):
        connection.execute(statement)
    for first in range(0, _count(connection, "paired"), batch_lines):
        span = {"first": first, "last": first + batch_lines - 1}
        page = pl.DataFrame(connection.sql(_PAGE, params=span).to_arrow_table())
        paired = _paired(page, read_openai(connection, page))
        unread -= paired.read
        yield paired
    if unread:
        refused = connection.sql("SELECT *, encode(line) AS raw FROM refused ORDER BY place").to_arrow_table()
        yield Paired(Parsed(REQUEST_LOG.empty(), REJECTED_LINES.conform(pl.DataFrame(refused))), unread, 0)


def _paired(page: pl.DataFrame, parsed: Parsed) -> Paired:
    """Count a pair as two lines; where the request is rejected, its result goes with it."""
    place = ["source_file", "source_line"]
    results = page.filter(pl.col("result_file").is_not_null()).drop("raw")
    with_request = results.join(parsed.rejected.select(*place, "reason"), on=place).select(
        "reason", source_file="result_file", source_line="result_line", raw="result_raw"
    )
    accepted = parsed.rows.height + results.join(parsed.rows, on=place, how="semi").height
    rejected = pl.concat([parsed.rejected, REJECTED_LINES.conform(with_request)])
    return Paired(Parsed(parsed.rows, rejected), page.height + results.height, accepted)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.table(table).count("*").fetchall()[0][0])
