"""Request/response JSONL of OpenAI and the providers that speak its API.

One object per line holds the bodies as `request` and `response`, as objects or as JSON text, bare or within
`body`; a streamed response is the raw event stream. Read are chat completions, legacy completions and
responses. Beside the bodies a line may hold `path` or `url`, `method`, `status`, `ts`, `timestamp` or
`created_at`, `latency_ms`, `ttft_ms`, `user`, `request_id`, `application`, `conversation_id`, `tags` and the
like. Other fields, headers among them, are not kept, because they may hold credentials.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from anven_pipelines.ingest.fields import Parsed, to_rows
from anven_pipelines.ingest.streams import BrokenStreamError, assemble

if TYPE_CHECKING:
    import duckdb

_MACROS: Final = """
CREATE OR REPLACE TEMP MACRO as_object(j) AS CASE
    WHEN json_type(j) = 'OBJECT' THEN j
    WHEN json_type(j) = 'VARCHAR' AND json_valid(text_of(j)) AND json_type(text_of(j)) = 'OBJECT'
        THEN text_of(j)::JSON END;
CREATE OR REPLACE TEMP MACRO plain_text(j) AS CASE
    WHEN json_type(j) = 'VARCHAR' AND as_object(j) IS NULL THEN nullif(trim(text_of(j), E' \\t\\r\\n'), '') END;
CREATE OR REPLACE TEMP MACRO as_json(t) AS CASE WHEN t IS NOT NULL THEN to_json(t) END;
CREATE OR REPLACE TEMP MACRO given(j) AS CASE WHEN json_type(j) <> 'NULL' THEN j END;
CREATE OR REPLACE TEMP MACRO function_call(id, name, arguments) AS
    json_object('id', id, 'type', 'function', 'function', json_object('name', name, 'arguments', arguments));

-- An item of a Responses input as a chat message; a typed item without a role is something the model did.
CREATE OR REPLACE TEMP MACRO item_as_message(i) AS CASE i ->> 'type'
    WHEN 'message' THEN json_merge_patch(i, '{"type":null,"id":null,"status":null}')
    WHEN 'function_call' THEN json_object('role', 'assistant', 'content', NULL,
        'tool_calls', json_array(function_call(i -> 'call_id', i -> 'name', i -> 'arguments')))
    WHEN 'function_call_output' THEN
        json_object('role', 'tool', 'tool_call_id', i -> 'call_id', 'content', i -> 'output')
    ELSE CASE WHEN json_exists(i, '$.role') OR NOT json_exists(i, '$.type') THEN i
        ELSE json_merge_patch(i, '{"role":"assistant"}') END
    END;
