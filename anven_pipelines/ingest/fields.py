"""From the JSON values that a format found to rows of the canonical table: types, units, canonical JSON.

Each format's SQL ends in one SELECT that gives `n` (the line's place in the batch), `reason` (why the format
rejects it, or NULL) and one JSON value per canonical column, plus two that only exist here: `user_id`, which
leaves as a pseudonym, and `extras`, an object whose fields join the tags. What is the same for all formats is
then checked here once. The first fault of a line is its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import duckdb
import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.request_log import JSON_COLUMNS, REJECTED_LINES, REQUEST_LOG, pseudonym
from anven_pipelines.ingest.screen import STRICT_JSON

if TYPE_CHECKING:
    from collections.abc import Callable

_MACROS: Final = r"""
CREATE TEMP MACRO text_of(j) AS j ->> '$';
CREATE TEMP MACRO shown(j) AS CASE json_type(j)
    WHEN 'VARCHAR' THEN 'text' WHEN 'OBJECT' THEN 'an object' WHEN 'ARRAY' THEN 'a list'
    ELSE left(j::VARCHAR, 40) END;

-- JSON may be given as JSON text. Text that is no JSON stays text, and is refused where text is not allowed.
CREATE TEMP MACRO unwrapped(j) AS CASE
    WHEN json_type(j) <> 'VARCHAR' THEN j
    WHEN json_valid(text_of(j)) AND json_type(text_of(j)) <> 'NULL' THEN text_of(j)::JSON
    ELSE j END;
CREATE TEMP MACRO none_if_empty(j) AS
    CASE WHEN json_array_length(j) = 0 AND json_type(j) = 'ARRAY' THEN NULL ELSE j END;

CREATE TEMP MACRO seconds_as_time(s) AS CASE
    WHEN NOT isfinite(s) OR s < 0 OR s >= 1e17 THEN NULL
    WHEN s < 1e11 THEN make_timestamptz(round(s * 1e6)::BIGINT)
    WHEN s < 1e14 THEN make_timestamptz(round(s * 1e3)::BIGINT)
    ELSE make_timestamptz(s::BIGINT) END;
CREATE TEMP MACRO time_of(j) AS CASE
    WHEN json_type(j) IN ('BIGINT', 'UBIGINT', 'DOUBLE') THEN seconds_as_time(TRY_CAST(j AS DOUBLE))
    WHEN json_type(j) <> 'VARCHAR' THEN NULL
    WHEN regexp_full_match(text_of(j), '\d+(\.\d+)?') THEN seconds_as_time(TRY_CAST(text_of(j) AS DOUBLE))
    WHEN regexp_matches(text_of(j), '^\d{4}-\d{2}-\d{2}') THEN TRY_CAST(text_of(j) AS TIMESTAMPTZ) END;
CREATE TEMP MACRO is_naive(j) AS coalesce(
    json_type(j) = 'VARCHAR'
    AND regexp_matches(text_of(j), '^\d{4}-\d{2}-\d{2}')
    AND NOT regexp_matches(text_of(j), '\d{2}:\d{2}.*([A-Za-z]|[+-]\d{2}(:?\d{2})?)$'), false);

CREATE TEMP MACRO text_fault(name, j) AS
    CASE WHEN json_type(j) <> 'VARCHAR' THEN name || ' is ' || shown(j) || '; text is needed' END;
CREATE TEMP MACRO id_fault(name, j) AS
    CASE WHEN json_type(j) NOT IN ('VARCHAR', 'BIGINT', 'UBIGINT')
    THEN name || ' is ' || shown(j) || '; text or a whole number is needed' END;
CREATE TEMP MACRO count_fault(name, j) AS CASE
    WHEN json_type(j) IN ('BIGINT', 'UBIGINT', 'DOUBLE') AND TRY_CAST(j AS DOUBLE) >= 0 AND TRY_CAST(j AS DOUBLE) < 9e15
        AND floor(TRY_CAST(j AS DOUBLE)) = TRY_CAST(j AS DOUBLE) THEN NULL
    WHEN j IS NOT NULL THEN name || ' is ' || shown(j) || '; a whole number of 0 or more is needed' END;
CREATE TEMP MACRO measure_fault(name, j) AS CASE
    WHEN json_type(j) IN ('BIGINT', 'UBIGINT', 'DOUBLE') AND TRY_CAST(j AS DOUBLE) >= 0
        AND isfinite(TRY_CAST(j AS DOUBLE)) THEN NULL
    WHEN j IS NOT NULL THEN name || ' is ' || shown(j) || '; a finite number of 0 or more is needed' END;
