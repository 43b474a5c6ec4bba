"""Which of the qualifying calls become golden items, which of them are sealed, and how much traffic each stands for.

Conversations are drawn and sealed whole: the one that reaches a quota may overshoot it by the rest of its turns. A
conversation counts in the stratum of most of its turns.
"""

from __future__ import annotations

import math
from typing import Final

import polars as pl

EXTREME_LENGTH: Final = 0.01
RARE_STRATUM: Final = 0.01
DECIMALS: Final = 6  # of a weight: the order in which floats are added must not reach the digest
KEY_DIGITS: Final = 12  # hex digits of a rank, as many as a float holds exactly


def traffic_items(pool: pl.DataFrame, size: int) -> pl.DataFrame:
    """Draw from each stratum in proportion to its items, conversation after conversation.

    Within a stratum a conversation comes the sooner the more calls its items stand for, so that a prompt that makes
    up a tenth of the traffic is not left to chance. Burnt conversations come last: they can only be open items. Those
    that stood open in an earlier version come in their turn, so that they stay open while others are sealed.

    Args:
        pool: Items with `cluster`, `stratum`, `calls` (how many each stands for), `burnt`, `seen` and keyed ranks.
        size: Items to draw, at least 1 and at most as many as the pool has.

    Returns:
        The drawn items with `weight`: calls of the pool that each stands for. They add up to the calls of the pool;
        where no prompt is repeated, all items of a stratum weigh the same.

    Source:
        Duffield, Lund and Thorup (2007), Priority sampling for estimation of arbitrary subset sums, J. ACM 54(6):32;
        the weights are then scaled to the known number of calls in each stratum.
    """
    density = pl.col("calls") / pl.col("turns")
    clusters = _clusters(pool, "draw_key").with_columns(chance=_uniform("tie"), density=density)
    ranked = (
        clusters.join(_apportioned(_sizes(clusters), size), on="home")
        .with_columns(priority=pl.col("chance") / pl.col("density"))
        .sort("burnt", "priority", "tie")
        .with_columns(drawn=_turns_before() < pl.col("quota"))
    )
    first_left_out = pl.col("priority").filter(~pl.col("drawn")).min().over("home", "burnt")
    inclusion = (pl.col("density") * first_left_out).clip(upper_bound=1.0).fill_null(1.0)
    drawn = ranked.with_columns(inclusion=inclusion).filter("drawn").select("cluster", "home", "inclusion")
    return _weighted(pool.join(drawn, on="cluster"), clusters)


def edge_cases(pool: pl.DataFrame) -> pl.DataFrame:
    """Keep the items that are edge cases: tagged so, of extreme length, or of a rare stratum.

    Extreme are prompts below the first and above the last percentile of characters; rare is a stratum with less
    than 1 % of the items. Tags count before rules: `told` is true for the tagged.
    """
    characters = pl.col("characters")
    shortest, longest = characters.quantile(EXTREME_LENGTH), characters.quantile(1 - EXTREME_LENGTH)
    rare = pl.len().over("stratum") < RARE_STRATUM * pl.len()
    ruled = (characters < shortest) | (characters > longest) | rare
    return pool.with_columns(told=pl.col("edge_case")).filter(pl.col("told") | ruled)


def fill_quota(marked: pl.DataFrame, quota: int, *, role: str) -> pl.DataFrame:
    """Draw items for a quota: all marked turns of one conversation after another until it is reached.

    They stand for no traffic, so their weight is 0.

    Args:
        marked: Items, `told` where a tag or a file says what they are.
        quota: Items wanted.
        role: What they are drawn as.
    """
    clusters = _clusters(marked.with_columns(stratum=pl.lit(role)), "draw_key")
    told = marked.group_by("cluster").agg(pl.col("told").any())
    ranked = clusters.join(told, on="cluster").sort("told", "tie", descending=[True, False])
    chosen = ranked.filter(_turns_before() < quota).select("cluster")
    return marked.join(chosen, on="cluster", how="semi").with_columns(role=pl.lit(role), weight=pl.lit(0.0))


def sealed(drawn: pl.DataFrame, holdout: float) -> pl.DataFrame:
    """Seal whole conversations until the share of each stratum is reached.

    The sealed items (rounded up over all strata) go to the strata by largest remainder, so that strata too small
    for one sealed item of their own still give their share together. The conversation that reaches a quota may
    overshoot it, because the verdict rests on the sealed items. A conversation that was seen is never sealed; others
    of its stratum make up for it as far as they can, then those of other strata.

    Returns:
        The drawn items with `split`.
    """
    clusters = _clusters(drawn, "seal_key")
    fresh = clusters.filter(~pl.col("seen"))
    quotas = _quotas(clusters, fresh, _wanted(drawn, holdout))
    chosen = (
        fresh.join(quotas, on="home").sort("tie", "cluster").filter(_turns_before() < pl.col("quota")).select("cluster")
    )
    in_holdout = pl.col("cluster").is_in(chosen["cluster"].implode())
    return drawn.with_columns(split=pl.when(in_holdout).then(pl.lit("sealed")).otherwise(pl.lit("open")))


