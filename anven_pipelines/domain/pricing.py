"""What an answer costs, and how that was found: by tokens and a price, by the log, or because a day is paid for.

A cost that cannot be found is NULL with the reason, never zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from anven_pipelines.spec_values import Price

PAID_BY_THE_DAY: Final = "no price of its own: paid by the day"


class _Way(NamedTuple):
    """One way to obtain a cost, and its name."""

    cost: pl.Expr
    name: pl.Expr


def price_answers(
    answers: pl.DataFrame, *, declared: Price | None, listed: Price | None, by_the_day: bool = False
) -> pl.DataFrame:
    """Return item_id, cost and how it was obtained for each answer."""
    logged = pl.col("cost_usd")
    ways = [
        *_by_price(declared),
        _Way(pl.when(logged.is_finite() & (logged >= 0)).then(logged), pl.lit("logged cost")),
        *_by_price(listed),
        *([_Way(pl.lit(0.0), pl.lit(PAID_BY_THE_DAY))] if by_the_day else []),
    ]
    answered = pl.col("status") == "answered"
    missing = "tokens not measured" if declared or listed else "neither a price nor a logged cost"
    return answers.select(
        "item_id",
        pl.when(answered).then(pl.coalesce(way.cost for way in ways)).alias("cost_usd"),
        pl.when(~answered)
        .then(pl.lit("no answer"))
        .otherwise(
            pl.coalesce(
                *(pl.when(way.cost.is_not_null()).then(way.name) for way in ways), pl.lit(f"not measured: {missing}")
            )
        )
        .alias("obtained"),
    )


def paid_by_the_call(answers: pl.DataFrame, price: Price | None) -> bool:
    """Tell whether calls have a price above zero; a declared price goes before a logged cost."""
    if price is None:
        logged = answers["cost_usd"]
        return bool((logged.is_finite() & (logged > 0)).any())
    rates = (price.input_usd_per_million, price.output_usd_per_million, price.cached_usd_per_million or 0.0)
    return any(rate > 0 for rate in rates)


def _by_price(price: Price | None) -> list[_Way]:
    """Price an answer by its tokens; a declared price of zero needs no token count.

    Cached tokens are part of the input tokens. Where their count was not logged they are priced as uncached.
    """
    if price is None:
        return []
    discounted = (
        price.cached_usd_per_million is not None and price.cached_usd_per_million != price.input_usd_per_million
    )
    cached = pl.col("cached_tokens").fill_null(0) if discounted else pl.lit(0)
    fresh = pl.col("input_tokens") - cached
    cost = (
        _times(pl.when(fresh >= 0).then(fresh), price.input_usd_per_million)
        + _times(cached, price.cached_usd_per_million or 0.0)
        + _times(pl.col("output_tokens"), price.output_usd_per_million)
    )
    tokens = (
        pl.when(pl.col("tokens_computed").fill_null(value=False))
        .then(pl.lit("tokens counted by us"))
        .otherwise(pl.lit("logged tokens"))
    )
    return [_Way(cost, pl.format("{} x {}", tokens, pl.lit(price.source)))]


def _times(tokens: pl.Expr, usd_per_million: float) -> pl.Expr:
    """Price tokens; nothing is nothing, however many there were."""
    return tokens * (usd_per_million / 1e6) if usd_per_million else pl.lit(0.0)
