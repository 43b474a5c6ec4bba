"""The golden dataset: which logged calls the migration is judged on, drawn once and frozen.

A draw depends on the calls and the migration file alone: every choice ranks by a keyed SHA-256, so the order, the
number and the paths of the log files change nothing. Every candidate is either a golden row or counted under the
reason for which it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import duckdb
import polars as pl

from anven_pipelines.domain.errors import EmptyGolden, InvalidInput
from anven_pipelines.domain.request_log import REQUEST_LOG, of_applications, of_model
from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table
from anven_pipelines.spec import RagasGrader

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.spec import Golden, Migration

GOLDEN: Final = Table(
    "golden_dataset",
    (
        Column("id", pl.String, "Request id of the logged call, or `row-` and a hash of it where the log has none."),
        Column("source_prompt", pl.String, "Messages the legacy model was sent, JSON list."),
        Column("input_context", pl.String, "Context the call was given, such as retrieved passages, JSON."),
        Column("model_config", pl.String, "Request parameters of the logged call, JSON."),
        Column("ground_truth", pl.String, "The right answer; NULL where the log has none."),
        Column("source_output", pl.String, "Text the legacy model answered."),
        Column("tool_calls", pl.String, "Tool calls the legacy model answered, JSON list."),
        Column("finish_reason", pl.String, "Why the legacy answer ended."),
        Column("latency_ms", pl.Float64, "Time to the last token, milliseconds; NULL is not measured."),
        Column("ttft_ms", pl.Float64, "Time to the first token, milliseconds; NULL is not measured."),
        Column("input_tokens", pl.Int64, "Tokens of the prompt; NULL is not measured."),
        Column("output_tokens", pl.Int64, "Tokens of the answer; NULL is not measured."),
        Column("cached_tokens", pl.Int64, "Prompt tokens the provider read from its cache; NULL is not measured."),
        Column("cost_usd", pl.Float64, "Logged cost of the call, USD; NULL is not measured."),
        Column("automated_score", pl.Float64, "Score in [0, 1] that an earlier tool gave; NULL is none."),
        Column("human_score", pl.Float64, "Score in [0, 1] that a person gave; NULL is none."),
        Column("notes", pl.String, "What a person wrote about the item."),
        Column("cluster", pl.String, "Conversation of the item, or the item itself; the unit of independence."),
        Column("split", pl.String, "`open`, or `sealed` until sign-off."),
        Column("application", pl.String, "Stratum: application that made the call, or `unknown`."),
        Column("endpoint", pl.String, "Stratum: API endpoint of the call, or `unknown`."),
        Column("task", pl.String, "Stratum: `task` of the call's tags, or `unknown`."),
        Column("length_band", pl.String, "Stratum: `short`, `medium` or `long` prompt, by fixed bounds."),
    ),
)

AMBIGUOUS: Final = "ambiguous request id"
AUTO_SIZE: Final = (500, 2_000)
MEDIUM_FROM_TOKENS: Final = 500
LONG_FROM_TOKENS: Final = 2_000
CHARACTERS_PER_TOKEN: Final = 4  # rule of thumb for English; used where the log has no token count

_RENAMED: Final = {
    "messages": "source_prompt",
    "context": "input_context",
    "params": "model_config",
    "output": "source_output",
}

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
    list_sum(list_transform(json_extract(messages, '$[*].content'), lambda content:
        CASE json_type(content) WHEN 'VARCHAR' THEN length(content ->> '$') ELSE 0 END))::BIGINT AS characters,
    list_sum(list_transform(json_extract_string(messages, '$[*].content[*].text'),
        lambda text: length(text)))::BIGINT AS part_characters
FROM identified
"""


