"""The canonical JSONL: one object per line whose fields are the columns of the request table.

JSON columns hold nested JSON or JSON text; `prompt` text may stand for `messages`, and `user` (a raw id, stored
as a pseudonym) for `user_hash`. `source_file` and `source_line` come from the reader. Any other field joins the tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anven_pipelines.ingest.fields import Parsed, to_rows

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_SELECT: Final = """
    WITH given AS MATERIALIZED (
        SELECT n, line, unnest(json_transform(line, '{
            "request_id": "JSON", "ts": "JSON", "application": "JSON", "endpoint": "JSON", "provider": "JSON",
            "model": "JSON", "messages": "JSON", "prompt": "JSON", "params": "JSON", "context": "JSON",
            "output": "JSON", "tool_calls": "JSON", "finish_reason": "JSON", "status": "JSON", "error": "JSON",
            "ground_truth": "JSON", "input_tokens": "JSON", "output_tokens": "JSON", "cached_tokens": "JSON",
            "ttft_ms": "JSON", "latency_ms": "JSON", "cost_usd": "JSON", "user_hash": "JSON", "user": "JSON",
            "conversation_id": "JSON", "tags": "JSON"}'))
        FROM lines
    )
    SELECT
        * EXCLUDE (line, prompt, user) REPLACE (
            CASE WHEN messages IS NULL AND json_type(prompt) = 'VARCHAR'
                THEN json_array(json_object('role', 'user', 'content', prompt)) ELSE messages END AS messages
        ),
        CASE WHEN messages IS NULL THEN text_fault('prompt', prompt) END AS reason,
        given.user AS user_id,
        CASE WHEN len(list_filter(json_keys(line), lambda k: k NOT IN (
            'request_id', 'ts', 'application', 'endpoint', 'provider', 'model', 'messages', 'prompt', 'params',
            'context', 'output', 'tool_calls', 'finish_reason', 'status', 'error', 'ground_truth', 'input_tokens',
            'output_tokens', 'cached_tokens', 'ttft_ms', 'latency_ms', 'cost_usd', 'user_hash', 'user',
            'conversation_id', 'tags', 'source_file', 'source_line'))) > 0
        THEN json_merge_patch(line, '{
            "request_id": null, "ts": null, "application": null, "endpoint": null, "provider": null, "model": null,
            "messages": null, "prompt": null, "params": null, "context": null, "output": null, "tool_calls": null,
            "finish_reason": null, "status": null, "error": null, "ground_truth": null, "input_tokens": null,
            "output_tokens": null, "cached_tokens": null, "ttft_ms": null, "latency_ms": null, "cost_usd": null,
            "user_hash": null, "user": null, "conversation_id": null, "tags": null, "source_file": null,
            "source_line": null}') END AS extras
    FROM given
"""


def read_canonical(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> Parsed:
    """Read screened lines (source_file, source_line, raw, line) of the canonical JSONL."""
    connection.register("lines", lines.select("line").with_row_index("n").to_arrow())
    return to_rows(connection, _SELECT, lines)
