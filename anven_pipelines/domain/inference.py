"""What a model answered to the golden items: what is asked, what was recorded, and that no item is lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import polars as pl

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.completion import ASKED_AGAIN
from anven_pipelines.domain.prompts import apply
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.domain.workload import HOW_IT_IS_ASKED
from anven_pipelines.spec_target import EndpointTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompts import AdaptedPrompt, Call
    from anven_pipelines.spec_target import AskedTarget

ANSWERS: Final = Table(
    "answers",
    (
        Column("item_id", pl.String, "Golden item that was answered; every item has exactly one row."),
        Column("status", pl.String, "'answered', 'failed', or 'unmatched' where no recorded answer fits the item."),
        Column("reason", pl.String, "Why there is no answer; NULL when answered."),
        Column("output", pl.String, "Text of the answer; NULL where it holds tool calls only."),
        Column("tool_calls", pl.String, "Tool calls of the answer: canonical JSON list in the chat completions form."),
        Column("finish_reason", pl.String, "Why the answer ended, in the server's words."),
        Column("model", pl.String, "Model that answered, as the server named it."),
        Column("input_tokens", pl.Int64, "Tokens of the prompt."),
        Column("output_tokens", pl.Int64, "Tokens of the answer."),
        Column("cached_tokens", pl.Int64, "Prompt tokens that came from the server's cache."),
        Column("tokens_computed", pl.Boolean, "False: counted by the server; true: by us; NULL: not counted."),
        Column("ttft_ms", pl.Float64, "Milliseconds to the first text or tool call; NULL if not streamed."),
        Column("latency_ms", pl.Float64, "Milliseconds to the end of the answer, of the attempt that gave it."),
        Column("cost_usd", pl.Float64, "Cost of the call in US dollars as logged; NULL where no log states it."),
        Column("attempts", pl.Int64, "Times the endpoint was asked, earlier runs included; NULL if not asked by us."),
    ),
)

STATUSES: Final = ("answered", "failed", "unmatched")

_KEYS: Final[Mapping[str, tuple[str, str, str]]] = {
    "request_id": ("id", "request_id", "this request id"),
    "prompt": ("source_prompt", "messages", "exactly these messages"),
}
_CONTENT: Final = ("status", "output", "tool_calls", "finish_reason", "model")
_TRANSPORT: Final = frozenset({"messages", "model", "stream", "stream_options"})  # the client decides these


class CompletionRequest(NamedTuple):
    """One golden item as it is asked."""

    item_id: str
    messages: list[dict[str, Any]]
    params: dict[str, Any]


def requests_for(golden: pl.DataFrame, prompt: AdaptedPrompt, target: AskedTarget) -> list[CompletionRequest]:
    """Build what the target is asked, in golden order.

    Args:
        golden: GOLDEN rows.
        prompt: How the logged messages are changed for the target.
        target: Its `params` replace the logged ones; a parameter set to null there is left out.
    """
    columns = golden.select("id", "source_prompt", "model_config")
    return [  # a loop: prompt strategies rewrite nested messages, one item at a time
        request_for(item_id, apply(prompt, json.loads(messages), json.loads(logged or "null") or {}), target)
        for item_id, messages, logged in columns.iter_rows()
    ]


def request_for(item_id: str, call: Call, target: AskedTarget) -> CompletionRequest:
    """Build what the target is asked for one item; its own parameters replace those of the call."""
    return CompletionRequest(item_id, call.messages, _params(call.params, target.params))


def join_recorded(
    golden: pl.DataFrame, recorded: pl.DataFrame, *, join: Literal["request_id", "prompt"]
) -> pl.DataFrame:
    """Give each golden item its recorded answer.

    Calls that failed count only where no call of the same key was answered: the log of a call that was retried
    holds both. Answers that say the same are one; answers that differ match nothing, since no rule could tell
    which of them the target stands for.

    Args:
        golden: GOLDEN rows.
        recorded: REQUEST_LOG rows of the target model.
        join: `request_id`, or `prompt` for equal canonical JSON of the messages.

    Returns:
        ANSWERS, one row per golden item, in golden order.
    """
    item_key, recorded_key, key_name = _KEYS[join]
    items = golden.select(pl.col("id").alias("item_id"), pl.col(item_key).alias("key"))
    matched = items.join(_recorded_by(recorded, recorded_key), on="key", how="left", maintain_order="left")
    is_ambiguous = (pl.col("call_rank") == 0) & (pl.col("different") > 1)
    count = pl.col("different").cast(pl.String)
    judged = matched.with_columns(
        pl.when(pl.col("call_rank").is_null() | is_ambiguous)
        .then(pl.lit("unmatched"))
        .when(pl.col("call_rank") == 0)
        .then(pl.lit("answered"))
        .otherwise(pl.lit("failed"))
        .alias("status"),
        pl.when(pl.col("call_rank").is_null())
        .then(pl.lit(f"no recorded answer has {key_name}"))
        .when(is_ambiguous)
        .then(pl.format(f"{{}} different recorded answers have {key_name}; one is needed", count))
        .when(pl.col("call_rank") > 0)
        .then(pl.col("failure"))
        .alias("reason"),
    )
    return conserved(golden["id"], _without_unproven_answers(judged))


def legacy_answers_of(golden: pl.DataFrame) -> pl.DataFrame:
    """Return the answers that the golden rows themselves carry: the legacy arm.

    Args:
        golden: GOLDEN rows.

    Returns:
        ANSWERS, one row per golden item, in golden order.
    """
    answered = _holds_answer("source_output")
    answers = golden.rename({"id": "item_id", "source_output": "output"}, strict=False).with_columns(
        golden.select(
            pl.when(answered).then(pl.lit("answered")).otherwise(pl.lit("failed")).alias("status"),
            pl.when(~answered).then(pl.lit("the log holds neither text nor tool calls")).alias("reason"),
        )
    )
    return conserved(golden["id"], _with_token_origin(answers))


def merge_answers(item_ids: Sequence[str] | pl.Series, kept: pl.DataFrame) -> pl.DataFrame:
    """Reduce all rows that were kept for a batch to one row per item.

    An answer beats a failure and the latest failure, the one with the most attempts, beats earlier ones. Rows of
    equal standing are ordered by their content, so the result does not depend on the order in which they were kept.

    Args:
        item_ids: Items of the batch, each once.
        kept: ANSWERS rows in any order and number; rows of other items are left out.

    Returns:
        ANSWERS, one row per item, in the order of `item_ids`.

    Raises:
        ValueError: an item has no row, or stands twice in `item_ids`.
    """
    is_answered = pl.col("status") == "answered"
    best = (
        ANSWERS.conform(kept)
        .with_columns(
            is_answered.alias("answered"),
            pl.when(is_answered).then(pl.col("attempts")).otherwise(-pl.col("attempts")).alias("turn"),
        )
        .sort(
            "answered", "turn", *ANSWERS.schema, descending=[True, *[False] * (1 + len(ANSWERS.schema))],
            nulls_last=True,
        )
        .unique("item_id", keep="first", maintain_order=True)
    )  # fmt: skip
    return conserved(item_ids, best)


def without_timing(answers: pl.DataFrame) -> pl.DataFrame:
    """Return answers of a batch without their times: in a full queue they measure no latency that a user would see."""
    return answers.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("ttft_ms", "latency_ms"))


def conserved(item_ids: Sequence[str] | pl.Series, answers: pl.DataFrame) -> pl.DataFrame:
    """Return the answers in the order of the items, and prove that rows in = answers + failures + unmatched.

    Raises:
        ValueError: an item has no row or several, stands twice, or its status is not one of STATUSES.
    """
    items = pl.DataFrame({"item_id": item_ids}, schema={"item_id": pl.String})
    if repeated := items.filter(pl.col("item_id").is_duplicated())["item_id"].unique(maintain_order=True).to_list():
        message = f"{len(repeated)} item ids stand more than once, the first is {repeated[0]!r}; each must stand once"
        raise ValueError(message)
    ordered = items.join(ANSWERS.conform(answers), on="item_id", how="left", maintain_order="left")
    lost = ordered.filter(~pl.col("status").is_in(STATUSES).fill_null(value=False))
    if lost.height or ordered.height != items.height:
        first = lost["item_id"].first()
        message = (
            f"{items.height} items went in, {ordered.height - lost.height} came out as answer, failure or unmatched"
            f"{f'; {lost.height} have none of these, the first is {first!r}' if lost.height else ''}"
        )
        raise ValueError(message)
    return ANSWERS.conform(ordered)


def settled(kept: pl.DataFrame) -> pl.DataFrame:
    """Return the kept rows that end the matter: answers, and failures that asking again would not mend."""
    failure = pl.col("reason").str.extract(r"^(\w+):")
    return kept.filter((pl.col("status") == "answered") | ~failure.is_in(list(ASKED_AGAIN)).fill_null(value=False))


def work_key(*, golden_digest: str, prompt_digest: str, target: AskedTarget, epoch: str) -> str:
    """Return the digest under which answers are kept: equal keys would be asked the same of the same model.

    How the target is asked (concurrency, timeout, attempts, key, price) is left out, so changing it keeps what
    was already answered.

    Args:
        golden_digest: Digest of the golden dataset.
        prompt_digest: Version of the adapted prompt.
        target: An endpoint counts with its model, URL and params, a model of our own with its weights and settings.
        epoch: Chosen by the caller; another one asks everything afresh.
    """
    if isinstance(target, EndpointTarget):
        asked = {"model": target.model, "url": target.url, "params": target.params}
    else:
        asked = target.model_dump(mode="json", exclude={*HOW_IT_IS_ASKED, "price"})
    return digest_of({"golden": golden_digest, "prompt": prompt_digest, "epoch": epoch, **asked})


def _params(logged: Mapping[str, Any], replaced: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the target's parameters over the logged ones."""
    merged = {name: value for name, value in logged.items() if name not in _TRANSPORT} | dict(replaced)
    return {name: value for name, value in merged.items() if value is not None and name not in _TRANSPORT}