@dataclass(frozen=True, eq=False)
class Freeze:
    """A frozen golden dataset and what became of every candidate.

    Attributes:
        rows: GOLDEN rows in the order of their ids.
        exclusions: Reason to the number of candidates left out for it.
        candidates: Calls that were looked at: golden rows plus exclusions.
        facts: Size rule, seed, counts per stratum and per split; plain JSON values.
    """

    rows: pl.DataFrame
    exclusions: dict[str, int]
    candidates: int
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse a freeze that lost or repeated a call."""
        left_out = sum(self.exclusions.values())
        if self.rows.height + left_out != self.candidates:
            message = f"{self.rows.height} golden rows + {left_out} left out are not {self.candidates} candidates"
            raise ValueError(message)
        if self.rows["id"].n_unique() != self.rows.height:
            message = "an id stands twice in the golden rows; each must stand once"
            raise ValueError(message)


def freeze(candidates: pl.DataFrame, migration: Migration, *, needed: int, burnt: Collection[str] = ()) -> Freeze:
    """Draw the golden dataset from logged calls.

    Args:
        candidates: Calls with the columns of REQUEST_LOG, in any order.
        migration: Names the legacy model, the size, the strata, the sealed share and the seed.
        needed: Items the power calculation asks for; counts where `golden.size` is `auto`.
        burnt: Clusters that must never be sealed again.

    Raises:
        EmptyGolden: no call qualifies.
        InvalidInput: `golden.size` is larger than the number of calls that qualify.
    """
    calls = _deduplicated(_qualified(_described(candidates, migration.golden), migration))
    pool = calls.filter(pl.col("exclusion").is_null())
    exclusions = _counted(calls["exclusion"])
    if pool.is_empty():
        raise EmptyGolden(_nothing_qualifies(calls, exclusions, migration))
    size = _size(migration, available=pool.height, needed=needed)
    drawn = _sealed(_drawn(pool, size.items), migration.golden.holdout, burnt)
    if pool.height > drawn.height:
        exclusions["not drawn"] = pool.height - drawn.height
    return Freeze(
        rows=GOLDEN.conform(drawn.rename(_RENAMED).sort("id")),
        exclusions=dict(sorted(exclusions.items())),
        candidates=candidates.height,
        facts={
            "size_rule": size.rule,
            "seed": migration.golden.seed,
            "holdout": migration.golden.holdout,
            "available": pool.height,
            "drawn": drawn.height,
            "clusters": drawn["cluster"].n_unique(),
            "sealed": drawn.filter(pl.col("split") == "sealed").height,
            "open": drawn.filter(pl.col("split") == "open").height,
            "strata": _strata_counts(pool, drawn, migration.golden.strata),
        },
    )


def traffic_of(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Return the workload's calls, whichever arm served them: ts, cluster and the strata's columns, one row a call."""
    models = of_model(migration.legacy) | (pl.col("model") == migration.target.model)
    asked = calls.filter(of_applications(migration.legacy) & models.fill_null(value=False))
    return _described(asked, migration.golden).select(
        pl.col("ts").cast(UTC_TIMESTAMP), "cluster", *migration.golden.strata
    )


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


def _described(candidates: pl.DataFrame, golden: Golden) -> pl.DataFrame:
    """Add id, cluster, content hash, keyed ranks and strata to each call."""
    with duckdb.connect() as connection:
        connection.register("calls", REQUEST_LOG.conform(candidates))
        described: pl.DataFrame = connection.sql(_DESCRIBED, params={"seed": str(golden.seed)}).pl()
    stratum = pl.struct(golden.strata).struct.json_encode() if golden.strata else pl.lit("{}")
    return (
        described.with_columns(pl.col("characters").fill_null(0) + pl.col("part_characters").fill_null(0))
        .with_columns(
            length_band().fill_null("unknown").alias("length_band"),
            pl.col("application", "endpoint", "task").fill_null("unknown"),
        )
        .with_columns(stratum.alias("stratum"))
    )


