"""What serving the target costs a day: as declared, else the servers that a load benchmark found the traffic to need.

A target is paid for by the call, by the day, or both:

- By the call: a token price or a logged cost above zero. Whoever asks for it bears the servers, so servers that a
  benchmark counted are not paid for a second time; they are told, and count for nothing.
- By the day: servers run whether they are asked or not. What one more call costs is then zero, and the whole is the
  replicas for the busiest minute x USD per hour x 24.
- Both, such as a licence by the token on own GPUs: only where `cost.target_usd_per_day` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from anven_pipelines.domain.capacity import capacity_of, replicas_needed
from anven_pipelines.spec_target import BatchTarget

if TYPE_CHECKING:
    from anven_pipelines.domain.capacity import Demand
    from anven_pipelines.domain.load import Saturation
    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_load import Load

Source = Literal["declared", "measured", "paid by the call", "not counted", "unmeasured"]

_DECLARED: Final = "cost.target_usd_per_day of the migration file"
_HOURS: Final = 24


class Benchmark(NamedTuple):
    """A load benchmark as the cost model needs it.

    Attributes:
        digest: Of what it published.
        stale: Why it does not speak of what is judged; None where it does.
        target: Up to which rate the target keeps its service level.
        demand: How often the workload calls, from the log as it is now.
    """

    digest: str
    stale: str | None
    target: Saturation
    demand: Demand


@dataclass(frozen=True)
class Serving:
    """What serving the target costs a day, beside what each call costs.

    Attributes:
        source: `declared`; `measured` by a load benchmark; `paid by the call`: no servers are added; `not counted`:
            neither declared nor measured; `unmeasured`: a benchmark was to tell it and could not.
        usd_per_day: By the rate that is proven to be borne; None where unmeasured.
        least_usd_per_day: By the lowest rate that is proven too much: no less is known to do. One replica where no rate
            was too much. The same as `usd_per_day` where it is declared.
        reason: Where the number comes from, in words.
        benchmark: Digest of the load benchmark that was there.
        replicas: For the busiest minute; None where not measured.
    """

    source: Source
    usd_per_day: float | None
    least_usd_per_day: float | None
    reason: str
    benchmark: str | None = None
    replicas: int | None = None


class _Found(NamedTuple):
    """What a benchmark says: the replicas at either bound, with what they cost a day."""

    replicas: int
    usd_per_day: float
    least_usd_per_day: float
    words: str


def serving_of(migration: Migration, benchmark: Benchmark | None, *, paid_by_the_call: bool) -> Serving:
    """Return what serving costs, from the first of: declared, paid by the call, measured.

    Args:
        migration: Says what serving or a replica costs.
        benchmark: None where none was ever made.
        paid_by_the_call: Whether a token price or a logged cost above zero stands for the target's calls.
    """
    declared, load = migration.cost.target_usd_per_day, migration.load
    # Without a section `load` nothing was put under load, whatever is left of an older benchmark.
    found = None if load is None or benchmark is None else _found(load, benchmark)
    digest = benchmark.digest if benchmark else None
    replicas = found.replicas if isinstance(found, _Found) else None
    said = f"; {found.words if isinstance(found, _Found) else found}" if found else ""
    if declared is not None:
        return Serving("declared", declared, declared, f"{_DECLARED}{said}", digest, replicas)
    if paid_by_the_call:
        reason = f"each call is paid for by its price, to which no server is added{said}"
        return Serving("paid by the call", 0.0, 0.0, reason, digest, replicas)
    if load is None or load.replica_usd_per_hour is None:
        return Serving("not counted", 0.0, 0.0, f"{_not_counted(load)}{said}", digest, replicas)
    if isinstance(found, _Found):
        return Serving("measured", found.usd_per_day, found.least_usd_per_day, found.words, digest, replicas)
    # A price of a replica says that serving costs something: how many are needed is then to be measured.
    missing = found or "a replica has a price and no load_benchmark was made; `anven load` makes one"
    return Serving(
        "unmeasured", None, None, f"{missing}; or declare what serving costs in cost.target_usd_per_day", digest
    )


def self_served(migration: Migration) -> bool:
    """Tell whether the target runs on servers that are paid for by the hour, as far as the migration file says so."""
    priced = migration.load is not None and migration.load.replica_usd_per_hour is not None
    return priced or isinstance(migration.target, BatchTarget)


def usd(amount: float) -> str:
    """Write an amount with four significant digits; a large one in whole dollars, never with an exponent."""
    return f"{amount:,.0f} USD" if abs(amount) >= 10_000 else f"{amount:.4g} USD"  # noqa: PLR2004 - has five digits


def _found(load: Load, benchmark: Benchmark) -> _Found | str:
    """Return what the benchmark says, or why it says nothing of the cost."""
    name = f"load_benchmark {benchmark.digest[:12]}"
    if benchmark.stale is not None:
        return f"{name} is stale and tells no cost: {benchmark.stale}"
    capacity = capacity_of(benchmark.target, benchmark.demand, load)
    rate, peak, replicas = capacity.rate_per_replica, benchmark.demand.peak_rate, capacity.replicas_for_peak
    if rate is None:
        return (
            f"{name} found no rate that keeps the service level; mend that and run it again: {benchmark.target.reason}"
        )
    if peak is None or replicas is None:
        return f"{name} tells no cost: the log has no busiest minute, its calls have no times or span less than one"
    found = f"{name} finds {_count(replicas)} for the busiest minute of {peak:.3g}/s, of which one bears {rate:.3g}/s"
    if load.replica_usd_per_hour is None:
        return f"{found}; what one costs stands in no load.replica_usd_per_hour"
    beyond = benchmark.target.beyond_rate
    least = 1 if beyond is None else replicas_needed(peak, beyond / load.replicas)
    a_day = load.replica_usd_per_hour * _HOURS
    sum_up = f"{replicas} x {load.replica_usd_per_hour:g} USD x {_HOURS} h = {usd(replicas * a_day)}"
    rest = "" if least == replicas else f"; {least} may do, as {_no_more(beyond, load)}"
    return _Found(replicas, replicas * a_day, least * a_day, f"{found}: {sum_up}{rest}")


def _no_more(beyond: float | None, load: Load) -> str:
    return "no rate was too much" if beyond is None else f"only {beyond / load.replicas:.3g}/s each was too much"


def _not_counted(load: Load | None) -> str:
    """Say why nothing is counted for serving, where that is so."""
    missing = "there is no section load" if load is None else "load.replica_usd_per_hour is not declared"
    return f"cost.target_usd_per_day is not declared, and {missing}"


def _count(replicas: int) -> str:
    return f"{replicas:,} {'replica' if replicas == 1 else 'replicas'}"
