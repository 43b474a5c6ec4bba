"""The golden dataset: which logged calls the migration is judged on, drawn once and frozen.

A draw depends on the calls and the migration file alone: every choice ranks by a keyed SHA-256, so the order, the
number and the paths of the log files change nothing. Every candidate is either a golden row or counted under the
reason for which it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.candidates import judged
from anven_pipelines.domain.draw import edge_cases, fill_quota, sealed, strata_without_sealed, traffic_items
from anven_pipelines.domain.errors import EmptyGolden, InvalidInput
from anven_pipelines.domain.holdout import Seen
from anven_pipelines.domain.near_duplicates import families
from anven_pipelines.domain.power import PLANNED_BASELINE, design_effect, items_for, items_like
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.domain.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.spec import Golden, Migration, Quotas

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
        Column(
            "risk", pl.String, "Stratum: `risk` of the call's tags, else the workload's declared tier, or `unknown`."
        ),
        Column("language", pl.String, "Stratum: `language` of the tags, else detected where it is a declared stratum."),
        Column("role", pl.String, "`traffic`: drawn to represent it; `edge_case`, `adversarial`: drawn for a quota."),
        Column("weight", pl.Float64, "Calls of the traffic that the item stands for; 0 for what a quota added."),
    ),
)

NOTHING_SEEN: Final = Seen()
AUTO_SIZE: Final = (500, 2_000)
MOST_SEALED: Final = 0.75  # by `size: auto`: what prompts are adapted on must stay open

_RENAMED: Final = {
    "messages": "source_prompt",
    "context": "input_context",
    "params": "model_config",
    "output": "source_output",
}


@dataclass(frozen=True, eq=False)
class Freeze:
    """A frozen golden dataset and what became of every candidate.

    Attributes:
        rows: GOLDEN rows in the order of their ids.
        exclusions: Reason to the number of candidates left out for it.
        candidates: Calls that were looked at: golden rows plus exclusions.
        facts: Size rule, seed, counts per stratum and per split; plain JSON values.
        seen: Distinct calls that qualify and may not be sealed; no fact, so that the same rows are the same version.
    """

    rows: pl.DataFrame
    exclusions: dict[str, int]
    candidates: int
    facts: dict[str, Any]
    seen: int = 0

    def __post_init__(self) -> None:
        """Refuse a freeze that lost or repeated a call."""
        left_out = sum(self.exclusions.values())
        if self.rows.height + left_out != self.candidates:
            message = f"{self.rows.height} golden rows + {left_out} left out are not {self.candidates} candidates"
            raise ValueError(message)
        if self.rows["id"].n_unique() != self.rows.height:
            message = "an id stands twice in the golden rows; each must stand once"
            raise ValueError(message)


def freeze(
    candidates: pl.DataFrame,
    migration: Migration,
    *,
    needed: int,
    baseline: float = PLANNED_BASELINE,
    seen: Seen = NOTHING_SEEN,
    adversarial: pl.DataFrame | None = None,
) -> Freeze:
    """Draw the golden dataset from logged calls.

    Args:
        candidates: Calls with the columns of REQUEST_LOG, in any order.
        migration: Names the legacy model, the size, the strata, the quotas, the sealed share and the seed.
        needed: Items the power calculation asks for if all are independent and weigh the same; counts where
            `golden.size` is `auto`, times what the log's conversations and weights cost.
        baseline: Mean score that is expected of the legacy model.
        seen: Ids and conversations that must not be sealed, neither they nor their near-duplicates; they may still be
            open items.
        adversarial: Calls of the declared adversarial files, with the columns of REQUEST_LOG.

    Raises:
        EmptyGolden: no call qualifies.
        InvalidInput: `golden.size` is larger than the number of distinct calls that qualify.
    """
    golden, probing = migration.golden, REQUEST_LOG.empty() if adversarial is None else adversarial
    calls = _collapsed(judged(candidates, probing, migration), golden, seen)
    items = calls.filter(pl.col("exclusion").is_null())
    pool, probes = items.filter(~pl.col("adversarial")), items.filter("adversarial")
    exclusions = _counted(calls["exclusion"])
    if pool.is_empty():
        raise EmptyGolden(_nothing_qualifies(calls, exclusions, migration))
    size = _size(migration, pool, needed=needed, baseline=baseline)
    traffic = sealed(traffic_items(pool, size.items), size.holdout)
    edges = edge_cases(pool).join(traffic, on="cluster", how="anti")
    extra = _quota_items(edges, probes.with_columns(told=True), traffic, golden.quotas, size.holdout)
    _count_left_out(exclusions, pool=pool, probes=probes, traffic=traffic, extra=extra)
    rows = pl.concat([traffic, extra], how="diagonal").rename(_RENAMED).sort("id")
    return Freeze(
        rows=GOLDEN.conform(rows),
        exclusions=dict(sorted(exclusions.items())),
        candidates=candidates.height + probing.height,
        facts={
            "size_rule": size.rule,
            "seed": golden.seed,
            "holdout": size.holdout,
            "available": pool.height,
            "calls": int(pool["calls"].sum()),
            "drawn": traffic.height,
            "clusters": traffic["cluster"].n_unique(),
            "sealed": traffic.filter(pl.col("split") == "sealed").height,
            "open": traffic.filter(pl.col("split") == "open").height,
            "design_effect": round(design_effect(traffic.filter(pl.col("split") == "sealed")), 3),
            "strata_without_sealed": strata_without_sealed(traffic, size.holdout),
            "quotas": _quota_counts(edges, probes, extra, golden),
            "strata": _strata_counts(pool, traffic, golden.strata),
        },
        seen=int(pool["seen"].sum()),
    )


def opened(golden: pl.DataFrame) -> pl.DataFrame:
    """Return the items of a golden dataset that may be shown before sign-off."""
    return golden.filter(pl.col("split") == "open")


def _collapsed(calls: pl.DataFrame, golden: Golden, seen: Seen) -> pl.DataFrame:
    """Count the calls that each qualifying one stands for, and leave out the others as near-duplicates.

    A conversation was seen too where it stands for a call of one that is: its answer was seen. A call is known again
    by its id or by its conversation.
    """
    qualified = calls.filter(pl.col("exclusion").is_null())
    told = (
        families(qualified, threshold=golden.similarity)
        if golden.near_duplicates == "collapse"
        else qualified.with_columns(kept="id")
    )
    counted = told.with_columns(
        calls=pl.len().over("kept").cast(pl.Int64),
        burnt=named_in(seen.burnt).any().over("kept"),
        seen=named_in(seen.burnt | seen.shown).any().over("kept"),
        exclusion=pl.when(pl.col("kept") != pl.col("id")).then(pl.lit("near duplicate")),
    ).with_columns(pl.col("burnt", "seen").any().over("cluster"))
    return pl.concat([counted, calls.filter(pl.col("exclusion").is_not_null())], how="diagonal")


def named_in(names: Collection[str]) -> pl.Expr:
    """Say whether an item is among the names by its id or its cluster."""
    return pl.any_horizontal(pl.col("id", "cluster").is_in(list(names)))


class _Size(NamedTuple):
    """How many items are drawn, the rule that says so, and which share of them is sealed."""

    items: int
    rule: str
    holdout: float


def _size(migration: Migration, pool: pl.DataFrame, *, needed: int, baseline: float) -> _Size:
    """Apply `golden.size`."""
    available = pool.height
    match migration.golden.size:
        case "all":
            return _Size(available, "all: every distinct call that qualifies", migration.golden.holdout)
        case "auto":
            least, most = AUTO_SIZE
            criteria = migration.sign_off
            independent = items_for(
                margin=criteria.quality_margin, level=criteria.level, baseline=baseline, kind=criteria.margin_kind
            )
            effect = items_like(pool.rename({"calls": "weight"}), criteria, baseline=baseline) / independent
            wanted = min(max(math.ceil(round(needed * effect, 9)), least), most)
            items, least_share = min(available, wanted), migration.golden.holdout
            sealed_share = max(least_share, min(MOST_SEALED, needed * effect * least_share / items))
            rule = (
                f"auto: {needed} needed for the margin, times {effect:.2f} for conversations and weights, "
                f"held between {least} and {most}, {available} available; {sealed_share:.0%} of them sealed"
            )
            return _Size(items, rule, round(sealed_share, 6))
        case int(wanted) if wanted <= available:
            return _Size(wanted, f"{wanted}: set in the migration file", migration.golden.holdout)
        case wanted:
            message = (
                f"{migration.workload}: golden.size is {wanted}, but {available} distinct logged calls qualify; "
                f"set it to {available} or less or to `all`, or add logs"
            )
            raise InvalidInput(message)


def _quota_items(
    edges: pl.DataFrame, probes: pl.DataFrame, traffic: pl.DataFrame, quotas: Quotas, holdout: float
) -> pl.DataFrame:
    """Draw and seal what the quotas add; a conversation that stands in the traffic keeps its split."""
    extra = pl.concat(
        [
            fill_quota(edges, quotas.edge_case, role="edge_case"),
            fill_quota(probes, quotas.adversarial, role="adversarial"),
        ],
        how="diagonal",
    )
    return sealed_beside(extra, traffic, holdout)


def sealed_beside(extra: pl.DataFrame, traffic: pl.DataFrame, holdout: float) -> pl.DataFrame:
    """Seal what stands for no traffic, role by role; a conversation that stands in the traffic keeps its split."""
    settled = extra.join(traffic.select("cluster", "split").unique(), on="cluster")
    others = extra.join(traffic, on="cluster", how="anti").with_columns(stratum="role")
    return pl.concat([settled, sealed(others, holdout)], how="diagonal")


def _count_left_out(
    exclusions: dict[str, int], *, pool: pl.DataFrame, probes: pl.DataFrame, traffic: pl.DataFrame, extra: pl.DataFrame
) -> None:
    """Count the items that neither the traffic nor a quota drew."""
    of_probes = extra.filter(pl.col("role") == "adversarial").height
    left = {
        "not drawn": pool.height - traffic.height - (extra.height - of_probes),
        "adversarial beyond the quota": probes.height - of_probes,
    }
    exclusions |= {reason: count for reason, count in left.items() if count}


def _quota_counts(
    edges: pl.DataFrame, probes: pl.DataFrame, extra: pl.DataFrame, golden: Golden
) -> dict[str, dict[str, int]]:
    """Say of each quota what was wanted, found beside the traffic's items, drawn and sealed."""
    return {
        role: {
            "wanted": wanted,
            "found": found.height,
            "drawn": extra.filter(pl.col("role") == role).height,
            "sealed": extra.filter(pl.col("role") == role, pl.col("split") == "sealed").height,
        }
        for role, wanted, found in (
            ("edge_case", golden.quotas.edge_case, edges),
            ("adversarial", golden.quotas.adversarial, probes),
        )
    }


def _strata_counts(pool: pl.DataFrame, drawn: pl.DataFrame, strata: Sequence[str]) -> list[dict[str, Any]]:
    """Count available, drawn and sealed items of each stratum, and the calls they stand for."""
    counts = (
        pool.group_by("stratum", *strata)
        .agg(pl.len().alias("available"), pl.col("calls").sum())
        .join(
            drawn.group_by("stratum").agg(pl.len().alias("drawn"), (pl.col("split") == "sealed").sum().alias("sealed")),
            on="stratum",
            how="left",
        )
        .sort("stratum")
    )
    return counts.select(*strata, "calls", "available", pl.col("drawn", "sealed").fill_null(0)).to_dicts()


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
