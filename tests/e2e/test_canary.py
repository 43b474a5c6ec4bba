"""Canaries from the first stage to their end, with everything real: proxy, models, users, daemon, sensor, runs.

Six workloads share one gateway and one daemon. The statistics are those of production; the plan is compressed to the
traffic that there is, some twenty calls a second for all of them. With 670 units at 30 % the 95th percentile of 200
units of the target has an upper bound; a cost is bounded from 500 units of legacy on; at the error rate of a roll back
a loss of 45 % of the mean score is told from the limit of 10 % after some 300 units, half of them of the target.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import polars as pl
import pytest

from anven_pipelines.domain.exposure import exposure_of
from anven_pipelines.nano.demand import APPLICATIONS
from tests.e2e.live_canary import Case, Seen, canary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]

ROLLOUT: Final[Mapping[str, Any]] = {
    "limits": {"quality": 0.1, "errors": 0.1, "ttft_ms": 1500, "latency_ms": 3000},
    "settle": "2s",
    "label_delay": "6s",
    "stale": "1m",
    "least_units": 100,
    "waive": ["drill", "safety"],  # nobody here looks at safety
}
GOOD: Final = Case("good", (0.3, 0.5), at_once=4, kills_daemon=True)
BAD: Final[Mapping[str, Case]] = {
    "quality": Case("degrades", (0.5,), fault={"regress": 1.0}, applications=APPLICATIONS),
    # Slow, and the breaker is told to bear it, so that it is for the controller to prove.
    "ttft": Case(
        "slows", (0.3,), fault={"delay_ms": 3000}, at_once=4, breaker={"slow_margin_ms": 60000, "slow_factor": 50}
    ),
    # Six times legacy's price: the target's prompts are shorter.
    "cost": Case("dear", (0.2,), price=(15.0, 60.0)),
    "breaker tripped: errors": Case("errs", (0.5,), fault={"errors": 1.0}),
    # It does not answer at all: legacy does, when the gateway has waited for TIMEOUT.
    "breaker tripped: latency": Case("hangs", (0.5,), fault={"delay_ms": 600_000}, at_once=6),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("canary")
    cases = (GOOD, *BAD.values())
    with canary(folder, cases, ROLLOUT, empty_mlflow) as live:
        yield live.seen(cases, folder / "read")


def test_a_good_target_climbs_through_every_stage_to_all_traffic(seen: Seen) -> None:
    log = seen.canary.log("good")
    assert [event.kind for event in log] == ["started", "advanced", "advanced", "completed"]
    assert [event.payload["stage"] for event in log[1:3]] == [1, 2]
    for event in log[1:]:  # each on proof, of every metric that gates
        assert {reason.split()[0] for reason in event.payload["reasons"]} >= {"quality", "errors", "ttft", "cost"}
        assert not any("overridden" in reason for reason in event.payload["reasons"])
    assert seen.canary.share_in_force("good") == 1.0
    assert set(seen.last_round("good")["served"]) == {"target"}


def test_a_killed_daemon_delays_a_rollout_and_changes_nothing(seen: Seen) -> None:
    killed_at = seen.canary.daemon.killed_at
    assert killed_at is not None
    kinds = [event.kind for event in seen.canary.log("good") if event.ts > killed_at]
    assert kinds[-1] == "completed"
    assert len(kinds) <= 2  # "advanced" had been there


@pytest.mark.parametrize(("reason", "case"), BAD.items(), ids=[case.name for case in BAD.values()])
def test_a_target_that_turns_bad_is_rolled_back_for_that(seen: Seen, reason: str, case: Case) -> None:
    log = seen.canary.log(case.name)
    assert [event.kind for event in log] == ["started", "rolled_back"]
    assert reason in log[-1].payload["reasons"][0]
    assert seen.canary.share_in_force(case.name) == 0.0
    assert set(seen.last_round(case.name)["served"]) == {"legacy"}
    seen.require_legacy_in_time(case.name)
    print("\n" + told(seen, case.name))


def test_no_request_is_lost_or_failed_by_a_change_of_share(seen: Seen) -> None:
    seen.require_all_answered()


def test_users_stay_on_their_arm_while_the_share_stays(seen: Seen) -> None:
    dealt = seen.events.filter(kind="request").group_by("workload", "generation", "unit")
    arms = dealt.agg(pl.col("intended").n_unique(), pl.len())
    assert set(arms["intended"]) == {1}
    assert set(arms["len"]) > {1}  # some asked more than once


def test_each_change_of_traffic_was_a_run_of_the_sensor(seen: Seen) -> None:
    with dg.DagsterInstance.from_config(str(seen.canary.home / "dagster")) as instance:
        deadline = time.monotonic() + 300
        while True:
            runs = instance.get_runs(filters=dg.RunsFilter(job_name="rollout_step"))
            if all(run.is_finished for run in runs):  # the last one has decided, and still writes its record
                break
            assert time.monotonic() < deadline
        assert {run.tags["dagster/sensor_name"] for run in runs} == {"rollout"}
        done = [run.tags["dagster/partition"] for run in runs if run.status == dg.DagsterRunStatus.SUCCESS]
    changes = {name: len(seen.canary.log(name)) - 1 for name in seen.records}
    assert {name: done.count(name) for name in changes} == changes


def told(seen: Seen, workload: str) -> str:
    """Say how long the target's users were exposed, and who brought that to an end."""
    record, since = seen.records[workload], seen.records[workload].faulty_since or datetime.min.replace(tzinfo=UTC)
    found = exposure_of(seen.events.filter(pl.col("workload") == workload), since=since)
    assert found is not None
    rolled_back_s = (seen.canary.log(workload)[-1].ts - found.first_bad_at).total_seconds()
    breaker = "" if found.breaker_s is None else f"breaker after {found.breaker_s:.1f} s, "
    return (
        f"{workload}: {breaker}controller after {rolled_back_s:.1f} s, last request dealt to the target after "
        f"{found.last_dealt_s:.1f} s; {found.bad} bad requests of {record.sent:,}, {found.rescued} of them answered by "
        "legacy instead"
    )
