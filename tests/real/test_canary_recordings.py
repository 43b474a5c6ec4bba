"""The recorded requests of four hosted endpoints, as the canary benchmark reads them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.canary_recorded import bound_of, figures
from benchmarks.recorded_streams import PROVIDERS, World, read

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("provider", "failed", "ttft_ms", "latency_ms"),
    [("anyscale", 0, 362, 3126), ("together", 0, 770, 2997), ("bedrock", 49, 542, 7834), ("lepton", 130, 1012, 4703)],
)
def test_each_request_is_read_and_one_that_failed_has_no_times(
    provider: str, failed: int, ttft_ms: float, latency_ms: float
) -> None:
    recording = read(provider)
    assert (len(recording.failed), recording.failed.sum()) == (150, failed)
    for times, p95 in ((recording.ttft_ms, ttft_ms), (recording.latency_ms, latency_ms)):
        assert np.array_equal(np.isnan(times), recording.failed)
        assert np.nanquantile(times, 0.95) == pytest.approx(p95, abs=1)


def test_there_is_a_bound_where_there_is_harm_that_does_not_come_in_bursts() -> None:
    recordings = {provider: read(provider) for provider in PROVIDERS}

    def bound(world: World) -> float | None:
        return bound_of(world, recordings)

    slow, slower = (bound(World(1200, "anyscale", "anyscale", ttft_ms=added)) for added in (250, 400))
    assert slow is not None
    assert slower is not None
    assert 0 < slower < slow
    assert bound(World(1200, "anyscale", "anyscale", ttft_ms=150)) is None  # within the limit
    assert bound(World(1200, "anyscale", "bedrock")) is None


def test_ours_bears_bursts_that_meet_both_arms_and_finds_what_is_beyond_a_limit() -> None:
    recordings = {provider: read(provider) for provider in PROVIDERS}
    equal = [World(1200, provider, provider) for provider in PROVIDERS]
    worse = [World(1200, "anyscale", "anyscale", ttft_ms=300), World(1200, "anyscale", "bedrock")]
    rows = [row for row in figures(equal + worse, recordings, 2, 1) if row["method"] == "ours"]
    assert [row["rolled_back"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert [row["equal"] for row in rows] == [True] * 4 + [False] * 2
    assert rows[4]["by"] == "ttft"
