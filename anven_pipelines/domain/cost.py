"""What a request costs in each arm, what the migration saves, and whether that earns back its one-off cost.

Cost is paired per golden item and judged on the interval of the saving: the near bound must pay back for `met`,
the far bound must fail for `not met`. An item without a cost in both arms is unmeasured, never free.

The cost of a call is what one more call costs. What serving costs a day (`domain/serving.py`) is taken off the saving
of a day, once: a self-served target without a price of its own costs nothing by the call where serving is paid by the
day, and stays unmeasured where nobody knows what that costs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import polars as pl

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.evaluation import TRAFFIC, cluster_codes
from anven_pipelines.domain.serving import Benchmark, Serving, self_served, serving_of, usd
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.stats.interval import Interval
from anven_pipelines.stats.means import paired_mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.inventory import Traffic
    from anven_pipelines.spec import Migration, SignOff
    from anven_pipelines.spec_values import Price

Status = Literal["met", "not met", "undecided", "unmeasured"]

COST: Final = Table(
    "cost_model",
    (
        Column("item_id", pl.String, "Golden item of the traffic."),
        Column("cluster", pl.String, "Conversation of the item, or the item itself; the unit of independence."),
        Column("weight", pl.Float64, "Calls of the traffic that the item stands for."),
        Column("legacy_cost_usd", pl.Float64, "Cost of the legacy answer, USD; NULL is not measured."),
        Column("target_cost_usd", pl.Float64, "Cost of the target answer, USD; NULL is not measured."),
        Column("saving_usd", pl.Float64, "Legacy less target cost, USD; NULL where either is not measured."),
        Column("legacy_obtained", pl.String, "How the legacy cost was obtained, or why it was not measured."),
        Column("target_obtained", pl.String, "How the target cost was obtained, or why it was not measured."),
    ),
)

PAID_BY_THE_DAY: Final = "no price of its own: paid by the day"

MIN_SHARE_MEASURED: Final = 0.95
"""Below this share of items with a cost in both arms, the rest could turn the saving around."""


@dataclass(frozen=True)
class ArmCost:
    """The cost of one arm's answers; None is not measured.

    Attributes:
        items: Golden items that stand for traffic.
        measured: Items whose cost is known.
        mean_usd: Mean cost of a measured call of the traffic, USD.
        input_tokens: Sum over the items that measured prompt tokens.
        output_tokens: Sum over the items that measured answer tokens.
        cached_tokens: Sum over the items that measured cached prompt tokens.
        obtained: How costs were obtained, or why they were not, to the number of items.
    """

    items: int
    measured: int
    mean_usd: float | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    obtained: dict[str, int]


@dataclass(frozen=True)
class Payback:
    """Days until the one-off cost is earned back; None is never, or unknown without a saving per day."""

    days: float | None
    pessimistic_days: float | None
    optimistic_days: float | None


@dataclass(frozen=True, eq=False)
class CostModel:
    """Both arms' cost, the saving and the cost criterion of the sign-off.

    Attributes:
        items: COST rows, in the order of their ids.
        paired: Items with a cost in both arms.
        saving_per_request: Legacy less target, USD, before what serving costs a day; None without enough pairs.
        calls_per_day: Answered legacy calls per day; None without timestamps.
        saving_per_day: Saving per request x calls per day, less what serving the target costs a day, USD; its upper
            bound takes off the least that serving may cost. None where any of them is not known.
        net_saving_per_request: The saving per day over the calls per day, USD.
        serving: What serving the target costs a day, and where that number comes from.
        status: The cost criterion.
        reason: The status in words.
    """

    items: pl.DataFrame
    legacy: ArmCost
    target: ArmCost
    paired: int
    saving_per_request: Interval | None
    calls_per_day: float | None
    saving_per_day: Interval | None
    net_saving_per_request: Interval | None
    payback: Payback
    one_off_usd: float
    serving: Serving
    status: Status
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return everything but the items as plain JSON values; None is not measured."""
        return {
            "status": self.status,
            "reason": self.reason,
            "legacy": asdict(self.legacy),
            "target": asdict(self.target),
            "items": self.items.height,
            "paired": self.paired,
            "saving_per_request_usd": _plain(self.saving_per_request),
            "calls_per_day": self.calls_per_day,
            "saving_per_day_usd": _plain(self.saving_per_day),
            "net_saving_per_request_usd": _plain(self.net_saving_per_request),
            "payback": asdict(self.payback),
            "one_off_usd": self.one_off_usd,
            "target_usd_per_day": self.serving.usd_per_day,
            "serving": asdict(self.serving),
        }


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)