"""

_PARSED: Final = r"""
CREATE OR REPLACE TEMP TABLE parsed AS
WITH line_fields AS MATERIALIZED (
    SELECT n, unnest(json_transform(line, '{
        "request": "JSON", "response": "JSON", "body": "JSON", "status": "JSON", "status_code": "JSON",
        "path": "JSON", "url": "JSON", "endpoint": "JSON", "method": "VARCHAR", "headers": "JSON",
        "response_headers": "JSON", "ts": "JSON", "timestamp": "JSON", "created_at": "JSON", "ttft_ms": "JSON",
        "latency_ms": "JSON", "cost_usd": "JSON", "user": "JSON", "user_hash": "JSON", "request_id": "JSON",
        "id": "JSON", "custom_id": "JSON", "provider": "JSON", "application": "JSON", "conversation_id": "JSON",
        "session_id": "JSON", "ground_truth": "JSON", "context": "JSON", "tags": "JSON", "task": "JSON",
        "error": "JSON"}'))
    FROM lines
), opened AS MATERIALIZED (
    SELECT *, as_object(request) AS request_object, as_object(response) AS response_object FROM line_fields
)
SELECT
    * EXCLUDE (request_object, response_object, body),
    coalesce(as_object(request_object -> 'body'), request_object, as_object(body)) AS request_body,
    CASE WHEN json_exists(response_object, '$.body') THEN as_object(response_object -> 'body')
        ELSE response_object END AS response_body,
    coalesce(plain_text(response), plain_text(response_object -> 'body')) AS response_text,
    coalesce(
        TRY_CAST(text_of(status) AS INTEGER), TRY_CAST(text_of(status_code) AS INTEGER),
        TRY_CAST(response_object ->> 'status_code' AS INTEGER), TRY_CAST(response_object ->> 'status' AS INTEGER)
    ) AS code,
    regexp_replace(regexp_replace(coalesce(
        text_of(path), text_of(url), text_of(endpoint), request_object ->> 'url', request_object ->> 'path'
    ), '^[a-z]+://[^/]+', ''), '[?#].*$', '') AS called
FROM opened
"""

_SELECT: Final = r"""
WITH answered AS MATERIALIZED (
    SELECT
        parsed.* EXCLUDE (response_body),
        coalesce(streams.body::JSON, response_body) AS response_body,
        streams.fault AS stream_fault,
        CASE
            WHEN method IN ('GET', 'DELETE') THEN NULL
            WHEN regexp_matches(called, '(^|[/.])chat[/.]completions/?$') THEN 'chat'
            WHEN regexp_matches(called, '(^|[/.])completions/?$') THEN 'completions'
            WHEN regexp_matches(called, '(^|[/.])responses/?$') THEN 'responses'
            WHEN called IS NOT NULL THEN NULL
            WHEN json_exists(request_body, '$.messages') THEN 'chat'
            WHEN json_exists(request_body, '$.prompt') THEN 'completions'
            WHEN response_body ->> 'object' = 'response' THEN 'responses'
        END AS api
    FROM parsed LEFT JOIN streams USING (n)
), bodies AS MATERIALIZED (
    -- Every JSON function parses its input again: the large bodies are taken apart once, here.
    SELECT *,
        json_transform(request_body, '{"messages": "JSON", "prompt": "JSON", "input": "JSON", "instructions": "JSON",
            "model": "JSON", "user": "JSON", "safety_identifier": "JSON", "metadata": "JSON"}') AS asked,
        json_transform(response_body, '{"id": "JSON", "created": "JSON", "created_at": "JSON", "model": "JSON",
            "choices": "JSON", "output": "JSON", "status": "JSON", "error": "JSON",
            "incomplete_details": {"reason": "JSON"},
            "usage": {"prompt_tokens": "JSON", "input_tokens": "JSON", "completion_tokens": "JSON",
                "output_tokens": "JSON", "prompt_tokens_details": {"cached_tokens": "JSON"},
                "input_tokens_details": {"cached_tokens": "JSON"}}}') AS got
    FROM answered
), calls AS MATERIALIZED (
    SELECT *,
        json_transform(got.choices -> '$[0]', '{"text": "JSON", "finish_reason": "JSON",
            "message": {"content": "JSON", "refusal": "JSON", "tool_calls": "JSON", "function_call": "JSON"}}'
        ) AS choice,
        coalesce(
            got.error, error,
            CASE WHEN code >= 400 OR text_of(status) IN ('error', 'failed')
                THEN json_object('message', left(response_text, 500)) END
        ) AS failure,
        coalesce(nullif(text_of(got.model), ''), text_of(asked.model)) AS model_name,
        list_filter(json_extract(got.output, '$[*]'), lambda i: i ->> 'type' = 'message') AS said,
        list_filter(json_extract(got.output, '$[*]'), lambda i: i ->> 'type' = 'function_call') AS used
    FROM bodies
)
SELECT
    n,
    CASE
        WHEN api IS NULL AND called IS NOT NULL THEN 'endpoint ' || called || ' is not a text generation call'
        WHEN request_body IS NULL
            THEN 'request is ' || coalesce(shown(request), 'missing') || '; the request body is needed'
        WHEN api IS NULL THEN 'request holds neither messages nor prompt and names no endpoint; one is needed'
        WHEN stream_fault IS NOT NULL THEN 'response: ' || stream_fault
        WHEN api = 'completions' AND json_array_length(asked.prompt) > 1
            THEN 'prompt is a list of ' || json_array_length(asked.prompt) || '; one text is needed'
        WHEN failure IS NOT NULL THEN NULL
        WHEN response_body IS NULL AND response_text IS NOT NULL
            THEN 'response is text that is neither JSON nor an event stream; a response body is needed'
        WHEN response_body IS NULL AND response IS NOT NULL AND json_type(response) NOT IN ('OBJECT', 'VARCHAR')
            THEN 'response is ' || shown(response) || '; a response body is needed'
        WHEN response_body IS NOT NULL AND coalesce(json_array_length(got.choices), 0) = 0 AND got.output IS NULL
            THEN 'response holds neither choices nor an error; one is needed'
    END AS reason,
    coalesce(
        request_id, id, custom_id, got.id,
        given(headers -> 'x-request-id'), given(response_headers -> 'x-request-id')
    ) AS request_id,
    coalesce(
        ts, "timestamp", created_at, got.created, got.created_at
    ) AS ts,
    coalesce(application, given(asked.metadata -> 'application')) AS application,
    to_json(CASE api WHEN 'chat' THEN '/v1/chat/completions' ELSE '/v1/' || api END) AS endpoint,
    provider,
    as_json(model_name) AS model,
    CASE api
        WHEN 'chat' THEN asked.messages
        WHEN 'completions' THEN CASE
            WHEN coalesce(json_type(asked.prompt -> '$[0]'), json_type(asked.prompt)) = 'VARCHAR'
            THEN json_array(json_object('role', 'user', 'content',
                coalesce(asked.prompt -> '$[0]', asked.prompt))) END
        WHEN 'responses' THEN to_json(list_concat(
            CASE WHEN json_type(asked.instructions) = 'VARCHAR'
                THEN [json_object('role', 'system', 'content', asked.instructions)] ELSE [] END,
            CASE json_type(asked.input)
                WHEN 'VARCHAR' THEN [json_object('role', 'user', 'content', asked.input)]
                WHEN 'ARRAY' THEN list_transform(json_extract(asked.input, '$[*]'), lambda i: item_as_message(i))
                ELSE [] END))
    END AS messages,
    json_merge_patch(request_body, '{"messages": null, "prompt": null, "input": null, "instructions": null,
        "model": null, "user": null, "safety_identifier": null, "metadata": null, "stream": null,
        "stream_options": null}') AS params,
    context,
    CASE api
        WHEN 'responses' THEN CASE WHEN len(said) > 0 THEN to_json(array_to_string(
            json_extract_string(to_json(said), '$[*].content[*].text')
            || json_extract_string(to_json(said), '$[*].content[*].refusal'), '')) END
        WHEN 'completions' THEN choice.text
        ELSE CASE WHEN json_type(choice.message.content) = 'ARRAY'
            THEN to_json(array_to_string(json_extract_string(choice.message.content, '$[*].text'), ''))
            ELSE coalesce(choice.message.content, choice.message.refusal) END
    END AS output,
    CASE
        WHEN len(used) > 0 THEN to_json(list_transform(used,
            lambda i: function_call(i -> 'call_id', i -> 'name', i -> 'arguments')))
        WHEN json_type(choice.message.function_call) = 'OBJECT'
            THEN json_array(json_object('type', 'function', 'function', choice.message.function_call))
        ELSE choice.message.tool_calls
    END AS tool_calls,
    coalesce(
        choice.finish_reason, got.incomplete_details.reason, CASE WHEN api = 'responses' THEN got.status END
    ) AS finish_reason,
    to_json(CASE WHEN failure IS NOT NULL THEN 'error' WHEN response_body IS NULL THEN 'unanswered' ELSE 'ok' END)
        AS status,
    CASE WHEN failure IS NOT NULL THEN to_json(concat_ws(': ',
        nullif(concat_ws(' ', CASE WHEN code >= 400 THEN 'HTTP ' || code END,
            coalesce(failure ->> 'code', failure ->> 'type')), ''),
        coalesce(failure ->> 'message', CASE WHEN json_type(failure) = 'VARCHAR' THEN text_of(failure) END)))
    END AS error,
    ground_truth,
    coalesce(got.usage.prompt_tokens, got.usage.input_tokens) AS input_tokens,
    coalesce(got.usage.completion_tokens, got.usage.output_tokens) AS output_tokens,
    coalesce(got.usage.prompt_tokens_details.cached_tokens, got.usage.input_tokens_details.cached_tokens)
        AS cached_tokens,
    ttft_ms,
    latency_ms,
    cost_usd,
    user_hash,
    coalesce("user", asked.user, asked.safety_identifier) AS user_id,
    coalesce(conversation_id, session_id, given(asked.metadata -> 'conversation_id')) AS conversation_id,
    tags,
    nullif(json_merge_patch(json_merge_patch(
        CASE WHEN json_type(asked.metadata) = 'OBJECT' THEN asked.metadata ELSE '{}' END,
        CASE WHEN task IS NOT NULL THEN json_object('task', task) ELSE '{}' END),
        CASE WHEN text_of(asked.model) <> model_name
            THEN json_object('requested_model', asked.model) ELSE '{}' END)::VARCHAR, '{}')::JSON AS extras
