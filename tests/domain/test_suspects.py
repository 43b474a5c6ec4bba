"""Who killed the worker: the culprit is found within a few deaths, and chance blames nobody."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.suspects import ALONE_DEATHS, GROUPS, Death, Turns, turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ITEMS = [f"{at:03d}" for at in range(200)]


def death(*asking: str, search: bool = True, worker: str = "w") -> Death:
    return Death(worker, asking, is_search=search, at="")


def asked(found: Turns) -> list[list[str]]:
    """Return what is in flight at once, turn by turn."""
    return [turn for turn in [found.rest, *found.groups, *([item] for item in found.alone)] if turn]


class Life:
    """Workers that live one after another, with so many in flight in the rest."""

    def __init__(self, items: Sequence[str], *, at_once: int) -> None:
        self.open, self.at_once = list(items), at_once
        self.deaths: list[Death] = []
        self.blamed: list[str] = []

    def steps(self) -> Iterator[list[str]]:
        """Go through what one worker has in flight, until it is done; what was in flight before is answered."""
        found = turns(self.open, self.deaths)
        self.blamed += found.blamed
        self.open = [item for item in self.open if item not in found.blamed]
        rest = [found.rest[start : start + self.at_once] for start in range(0, len(found.rest), self.at_once)]
        for at, turn in enumerate([*rest, *asked(found._replace(rest=[]))]):
            self.in_flight = death(*turn, search=at >= len(rest), worker=str(len(self.deaths)))
            yield turn
            self.open = [item for item in self.open if item not in turn]

    def dies(self) -> None:
        self.deaths.append(self.in_flight)


def test_nobody_is_suspected_before_a_death() -> None:
    assert turns(ITEMS, []) == Turns([], ITEMS, [], [])


@pytest.mark.parametrize(
    ("deaths", "where"),
    [
        ([death(*ITEMS[:40], search=False)], "groups"),
        ([death("000", search=False)], "groups"),
        ([death("000", "001")], "alone"),
        ([death("000")] * (ALONE_DEATHS - 1), "alone"),
        ([death("000")] * ALONE_DEATHS, "alone"),
        ([death("000")] * (1 + ALONE_DEATHS), "blamed"),
        ([death("000", "001"), *[death("000")] * ALONE_DEATHS], "blamed"),
        ([death("000", search=False)] * 9, "groups"),
        ([death("000", "001")] * 9, "alone"),
        ([death()] * 9, "rest"),
        ([death("of another batch")] * 9, "rest"),
    ],
    ids=[
        "once",
        "once, single",
        "in a group",
        "twice alone",
        "thrice",
        "once more",
        "a group, thrice",
        "no suspect",
        "never alone",
        "nothing",
        "other",
    ],
)
def test_suspicion_grows_with_what_is_known(deaths: list[Death], where: str) -> None:
    found = turns(ITEMS, deaths)._asdict()
    assert ["000" in [item for each in items for item in ([each] if isinstance(each, str) else each)]
            for name, items in found.items() if name == where] == [True]  # fmt: skip


@given(
    st.lists(
        st.builds(death, st.sampled_from(ITEMS), st.sampled_from(ITEMS), search=st.booleans())
        | st.builds(death, st.sampled_from(ITEMS[:5]), search=st.booleans())
    )
)
def test_every_open_item_stands_in_one_turn(deaths: list[Death]) -> None:
    found = turns(ITEMS, deaths)
    assert sorted([*found.blamed, *(item for turn in asked(found) for item in turn)]) == ITEMS
    assert len(found.groups) <= GROUPS


@pytest.mark.parametrize("at_once", [1, 7, 32, 200])
@pytest.mark.parametrize("deadly", [{"000"}, {"199"}, {"017", "018"}, {"003", "150"}, {"001", "002", "180"}])
def test_culprits_are_found_within_a_few_deaths_and_nobody_else(deadly: set[str], at_once: int) -> None:
    life = Life(ITEMS, at_once=at_once)
    while life.open:
        for turn in life.steps():
            if deadly & set(turn):
                life.dies()
                break
    assert set(life.blamed) == deadly
    assert len(life.deaths) <= len(deadly) * (2 + ALONE_DEATHS)


def test_chance_blames_as_rarely_as_is_written() -> None:
    """Random deaths a thousand times as often as on the worst cluster, so that there is something to count."""
    chance, mean_turns, suspects = random.Random(3), 6.0, 40
    blamed = firsts = 0
    for _ in range(4_000):
        life = Life(ITEMS[:suspects], at_once=suspects)
        for _ in life.steps():
            life.dies()  # the first death
        firsts += 1
        life.open = ITEMS[:suspects]
        while life.open:
            for _ in life.steps():
                if chance.random() < 1 / mean_turns:
                    life.dies()
                    break
        blamed += len(life.blamed)
    assert 0 < blamed / firsts <= suspects / mean_turns ** (1 + ALONE_DEATHS)
