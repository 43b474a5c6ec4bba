"""A breaker that trips in one worker trips in all, and outlives a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from anven_pipelines.domain.breaker import BreakerLimits, BreakerState, Observation
from anven_pipelines.domain.traffic import Route
from anven_pipelines.gateway.breakers import Breakers

if TYPE_CHECKING:
    from pathlib import Path

ROUTE = Route("support", attempt=1, generation=4, stage=0, share=0.5)
BAD = Observation("target", failed=True, waited_ms=None, stream=False)
LIMITS = {"support": BreakerLimits(), "billing": BreakerLimits()}


def tripped(folder: Path, told: list[tuple[str, BreakerState]] | None = None) -> Breakers:
    breakers = Breakers(
        folder, LIMITS, changed=lambda name, state: (told if told is not None else []).append((name, state))
    )
    assert not breakers.is_open(ROUTE)
    for _ in range(10):
        breakers.observe(ROUTE, BAD)
    return breakers


def test_it_opens_for_its_workload_alone_and_is_told_once(tmp_path: Path) -> None:
    told: list[tuple[str, BreakerState]] = []
    breakers = tripped(tmp_path, told)
    assert breakers.is_open(ROUTE)
    assert not breakers.is_open(replace(ROUTE, workload="billing"))
    assert [(name, state.generation, state.tripped) for name, state in told] == [("support", 4, "errors")]


def test_another_worker_learns_of_it_and_so_does_the_next_start(tmp_path: Path) -> None:
    other = Breakers(tmp_path, LIMITS)
    tripped(tmp_path)
    assert not other.is_open(ROUTE)
    other.refresh()
    assert other.is_open(ROUTE)
    assert Breakers(tmp_path, LIMITS).is_open(ROUTE)


def test_a_new_generation_closes_it_everywhere(tmp_path: Path) -> None:
    breakers = tripped(tmp_path)
    newer = replace(ROUTE, generation=5)
    assert not breakers.is_open(newer)
    breakers.refresh()
    assert not breakers.is_open(newer)
    assert not Breakers(tmp_path, LIMITS).is_open(newer)


def test_requests_of_an_older_generation_do_not_trip_the_newer_one(tmp_path: Path) -> None:
    breakers = Breakers(tmp_path, LIMITS)
    newer = replace(ROUTE, generation=5)
    assert not breakers.is_open(newer)
    for _ in range(20):
        breakers.observe(ROUTE, BAD)
    assert not breakers.is_open(newer)


def test_a_folder_that_cannot_be_written_still_trips_this_worker(tmp_path: Path) -> None:
    breakers = Breakers(tmp_path / "breakers", LIMITS)
    (tmp_path / "breakers").rmdir()
    for _ in range(6):
        breakers.observe(ROUTE, BAD)
    assert breakers.is_open(ROUTE)


def test_a_half_written_file_trips_nothing(tmp_path: Path) -> None:
    (tmp_path / "breaker-support.json").write_text('{"generation": 9, "rea')
    assert not Breakers(tmp_path, LIMITS).is_open(ROUTE)