def _recorded_by(recorded: pl.DataFrame, column: str) -> pl.DataFrame:
    """Return one row per key: its first call of the best rank, and how many different calls of that rank it has."""
    is_error, is_ok = pl.col("status") == "error", pl.col("status") == "ok"
    ranked = (
        REQUEST_LOG.conform(recorded)
        .rename({column: "key"})
        .filter(pl.col("key").is_not_null())
        .with_columns(
            pl.when(is_ok & _holds_answer("output")).then(0).when(is_error).then(1).otherwise(2).alias("call_rank"),
            pl.when(is_error)
            .then(pl.col("error").fill_null("recorded as an error without a message"))
            .when(is_ok)
            .then(pl.lit("the recorded response holds neither text nor tool calls"))
            .otherwise(pl.lit("the recorded request has no response"))
            .alias("failure"),
        )
    )
    return (
        ranked.filter(pl.col("call_rank") == pl.col("call_rank").min().over("key"))
        .sort("source_file", "source_line", nulls_last=True)
        .group_by("key", maintain_order=True)
        .agg(pl.struct(_CONTENT).n_unique().alias("different"), pl.all().exclude("key").first())
    )


def _holds_answer(output: str) -> pl.Expr:
    """Tell a call that gave text (be it empty) or tool calls from one that gave nothing."""
    return pl.col(output).is_not_null() | ~pl.col("tool_calls").fill_null("null").is_in(["null", "[]"])


def _without_unproven_answers(judged: pl.DataFrame) -> pl.DataFrame:
    """Blank what an item without an answer must not carry, such as one of several different outputs."""
    measured = [
        name for name in ANSWERS.schema if name not in ("item_id", "status", "reason") and name in judged.schema
    ]
    return _with_token_origin(
        judged.with_columns(pl.when(pl.col("status") == "answered").then(pl.col(name)).alias(name) for name in measured)
    )


def _with_token_origin(answers: pl.DataFrame) -> pl.DataFrame:
    """Mark logged token counts as counted by the server."""
    counted = pl.any_horizontal(pl.col("input_tokens", "output_tokens").is_not_null())
    return answers.with_columns(pl.when(counted).then(pl.lit(value=False)).alias("tokens_computed"))
