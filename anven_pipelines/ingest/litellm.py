"""Lines of LiteLLM's StandardLoggingPayload, as its proxy and SDK hand them to every log callback (1.106).

One object per line. The bodies are read as in `ingest/openai.py`; this module says which of LiteLLM's fields they
are, and which of its values are placeholders. Times are seconds since 1970.

- **Application**: `application` of the caller's metadata, else a request tag `application:NAME`, else the alias of
  the virtual key, else that of its team. Likewise `task`.
- **Ground truth, context**: a gateway knows none. They are read from the caller's metadata (`ground_truth`,
  `context`): the request's `metadata`, logged as `metadata.requester_metadata`, or `spend_logs_metadata`. What
  else stands there joins the tags, but not the request's headers and ids that LiteLLM adds to it.
- **Conversation**: `session_id`, else one in the caller's metadata, else `trace_id`. By default LiteLLM logs the
  session as `trace_id`, and makes one up per call where the caller gave none: then each call stands alone.
- **User**: the end user, never the key's owner, who is the same for all users of an application.
- **Model**: of a response that the router relabelled with the public name, the deployment's model.
- **Missing**: 0 stands for an unknown cost (failures, models without a price) and for tokens of failures; an end
  time for a first token that never came. All these become NULL, as do the times of cache hits, which no model took.
  Tokens that LiteLLM counted itself, because a provider did not, cannot be told from others.

The latency of a call that was not streamed covers the attempt that served it, not retries before it; a failed first
attempt has a line of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.request_log import REJECTED_LINES
from anven_pipelines.ingest.fields import Parsed
from anven_pipelines.ingest.openai import read_openai

if TYPE_CHECKING:
    import duckdb

_MACROS: Final = r"""
CREATE OR REPLACE TEMP MACRO seconds_fault(name, j) AS CASE
    WHEN json_type(j) NOT IN ('DOUBLE', 'BIGINT', 'UBIGINT')
    THEN name || ' is ' || shown(j) || '; seconds since 1970 are needed' END;
CREATE OR REPLACE TEMP MACRO milliseconds(since, till) AS
    to_json(round((TRY_CAST(till AS DOUBLE) - TRY_CAST(since AS DOUBLE)) * 1000, 3));
CREATE OR REPLACE TEMP MACRO not_null(j) AS CASE WHEN json_type(j) <> 'NULL' THEN j END;
CREATE OR REPLACE TEMP MACRO not_empty(j) AS CASE WHEN text_of(j) <> '' THEN j END;
CREATE OR REPLACE TEMP MACRO object_of(j) AS CASE WHEN json_type(j) = 'OBJECT' THEN j ELSE '{}'::JSON END;
CREATE OR REPLACE TEMP MACRO tag_of(tags, name) AS to_json(trim(substr(
    list_filter(tags, lambda t: starts_with(t, name || ':'))[1], length(name) + 2)));