def strata_without_sealed(drawn: pl.DataFrame, holdout: float) -> list[str]:
    """Name the strata to which a sealed item falls by their size and which have none, as all their items were seen.

    Args:
        drawn: Items with `split`, as `sealed` returns them.
        holdout: Share that was to be sealed.
    """
    clusters = _clusters(drawn, "seal_key")
    due = _apportioned(_sizes(clusters), _wanted(drawn, holdout)).filter(pl.col("quota") > 0)
    have = _clusters(drawn.filter(pl.col("split") == "sealed"), "seal_key")
    return sorted(due.join(have, on="home", how="anti")["home"])


def _wanted(drawn: pl.DataFrame, holdout: float) -> int:
    return math.ceil(round(holdout * drawn.height, 9))  # 0.1 * 30 is 3.0000000000000004


def _quotas(clusters: pl.DataFrame, fresh: pl.DataFrame, total: int) -> pl.DataFrame:
    """Share `total` over strata by all their turns, up to the fresh ones; what is left goes where there are more."""
    room = _sizes(fresh).select("home", pl.col("size").cast(pl.Int64).alias("room"), "tie")
    first = (
        _apportioned(_sizes(clusters), total)
        .join(room, on="home")
        .with_columns(pl.min_horizontal("quota", "room").alias("quota"))
    )
    spare = first.select("home", "tie", size=pl.col("room") - pl.col("quota"))
    left = min(total - int(first["quota"].sum()), int(spare["size"].sum()))
    more = _apportioned(spare, left).rename({"quota": "more"})
    return first.join(more, on="home").select("home", pl.col("quota") + pl.col("more"))


def _clusters(items: pl.DataFrame, tie: str) -> pl.DataFrame:
    """Count the turns and calls of each conversation, and name the stratum it counts in."""
    return items.group_by("cluster").agg(
        pl.len().alias("turns"),
        pl.col("calls").sum(),
        pl.col("burnt", "seen").any(),
        pl.col("stratum").mode().min().alias("home"),
        pl.col(tie).first().alias("tie"),
    )


def _sizes(clusters: pl.DataFrame) -> pl.DataFrame:
    return clusters.group_by("home").agg(pl.col("turns").sum().alias("size"), pl.col("tie").min())


def _turns_before() -> pl.Expr:
    """Turns of the conversations that come before this one in its stratum, in the frame's order."""
    return (pl.col("turns").cum_sum() - pl.col("turns")).over("home")


def _uniform(key: str) -> pl.Expr:
    """Read a hash in hex as a number in (0, 1]."""
    return (pl.col(key).str.head(KEY_DIGITS).str.to_integer(base=16).cast(pl.Float64) + 1) / 16.0**KEY_DIGITS


def _weighted(drawn: pl.DataFrame, clusters: pl.DataFrame) -> pl.DataFrame:
    """Give each item its calls over the chance of its conversation, scaled to the calls of stratum and pool."""
    there = clusters.group_by("home").agg(pl.col("calls").sum().alias("calls_there"))
    raw = pl.col("calls") / pl.col("inclusion")
    weighted = drawn.join(there, on="home").with_columns(
        weight=raw * pl.col("calls_there") / raw.sum().over("home"), role=pl.lit("traffic")
    )
    # Above 1 where a stratum got no item at all.
    scale = float(clusters["calls"].sum()) / float(weighted["weight"].sum())
    return weighted.with_columns((pl.col("weight") * scale).round(DECIMALS)).drop("home", "inclusion", "calls_there")


def _apportioned(sizes: pl.DataFrame, total: int) -> pl.DataFrame:
    """Share `total` over strata in proportion to `size` by largest remainder; the smaller `tie` goes first."""
    product = pl.col("size").cast(pl.Int64) * total
    whole = max(int(sizes["size"].sum()), 1)
    shares = sizes.with_columns((product // whole).alias("quota"), (product % whole).alias("remainder"))
    left = total - int(shares["quota"].sum())
    one_more = (pl.int_range(pl.len()) < left).cast(pl.Int64)
    return shares.sort("remainder", "tie", descending=[True, False]).select("home", pl.col("quota") + one_more)