CREATE TEMP MACRO time_fault(name, j) AS
    CASE WHEN j IS NOT NULL AND time_of(j) IS NULL
    THEN name || ' is ' || CASE json_type(j) WHEN 'VARCHAR' THEN left(j::VARCHAR, 40) ELSE shown(j) END
        || '; ISO 8601, or seconds or milliseconds since 1970, is needed' END;
CREATE TEMP MACRO type_fault(name, j, type, needed) AS
    CASE WHEN json_type(j) <> type THEN name || ' is ' || shown(j) || '; ' || needed || ' is needed' END;
CREATE TEMP MACRO messages_fault(j) AS CASE
    WHEN j IS NULL THEN 'messages is missing; a list of {role, content} is needed'
    WHEN json_type(j) <> 'ARRAY' THEN 'messages is ' || shown(j) || '; a list of {role, content} is needed'
    WHEN json_array_length(j) = 0 THEN 'messages is empty; a list of {role, content} is needed'
    WHEN len(list_filter(json_type(j, '$[*].role'), lambda t: t = 'VARCHAR')) <> json_array_length(j)
        THEN 'messages holds an entry without a role; each needs {role, content}'
    WHEN len(list_filter(json_type(j, '$[*].content'), lambda t: t NOT IN ('VARCHAR', 'ARRAY', 'NULL'))) > 0
        THEN 'messages holds a content that is neither text nor a list of parts' END;
CREATE TEMP MACRO status_fault(j) AS
    CASE WHEN text_of(j) NOT IN ('ok', 'error', 'unanswered') OR json_type(j) <> 'VARCHAR'
    THEN 'status is ' || left(j::VARCHAR, 40) || '; ok, error or unanswered is needed' END;
"""

_TYPED: Final = """
WITH opened AS MATERIALIZED (
    SELECT * REPLACE (
        unwrapped(messages) AS messages,
        unwrapped(params) AS params,
        unwrapped(context) AS context,
        none_if_empty(unwrapped(tool_calls)) AS tool_calls,
        unwrapped(tags) AS tags
    )
    FROM fields
)
SELECT
    n,
    coalesce(
        reason,
        id_fault('request_id', request_id),
        time_fault('ts', ts),
        text_fault('application', application),
        text_fault('endpoint', endpoint),
        text_fault('provider', provider),
        text_fault('model', model),
        messages_fault(messages),
        type_fault('params', params, 'OBJECT', 'an object'),
        text_fault('output', output),
        type_fault('tool_calls', tool_calls, 'ARRAY', 'a list'),
        text_fault('finish_reason', finish_reason),
        status_fault(status),
        count_fault('input_tokens', input_tokens),
        count_fault('output_tokens', output_tokens),
        count_fault('cached_tokens', cached_tokens),
        measure_fault('ttft_ms', ttft_ms),
        measure_fault('latency_ms', latency_ms),
        measure_fault('cost_usd', cost_usd),
        text_fault('user_hash', user_hash),
        id_fault('user', user_id),
        id_fault('conversation_id', conversation_id),
        type_fault('tags', tags, 'OBJECT', 'an object')
    ) AS reason,
    text_of(request_id) AS request_id,
    time_of(ts) AS ts,
    text_of(application) AS application,
    text_of(endpoint) AS endpoint,
    text_of(provider) AS provider,
    text_of(model) AS model,
    messages::VARCHAR AS messages,
    params::VARCHAR AS params,
    context::VARCHAR AS context,
    text_of(output) AS output,
    tool_calls::VARCHAR AS tool_calls,
    text_of(finish_reason) AS finish_reason,
    coalesce(text_of(status), CASE
        WHEN error IS NOT NULL THEN 'error'
        WHEN output IS NOT NULL OR tool_calls IS NOT NULL THEN 'ok'
        ELSE 'unanswered' END) AS status,
    error::VARCHAR AS error,
    ground_truth::VARCHAR AS ground_truth,
    TRY_CAST(TRY_CAST(input_tokens AS DOUBLE) AS BIGINT) AS input_tokens,
    TRY_CAST(TRY_CAST(output_tokens AS DOUBLE) AS BIGINT) AS output_tokens,
    TRY_CAST(TRY_CAST(cached_tokens AS DOUBLE) AS BIGINT) AS cached_tokens,
    TRY_CAST(ttft_ms AS DOUBLE) AS ttft_ms,
    TRY_CAST(latency_ms AS DOUBLE) AS latency_ms,
    TRY_CAST(cost_usd AS DOUBLE) AS cost_usd,
    text_of(coalesce(user_hash, user_id)) AS user_hash,
    text_of(conversation_id) AS conversation_id,
    CASE
        WHEN extras IS NULL AND NOT is_naive(ts) THEN tags
        WHEN is_naive(ts) THEN json_merge_patch(
            json_merge_patch('{"ts_zone":"assumed UTC"}', coalesce(extras, '{}')), coalesce(tags, '{}'))
        ELSE json_merge_patch(extras, coalesce(tags, '{}'))
    END::VARCHAR AS tags