"""

_AS_BODIES: Final = r"""
WITH given AS MATERIALIZED (
    SELECT n, unnest(json_transform(line, '{
        "id": "JSON", "litellm_call_id": "JSON", "trace_id": "JSON", "session_id": "JSON", "call_type": "VARCHAR",
        "stream": "JSON", "status": "VARCHAR", "response_cost": "JSON", "custom_llm_provider": "JSON",
        "startTime": "JSON", "endTime": "JSON", "completionStartTime": "JSON", "model": "JSON", "model_group": "JSON",
        "metadata": "JSON", "cache_hit": "JSON", "request_tags": "JSON", "end_user": "JSON", "messages": "JSON",
        "response": "JSON", "error_str": "JSON", "error_information": "JSON", "model_parameters": "JSON"}'))
    FROM lines
), named AS MATERIALIZED (
    SELECT *,
        CASE
            WHEN call_type IN ('completion', 'acompletion') THEN 'chat/completions'
            WHEN call_type IN ('text_completion', 'atext_completion') THEN 'completions'
            WHEN call_type IN ('responses', 'aresponses') THEN 'responses'
        END AS api,
        json_merge_patch(object_of(metadata -> 'requester_metadata'), object_of(metadata -> 'spend_logs_metadata'))
            AS told,
        list_filter(json_extract_string(request_tags, '$[*]'), lambda t: NOT starts_with(t, 'User-Agent:')) AS labels,
        CASE WHEN starts_with(text_of(model), text_of(custom_llm_provider) || '/')
            THEN substr(text_of(model), length(text_of(custom_llm_provider)) + 2) ELSE text_of(model) END AS deployed,
        cache_hit = 'true' AS cached,
        stream = 'true' OR (model_parameters -> 'stream') = 'true' AS streamed,
        nullif(response ->> 'model', '') AS answering
    FROM given
), served AS MATERIALIZED (
    SELECT *,
        coalesce(CASE WHEN answering IS DISTINCT FROM text_of(model_group) THEN answering END, deployed) AS server,
        coalesce(nullif(text_of(model_group), ''), deployed) AS requested
    FROM named
)
SELECT
    n,
    coalesce(
        CASE WHEN call_type IS NULL THEN 'call_type is missing; a StandardLoggingPayload of LiteLLM is needed'
            WHEN api IS NULL THEN 'call_type ' || left(call_type, 60) || ' is not a text generation call that is read'
            WHEN status IS NULL OR status NOT IN ('success', 'failure')
                THEN 'status is ' || coalesce(left(status, 40), 'missing') || '; success or failure is needed' END,
        seconds_fault('startTime', startTime),
        seconds_fault('endTime', endTime),
        seconds_fault('completionStartTime', completionStartTime),
        CASE WHEN TRY_CAST(endTime AS DOUBLE) < TRY_CAST(startTime AS DOUBLE)
            THEN 'endTime is before startTime; a time that passed is needed' END,
        type_fault('metadata', metadata, 'OBJECT', 'an object'),
        type_fault('request_tags', request_tags, 'ARRAY', 'a list'),
        type_fault('model_parameters', model_parameters, 'OBJECT', 'an object'),
        CASE WHEN (messages ->> '$[0].content') = 'redacted-by-litellm' THEN 'messages are redacted; log them with '
            'turn_off_message_logging: false in the proxy''s litellm_settings' END
    ) AS reason,
    json_object(
        'request_id', coalesce(not_empty(id), litellm_call_id),
        'ts', startTime,
        'application', coalesce(not_empty(told -> 'application'), tag_of(labels, 'application'),
            not_empty(metadata -> 'user_api_key_alias'), not_empty(metadata -> 'user_api_key_team_alias')),
        'path', '/v1/' || api,
        'provider', not_empty(custom_llm_provider),
        'request', json_merge_patch(
            object_of(model_parameters),
            json_object('model', server, CASE api WHEN 'completions' THEN 'prompt' WHEN 'responses' THEN 'input'
                ELSE 'messages' END, CASE WHEN api = 'completions' AND json_type(messages) = 'ARRAY'
                THEN to_json(json_extract(messages, '$[*].content')) ELSE messages END,
                -- Where the parameters lack the instructions, the response repeats them.
                'instructions', CASE WHEN api = 'responses' THEN coalesce(
                    not_null(model_parameters -> 'instructions'), not_null(response -> 'instructions')) END)),
        'response', CASE WHEN json_type(response) = 'OBJECT'
            THEN json_merge_patch(response, json_object('model', server)) ELSE response END,
        'status', CASE WHEN status = 'failure'
            THEN coalesce(to_json(TRY_CAST(error_information ->> 'error_code' AS INTEGER)), to_json('error')) END,
        'error', CASE WHEN status = 'failure' THEN json_object(
            'code', not_empty(error_information -> 'error_class'),
            'message', coalesce(not_empty(error_information -> 'error_message'), error_str)) END,
        'ground_truth', not_null(told -> 'ground_truth'),
        'context', not_null(told -> 'context'),
        'ttft_ms', CASE WHEN streamed AND NOT coalesce(cached, false)
            AND TRY_CAST(completionStartTime AS DOUBLE) < TRY_CAST(endTime AS DOUBLE)
            THEN milliseconds(startTime, completionStartTime) END,
        'latency_ms', CASE WHEN NOT coalesce(cached, false) THEN milliseconds(startTime, endTime) END,
        'cost_usd', CASE WHEN status = 'success' AND (coalesce(TRY_CAST(response_cost AS DOUBLE) <> 0, true) OR cached)
            THEN response_cost END,
        'user', coalesce(not_empty(end_user), not_empty(metadata -> 'user_api_key_end_user_id'),
            not_empty(told -> 'user_id')),
        'conversation_id', coalesce(not_empty(session_id), not_empty(told -> 'conversation_id'),
            not_empty(told -> 'session_id'), not_empty(trace_id)),
        'task', coalesce(not_null(told -> 'task'), tag_of(labels, 'task')),
        'tags', json_merge_patch(
            json_merge_patch(told, '{"application": null, "task": null, "ground_truth": null, "context": null,
                "user_id": null, "conversation_id": null, "session_id": null, "trace_id": null, "tags": null,
                "headers": null, "used_client_oauth_token": null, "spend_logs_metadata": null}'),
            json_object(
                'request_tags', CASE WHEN len(labels) > 0 THEN to_json(labels) END,
                'requested_model', CASE WHEN requested <> server THEN requested END,
                'call_id', CASE WHEN litellm_call_id <> id THEN litellm_call_id END,
                'cache_hit', CASE WHEN cached THEN true END))
    )::VARCHAR AS line
FROM served ORDER BY n
"""


def read_litellm(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> Parsed:
    """Read screened lines (source_file, source_line, raw, line) of StandardLoggingPayload."""
    connection.register("lines", lines.select("line").with_row_index("n").to_arrow())
    connection.execute(_MACROS)
    bodies = pl.DataFrame(connection.sql(_AS_BODIES).to_arrow_table())
    judged = lines.drop("line").with_columns(bodies.select("reason", "line"))
    sound = pl.col("reason").is_null()
    parsed = read_openai(connection, judged.filter(sound).drop("reason"))
    refused = REJECTED_LINES.conform(judged.filter(~sound))
    return Parsed(parsed.rows, pl.concat([refused, parsed.rejected]))
