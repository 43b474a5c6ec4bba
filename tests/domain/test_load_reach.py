"""What a benchmark could never prove is told before its first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from anven_pipelines.domain.load_reach import EXAMPLE, declared_rates, shortfall, why_never
from anven_pipelines.spec_load import Load
from tests.builders import a_migration

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration

SLO = {"ttft_ms": 500}
SERVED = {"engine": "endpoint", "model": "m", "url": "http://target/v1"}


def load_of(**changes: Any) -> Load:
    return Load.model_validate({"slo": SLO} | changes)


def migration_with(**changes: Any) -> Migration:
    return a_migration(target=SERVED, load={"slo": SLO} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rates": [0.1, 4], "duration": "30s"},  # 3 and 120 requests: one of them can be proven
        {"slo": {"ttft_ms": 1, "share": 0.5}, "rates": [1], "duration": "3s"},
        {"rates": "auto", "duration": "1s"},
    ],
)
def test_a_benchmark_that_can_prove_one_rate_is_run(changes: dict[str, Any]) -> None:
    assert why_never(migration_with(**changes)) is None


@pytest.mark.parametrize(
    ("migration", "reason"),
    [
        (a_migration(target=SERVED), f"has no section `load`.*such as:\n{EXAMPLE[:20]}"),
        (a_migration(load={"slo": SLO}), "engine 'recorded' serves nothing that can be asked; load.url is needed"),
        (
            migration_with(rates=[1, 2], duration="10s"),
            "no rate could be .* of 10 s sends 10 at 1/s, 20 at 2/s, and 95.0% needs 52 .*; hold each rate for 52 s",
        ),
        (migration_with(rates="auto", max_rate=8, duration="1s"), "sends 1 at 1/s, 2 at 2/s, 4 at 4/s, 8 at 8/s"),
        (migration_with(slo={"ttft_ms": 1, "share": 0.999}), "99.9% needs 2,?703 requests"),
        # 52 requests at 0.01/s would take longer than a rate may be held.
        (migration_with(rates=[0.01], duration="1h"), "sends 36 at 0.01/s, .* without a miss; declare higher rates"),
    ],
)
def test_one_that_can_prove_nothing_is_refused_with_what_would_do(migration: Migration, reason: str) -> None:
    found = why_never(migration)
    assert found is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


def test_rates_with_too_few_requests_are_told_beside_those_with_enough() -> None:
    assert shortfall(load_of()) is None
    said = shortfall(load_of(rates=[0.5, 1, 4]))
    assert said is not None
    assert said.startswith("load.duration of 60 s sends 30 at 0.5/s, and 95.0% needs 52 requests even without a miss")
    assert "hold each rate for 104 s" in said


def test_the_example_is_one_that_is_taken() -> None:
    assert why_never(a_migration(target=SERVED, **yaml.safe_load(EXAMPLE))) is None
    assert declared_rates(load_of(rates="auto", max_rate=5)) == [1, 2, 4]
