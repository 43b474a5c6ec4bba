"""Whole migrations, killed at random moments, come out as the undisturbed one: a few kills of `kill_batch.py`."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import polars as pl
import pytest

from benchmarks.kill_batch import Outcome, Tally, measure

if TYPE_CHECKING:
    from pathlib import Path

KILLS: Final = int(os.environ.get("ANVEN_KILLS", "3"))  # two of workers, one of a step
ITEMS: Final = 300


@pytest.mark.timeout(300 + 120 * KILLS)
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    chance = random.Random(2)
    tally = measure(tmp_path, KILLS, ITEMS, lambda: chance.uniform(0.0, 3.0))
    assert tally.dealt == KILLS
    assert tally.harmless, tally.told()


ANSWERED: Final = pl.DataFrame(
    {
        "item_id": ["a", "b"],
        "status": ["answered", "answered"],
        "output": ["1", "2"],
        "ttft_ms": [1.0, 2.0],
        "latency_ms": [3.0, 4.0],
        "attempts": [1, 1],
    }
)
UNDISTURBED: Final = Outcome(verdict="{}", answers=ANSWERED, rows_written=2)


def test_the_same_answers_in_another_time_are_no_harm() -> None:
    tally = Tally()
    slower = ANSWERED.with_columns(ttft_ms=pl.lit(9.0), attempts=pl.lit(2)).reverse()
    tally.add(UNDISTURBED._replace(answers=slower, rows_written=5), UNDISTURBED)
    assert tally.harmless
    assert tally.written_twice == 3


@pytest.mark.parametrize(
    ("found", "figure"),
    [
        (UNDISTURBED._replace(answers=ANSWERED.head(1)), "lost"),
        (UNDISTURBED._replace(answers=ANSWERED.with_columns(status=pl.lit("failed"))), "lost"),
        (UNDISTURBED._replace(answers=pl.concat([ANSWERED, ANSWERED.head(1)])), "doubled"),
        (UNDISTURBED._replace(answers=ANSWERED.with_columns(output=pl.lit("1"))), "other_answers"),
        (UNDISTURBED._replace(verdict='{"verdict":"GO"}'), "other_verdicts"),
    ],
)
def test_harm_is_counted(found: Outcome, figure: str) -> None:
    tally = Tally()
    tally.add(found, UNDISTURBED)
    assert tally.told()[figure] > 0
    assert not tally.harmless