FROM opened
ORDER BY n
"""

_PSEUDONYM: Final = r"^sha256:[0-9a-f]{16}$"


class Parsed(NamedTuple):
    """Rows of the canonical table and the lines that made none."""

    rows: pl.DataFrame
    rejected: pl.DataFrame


def open_engine() -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB that reads times as UTC, touches no file and no network, and knows the macros."""
    off = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(config={**off, "enable_external_access": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(_MACROS)
    return connection


def to_rows(connection: duckdb.DuckDBPyConnection, select: str, lines: pl.DataFrame) -> Parsed:
    """Check and convert what a format found.

    Args:
        connection: From `open_engine`, with what `select` reads.
        select: The format's SELECT (see the module's description).
        lines: source_file, source_line, raw; `n` is the row number.
    """
    connection.execute(f"CREATE OR REPLACE TEMP TABLE fields AS {select}")
    typed = pl.DataFrame(connection.sql(_TYPED).to_arrow_table())
    table = pl.concat([lines.select("source_file", "source_line", "raw"), typed.drop("n")], how="horizontal")
    return _finish(table)


def _finish(table: pl.DataFrame) -> Parsed:
    """Write JSON canonically, hide users, and part rows from rejected lines."""
    writers = dict.fromkeys(JSON_COLUMNS, _canonical)
    for name, write in (writers | {"params": _params, "ground_truth": _text_or_json, "error": _text_or_json}).items():
        given = table.select(pl.when(pl.col("reason").is_null()).then(name)).to_series()
        written, faults = _rewritten(given, write)
        table = table.with_columns(written.alias(name), pl.coalesce("reason", pl.lit(name) + faults).alias("reason"))
    users = table.get_column("user_hash")
    raw_users = users.filter(~users.str.contains(_PSEUDONYM)).unique().to_list()
    hidden = {user: pseudonym(user) for user in raw_users if user is not None}
    table = table.with_columns(pl.col("user_hash").replace(hidden))
    sound = pl.col("reason").is_null()
    return Parsed(REQUEST_LOG.conform(table.filter(sound)), REJECTED_LINES.conform(table.filter(~sound)))


def _rewritten(column: pl.Series, write: Callable[[str], str]) -> tuple[pl.Series, pl.Series]:
    """Rewrite each distinct JSON text once; DuckDB cannot sort keys, so this is a loop in Python."""
    written: dict[str | None, str | None] = {None: None}
    faults: dict[str | None, str | None] = {None: None}
    for text in column.drop_nulls().unique().to_list():
        try:
            written[text], faults[text] = write(text), None
        except UnicodeEncodeError:
            written[text], faults[text] = None, " holds half a surrogate pair, which is no text; whole text is needed"
        except RecursionError:
            written[text], faults[text] = None, " is nested too deeply to be read"
        except ValueError as error:
            written[text], faults[text] = None, f" is not JSON: {error}"
    values = column.to_list()
    return (
        pl.Series([written[text] for text in values], dtype=pl.String),
        pl.Series([faults[text] for text in values], dtype=pl.String),
    )


def _canonical(text: str) -> str:
    return _written(STRICT_JSON.decode(text))


def _written(value: object) -> str:
    written = canonical_json(value)
    written.encode()  # half a surrogate pair fails here, with a name, and not later in Polars
    return written


def _params(text: str) -> str:
    """Leave out parameters that are null: they are not set."""
    params = STRICT_JSON.decode(text)
    return _written({name: value for name, value in params.items() if value is not None})


def _text_or_json(text: str) -> str:
    value = STRICT_JSON.decode(text)
    return value if isinstance(value, str) else _written(value)
