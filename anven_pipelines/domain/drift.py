"""Does the frozen golden dataset still represent production?

Live calls are those logged after the freeze. Proof of drift takes both a significant difference and a distance that
matters, so that millions of calls do not raise an alarm over nothing; "still represents" takes enough calls to have
shown such a distance, and a smaller one. Anything else is "too few calls to tell". Like is compared with like: all
calls of the workload at the freeze, whether they could be golden items or not, with all calls since.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import polars as pl

from anven_pipelines.domain.candidates import calls_per_independent
from anven_pipelines.domain.evaluation import TRAFFIC, Finding
from anven_pipelines.stats.proportions import clopper_pearson_interval
from anven_pipelines.stats.shares import compare_shares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.spec import Drift as DriftLimits

ENOUGH_POWER: Final = 0.8
NEW_SHARE: Final = 0.01
"""Share of calls in strata that the freeze never saw, above which they count as drift even at a small distance."""
_SHOWN: Final = 5

Status = Literal["represents", "drifted", "too few calls to tell"]


class Drift(Finding):
    """What became of the traffic since the freeze."""

    status: Status
    reason: str
    frozen_calls: int
    live_calls: int
    distance: float | None = None
    p_difference: float | None = None
    new_strata: tuple[str, ...] = ()
    """Strata that the freeze never saw."""
    uncovered_share: float | None = None
    """Share of the live calls in strata of which the golden dataset holds no item."""
    moved: tuple[str, ...] = ()

    @property
    def represents(self) -> bool:
        """Whether it is measured that the dataset still represents production."""
        return self.status == "represents"


class FrozenTraffic(NamedTuple):
    """The traffic at the freeze."""

    calls: pl.DataFrame
    """The strata's columns and `calls`, one row a stratum."""
    design_effect: float
    """Calls per independent one."""
    golden: pl.DataFrame
    """The strata's columns of the golden items that stand for traffic."""


def frozen_traffic(golden: pl.DataFrame, facts: Mapping[str, Any], strata: Sequence[str]) -> FrozenTraffic:
    """Return the traffic that the freeze saw, or what the golden items stand for where that is unknown.

    Args:
        golden: GOLDEN rows.
        facts: The manifest's facts; `traffic` is that of `candidates.traffic_strata`.
        strata: Names of the columns that make a stratum.
    """
    items = golden.filter(pl.col("role") == TRAFFIC)
    traffic = facts.get("traffic") or {}
    seen = traffic.get("strata") or []
    if seen and {*strata, "calls"} <= seen[0].keys():
        calls = pl.DataFrame(seen, infer_schema_length=None).select(*strata, pl.col("calls").cast(pl.Float64))
        return FrozenTraffic(calls, float(traffic["design_effect"]), items.select(strata))
    sums = items.group_by("cluster").agg(pl.col("weight").sum())["weight"]
    total = float(sums.sum())
    effect = max(1.0, float((sums**2).sum()) / total) if total else 1.0
    return FrozenTraffic(items.select(*strata, calls="weight"), effect, items.select(strata))


def traffic_until(calls: pl.DataFrame) -> str | None:
    """Return the time of the newest call, ISO 8601; None where no call has a time."""
    newest = calls["ts"].max()
    return newest.isoformat() if isinstance(newest, datetime) else None


def since_freeze(traffic: pl.DataFrame, facts: Mapping[str, Any], *, days: int) -> pl.DataFrame:
    """Keep the calls of the newest days that were made after the last one that the freeze saw.

    None is kept where that time is unknown, as with an imported version: nobody can tell which calls are new.

    Args:
        traffic: Columns ts and whatever else; a call without a time cannot be placed and is left out.
        facts: The manifest's facts; `traffic_until` is the time of the last call at the freeze, ISO 8601.
        days: Counted back from the newest call.
    """
    until = facts.get("traffic_until")
    after = pl.lit(value=False) if until is None else pl.col("ts") > datetime.fromisoformat(until)
    newest = pl.col("ts") > pl.col("ts").max() - pl.duration(days=days)
    return traffic.filter(pl.col("ts").is_not_null()).filter(newest).filter(after)


