"""Recordings in the layout of ZeroEval: a JSON array of records with chat_history, output, configs and answer.

They carry no time, tokens, latency or cost, so these stay NULL.

Source:
    https://github.com/WildEval/ZeroEval, result_dirs/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anven_pipelines.ingest.fields import Parsed, to_rows

if TYPE_CHECKING:
    import duckdb
    import polars as pl

# `engine` says what ran the model and is no request parameter, so it is a tag.
_SELECT: Final = r"""
    WITH given AS MATERIALIZED (
        SELECT n, unnest(json_transform(line, '{
            "session_id": "JSON", "id": "JSON", "chat_history": "JSON", "output": "JSON", "generator": "JSON",
            "configs": "JSON", "dataset": "JSON", "answer": "JSON", "task_type": "JSON", "source": "JSON",
            "config": "JSON"}'))
        FROM lines
    )
    SELECT
        n,
        CASE
            WHEN chat_history IS NULL THEN 'chat_history is missing; a list of texts is needed'
            WHEN json_type(chat_history) <> 'ARRAY'
                THEN 'chat_history is ' || shown(chat_history) || '; a list of texts is needed'
            WHEN len(list_filter(json_type(chat_history, '$[*]'), lambda t: t <> 'VARCHAR')) > 0
                THEN 'chat_history holds a turn that is not text; a list of texts is needed'
            WHEN json_array_length(chat_history) % 2 = 0 THEN 'chat_history has ' || json_array_length(chat_history)
                || ' turns; an odd number is needed, so that the last is the user''s'
            WHEN json_type(output) NOT IN ('ARRAY', 'VARCHAR')
                THEN 'output is ' || shown(output) || '; a list with one text is needed'
            ELSE coalesce(
                text_fault('generator', generator), text_fault('dataset', dataset),
                type_fault('configs', configs, 'OBJECT', 'an object'))
        END AS reason,
        coalesce(session_id, id) AS request_id,
        NULL::JSON AS ts,
        dataset AS application,
        NULL::JSON AS endpoint,
        CASE WHEN contains(text_of(generator), '/')
            THEN to_json(split_part(text_of(generator), '/', 1)) END AS provider,
        to_json(regexp_replace(text_of(generator), '^[^/]*/', '')) AS model,
        to_json(list_transform(json_extract(chat_history, '$[*]'),
            lambda text, i: {'role': CASE WHEN i % 2 = 1 THEN 'user' ELSE 'assistant' END, 'content': text}
        )) AS messages,
        CASE WHEN configs IS NOT NULL THEN json_merge_patch(configs, '{"engine": null}') END AS params,
        NULL::JSON AS context,
        CASE json_type(output) WHEN 'ARRAY' THEN CASE WHEN json_type(output, '$[0]') <> 'NULL' THEN output -> '$[0]' END
            ELSE output END AS output,
        NULL::JSON AS tool_calls,
        NULL::JSON AS finish_reason,
        NULL::JSON AS status,
        NULL::JSON AS error,
        CASE json_type(answer) WHEN 'VARCHAR' THEN to_json(regexp_replace(text_of(answer), '^\s*#+\s*', ''))
            ELSE answer END AS ground_truth,
        NULL::JSON AS input_tokens,
        NULL::JSON AS output_tokens,
        NULL::JSON AS cached_tokens,
        NULL::JSON AS ttft_ms,
        NULL::JSON AS latency_ms,
        NULL::JSON AS cost_usd,
        NULL::JSON AS user_hash,
        NULL::JSON AS user_id,
        NULL::JSON AS conversation_id,
        NULL::JSON AS tags,
        nullif(json_merge_patch('{}', json_object(
            'task', task_type, 'engine', configs -> 'engine', 'source', source, 'config', config))::VARCHAR, '{}')::JSON
            AS extras
    FROM given
"""


def read_zeroeval(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> Parsed:
    """Read screened elements (source_file, source_line, raw, line) of ZeroEval arrays."""
    connection.register("lines", lines.select("line").with_row_index("n").to_arrow())
    return to_rows(connection, _SELECT, lines)
