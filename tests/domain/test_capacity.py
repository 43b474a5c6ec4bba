"""How many servers, and what a request costs on them; hand-computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anven_pipelines.domain.capacity import Demand, capacity_of, demand_of
from anven_pipelines.domain.load import Saturation
from anven_pipelines.spec_load import Load

DEMAND = Demand(calls=1000, mean_rate=5.0, peak_rate=21.0)


def load_of(**changes: Any) -> Load:
    return Load.model_validate({"slo": {"ttft_ms": 500}, "replica_usd_per_hour": 3.6} | changes)


def sustaining(rate: float | None) -> Saturation:
    return Saturation(
        status="unmeasured" if rate is None else "not reached",
        sustained_rate=rate,
        beyond_rate=None,
        goodput=rate,
        reason="",
    )


def test_the_peak_is_the_busiest_minute_wherever_it_starts() -> None:
    # One call every ten seconds for an hour, and 30 more across the turn of a minute.
    times = np.sort(np.concatenate([np.arange(0, 3600, 10.0), np.linspace(95, 145, 30)]))
    demand = demand_of(times)
    assert demand.calls == 390
    assert demand.mean_rate == pytest.approx(390 / 3590)
    assert demand.peak_rate == pytest.approx(36 / 60)


@pytest.mark.parametrize("times", [[], [3.0], [0.0, 59.0]])
def test_a_log_shorter_than_a_minute_has_no_peak(times: list[float]) -> None:
    assert demand_of(np.array(times)) == Demand(calls=len(times), mean_rate=None, peak_rate=None)


def test_replicas_and_prices_are_those_computed_by_hand() -> None:
    found = capacity_of(sustaining(16.0), DEMAND, load_of(replicas=2))
    assert found.rate_per_replica == 8.0
    assert found.replicas_for_peak == 3  # 21 / 8 = 2.6
    # A replica costs 3.6 USD per hour and serves 28,800 requests in it.
    assert found.usd_per_1000_full == pytest.approx(0.125)
    # Three of them cost 10.8 USD per hour, in which the log has 18,000 requests.
    assert found.usd_per_1000_logged == pytest.approx(0.6)
    assert "n replicas serve n times" in found.assumption


@pytest.mark.parametrize(
    ("rate", "demand", "load", "known"),
    [
        (None, DEMAND, {}, (False, False, False, False)),
        (8.0, DEMAND, {"replica_usd_per_hour": None}, (True, True, False, False)),
        (8.0, Demand(calls=2, mean_rate=None, peak_rate=None), {}, (True, False, True, False)),
    ],
)
def test_what_was_not_measured_or_has_no_price_is_unknown(
    rate: float | None, demand: Demand, load: dict[str, Any], known: tuple[bool, ...]
) -> None:
    found = capacity_of(sustaining(rate), demand, load_of(**load))
    figures = (
        found.rate_per_replica,
        found.replicas_for_peak,
        found.usd_per_1000_full,
        found.usd_per_1000_logged,
    )
    assert tuple(figure is not None for figure in figures) == known


def test_a_peak_that_is_exactly_served_takes_no_further_replica() -> None:
    assert capacity_of(sustaining(7.0), DEMAND, load_of()).replicas_for_peak == 3
