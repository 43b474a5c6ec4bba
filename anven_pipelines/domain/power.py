"""How many items a sign-off needs and what a number of items can certify, before anything is spent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from anven_pipelines.domain.errors import InvalidInput, TooFewPairs
from anven_pipelines.domain.grading import grade_rows
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.spec_grading import RagasGrader
from anven_pipelines.stats.noninferiority import noninferiority
from anven_pipelines.stats.pairs import MIN_PAIRS, scaled_weights
from anven_pipelines.stats.sample_size import margin_for_pairs, pairs_for_margin
from anven_pipelines.stats.simulated_power import PlannedItems

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration, SignOff
    from anven_pipelines.stats.sample_size import MarginKind

POWER_PLAN: Final = Table(
    "power_plan",
    (
        Column("margin", pl.Float64, "Acceptable loss, of the kind that the migration file declares."),
        Column("discordance", pl.Float64, "Share of items that the arms get differently right."),
        Column("baseline", pl.Float64, "Mean score expected of the legacy model."),
        Column("sealed_items", pl.Int64, "Independent sealed items with which equal models pass at 80 % power."),
        Column("items", pl.Int64, "Items to draw for them at the declared holdout."),
        Column("declared", pl.Boolean, "Whether it is the declared margin at the planned discordance."),
    ),
)

# Until the legacy scores are measured: four of five answers right, and one in five items judged differently between
# the arms. The pairs of docs/gsm-recordings.md differ in 6, 14 and 18 % of the items, so this is on the cautious side.
PLANNED_BASELINE: Final = 0.8
PLANNED_DISCORDANCE: Final = 0.2
PLANNED_POWER: Final = 0.8
PLANNED_CORRELATION: Final = 0.1  # of the differences within a conversation, until the verdict measures them
MARGINS: Final = (0.01, 0.02, 0.03, 0.05, 0.1)
DISCORDANCES: Final = (0.05, 0.1, 0.2)
LEAST_GRADED: Final = 30
GRADED_CALLS: Final = 2_000  # their mean is known to 2 points, while parsing them takes a second


class Baseline(NamedTuple):
    """Mean score that is expected of the legacy model, and where it comes from."""

    mean: float
    source: str


def items_for(
    *,
    margin: float,
    level: float,
    baseline: float = PLANNED_BASELINE,
    discordance: float = PLANNED_DISCORDANCE,
    kind: MarginKind = "relative",
) -> int:
    """Return the independent items with which equal models pass the quality margin at 80 % power.

    Args:
        margin: Acceptable loss, as a share of the legacy mean or in score points.
        level: One-sided error rate.
        baseline: Mean score expected of the legacy model, in (0, 1].
        discordance: Share of items that the arms get differently right, in (0, 1].
        kind: Which of the two the margin is.
    """
    return pairs_for_margin(
        # Of a mean no more can be lost than it is.
        margin=min(margin, baseline) if kind == "absolute" else margin,
        baseline=baseline,
        discordance=discordance,
        level=level,
        power=PLANNED_POWER,
        kind=kind,
    )


def items_like(sample: pl.DataFrame, criteria: SignOff, *, baseline: float) -> int:
    """Return the items with which equal models pass the margin at 80 % power, in conversations and weights like these.

    Where every item stands alone and all weigh the same, this is `items_for`; else the test itself is simulated.

    Args:
        sample: Items of the traffic, columns `cluster` and `weight`, at least one.
        criteria: Margin, its kind and the level.
        baseline: Mean score expected of the legacy model, in (0, 1].
    """
    margin, kind = criteria.quality_margin, criteria.margin_kind
    if _is_even(sample):
        return items_for(margin=margin, level=criteria.level, baseline=baseline, kind=kind)
    planned = _planned(sample, level=criteria.level, baseline=baseline, kind=kind)
    return planned.items_for(min(margin, baseline) if kind == "absolute" else margin)


def certified_margin(sealed: pl.DataFrame, criteria: SignOff, *, baseline: float) -> float:
    """Return the smallest margin that equal models pass at 80 % power.

    Args:
        sealed: The sealed items of the traffic, columns `cluster` and `weight`.
        criteria: The level, and whether the margin is a share of the legacy mean or score points.
        baseline: Mean score expected of the legacy model, in (0, 1].

    Returns:
        The margin; 1 and more says that none can be shown.
    """
    level, kind = criteria.level, criteria.margin_kind
    if not _is_even(sealed):
        return _planned(sealed, level=level, baseline=baseline, kind=kind).smallest_margin()
    return margin_for_pairs(
        pairs=sealed.height,
        baseline=baseline,
        discordance=PLANNED_DISCORDANCE,
        level=level,
        power=PLANNED_POWER,
        kind=kind,
    )


def design_effect(items: pl.DataFrame) -> float:
    """Variance of a mean over these items over that of as many independent ones of equal weight; at least 1.

    n sum(w^2) / sum(w)^2 for the weights, times 1 + (m - 1) x 0.1 for conversations of m turns as the average item
    finds them.

    Args:
        items: Columns `cluster` and `weight`; none at all has no effect.
    """
    if items.is_empty():
        return 1.0
    return _planned(items, level=0.05, baseline=PLANNED_BASELINE, kind="relative").design_effect()


def _is_even(items: pl.DataFrame) -> bool:
    alone = items["cluster"].n_unique() == items.height
    return alone and (
        items.is_empty() or scaled_weights(items["weight"].cast(pl.Float64).to_numpy(), items.height) is None
    )


def _planned(items: pl.DataFrame, *, level: float, baseline: float, kind: MarginKind) -> PlannedItems:
    ordered = items.sort("cluster")
    return PlannedItems(
        clusters=ordered["cluster"].rle_id().cast(pl.Int64).to_numpy(),
        weights=ordered["weight"].cast(pl.Float64).to_numpy().astype(np.float64),
        baseline=baseline,
        discordance=PLANNED_DISCORDANCE,
        correlation=PLANNED_CORRELATION,
        level=level,
        power=PLANNED_POWER,
        kind=kind,
    )


def least_items(like: pl.DataFrame, criteria: SignOff) -> int:
    """Return the number below which items such as these cannot pass, were both models right on every single one.

    Nothing more favourable can come of two equal models: the sign-off's own test is asked, with conversations and
    weights like these.

    Args:
        like: Items of the traffic, columns `cluster` and `weight`; independent ones where there are none.
        criteria: Margin, its kind and the level.
    """
    sample = pl.DataFrame({"cluster": ["one"], "weight": [1.0]}) if like.is_empty() else like
    planned = _planned(sample, level=criteria.level, baseline=PLANNED_BASELINE, kind=criteria.margin_kind)
    too_few, enough = 0, MIN_PAIRS
    while not _passes(planned.taking(enough), criteria):
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if _passes(planned.taking(middle), criteria) else (middle, enough)
    return enough


def _passes(items: PlannedItems, criteria: SignOff) -> bool:
    """Ask the test about models that are right on every item."""
    right = np.ones(items.n)
    try:
        return noninferiority(
            right,
            right,
            margin=criteria.quality_margin,
            kind=criteria.margin_kind,
            clusters=items.clusters,
            weights=items.weights,
            level=criteria.level,
        ).proven
    except TooFewPairs:
        return False


def require_reachable(sealed: pl.DataFrame, migration: Migration) -> None:
    """Refuse a margin that these sealed items can never certify.

    Args:
        sealed: The sealed items of the traffic, columns `cluster` and `weight`.
        migration: Margin, level and the share that is sealed.

    Raises:
        InvalidInput: even equal models could not pass; says how many items could.
    """
    criteria, holdout = migration.sign_off, migration.golden.holdout
    if not sealed.is_empty() and _passes(
        _planned(sealed, level=criteria.level, baseline=PLANNED_BASELINE, kind=criteria.margin_kind), criteria
    ):
        return
    least = least_items(sealed, criteria)
    conversations = sealed["cluster"].n_unique()
    in_conversations = conversations < sealed.height
    held = f" in {conversations} conversations" if in_conversations else ""
    like = f", {'in conversations and ' if in_conversations else ''}of weights like these," * (not _is_even(sealed))
    message = (
        f"{migration.workload}: {sealed.height} sealed items{held} can never certify a margin of "
        f"{criteria.quality_margin:.1%} at the {criteria.level:.0%} level, were both models right on every one. At "
        f"least {least} sealed items{like} are needed, which are {math.ceil(least / holdout)} golden items at holdout "
        f"{holdout:g}: add logs, raise golden.size or golden.holdout, or accept a wider sign_off.quality_margin"
    )
    raise InvalidInput(message)


def measured_baseline(calls: pl.DataFrame, migration: Migration) -> Baseline:
    """Grade logged legacy answers, so that the plan rests on this workload's mean score.

    Args:
        calls: Calls as `candidates.judged` describes them; those that qualify for the traffic count.
        migration: Its graders are used where none of them needs a judge.
    """
    if any(isinstance(grader, RagasGrader) for grader in migration.grading):
        return Baseline(PLANNED_BASELINE, "planned: a judge is not asked before the evaluation")
    traffic = calls.filter(pl.col("exclusion").is_null(), ~pl.col("adversarial"))
    sample = traffic.sort("turn_key", "id").head(GRADED_CALLS)
    answers = sample.select(item_id="id", status=pl.lit("answered"), reason=pl.lit(None, dtype=pl.String)).with_columns(
        sample["output"].fill_null("")
    )
    scores = grade_rows(migration.grading, answers, sample, judged={})["score"].drop_nulls()
    mean = float(scores.to_numpy().mean()) if len(scores) >= LEAST_GRADED else 0.0
    if mean == 0:
        return Baseline(PLANNED_BASELINE, f"planned: {len(scores)} logged answers could be graded")
    return Baseline(round(mean, 6), f"{len(scores)} logged answers, graded")


def power_plan(baseline: Baseline, migration: Migration) -> pl.DataFrame:
    """Return POWER_PLAN: items needed over common margins and the declared one, and over shares of discordant pairs."""
    criteria, holdout = migration.sign_off, migration.golden.holdout
    rows = [
        {
            "margin": margin,
            "discordance": discordance,
            "baseline": baseline.mean,
            "sealed_items": items_for(
                margin=margin,
                level=criteria.level,
                baseline=baseline.mean,
                discordance=discordance,
                kind=criteria.margin_kind,
            ),
            "declared": margin == criteria.quality_margin and discordance == PLANNED_DISCORDANCE,
        }
        for margin in sorted({*MARGINS, criteria.quality_margin})
        for discordance in DISCORDANCES
    ]
    plan = pl.DataFrame(rows)
    return POWER_PLAN.conform(plan.with_columns(items=(pl.col("sealed_items") / holdout).ceil()))
