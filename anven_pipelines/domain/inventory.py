"""What runs today: every application, endpoint, provider and model in the request log, with its traffic and spend."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import duckdb
import polars as pl

from anven_pipelines.domain.request_log import REQUEST_LOG, of_applications, of_model
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.spec import Migration

INVENTORY: Final = Table(
    "workload_inventory",
    (
        Column("application", pl.String, "Application that made the calls, or `unknown`."),
        Column("endpoint", pl.String, "API endpoint, or `unknown`."),
        Column("provider", pl.String, "Provider that was called, or `unknown`."),
        Column("model", pl.String, "Model that was called, or `unknown`."),
        Column("calls", pl.Int64, "Logged calls, failed ones included."),
        Column("share", pl.Float64, "Share of all logged calls."),
        Column("answered", pl.Int64, "Calls that were answered."),
        Column("errors", pl.Int64, "Calls that ended with an error."),
        Column("unanswered", pl.Int64, "Calls without an answer and without an error."),
        Column("first_ts", UTC_TIMESTAMP, "First call; NULL where no call has a timestamp."),
        Column("last_ts", UTC_TIMESTAMP, "Last call; NULL where no call has a timestamp."),
        Column("timed", pl.Int64, "Calls that have a timestamp."),
        Column("timed_answered", pl.Int64, "Answered calls that have a timestamp."),
        Column("days", pl.Float64, "Days from first to last call, at least one, so that a short log is not blown up."),
        Column("calls_per_day", pl.Float64, "Calls that have a timestamp, per day; NULL where none has."),
        Column("input_tokens", pl.Int64, "Prompt tokens, sum over the calls that measured them; NULL where none did."),
        Column("input_tokens_measured", pl.Int64, "Calls that measured prompt tokens."),
        Column("output_tokens", pl.Int64, "Answer tokens, sum over the calls that measured them; NULL where none did."),
        Column("output_tokens_measured", pl.Int64, "Calls that measured answer tokens."),
        Column("latency_p50_ms", pl.Float64, "Median time to the last token of answered calls, milliseconds."),
        Column("latency_p95_ms", pl.Float64, "95th percentile of the same; NULL where not measured."),
        Column("latency_p99_ms", pl.Float64, "99th percentile of the same; NULL where not measured."),
        Column("latency_measured", pl.Int64, "Answered calls that measured the time to the last token."),
        Column("ttft_p50_ms", pl.Float64, "Median time to the first token of answered calls, milliseconds."),
        Column("ttft_p95_ms", pl.Float64, "95th percentile of the same; NULL where not measured."),
        Column("ttft_p99_ms", pl.Float64, "99th percentile of the same; NULL where not measured."),
        Column("ttft_measured", pl.Int64, "Answered calls that measured the time to the first token."),
        Column("cost_usd", pl.Float64, "Logged cost, USD, sum over the calls that measured it; NULL where none did."),
        Column("cost_measured", pl.Int64, "Calls that logged their cost."),
        Column("with_tools", pl.Int64, "Calls that offered tools or were answered with tool calls."),
        Column("with_json", pl.Int64, "Calls that asked for JSON (json_object or json_schema)."),
        Column("with_streaming", pl.Int64, "Calls that streamed."),
        Column("with_logprobs", pl.Int64, "Calls that asked for log probabilities."),
        Column("with_system_prompt", pl.Int64, "Calls with a system or developer message."),
        Column("with_history", pl.Int64, "Calls whose messages hold an earlier answer (multi-turn)."),
        Column("with_images", pl.Int64, "Calls with an image in their messages."),
        Column("tagged_high_risk", pl.Int64, "Calls with `risk: high` or a compliance mandate in their tags."),
        Column("risk", pl.String, "`high`: tagged so; `medium`: tools or JSON output; `low`: plain completions."),
    ),
)

# Aggregates skip NULL and give NULL over nothing, so what no call measured stays unmeasured, never zero.
INVENTORY_SQL: Final = """
WITH calls AS (
    SELECT
        coalesce(application, 'unknown') AS application,
        coalesce(endpoint, 'unknown') AS endpoint,
        coalesce(provider, 'unknown') AS provider,
        coalesce(model, 'unknown') AS model,
        status, ts, input_tokens, output_tokens, latency_ms, ttft_ms, cost_usd,
        status = 'ok' AS ok,
        json_array_length(params, '$.tools') > 0 OR json_array_length(params, '$.functions') > 0
            OR json_array_length(tool_calls) > 0 AS tools,
        json_extract_string(params, '$.response_format.type') IN ('json_object', 'json_schema') AS json_output,
        json_extract_string(params, '$.stream') = 'true' AS streaming,
        json_extract_string(params, '$.logprobs') NOT IN ('false', '0')
            OR json_extract_string(params, '$.top_logprobs') <> '0' AS logprobs,
        json_extract_string(messages, '$[*].role') AS roles,
        json_extract_string(messages, '$[*].content[*].type') AS parts,
        lower(json_extract_string(tags, '$.risk')) = 'high'
            OR lower(json_extract_string(tags, '$.compliance')) NOT IN ('', 'false', 'none', '[]', '{}') AS high_risk
    FROM request_log
)
SELECT
    application, endpoint, provider, model,
    count(*) AS calls,
    count(*) / sum(count(*)) OVER () AS share,
    count(*) FILTER (ok) AS answered,
    count(*) FILTER (status = 'error') AS errors,
    count(*) FILTER (status = 'unanswered') AS unanswered,
    min(ts) AS first_ts,
    max(ts) AS last_ts,
    count(ts) AS timed,
    count(*) FILTER (ok AND ts IS NOT NULL) AS timed_answered,
    CASE WHEN count(ts) > 0 THEN greatest(1.0, (epoch_us(max(ts)) - epoch_us(min(ts))) / 86400e6) END AS days,
    timed / days AS calls_per_day,
    sum(input_tokens)::BIGINT AS input_tokens,
    count(input_tokens) AS input_tokens_measured,
    sum(output_tokens)::BIGINT AS output_tokens,
    count(output_tokens) AS output_tokens_measured,
    quantile_cont(latency_ms, 0.50) FILTER (ok) AS latency_p50_ms,
    quantile_cont(latency_ms, 0.95) FILTER (ok) AS latency_p95_ms,
    quantile_cont(latency_ms, 0.99) FILTER (ok) AS latency_p99_ms,
    count(latency_ms) FILTER (ok) AS latency_measured,
    quantile_cont(ttft_ms, 0.50) FILTER (ok) AS ttft_p50_ms,
    quantile_cont(ttft_ms, 0.95) FILTER (ok) AS ttft_p95_ms,
    quantile_cont(ttft_ms, 0.99) FILTER (ok) AS ttft_p99_ms,
    count(ttft_ms) FILTER (ok) AS ttft_measured,
    sum(cost_usd) AS cost_usd,
    count(cost_usd) AS cost_measured,
    count(*) FILTER (tools) AS with_tools,
    count(*) FILTER (json_output) AS with_json,
    count(*) FILTER (streaming) AS with_streaming,
    count(*) FILTER (logprobs) AS with_logprobs,
    count(*) FILTER (list_has_any(roles, ['system', 'developer'])) AS with_system_prompt,
    count(*) FILTER (list_contains(roles, 'assistant')) AS with_history,
    count(*) FILTER (list_has_any(parts, ['image_url', 'input_image', 'image'])) AS with_images,
    count(*) FILTER (high_risk) AS tagged_high_risk,
    CASE WHEN tagged_high_risk > 0 THEN 'high' WHEN with_tools + with_json > 0 THEN 'medium' ELSE 'low' END AS risk