def cost_of(
    legacy_answers: pl.DataFrame,
    target_answers: pl.DataFrame,
    migration: Migration,
    traffic: Traffic,
    *,
    golden: pl.DataFrame,
    legacy_price: Price | None,
    benchmark: Benchmark | None = None,
) -> CostModel:
    """Price both arms' answers and judge the saving.

    What an answer costs comes from the first of these that it can be computed from: the price in the migration
    file x tokens; the logged cost; for the legacy arm, `legacy_price` x tokens; for the target, nothing where it is
    self-served and known to be paid by the day.

    Args:
        legacy_answers: ANSWERS rows of the legacy model, one per golden item.
        target_answers: ANSWERS rows of the target model, one per golden item.
        migration: Prices, one-off cost, what serving costs, level and payback days.
        traffic: What the legacy model answers today.
        golden: GOLDEN rows, for roles, weights and clusters.
        legacy_price: Price from a public list, used where neither the migration file nor the log has one.
        benchmark: The load benchmark of the workload, where one was ever made.
    """
    by_the_call = _paid_by_the_call(target_answers, migration.target.price)
    serving = serving_of(migration, benchmark, paid_by_the_call=by_the_call)
    by_the_day = bool(serving.usd_per_day) and not by_the_call and self_served(migration)
    legacy = _priced(legacy_answers, declared=migration.legacy.price, listed=legacy_price)
    target = _priced(target_answers, declared=migration.target.price, listed=None, by_the_day=by_the_day)
    items = _side_by_side(golden, legacy, target)
    paired = items.drop_nulls("saving_usd")
    saving = _saving(paired, migration.sign_off)
    per_day = _per_day(saving, traffic.calls_per_day, serving)
    arms = _arm(items, legacy_answers, "legacy"), _arm(items, target_answers, "target")
    status, reason = _judge(
        _Evidence(items.height, paired.height, saving, per_day, traffic.calls_per_day, serving), arms, migration
    )
    return CostModel(
        items=items,
        legacy=arms[0],
        target=arms[1],
        paired=paired.height,
        saving_per_request=saving,
        calls_per_day=traffic.calls_per_day,
        saving_per_day=per_day,
        net_saving_per_request=_over(per_day, traffic.calls_per_day),
        payback=_payback(per_day, migration.cost.one_off_usd),
        one_off_usd=migration.cost.one_off_usd,
        serving=serving,
        status=status,
        reason=reason,
    )


def _paid_by_the_call(answers: pl.DataFrame, price: Price | None) -> bool:
    """Tell whether calls have a price above zero; a declared price goes before a logged cost."""
    if price is None:
        logged = answers["cost_usd"]
        return bool((logged.is_finite() & (logged > 0)).any())
    rates = (price.input_usd_per_million, price.output_usd_per_million, price.cached_usd_per_million or 0.0)
    return any(rate > 0 for rate in rates)


class _Way(NamedTuple):
    """One way to obtain a cost, and its name."""

    cost: pl.Expr
    name: pl.Expr


