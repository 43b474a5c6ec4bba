"""What a request costs in each arm, what the migration saves, and whether that earns back its one-off cost.

Cost is paired per golden item and judged on the interval of the saving (`payback.py`). An item without a cost in both
arms is unmeasured, never free.

The cost of a call is what one more call costs (`pricing.py`). What serving costs a day (`serving.py`) is taken off the
saving of a day, once: a self-served target without a price of its own costs nothing by the call where serving is paid
by the day, and stays unmeasured where nobody knows what that costs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.evaluation import TRAFFIC, cluster_codes
from anven_pipelines.domain.payback import Payback, SavingEvidence, judge_cost, payback_of, per_call, saving_per_day
from anven_pipelines.domain.pricing import paid_by_the_call, price_answers
from anven_pipelines.domain.serving import Benchmark, Serving, self_served, serving_of
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.stats.means import paired_mean_interval

if TYPE_CHECKING:
    from anven_pipelines.domain.criterion import Status
    from anven_pipelines.domain.inventory import Traffic
    from anven_pipelines.spec import Migration, SignOff
    from anven_pipelines.spec_values import Price
    from anven_pipelines.stats.interval import Interval

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
    by_the_call = paid_by_the_call(target_answers, migration.target.price)
    serving = serving_of(migration, benchmark, paid_by_the_call=by_the_call)
    by_the_day = bool(serving.usd_per_day) and not by_the_call and self_served(migration)
    legacy = price_answers(legacy_answers, declared=migration.legacy.price, listed=legacy_price)
    target = price_answers(target_answers, declared=migration.target.price, listed=None, by_the_day=by_the_day)
    items = _side_by_side(golden, legacy, target)
    paired = items.drop_nulls("saving_usd")
    saving = _saving(paired, migration.sign_off)
    per_day = saving_per_day(saving, traffic.calls_per_day, serving)
    arms = _arm(items, legacy_answers, "legacy"), _arm(items, target_answers, "target")
    evidence = SavingEvidence(
        items=items.height,
        paired=paired.height,
        legacy_obtained=arms[0].obtained,
        target_obtained=arms[1].obtained,
        saving=saving,
        per_day=per_day,
        serving=serving,
    )
    status, reason = judge_cost(evidence, migration)
    return CostModel(
        items=items,
        legacy=arms[0],
        target=arms[1],
        paired=paired.height,
        saving_per_request=saving,
        calls_per_day=traffic.calls_per_day,
        saving_per_day=per_day,
        net_saving_per_request=per_call(per_day, traffic.calls_per_day),
        payback=payback_of(per_day, migration.cost.one_off_usd),
        one_off_usd=migration.cost.one_off_usd,
        serving=serving,
        status=status,
        reason=reason,
    )


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
