"""Which logged calls can stand in a golden dataset, and what each is drawn by: its stratum, its marks, its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl

from anven_pipelines.domain.language import UNKNOWN, languages
from anven_pipelines.domain.request_log import REQUEST_LOG, of_applications, of_model
from anven_pipelines.domain.table import UTC_TIMESTAMP
from anven_pipelines.spec_grading import RagasGrader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.spec import Migration

AMBIGUOUS: Final = "ambiguous request id"
MEDIUM_FROM_TOKENS: Final = 500
LONG_FROM_TOKENS: Final = 2_000
CHARACTERS_PER_TOKEN: Final = 4  # rule of thumb for English; used where the log has no token count

ASKED_WITH: Final = """
CREATE MACRO asked_with(params) AS json_merge_patch(coalesce(params, '{}'),
    '{"user":null,"seed":null,"stream":null,"stream_options":null,"metadata":null}')::VARCHAR
"""
"""Defines the parameters of a call without those that say who asks or how the answer travels."""

# An id made up for a call without one covers what was asked and answered, and nothing of where the line stood.
_DESCRIBED: Final = """
WITH asked AS (
    SELECT *, to_json([messages, params, context, output, tool_calls])::VARCHAR AS asked_and_answered FROM calls
), identified AS (
    SELECT * EXCLUDE (asked_and_answered),
        coalesce(nullif(request_id, ''), 'row-' || left(sha256(asked_and_answered), 16)) AS id,
        coalesce(nullif(conversation_id, ''), id) AS cluster,
        sha256(asked_and_answered || coalesce(ground_truth, chr(31))) AS content
    FROM asked
)
SELECT *,
    sha256(to_json([epoch_us(ts)::VARCHAR, application, endpoint, conversation_id, tags, finish_reason,
        input_tokens::VARCHAR, output_tokens::VARCHAR, cached_tokens::VARCHAR,
        ttft_ms::VARCHAR, latency_ms::VARCHAR, cost_usd::VARCHAR])::VARCHAR) AS circumstances,
    sha256($seed || ':draw:' || cluster) AS draw_key,
    sha256($seed || ':turn:' || id) AS turn_key,
    sha256($seed || ':seal:' || cluster) AS seal_key,
    json_extract_string(tags, '$.task') AS task,
    lower(json_extract_string(tags, '$.risk')) AS risk,
    lower(json_extract_string(tags, '$.language')) AS language,
    declared OR coalesce(lower(json_extract_string(tags, '$.adversarial')) IN ('true', '1'), false) AS adversarial,
    coalesce(lower(json_extract_string(tags, '$.edge_case')) IN ('true', '1'), false) AS edge_case,
    asked_with(params) AS asked_with,
    left(array_to_string(list_transform(
        list_filter(json_extract(messages, '$[*]'), lambda each: json_extract_string(each, '$.role') = 'user'),
        lambda each: json_extract_string(each, '$.content')), ' '), 1000) AS user_text,
    list_sum(list_transform(json_extract(messages, '$[*].content'), lambda content:
        CASE json_type(content) WHEN 'VARCHAR' THEN length(content ->> '$') ELSE 0 END))::BIGINT AS characters,
    list_sum(list_transform(json_extract_string(messages, '$[*].content[*].text'),
        lambda text: length(text)))::BIGINT AS part_characters
FROM identified
"""


def judged(logged: pl.DataFrame, adversarial: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Describe every call and give each that cannot stand in a golden dataset the first reason that holds.

    Args:
        logged: Calls with the columns of REQUEST_LOG, in any order.
        adversarial: The same of the files that the migration declares as adversarial; they may come from any
            application and need not name the legacy model.
        migration: Names the legacy model, the strata and the seed.

    Returns:
        Calls with the strata, `stratum` (the declared ones as JSON), `cluster`, the marks `adversarial` and
        `edge_case`, keyed ranks, and `exclusion`, NULL for those that qualify.
    """
    calls = pl.concat(
        [
            REQUEST_LOG.conform(frame).with_columns(declared=pl.lit(declared))
            for frame, declared in ((logged, False), (adversarial, True))
        ]
    )
    return _deduplicated(_qualified(_described(calls, migration), migration))


