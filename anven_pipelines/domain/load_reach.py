"""What a declared load benchmark can tell at all, known before its first request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.load import requests_needed
from anven_pipelines.domain.load_plan import next_rate, target_server
from anven_pipelines.spec_load import LONGEST_HELD

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_load import Load

EXAMPLE: Final = """load:
  slo: {ttft_ms: 500, inter_token_ms: 50, share: 0.95}
  rates: [1, 2, 4, 8]
  duration: 1m"""


def why_never(migration: Migration) -> str | None:
    """Say why the declared benchmark can measure nothing, whatever the golden dataset holds; None where it can."""
    if migration.load is None:
        return (
            "the migration file has no section `load`, and nothing is put under load unasked; what has to be kept and "
            f"how much is sent are needed, such as:\n{EXAMPLE}"
        )
    if target_server(migration) is None:
        return (
            f"engine {migration.target.engine!r} serves nothing that can be asked; load.url is needed, where the "
            "target is served"
        )
    short = _short(migration.load)
    if len(short) < len(declared_rates(migration.load)):
        return None
    return f"no rate could be proven to keep the service level: {_in_words(migration.load, short)}"


def shortfall(load: Load) -> str | None:
    """Say which rates send too few requests to be proven within the limits; None where all send enough."""
    short = _short(load)
    return f"{_in_words(load, short)}; a lower share is proven by fewer" if short else None


def declared_rates(load: Load) -> list[float]:
    """Return the rates that are run where none is too much."""
    rates: list[float] = []
    while (rate := next_rate(load, rates)) is not None:
        rates.append(rate)
    return rates


def _short(load: Load) -> list[float]:
    needed, seconds = requests_needed(load.slo.share), load.duration.total_seconds()
    return [rate for rate in declared_rates(load) if round(rate * seconds) < needed]


def _in_words(load: Load, short: list[float]) -> str:
    seconds, needed = load.duration.total_seconds(), requests_needed(load.slo.share)
    sent = ", ".join(f"{max(1, round(rate * seconds))} at {rate:g}/s" for rate in short)
    enough = math.ceil(needed / min(short))
    longer = f"hold each rate for {enough} s, or " if enough <= LONGEST_HELD.total_seconds() else ""
    return (
        f"load.duration of {seconds:g} s sends {sent}, and {load.slo.share:.1%} needs {needed} requests even without a "
        f"miss; {longer}declare higher rates"
    )
