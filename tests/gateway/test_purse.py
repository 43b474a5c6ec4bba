"""What mirrored requests may spend in a day, whatever is stopped and however many workers there are."""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.gateway.purse import Purse, Right
from anven_pipelines.spec_gateway import Shadow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TODAY = date(2026, 11, 20)
TOMORROW = date(2026, 11, 21)


def taken(purse: Purse, most_usd: float = 0.0, today: date = TODAY) -> Right:
    right = purse.take(today, most_usd)
    assert right is not None
    return right


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shadow" / "support.json"


def test_calls_of_a_day_are_capped_and_the_next_day_starts_anew(file: Path) -> None:
    purse = Purse(Shadow(calls_per_day=2), file)
    for _ in range(2):
        purse.give_back(taken(purse), 0.0)
    assert purse.take(TODAY) is None
    assert purse.take(TOMORROW)


def test_no_more_than_so_many_are_in_flight(file: Path) -> None:
    purse = Purse(Shadow(at_once=1), file)
    right = taken(purse)
    assert purse.take(TODAY) is None
    purse.give_back(right, 0.0)
    assert purse.take(TODAY)


def test_spending_is_capped_by_what_it_cost(file: Path) -> None:
    purse = Purse(Shadow(usd_per_day=0.01), file)
    for _ in range(4):
        purse.give_back(taken(purse, 0.009), 0.0025)
    assert purse.take(TODAY) is None


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the record as another worker does."""
    with file.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def test_what_a_request_cost_while_another_worker_held_the_record_is_taken_down_later(file: Path) -> None:
    """What each may have cost is 36 times the cap: it would stand as spent for the rest of the day."""
    purse = Purse(Shadow(usd_per_day=0.01), file)
    right = taken(purse, 0.36)
    with held(file):
        purse.give_back(right, 0.004)
    again = taken(purse, 0.36)
    with held(file):
        purse.give_back(again, 0.004)
    assert purse.in_flight == 0
    purse.give_back(taken(purse), 0.001)
    assert json.loads(file.read_bytes()) == {"day": "2026-11-20", "calls": 3, "usd": pytest.approx(0.009)}
    taken(purse, 0.001)
    assert purse.take(TODAY) is None


def test_what_is_owed_of_yesterday_is_no_part_of_today(file: Path) -> None:
    purse = Purse(Shadow(usd_per_day=0.01), file)
    right = taken(purse, 0.004)
    with held(file):
        purse.give_back(right, 0.5)
    assert taken(purse, 0.004, TOMORROW)
    assert json.loads(file.read_bytes())["usd"] == 0.004


def test_a_record_that_is_held_for_a_moment_is_tried_again(file: Path) -> None:
    purse = Purse(Shadow(), file)
    taken(purse)
    attempts: list[int] = []

    def first_is_busy(handle: int, how: int) -> None:
        attempts.append(how)
        if len(attempts) == 1:
            raise BlockingIOError
        real(handle, how)

    real = fcntl.flock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", first_is_busy)
        assert purse.take(TODAY)
    with held(file):
        assert purse.take(TODAY) is None  # and no more than that
    assert len(attempts) == 2


def test_a_cap_of_nothing_mirrors_nothing(file: Path) -> None:
    assert Purse(Shadow(calls_per_day=0), file).take(TODAY) is None
    assert Purse(Shadow(usd_per_day=0.0), file).take(TODAY) is None


def test_what_was_spent_before_a_restart_is_spent(file: Path) -> None:
    for _ in range(2):
        purse = Purse(Shadow(calls_per_day=2), file)
        purse.give_back(taken(purse), 0.0)
    assert Purse(Shadow(calls_per_day=2), file).take(TODAY) is None
    assert Purse(Shadow(calls_per_day=3), file).take(TODAY)


def test_a_crash_loop_spends_no_more_than_the_cap_and_a_request(file: Path) -> None:
    """Each start is killed with its requests in flight: nobody ever says what they cost."""
    rights = [Purse(Shadow(usd_per_day=0.01), file).take(TODAY, 0.004) for _ in range(20)]
    assert sum(right is not None for right in rights) == 3


def test_workers_share_one_cap(file: Path) -> None:
    one, other = (Purse(Shadow(calls_per_day=3), file) for _ in range(2))
    assert [purse.take(TODAY) is not None for purse in (one, other, one, other, one)] == [True] * 3 + [False] * 2


def test_what_ends_after_midnight_is_the_day_befores(file: Path) -> None:
    purse = Purse(Shadow(usd_per_day=0.01), file)
    late = taken(purse, 0.004)
    taken(purse, 0.004, TOMORROW)
    purse.give_back(late, 0.5)
    assert purse.take(TOMORROW, 0.004)


@pytest.mark.parametrize("content", [b"{", b"\xff" * 128, b'{"day": "2026-11-20", "calls": 1, "usd": NaN}', b"[]"])
def test_a_record_that_cannot_be_read_mirrors_nothing_more_that_day(file: Path, content: bytes) -> None:
    purse = Purse(Shadow(), file)
    purse.give_back(taken(purse), 0.0)
    file.write_bytes(content)
    assert purse.take(TODAY) is None


def test_nothing_is_mirrored_where_spending_cannot_be_kept(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.parent.mkdir()
    file.mkdir()
    purse = Purse(Shadow(), file)
    assert purse.take(TODAY) is None
    assert purse.take(TODAY) is None
    [line] = caplog.messages
    assert "nothing is mirrored until it can" in line
    file.rmdir()
    assert purse.take(TODAY)
