"""A canary whose controller sees production through a real Prometheus alone, and all else is real, too.

That is the proxy which it scrapes, models, users, Dagster's daemon, its sensor and runs.

Two workloads share them. Bounds from counters are wider: at half of the traffic a p95 in buckets has an upper bound
after some 380 units, a loss of quality is bounded to 15 % after 300, and to be told from that limit the target has to
be wrong nearly always, as the helpdesk's is that regresses: after some 200 units. Cost would take 500 units an arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from anven_pipelines.nano.demand import APPLICATIONS
from tests.e2e.live_canary import KEY, Case, Seen, canary
from tests.prometheus_server import free_port, prometheus_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.live, pytest.mark.prometheus, pytest.mark.timeout(1200)]

ROLLOUT: Final[Mapping[str, Any]] = {
    "limits": {"quality": 0.15, "errors": 0.1, "ttft_ms": 2000, "latency_ms": 4000},
    "settle": "1s",
    "label_delay": "4s",
    "stale": "1m",
    "least_units": 100,
    "waive": ["drill", "safety", "cost"],  # nobody here looks at safety
}
GOOD: Final = Case("good", (0.5,), at_once=4)
BAD: Final = Case("degrades", (0.5,), fault={"regress": 1.0}, good_calls=24, at_once=4, applications=APPLICATIONS[:1])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Seen]:
    folder, port = tmp_path_factory.mktemp("scraped"), free_port()
    with prometheus_server(folder / "prometheus", target=f"127.0.0.1:{port}", key=KEY) as server:
        metrics = {"source": "prometheus", "url": server.url, "match": {"job": "anven-gateway"}}
        with canary(folder, (GOOD, BAD), {**ROLLOUT, "metrics": metrics}, empty_mlflow, port=port) as live:
            yield live.seen((GOOD, BAD), folder / "read")


def test_a_good_target_climbs_to_all_traffic_on_what_prometheus_knows(seen: Seen) -> None:
    log = seen.canary.log("good")
    assert [event.kind for event in log] == ["started", "advanced", "completed"]
    for event in log[1:]:
        reasons = event.payload["reasons"]
        assert {reason.split()[0] for reason in reasons} >= {"quality", "errors", "ttft", "latency"}
        assert not any("overridden" in reason for reason in reasons)
    assert seen.canary.share_in_force("good") == 1.0
    assert set(seen.last_round("good")["served"]) == {"target"}


def test_a_target_that_answers_worse_is_rolled_back_on_proof(seen: Seen) -> None:
    log = seen.canary.log("degrades")
    assert [event.kind for event in log] == ["started", "rolled_back"]
    assert "quality is proven to be more than" in log[-1].payload["reasons"][0]
    assert seen.canary.share_in_force("degrades") == 0.0
    assert set(seen.last_round("degrades")["served"]) == {"legacy"}
    seen.require_legacy_in_time("degrades")


def test_no_request_is_lost_or_failed_by_a_change_of_share(seen: Seen) -> None:
    seen.require_all_answered()


def test_the_controller_never_read_the_event_log(seen: Seen) -> None:
    """What moved traffic here came from Prometheus: of the log nobody but this test has read and kept a line."""
    for name in seen.records:
        assert seen.canary.log(name)[0].payload["planned"]["rollout"]["metrics"]["source"] == "prometheus"
    assert not Path(seen.canary.rollouts.metrics.store).exists()