FROM calls
"""

_STREAMED: Final = r"""
SELECT n, response_text FROM parsed
WHERE regexp_matches(response_text, '^(data:|event:|id:|retry:|:)') ORDER BY n
"""


def read_openai(connection: duckdb.DuckDBPyConnection, lines: pl.DataFrame) -> Parsed:
    """Read screened lines (source_file, source_line, raw, line) of request/response JSONL."""
    connection.register("lines", lines.select("line").with_row_index("n").to_arrow())
    connection.execute(_MACROS)
    connection.execute(_PARSED)
    connection.register("streams", _assembled(pl.DataFrame(connection.sql(_STREAMED).to_arrow_table())).to_arrow())
    return to_rows(connection, _SELECT, lines)


def _assembled(streamed: pl.DataFrame) -> pl.DataFrame:
    """Assemble the streamed responses of a batch; chunks only make sense one after the other, hence a loop."""
    bodies: list[str | None] = []
    faults: list[str | None] = []
    for text in streamed.get_column("response_text").to_list():
        try:
            bodies.append(_written(assemble(text)))
            faults.append(None)
        except BrokenStreamError as error:
            bodies.append(None)
            faults.append(str(error))
    return streamed.select(
        pl.col("n").cast(pl.Int64), pl.Series("body", bodies, pl.String), pl.Series("fault", faults, pl.String)
    )


def _written(body: dict[str, Any]) -> str:
    """Write a body as JSON; the two halves of a surrogate pair that chunks tore apart are joined again."""
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except ValueError as error:
        message = f"the stream's text or numbers cannot be stored ({error})"
        raise BrokenStreamError(message) from error
