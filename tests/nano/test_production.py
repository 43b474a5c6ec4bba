"""Users who ask a gateway and score its answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anven_pipelines.nano.production import CROWD, Place, Used, crowd_traffic, use
from anven_pipelines.nano.traffic import Pace
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from anven_pipelines.nano.exchange import Exchange


def used(endpoint: ScriptedEndpoint, plan: Any) -> tuple[Used, list[Exchange]]:
    exchanges: list[Exchange] = []
    place = Place(endpoint.url.removesuffix("/v1"), "sk-key", "support")
    return asyncio.run(use(plan, place, pace=Pace(most_in_flight=4), write=exchanges.append)), exchanges


def test_calls_come_evenly_from_users_who_seldom_ask_twice() -> None:
    plan = crowd_traffic(1000, seconds=50, seed=1)

    assert [call.at_s for call in plan.calls[:3]] == [0.0, 0.05, 0.1]
    users = {call.user for call in plan.calls}
    assert 850 < len(users) <= 1000 < CROWD
    assert crowd_traffic(1000, seconds=50, seed=1) == plan
    assert {call.item.question for call in plan.calls} != {
        call.item.question for call in crowd_traffic(1000, seconds=50, seed=2).calls
    }


def test_an_answer_is_right_where_it_is_the_expected_one_and_whole() -> None:
    plan = crowd_traffic(9, seconds=0, seed=1)
    right = {call.item.question: call.item.answer for call in plan.calls}

    def answer(ask: Ask) -> Reply:
        question = next(each for each in right if each in ask.prompt)
        number = list(right).index(question) % 3
        return Reply("boom", status=500) if number == 2 else Reply(right[question] if number else "something else")

    with ScriptedEndpoint(answer) as endpoint:
        found, exchanges = used(endpoint, plan)

    assert (found.traffic.sent, found.traffic.failed) == (9, 3)
    assert sorted(exchange.is_right for exchange in exchanges) == [False] * 6 + [True] * 3
    assert found.told == 0  # this endpoint takes no feedback, which fails nobody's request