def _qualified(calls: pl.DataFrame, migration: Migration) -> pl.DataFrame:
    """Give each call that cannot stand in the golden dataset the first reason that holds.

    A call without the ground truth that its graders compare with could never be measured. It is left out here, where
    no answer has been looked at, so that leaving it out favours neither arm.
    """
    legacy = migration.legacy
    compared = any(not isinstance(grader, RagasGrader) for grader in migration.grading)
    answered = (pl.col("output").fill_null("") != "") | ~pl.col("tool_calls").fill_null("[]").is_in(["[]", "null", ""])
    reasons = {
        "other application": ~of_applications(legacy),
        "other model": ~of_model(legacy).fill_null(value=False),
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
    as content; of equal calls the earliest stays.
    """
    qualified = calls.filter(pl.col("exclusion").is_null()).sort("id", "ts", "circumstances", nulls_last=True)
    judged = qualified.with_columns(
        pl.when(pl.col("content").n_unique().over("id") > 1)
        .then(pl.lit(AMBIGUOUS))
        .when(pl.int_range(pl.len()).over("id") > 0)
        .then(pl.lit("identical duplicate"))
        .alias("exclusion")
    )
    return pl.concat([judged, calls.filter(pl.col("exclusion").is_not_null())])


class _Size(NamedTuple):
    """How many items are drawn, and the rule that says so."""

    items: int
    rule: str


def _size(migration: Migration, *, available: int, needed: int) -> _Size:
    """Apply `golden.size`."""
    match migration.golden.size:
        case "all":
            return _Size(available, "all: every call that qualifies")
        case "auto":
            least, most = AUTO_SIZE
            wanted = min(max(needed, least), most)
            rule = f"auto: {needed} needed for the margin, held between {least} and {most}, {available} available"
            return _Size(min(available, wanted), rule)
        case int(wanted) if wanted <= available:
            return _Size(wanted, f"{wanted}: set in the migration file")
        case wanted:
            message = (
                f"{migration.workload}: golden.size is {wanted}, but {available} logged calls qualify; "
                f"set it to {available} or less or to `all`, or add logs"
            )
            raise InvalidInput(message)


def _drawn(pool: pl.DataFrame, size: int) -> pl.DataFrame:
    """Draw from each stratum in proportion, conversation after conversation.

    A conversation enters with all its turns in the stratum, but for the last one, which the quota may cut.
    """
    sizes = pool.group_by("stratum").agg(pl.len().alias("size"), pl.col("draw_key").min().alias("tie"))
    return (
        pool.join(_apportioned(sizes, size), on="stratum")
        .sort("stratum", "draw_key", "turn_key")
        .filter(pl.int_range(pl.len()).over("stratum") < pl.col("quota"))
        .drop("quota")
    )


def _sealed(drawn: pl.DataFrame, holdout: float, burnt: Collection[str]) -> pl.DataFrame:
    """Seal whole conversations until the share of each stratum is reached, never less.

    The sealed items (rounded up over all strata) go to the strata by largest remainder, so that strata too small
    for one sealed item of their own still give their share together. A conversation counts in the stratum of most
    of its turns; the one that reaches a quota may overshoot it, because the verdict rests on the sealed items.
    """
    clusters = drawn.group_by("cluster").agg(
        pl.len().alias("turns"), pl.col("stratum").mode().min(), pl.col("seal_key").first()
    )
    fresh = clusters.filter(~pl.col("cluster").is_in(list(burnt)))
    sizes = fresh.group_by("stratum").agg(pl.col("turns").sum().alias("size"), pl.col("seal_key").min().alias("tie"))
    total = math.ceil(round(holdout * drawn.height, 9))  # 0.1 * 30 is 3.0000000000000004
    turns_before = (pl.col("turns").cum_sum() - pl.col("turns")).over("stratum")
    splits = (
        fresh.join(_apportioned(sizes, total), on="stratum")
        .sort("seal_key", "cluster")
        .select(
            "cluster",
            pl.when(turns_before < pl.col("quota")).then(pl.lit("sealed")).otherwise(pl.lit("open")).alias("split"),
        )
    )
    return drawn.join(splits, on="cluster", how="left").with_columns(pl.col("split").fill_null("open"))


def _apportioned(sizes: pl.DataFrame, total: int) -> pl.DataFrame:
    """Share `total` over strata in proportion to `size` by largest remainder; the smaller `tie` goes first."""
    product = pl.col("size").cast(pl.Int64) * total
    whole = int(sizes["size"].sum())
    shares = sizes.with_columns((product // whole).alias("quota"), (product % whole).alias("remainder"))
    left = total - int(shares["quota"].sum())
    one_more = (pl.int_range(pl.len()) < left).cast(pl.Int64)
    return shares.sort("remainder", "tie", descending=[True, False]).select("stratum", pl.col("quota") + one_more)


def _strata_counts(pool: pl.DataFrame, drawn: pl.DataFrame, strata: Sequence[str]) -> list[dict[str, Any]]:
    """Count available, drawn and sealed items of each stratum."""
    counts = (
        pool.group_by("stratum", *strata)
        .agg(pl.len().alias("available"))
        .join(
            drawn.group_by("stratum").agg(pl.len().alias("drawn"), (pl.col("split") == "sealed").sum().alias("sealed")),
            on="stratum",
            how="left",
        )
        .sort("stratum")
    )
    return counts.select(*strata, "available", pl.col("drawn", "sealed").fill_null(0)).to_dicts()


def _counted(values: pl.Series) -> dict[str, int]:
    """Count each value that is not NULL, the most frequent first."""
    counts = values.drop_nulls().value_counts().sort(["count", values.name], descending=[True, False])
    return dict(counts.iter_rows())


def _nothing_qualifies(calls: pl.DataFrame, exclusions: Mapping[str, int], migration: Migration) -> str:
    """Say what was found instead of a qualifying call, and how to mend it."""
    legacy = migration.legacy
    if exclusions.get("no ground truth"):
        return (
            f"{migration.workload}: none of {calls.height} logged calls qualifies for the golden dataset "
            f"({_listed(exclusions)}); the graders compare with a ground truth. Put `ground_truth` into the log lines, "
            "or grade without one (kind: ragas)"
        )
    models = _counted(
        calls.select(pl.concat_str("provider", "model", separator="/", ignore_nulls=True).alias("model"))["model"]
    )
    applications = _counted(calls["application"])
    of = f" of the applications {', '.join(legacy.applications)}" if legacy.applications is not None else ""
    return (
        f"{migration.workload}: none of {calls.height} logged calls qualifies for the golden dataset "
        f"({_listed(exclusions)}); answered calls of the model {legacy.model!r}{of} are needed. "
        f"Models found: {_listed(models)}. Applications found: {_listed(applications)}. "
        "Set legacy.model and legacy.applications in the migration file to what the logs hold, or legacy.logs to others"
    )


def _listed(counts: Mapping[str, int], most: int = 10) -> str:
    """Write counts as `name 3, other 2`, the first few of them."""
    shown = [f"{name} {count}" for name, count in list(counts.items())[:most]]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return ", ".join(shown + more) or "none"