def find_drift(frozen: FrozenTraffic, live: pl.DataFrame, strata: Sequence[str], limits: DriftLimits) -> Drift:
    """Compare the live traffic's strata with those of the freeze.

    Args:
        frozen: The traffic at the freeze, and the strata that the golden items cover.
        live: The strata's columns and `cluster`, one row a call, all of them made after the freeze.
        strata: Names of the columns that make a stratum.
        limits: Distance that matters and the error rate of one look.

    Source:
        See `stats.shares.compare_shares`.
    """
    sizes = {"frozen_calls": round(frozen.calls["calls"].sum()), "live_calls": live.height}
    if not all(sizes.values()):
        reason = f"too few calls to tell: {sizes['live_calls']} since the freeze, {sizes['frozen_calls']} at it"
        return Drift(status="too few calls to tell", reason=reason, **sizes)
    table = _side_by_side(frozen.calls, live, strata)
    effect = calls_per_independent(live)
    found = compare_shares(
        table["calls"].to_numpy(),
        table["live"].to_numpy(),
        design_effects=(frozen.design_effect, effect),
        detectable=limits.distance,
        level=limits.level,
    )
    unseen = table.filter((pl.col("calls") == 0) & (pl.col("live") > 0))
    uncovered = _uncovered(frozen, table, strata)
    measured: dict[str, Any] = {
        **sizes,
        "distance": round(found.distance, 9),
        "p_difference": round(found.p_difference, 9),
        "new_strata": tuple(unseen["stratum"]),
        "uncovered_share": round(float(uncovered["live"].sum()) / live.height, 9),
        "moved": _moved(table),
    }
    said = f"{found.distance:.1%} of the calls fall into other strata than at the freeze (p = {found.p_difference:.2g})"
    if uncovered.height:
        names = ", ".join(uncovered["stratum"].head(_SHOWN))
        said += f", and {measured['uncovered_share']:.1%} into strata without a golden item ({names})"
    if found.p_difference < limits.level and found.distance >= limits.distance:
        reason = (
            f"the dataset no longer represents production: {said}: {'; '.join(measured['moved'])}; freeze a new one"
        )
        return Drift(status="drifted", reason=reason, **measured)
    if _is_common(unseen, frozen, live, limits):
        names = ", ".join(measured["new_strata"][:_SHOWN])
        share = int(unseen["live"].sum()) / live.height
        reason = (
            f"the dataset no longer represents production: {share:.1%} of the calls are in strata that the freeze "
            f"never saw ({names}); freeze a new one"
        )
        return Drift(status="drifted", reason=reason, **measured)
    # With one stratum all that can move is a new one, which each independent call shows with that chance.
    power = found.power if table.height > 1 else 1 - (1 - limits.distance) ** (live.height / effect)
    if power < ENOUGH_POWER:
        reason = (
            f"too few calls to tell: {live.height} since the freeze would show a shift of {limits.distance:.0%} with a "
            f"chance of {power:.0%} only; {ENOUGH_POWER:.0%} is needed"
        )
        return Drift(status="too few calls to tell", reason=reason, **measured)
    if found.distance >= limits.distance:
        reason = f"too few calls to tell: {said}; {limits.distance:.0%} would matter, and this may be chance"
        return Drift(status="too few calls to tell", reason=reason, **measured)
    reason = f"the dataset still represents production: {said}; {limits.distance:.0%} would matter"
    return Drift(status="represents", reason=reason, **measured)


def _uncovered(frozen: FrozenTraffic, table: pl.DataFrame, strata: Sequence[str]) -> pl.DataFrame:
    """Return the strata of live calls that no golden item is of, the most common first."""
    held = frozen.golden.select(stratum=_stratum(strata)).unique() if strata else pl.DataFrame({"stratum": ["all"]})
    return table.filter(pl.col("live") > 0).join(held, on="stratum", how="anti").sort("live", descending=True)


def _stratum(strata: Sequence[str]) -> pl.Expr:
    return pl.concat_str(*(pl.col(each) for each in strata), separator=" / ") if strata else pl.lit("all")


def _side_by_side(frozen: pl.DataFrame, live: pl.DataFrame, strata: Sequence[str]) -> pl.DataFrame:
    """Return stratum, calls (at the freeze) and live, one row per stratum seen in either."""
    name = _stratum(strata)
    before = frozen.select(stratum=name, calls="calls").group_by("stratum").agg(pl.col("calls").sum())
    now = live.select(stratum=name).group_by("stratum").agg(live=pl.len())
    joined = before.join(now, on="stratum", how="full", coalesce=True)
    return joined.with_columns(pl.col("calls", "live").fill_null(0).cast(pl.Float64)).sort("stratum")


def _is_common(unseen: pl.DataFrame, frozen: FrozenTraffic, live: pl.DataFrame, limits: DriftLimits) -> bool:
    """Tell whether the strata that the freeze never saw are proven to hold more than NEW_SHARE of the conversations.

    A small freeze may have missed what was always there: more than that could have been is needed, too.
    """
    before = max(1, round(float(frozen.calls["calls"].sum()) / frozen.design_effect))
    since = max(1, round(live.height / calls_per_independent(live)))
    share = float(unseen["live"].sum()) / live.height
    level = 1 - 2 * limits.level
    missed = clopper_pearson_interval(0, before, level=level).upper
    return clopper_pearson_interval(round(share * since), since, level=level).lower > max(NEW_SHARE, missed)


def _moved(table: pl.DataFrame) -> tuple[str, ...]:
    """Name the strata whose share changed most: `helpdesk 40.0% to 55.0%`."""
    shares = table.select(
        "stratum", before=pl.col("calls") / pl.col("calls").sum(), now=pl.col("live") / pl.col("live").sum()
    )
    largest = shares.sort((pl.col("now") - pl.col("before")).abs(), "stratum", descending=[True, False]).head(_SHOWN)
    return tuple(f"{stratum} {before:.1%} to {now:.1%}" for stratum, before, now in largest.iter_rows())
