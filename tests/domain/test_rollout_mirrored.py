"""A drawn request of legacy's is paired with what the target made of it; what is not known counts against that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, MIRRORED, GatewayEvent
from anven_pipelines.domain.rollout_mirrored import PAIRS, pairs_of
from anven_pipelines.domain.rollout_plan import METRICS, RolloutPlan
from anven_pipelines.spec_rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable

T0 = datetime(2026, 3, 4, 12, tzinfo=UTC)
LATER = T0 + timedelta(hours=2)
PLAN = RolloutPlan(workload="support", rollout=Rollout(shadow_top_up=0.5), metrics=METRICS)
REQUEST = GatewayEvent(
    event_id="e1",
    kind="request",
    ts=T0,
    worker="w1",
    seq=1,
    workload="support",
    attempt=1,
    generation=4,
    stage=1,
    share=0.25,
    unit="aa000000",
    bucket=0.9,
    intended="legacy",
    served="legacy",
    request_id="r1",
    status="ok",
    stream=False,
    latency_ms=300.0,
    cost_usd=0.01,
    cached=False,
    contract_ok=True,
    flags=(MIRRORED,),
)
SHADOW = replace(
    REQUEST,
    event_id="s1",
    kind="shadow",
    ts=T0 + timedelta(seconds=2),
    seq=2,
    served="target",
    cost_usd=0.002,
    flags=(),
)
WHOLE = {
    "unit": "aa000000",
    "seen_at": T0,
    "legacy_failed": False,
    "asked": True,
    "target_failed": False,
    "legacy_broke": False,
    "target_broke": False,
    "timed": True,
    "left": False,
    "legacy_usd": 0.01,
    "target_usd": 0.002,
}
UNASKED = {"asked": False, "target_failed": None, "target_broke": None, "target_usd": None}


def pairs(events: Iterable[GatewayEvent], *, now: datetime = LATER) -> list[dict[str, Any]]:
    table = pl.DataFrame([event.to_row() for event in events], schema=GATEWAY_EVENTS.schema)
    found = pairs_of(table, PLAN, generation=4, now=now)
    assert found.schema == PAIRS.schema
    return found.to_dicts()


def request(number: int, **change: Any) -> GatewayEvent:
    return replace(
        REQUEST,
        event_id=f"e{number}",
        seq=number,
        request_id=f"r{number}",
        ts=T0 + timedelta(seconds=number - 1),
        **change,
    )


def test_a_request_and_its_mirror_are_one_pair() -> None:
    assert pairs([SHADOW, REQUEST]) == [WHOLE]
    assert pairs([]) == []


def test_both_outcomes_are_kept_apart() -> None:
    failed = replace(SHADOW, status="error", served=None, contract_ok=None, cost_usd=None)
    assert pairs([replace(REQUEST, contract_ok=False), failed]) == [
        WHOLE | {"target_failed": True, "legacy_broke": True, "target_broke": None, "target_usd": None}
    ]


def test_a_unit_counts_once_and_with_its_first_request() -> None:
    later = replace(SHADOW, event_id="s2", seq=9, request_id="r2", status="error")
    assert pairs([REQUEST, request(2), SHADOW, later]) == [WHOLE]


@pytest.mark.parametrize(
    "events",
    [
        [replace(REQUEST, flags=()), request(2), SHADOW, replace(SHADOW, event_id="s2", request_id="r2")],
        [replace(REQUEST, intended="target", served="target"), SHADOW],
        [replace(REQUEST, generation=3), replace(SHADOW, generation=3)],
        [replace(REQUEST, unit=None), replace(SHADOW, unit=None)],
        [SHADOW],
    ],
    ids=["the first was not drawn", "the target's own", "another generation", "nobody's", "a mirror of nothing"],
)
def test_what_is_no_units_first_drawn_request_of_legacys_gives_no_pair(events: list[GatewayEvent]) -> None:
    assert pairs(events) == []


def test_a_unit_that_has_not_settled_does_not_count_yet() -> None:
    assert pairs([REQUEST, SHADOW], now=T0 + timedelta(minutes=9, seconds=59)) == []
    assert len(pairs([REQUEST, SHADOW], now=T0 + timedelta(minutes=10))) == 1


@pytest.mark.parametrize(
    "shadow",
    [
        [],
        [replace(SHADOW, ts=T0 + timedelta(minutes=10, seconds=1))],
        [replace(SHADOW, stream=True)],
        [replace(SHADOW, unit="bb000000")],
        [replace(SHADOW, generation=5)],
    ],
    ids=["a cap", "too late", "asked otherwise", "another unit's", "another generation's"],
)
def test_a_drawn_request_of_which_the_target_told_nothing_in_time_is_a_pair_all_the_same(
    shadow: list[GatewayEvent],
) -> None:
    assert pairs([REQUEST, *shadow]) == [WHOLE | UNASKED]


def test_legacys_failures_and_clients_that_hung_up_are_told() -> None:
    failed = replace(REQUEST, status="error", served=None, contract_ok=None, cost_usd=None)
    found = WHOLE | UNASKED | {"legacy_failed": True, "legacy_broke": None, "legacy_usd": None}
    assert pairs([failed]) == [found]
    gone = replace(REQUEST, status="disconnected", contract_ok=None, cost_usd=None)
    for cut_off in (gone, replace(gone, contract_ok=False)):
        assert pairs([cut_off, SHADOW]) == [WHOLE | {"left": True, "legacy_broke": None, "legacy_usd": None}]
    assert pairs([replace(REQUEST, cached=True, cost_usd=None), SHADOW]) == [
        WHOLE | {"timed": False, "legacy_usd": None}
    ]


def test_of_requests_that_a_client_named_alike_only_the_first_is_paired() -> None:
    """One mirror that told of many units would be taken for as much evidence."""
    copies = [request(number, unit=f"{number:08x}") for number in range(2, 9)]
    alike = [replace(copy, request_id="r1") for copy in copies]
    shadows = [replace(SHADOW, event_id=f"s{copy.unit}", unit=copy.unit) for copy in alike]
    assert [row["unit"] for row in pairs([REQUEST, SHADOW, *alike, *shadows])] == ["aa000000"]
    assert pairs([replace(REQUEST, flags=()), *alike, *shadows]) == []


@pytest.mark.parametrize(
    "others",
    [[SHADOW, replace(SHADOW, event_id="s2", seq=9, ts=T0 + timedelta(seconds=9))], [SHADOW], []],
    ids=["both told", "one is lost", "none told"],
)
def test_a_name_that_its_own_user_gave_again_is_no_answer_to_the_first(others: list[GatewayEvent]) -> None:
    """The answer to the second request would stand in for that to the first, which a slow target did not give."""
    again = replace(REQUEST, event_id="e2", seq=5, ts=T0 + timedelta(seconds=5))
    assert pairs([REQUEST, again, *others]) == [WHOLE | UNASKED]


def test_a_name_that_its_user_gives_again_after_it_has_settled_changes_nothing() -> None:
    later = T0 + timedelta(minutes=11)
    again = replace(REQUEST, event_id="e2", seq=5, ts=later), replace(SHADOW, event_id="s2", seq=9, ts=later)
    assert pairs([REQUEST, SHADOW, *again]) == [WHOLE]
    assert pairs([REQUEST, *again]) == [WHOLE | UNASKED]


def test_a_look_adds_pairs_and_changes_none() -> None:
    """What was told late counts as not told, at any look: else an outcome could be looked at until it suits."""
    late = [replace(SHADOW, event_id=f"s{n}", seq=90 + n, request_id=f"r{n}", unit=f"{n:08x}") for n in range(1, 30)]
    late = [replace(each, ts=T0 + timedelta(minutes=n)) for n, each in enumerate(late)]
    events = [*(request(number, unit=f"{number:08x}") for number in range(1, 30)), *late]
    looks = [
        pairs([each for each in events if each.ts <= now], now=now)
        for now in (T0 + timedelta(minutes=10, seconds=5 * n) for n in range(8))
    ]
    assert [len(found) for found in looks] == [1, 6, 11, 16, 21, 26, 29, 29]
    assert all(after[: len(before)] == before for before, after in pairwise(looks))
    assert {row["asked"] for row in looks[-1]} == {True, False}


def test_pairs_stand_in_the_order_of_their_requests() -> None:
    many = [request(number, unit=f"{number * 7919 % 97:08x}") for number in range(1, 30)]
    found = [row["seen_at"] for row in pairs(reversed(many))]
    assert found == sorted(found)
    assert len(found) == 29