def strata_of(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Return the workload's calls, whichever arm served them: ts, cluster and the strata's columns, one row a call."""
    models = of_model(migration.legacy) | (pl.col("model") == migration.target.model)
    asked = calls.filter(of_applications(migration.legacy) & models.fill_null(value=False))
    described = _described(REQUEST_LOG.conform(asked).with_columns(declared=pl.lit(value=False)), migration)
    return described.select(pl.col("ts").cast(UTC_TIMESTAMP), "cluster", *migration.golden.strata)


def stratum_of(strata: Sequence[str]) -> pl.Expr:
    """Return the declared strata of a call as one JSON text, `stratum`."""
    return (pl.struct(strata).struct.json_encode() if strata else pl.lit("{}")).alias("stratum")


def traffic_strata(calls: pl.DataFrame, migration: Migration) -> dict[str, Any]:
    """Return what the traffic is at a freeze, for a later one to be compared with: a fact of the golden dataset.

    All calls of the workload count, as `strata_of` returns them: also those that cannot stand in a golden dataset, such
    as failed and repeated ones and those without a truth. `strata` has the calls by stratum, and `design_effect` is the
    calls per independent one, if a conversation stays in one stratum.
    """
    traffic = strata_of(calls, migration)
    strata = migration.golden.strata
    counted = traffic.group_by(strata).len("calls") if strata else traffic.select(calls=pl.len())
    return {
        "strata": counted.with_columns(pl.col("calls").cast(pl.Int64)).sort(strata or ["calls"]).to_dicts(),
        "design_effect": calls_per_independent(traffic),
    }


def calls_per_independent(traffic: pl.DataFrame) -> float:
    """Return the design effect of conversations that stay in one stratum: sum(calls²) / calls, the most it can be.

    Args:
        traffic: Column `cluster`, one row a call.
    """
    sizes = traffic.group_by("cluster").len()["len"].cast(pl.Float64)
    return max(1.0, float((sizes**2).sum()) / traffic.height) if traffic.height else 1.0


def length_band() -> pl.Expr:
    """Band of a prompt: `short` below 500 tokens, `medium` below 2,000, else `long`.

    Logged tokens count where the log has them, else characters of text at four to the token. The bounds do not
    depend on the data, so a band means the same in every freeze.
    """
    tokens = pl.coalesce(pl.col("input_tokens"), pl.col("characters") / CHARACTERS_PER_TOKEN)
    return (
        pl.when(tokens < MEDIUM_FROM_TOKENS)
        .then(pl.lit("short"))
        .when(tokens < LONG_FROM_TOKENS)
        .then(pl.lit("medium"))
        .when(tokens.is_not_null())
        .then(pl.lit("long"))
    )


def _described(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Add id, cluster, content hash, marks, keyed ranks and strata to each call.

    The language costs 0.3 ms a prompt to detect, so it is, where no tag says it, only for a log that is stratified
    by it.
    """
    strata = migration.golden.strata
    with duckdb.connect() as connection:
        connection.register("calls", calls)
        connection.execute(ASKED_WITH)
        described: pl.DataFrame = connection.sql(_DESCRIBED, params={"seed": str(migration.golden.seed)}).pl()
    if "language" in strata:
        untold = pl.when(pl.col("language").is_null()).then(pl.col("user_text"))
        detected = languages(described.select(untold.alias("user_text"))["user_text"])
        described = described.with_columns(pl.coalesce("language", detected.alias("detected")).alias("language"))
    return (
        described.with_columns(pl.col("characters").fill_null(0) + pl.col("part_characters").fill_null(0))
        .with_columns(
            length_band().fill_null(UNKNOWN).alias("length_band"),
            pl.col("risk").fill_null(migration.risk or UNKNOWN),
            pl.col("application", "endpoint", "task", "language").fill_null(UNKNOWN),
        )
        .with_columns(stratum_of(strata))
    )


def _qualified(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Give each call that cannot stand in the golden dataset the first reason that holds.

    A call without the ground truth that its graders compare with could never be measured. It is left out here, where
    no answer has been looked at, so that leaving it out favours neither arm.
    """
    legacy = migration.legacy
    compared = any(not isinstance(grader, RagasGrader) for grader in migration.grading)
    answered = (pl.col("output").fill_null("") != "") | ~pl.col("tool_calls").fill_null("[]").is_in(["[]", "null", ""])
    unnamed = pl.col("declared") & pl.col("model").is_null()
    reasons = {
        "other application": ~of_applications(legacy) & ~pl.col("declared"),
        "other model": ~of_model(legacy).fill_null(value=False) & ~unnamed,
        "error": pl.col("status") == "error",
        "unanswered": pl.col("status") == "unanswered",
        "status unknown": pl.col("status").fill_null("") != "ok",
        "no prompt": pl.col("messages").fill_null("[]").is_in(["[]", "null", ""]),
        "no output": ~answered,
        "no ground truth": pl.col("ground_truth").is_null() & pl.lit(compared),
    }
    held = (pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items())
    return calls.with_columns(pl.coalesce(*held).alias("exclusion"))


def _deduplicated(calls: pl.DataFrame) -> pl.DataFrame:
    """Keep one of the calls that say the same under one id, and none of those that contradict each other.

    A provider that logs a call twice stamps times of its own, so only what was asked, answered and labelled counts
    as content; of equal calls the earliest stays, of a declared adversarial one and its logged twin the former.
    """
    order = pl.col("id"), ~pl.col("adversarial"), pl.col("ts"), pl.col("circumstances")
    qualified = calls.filter(pl.col("exclusion").is_null()).sort(*order, nulls_last=True)
    told_apart = qualified.with_columns(
        pl.when(pl.col("content").n_unique().over("id") > 1)
        .then(pl.lit(AMBIGUOUS))
        .when(pl.int_range(pl.len()).over("id") > 0)
        .then(pl.lit("identical duplicate"))
        .alias("exclusion")
    )
    return pl.concat([told_apart, calls.filter(pl.col("exclusion").is_not_null())])