FROM calls
GROUP BY application, endpoint, provider, model
ORDER BY application, endpoint, provider, model
"""


@dataclass(frozen=True)
class Traffic:
    """The answered calls of a workload over time.

    Attributes:
        answered: Answered calls that have a timestamp; those without one cannot say how many come in a day.
        first_ts: First logged call, None where no call has a timestamp.
        last_ts: Last logged call, None where no call has a timestamp.
    """

    answered: int
    first_ts: datetime | None
    last_ts: datetime | None

    @property
    def calls_per_day(self) -> float | None:
        """Answered calls per day from first to last call, at least one day; None without timestamps."""
        if self.first_ts is None or self.last_ts is None:
            return None
        return self.answered / max(1.0, (self.last_ts - self.first_ts) / timedelta(days=1))


def take_inventory(request_log: pl.DataFrame) -> pl.DataFrame:
    """Return the INVENTORY of calls with the columns of REQUEST_LOG."""
    with duckdb.connect() as connection:
        connection.register("request_log", REQUEST_LOG.conform(request_log))
        return INVENTORY.conform(connection.sql(INVENTORY_SQL).pl())


def traffic_of(inventory: pl.DataFrame, migration: Migration) -> Traffic:
    """Return the traffic that the migration's legacy model answers today, from INVENTORY rows."""
    legacy = migration.legacy
    served = inventory.filter(of_model(legacy), of_applications(legacy))
    answered, first, last = served.select(pl.sum("timed_answered"), pl.min("first_ts"), pl.max("last_ts")).row(0)
    return Traffic(answered, first, last)
