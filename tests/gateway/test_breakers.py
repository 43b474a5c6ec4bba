"""A breaker that trips in one worker trips in all, and outlives a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.breaker import LEAST_REFERENCE, BreakerLimits, BreakerState, Observation
from anven_pipelines.domain.traffic import Route
from anven_pipelines.gateway.breakers import KEEP_S, Breakers, Upstream

if TYPE_CHECKING:
    from pathlib import Path

ROUTE = Route("support", attempt=1, generation=4, stage=0, share=0.5)
LEGACY = Observation("legacy", failed=False, waited_ms=100.0, stream=False)
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


def told_of_legacy(folder: Path, waited_ms: float = 100.0) -> Breakers:
    breakers = Breakers(folder, LIMITS)
    for _ in range(LEAST_REFERENCE):
        breakers.observe(ROUTE, LEGACY._replace(waited_ms=waited_ms))
    return breakers


def test_the_next_start_knows_how_fast_legacy_was(tmp_path: Path) -> None:
    told_of_legacy(tmp_path).keep_reference()
    again = Breakers(tmp_path, LIMITS)
    assert again.slow_above_ms("support", stream=False) == 1100.0
    assert again.slow_above_ms("support", stream=True) == again.slow_above_ms("billing", stream=False) == 30_000.0


GPT = Upstream("openai/gpt", "http://one/v1")


@pytest.mark.parametrize(
    ("changed", "slow_above_ms"),
    [(GPT, 1100.0), (GPT._replace(model="openai/gpt-slow"), 30_000.0), (GPT._replace(url=None), 30_000.0)],
    ids=["the same", "another model", "another server"],
)
def test_another_legacy_is_not_held_to_the_times_of_the_one_before(
    tmp_path: Path, changed: Upstream, slow_above_ms: float
) -> None:
    """A target as fast as the new legacy, which takes twice the old limit, would be slow."""
    before = Breakers(tmp_path, LIMITS, legacy={"support": GPT})
    for _ in range(LEAST_REFERENCE):
        before.observe(ROUTE, LEGACY)
    before.keep_reference()
    after = Breakers(tmp_path, LIMITS, legacy={"support": changed})
    assert after.slow_above_ms("support", stream=False) == slow_above_ms
    for _ in range(50):
        after.observe(ROUTE, Observation("target", failed=False, waited_ms=2200.0, stream=False))
    assert after.is_open(ROUTE) == (changed == GPT)


def test_legacys_times_are_written_now_and_then_and_only_where_they_changed(tmp_path: Path) -> None:
    breakers = told_of_legacy(tmp_path)
    file = tmp_path / "reference-support.json"

    def writes(now_s: float) -> bool:
        file.unlink(missing_ok=True)
        breakers.keep_reference(now_s)
        return file.exists()

    assert writes(5.0)
    assert not writes(5.0 + 2 * KEEP_S)
    breakers.observe(ROUTE, LEGACY)
    assert writes(5.0 + 2 * KEEP_S)
    breakers.observe(ROUTE, LEGACY)
    assert not writes(5.0 + 2.9 * KEEP_S)
    assert writes(5.0 + 3 * KEEP_S)


def test_too_few_times_of_legacy_are_not_written_over_enough(tmp_path: Path) -> None:
    breakers = Breakers(tmp_path, LIMITS)
    breakers.observe(ROUTE, LEGACY)
    breakers.keep_reference()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"plain": [1.0, 2',
        "[]",
        '{"plain": 3, "streamed": []}',
        '{"plain": [NaN], "streamed": []}',
        '{"plain": []}',
        '{"plain": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "streamed": []}',
    ],
)
def test_a_reference_that_is_none_is_left_aside(tmp_path: Path, content: str) -> None:
    (tmp_path / "reference-support.json").write_text(content)
    assert Breakers(tmp_path, LIMITS).slow_above_ms("support", stream=False) == 30_000.0
