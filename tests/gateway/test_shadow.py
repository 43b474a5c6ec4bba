"""What mirrored requests may spend."""

from __future__ import annotations

from datetime import date

from anven_pipelines.gateway.shadow import Purse
from anven_pipelines.spec_gateway import Shadow

TODAY = date(2026, 11, 20)


def test_calls_of_a_day_are_capped_and_the_next_day_starts_anew() -> None:
    purse = Purse(Shadow(calls_per_day=2))
    assert [purse.take(TODAY) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        purse.give_back(None)
    assert not purse.take(TODAY)
    assert purse.take(date(2026, 11, 21))


def test_no_more_than_so_many_are_in_flight() -> None:
    purse = Purse(Shadow(at_once=1))
    assert [purse.take(TODAY), purse.take(TODAY)] == [True, False]
    purse.give_back(None)
    assert purse.take(TODAY)


def test_spending_is_capped_by_what_is_known_to_be_spent() -> None:
    purse = Purse(Shadow(usd_per_day=0.01))
    assert purse.take(TODAY)
    purse.give_back(0.011)
    assert not purse.take(TODAY)


def test_a_cap_of_nothing_mirrors_nothing() -> None:
    assert not Purse(Shadow(calls_per_day=0)).take(TODAY)
    assert not Purse(Shadow(usd_per_day=0.0)).take(TODAY)