def _priced(
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


def _side_by_side(golden: pl.DataFrame, legacy: pl.DataFrame, target: pl.DataFrame) -> pl.DataFrame:
    """Return COST rows: one per golden item that stands for traffic, in the order of their ids."""
    traffic = golden.filter(pl.col("role") == TRAFFIC)
    items = traffic.select(pl.col("id").alias("item_id"), "cluster", "weight").sort("item_id")
    for arm, priced in (("legacy", legacy), ("target", target)):
        named = priced.rename({"cost_usd": f"{arm}_cost_usd", "obtained": f"{arm}_obtained"})
        items = items.join(named, on="item_id", how="left", validate="1:1", maintain_order="left").with_columns(
            pl.col(f"{arm}_obtained").fill_null("no answer")
        )
    return COST.conform(items.with_columns((pl.col("legacy_cost_usd") - pl.col("target_cost_usd")).alias("saving_usd")))


def _saving(paired: pl.DataFrame, sign_off: SignOff) -> Interval | None:
    """Return the saving per request; each bound holds at the one-sided level of the sign-off."""
    try:
        return paired_mean_interval(
            paired["saving_usd"].to_numpy(),
            clusters=cluster_codes(paired),
            weights=paired["weight"].to_numpy(),
            level=max(1 - 2 * sign_off.level, 0.0),
        )
    except TooFewPairs:
        return None


def _per_day(saving: Interval | None, calls_per_day: float | None, serving: Serving) -> Interval | None:
    """Scale the saving to a day and take off what serving costs, of which only the upper bound hopes for the least."""
    safe, least = serving.usd_per_day, serving.least_usd_per_day
    if saving is None or calls_per_day is None or safe is None or least is None:
        return None
    return Interval(
        saving.estimate * calls_per_day - safe,
        saving.lower * calls_per_day - safe,
        saving.upper * calls_per_day - least,
        saving.level,
        saving.method,
    )


def _over(per_day: Interval | None, calls_per_day: float | None) -> Interval | None:
    """Spread the saving of a day over its calls."""
    if per_day is None or not calls_per_day:
        return None
    estimate, lower, upper = (bound / calls_per_day for bound in (per_day.estimate, per_day.lower, per_day.upper))
    return Interval(estimate, lower, upper, per_day.level, per_day.method)


def _payback(per_day: Interval | None, one_off_usd: float) -> Payback:
    """Divide the one-off cost by the saving per day and by its bounds."""
    if per_day is None:
        return Payback(None, None, None)
    return Payback(*(_days(net, one_off_usd) for net in (per_day.estimate, per_day.lower, per_day.upper)))


def _days(usd_per_day: float, one_off_usd: float) -> float | None:
    """Return the days until the one-off cost is earned back, None for never."""
    if usd_per_day < 0 or (usd_per_day == 0 and one_off_usd > 0):
        return None
    return one_off_usd / usd_per_day if one_off_usd > 0 else 0.0


def _arm(items: pl.DataFrame, answers: pl.DataFrame, arm: str) -> ArmCost:
    """Sum up one arm."""
    costed = items.drop_nulls(f"{arm}_cost_usd")
    costs = costed[f"{arm}_cost_usd"]
    obtained = items[f"{arm}_obtained"].value_counts().sort("count", f"{arm}_obtained", descending=[True, False])
    return ArmCost(
        items=items.height,
        measured=costs.len(),
        mean_usd=None if costs.is_empty() else math.fsum(costs * costed["weight"]) / math.fsum(costed["weight"]),
        input_tokens=_sum(answers["input_tokens"]),
        output_tokens=_sum(answers["output_tokens"]),
        cached_tokens=_sum(answers["cached_tokens"]),
        obtained=dict(obtained.iter_rows()),
    )


def _sum(tokens: pl.Series) -> int | None:
    """Add up what was measured; None where nothing was."""
    return int(tokens.sum()) if tokens.count() else None


class _Evidence(NamedTuple):
    """What the cost criterion is judged on."""

    items: int
    paired: int
    saving: Interval | None
    per_day: Interval | None
    calls_per_day: float | None
    serving: Serving


class _Judgement(NamedTuple):
    """A status and its reason."""

    status: Status
    reason: str


def _judge(evidence: _Evidence, arms: Sequence[ArmCost], migration: Migration) -> _Judgement:
    """Judge the saving per day, or per request where only its sign matters."""
    if evidence.serving.usd_per_day is None:
        return _Judgement("unmeasured", f"what serving the target costs is not measured: {evidence.serving.reason}")
    if evidence.paired < MIN_SHARE_MEASURED * evidence.items or not evidence.paired:
        return _Judgement("unmeasured", _gap(evidence, arms))
    if evidence.saving is None:
        reason = (
            f"{evidence.paired} items with a cost in both arms, or their conversations, are too few for an interval"
        )
        return _Judgement("undecided", reason)
    if not migration.cost.one_off_usd and not evidence.serving.usd_per_day:
        return _judge_neutrality(evidence.saving, noted=_note(evidence.serving, migration))
    if evidence.per_day is None:
        return _Judgement(
            "unmeasured", "the log has no timestamps, so calls per day and the saving per day are unknown"
        )
    return _judge_payback(evidence.per_day, migration, noted=_note(evidence.serving, migration))


def _note(serving: Serving, migration: Migration) -> str:
    """Say what was taken off for serving and why, where serving costs something or a replica has a price."""
    if serving.usd_per_day:
        return f" after {usd(serving.usd_per_day)} a day for serving ({serving.source}: {serving.reason})"
    priced = migration.load is not None and migration.load.replica_usd_per_hour is not None
    return f" (serving {serving.source}: {serving.reason})" if priced else ""


def _gap(evidence: _Evidence, arms: Sequence[ArmCost]) -> str:
    """Say how many items lack a cost, where and why."""
    legacy, target = (", ".join(f"{how} {count}" for how, count in arm.obtained.items()) or "no items" for arm in arms)
    return (
        f"{evidence.paired} of {evidence.items} items have a cost in both arms, {MIN_SHARE_MEASURED:.0%} are needed "
        f"(legacy: {legacy}; target: {target}); legacy.price and target.price in the migration file price logged "
        "tokens; where servers of one's own answer, declare load.replica_usd_per_hour and materialise load_benchmark, "
        "or declare a target.price of 0 and cost.target_usd_per_day"
    )


def _judge_neutrality(saving: Interval, *, noted: str) -> _Judgement:
    """Without a one-off cost and one of serving, judge that a request costs no more than before."""
    found = f"a request saves {usd(saving.estimate)} [{usd(saving.lower)}, {usd(saving.upper)}]{noted}"
    if saving.lower >= 0:
        return _Judgement("met", f"{found}; there is no one-off cost to earn back")
    if saving.upper < 0:
        return _Judgement("not met", f"{found}: each costs more than before")
    return _Judgement("undecided", f"{found}: it may cost more than before")


def _judge_payback(per_day: Interval, migration: Migration, *, noted: str) -> _Judgement:
    """Judge the days of payback on the bounds of the saving per day."""
    one_off, allowed = migration.cost.one_off_usd, migration.sign_off.payback_days
    required = one_off / allowed
    found = (
        f"a day saves {usd(per_day.estimate)} [{usd(per_day.lower)}, {usd(per_day.upper)}]{noted}; "
        f"{usd(one_off)} within {allowed:g} days take {usd(required)} a day"
    )
    if per_day.lower >= required:
        return _Judgement("met", f"{found}: pays back in {_days(per_day.lower, one_off):.3g} days at worst")
    if per_day.upper < required:
        best = _days(per_day.upper, one_off)
        outlook = "never pays back" if best is None else f"pays back in {best:.3g} days at best"
        return _Judgement("not met", f"{found}: {outlook}")
    return _Judgement("undecided", f"{found}: it may or may not pay back in time")
