"""What Prometheus knows in part is told as unknown, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.rollout_scrape import (
    Sample,
    Seen,
    Snapshot,
    gap_of,
    in_order,
    missing_workers,
    share_problem,
    silence_of,
    snapshot_of,
    unsound,
    window_counts,
)
from anven_pipelines.domain.unit_counts import COUNTERS, PREFIX

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
STALE = timedelta(minutes=5)


def counters(worker: str = "w1", *, generation: int = 2, seen: float = 0, **more: Any) -> list[Sample]:
    """Return a worker's samples of a generation; `more` are labels."""
    labels = {"worker": worker, "attempt": "1", "generation": str(generation), "share": "0.25", **more}
    return [
        Sample({**labels, "__name__": PREFIX + name, "intended": arm}, seen if name == "seen_total" else 0.0)
        for name in COUNTERS
        for arm in ("target", "legacy")
    ]


def told(worker: str = "w1", *, up: float | None = 1, ago_s: float = 1, started_s: float = 0) -> list[Sample]:
    facts = {"up": up, "written_seconds": NOW.timestamp() - ago_s, "started_seconds": started_s}
    return [
        Sample({"__name__": f"anven_worker_{name}", "worker": worker}, value)
        for name, value in facts.items()
        if value is not None
    ]


def test_the_newest_of_what_two_targets_tell_of_a_worker_counts_once() -> None:
    older, newer = counters(seen=3, instance="a"), counters(seen=5, instance="b")
    worker = snapshot_of([*newer, *older]).of(2)["w1"]
    assert (worker.target.of("seen"), worker.legacy.of("seen")) == (5, 5)


def test_buckets_and_breakers_and_generations_are_told_apart() -> None:
    bucket = {**counters()[0].labels, "__name__": "anven_unit_ttft_bucket_total", "gt": "122.1", "le": "+Inf"}
    trip = {"__name__": "anven_breaker_trips_total", "worker": "w1", "generation": "2", "reason": "errors"}
    found = snapshot_of([*counters(), *counters(generation=1, share="1"), Sample(bucket, 4.0), Sample(trip, 1.0)])

    assert found.of(2)["w1"].target.buckets["ttft"] == {(122.1, float("inf")): 4.0}
    assert found.trips == {2: "errors"}
    shared = found.shared_before(9, attempt=1)
    assert shared is not None
    assert shared.number == 2
    assert found.shared_before(2, attempt=1) is None  # the one before had no legacy
    assert found.shared_before(9, attempt=2) is None


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (counters()[1:], "anven_unit_seen_total of worker w1 is missing, as if it had vanished"),
        (
            [each for each in counters() if each.labels["intended"] == "target"],
            "for the arm legacy are missing",
        ),
        ([Sample({"__name__": "anven_unit_seen_total"}, 1.0)], "has no label worker: was it relabelled"),
        ([Sample({**counters()[0].labels, "generation": "x"}, 1.0)], "the label generation of .* is 'x'"),
        ([Sample(counters()[0].labels, float("nan"))], "anven_unit_seen_total of worker w1 is nan"),
        ([Sample(counters()[0].labels, -1.0)], "is -1.0; a number from 0 up is needed"),
    ],
)
def test_what_is_no_count_of_ours_is_refused(samples: list[Sample], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        snapshot_of(samples)


@pytest.mark.parametrize(
    ("samples", "history", "words"),
    [
        ([], {}, "Prometheus knows no worker of the gateway"),
        (told(), {"w0": Seen(NOW, is_up=True, written_at=None)}, "worker w0 vanished from Prometheus without having"),
        (told(), {"w0": Seen(NOW, is_up=None, written_at=None)}, "worker w0 vanished"),
        (told(ago_s=400), {}, "worker w1 lives and has told nothing since 11:53:20 UTC"),
        ([*told(), *told("w2", ago_s=400)], {}, "worker w2 lives and has told nothing"),
        (told(up=None), {}, "does not know whether worker w1 lives"),
    ],
)
def test_counts_that_are_not_whole_are_unknown(samples: list[Sample], history: dict[str, Seen], words: str) -> None:
    problem, as_of = silence_of(snapshot_of(samples), history, now=NOW, stale=STALE)
    assert problem is not None
    assert words in problem
    assert as_of is None


def test_a_worker_that_has_ended_is_whole_however_long_ago() -> None:
    ended = [*told(), *told("w0", up=0, ago_s=3000)]
    history = {"w9": Seen(NOW - timedelta(days=2), is_up=False, written_at=None)}
    problem, as_of = silence_of(snapshot_of(ended), history, now=NOW, stale=STALE)
    assert (problem, as_of) == (None, NOW - timedelta(seconds=1))
    assert missing_workers(history, snapshot_of(ended)) == ["w9"]


def test_where_all_have_ended_the_evidence_is_as_old_as_the_last_one() -> None:
    problem, as_of = silence_of(snapshot_of(told(up=0, ago_s=900)), {}, now=NOW, stale=STALE)
    assert (problem, as_of) == (None, NOW - timedelta(seconds=900))


def test_so_long_a_gap_that_a_worker_may_have_come_and_gone_is_told() -> None:
    since = NOW - timedelta(days=3)
    hourly = [since + timedelta(hours=hour) for hour in range(72)]
    assert gap_of(hourly, since=since, now=NOW) is None
    assert gap_of([], since=NOW - timedelta(hours=23), now=NOW) is None
    lost = gap_of(hourly[:10] + hourly[40:], since=since, now=NOW)
    assert lost is not None
    assert "knows nothing of the gateway between 2026-11-" in lost
    assert gap_of([], since=since, now=NOW) is not None


def test_another_share_than_planned_is_told() -> None:
    found = snapshot_of(counters())
    assert share_problem(2, found, share=0.25) is None
    assert share_problem(3, found, share=0.5) is None
    assert share_problem(2, found, share=0.5) == "generation 2 has a share of 0.25 at the gateway, planned is 0.5"


def test_a_window_counts_what_came_since_by_worker_and_start() -> None:
    since = NOW - timedelta(hours=1)
    then = snapshot_of([*told("old"), *counters("old", seen=100), *told("idle")])
    now = snapshot_of([*counters("old", seen=130), *counters("idle", seen=4), *counters("new", seen=7)])
    started = {"old": 0.0, "idle": 1.0, "gone": 2.0, "new": since.timestamp() + 60}
    workers = in_order({**now.of(2), **snapshot_of(counters("gone", seen=50)).of(2)}, started)
    assert [each.worker for each in workers] == ["old", "idle", "gone", "new"]

    found = window_counts(workers, then, generation=2, started=started, since=since)
    assert found is not None
    assert [each.target.of("seen") for each in found] == [30, 4, 0, 7]
    assert window_counts(workers, Snapshot(), generation=2, started=started, since=since) is None


def test_counters_that_fall_or_lack_buckets_are_told() -> None:
    more, less = (snapshot_of(counters(seen=seen)).of(2)["w1"] for seen in (5, 3))
    assert unsound([more]) is None
    assert (
        unsound([less.since(more)], is_difference=True)
        == "anven_unit_seen_total of worker w1 fell, which no counter does"
    )
    torn = [
        Sample(each.labels, 2.0 if each.labels["__name__"] == "anven_unit_ttft_measured_total" else each.value)
        for each in counters()
    ]
    assert unsound(snapshot_of(torn).of(2).values()) == "anven_unit_ttft_bucket_total of worker w1 lacks buckets"
