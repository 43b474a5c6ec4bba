"""Users of a gateway: they ask it what they always asked legacy, and tell it how good each answer was.

Which arm answers is the gateway's business. Whether an answer is right is known here, as every question was invented
together with its one right answer; that goes to the gateway's feedback endpoint as a score of 0 or 1.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import numpy as np

from anven_pipelines.nano.demand import APPLICATIONS, TrafficPlan, plan_traffic
from anven_pipelines.nano.traffic import Pace, TrafficSummary, drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.nano.demand import Application
    from anven_pipelines.nano.exchange import Exchange

CROWD: Final = 5_000
"""Users, each as likely to ask as any other: most of some hundred calls are of users who asked nothing before."""
_ACCEPTED: Final = 202


class Place(NamedTuple):
    """Where users ask.

    Attributes:
        url: Of the gateway, without a path.
        api_key: What it is called with.
        workload: Model that they ask for.
    """

    url: str
    api_key: str
    workload: str


class Used(NamedTuple):
    """What users did.

    Attributes:
        traffic: What they asked.
        told: Scores that the gateway took.
    """

    traffic: TrafficSummary
    told: int


def crowd_traffic(
    count: int, *, seconds: float, seed: int, applications: tuple[Application, ...] = APPLICATIONS
) -> TrafficPlan:
    """Plan calls at even distances, each of a user who is drawn from the whole crowd.

    Args:
        count: Calls.
        seconds: From the first to the end of the last.
        seed: Of questions and users; another one asks other questions.
        applications: Who asks, as in `plan_traffic`.
    """
    arrivals = np.linspace(0, seconds, count, endpoint=False)
    plan = plan_traffic(arrivals, split="golden", seed=seed, applications=applications)
    users = np.random.default_rng(seed).integers(CROWD, size=count).tolist()
    calls = zip(plan.calls, users, strict=True)
    return TrafficPlan(tuple(call._replace(user=f"customer-{user:04}") for call, user in calls))


async def use(plan: TrafficPlan, place: Place, *, pace: Pace, write: Callable[[Exchange], None]) -> Used:
    """Drive a gateway with a plan and score each whole answer.

    Args:
        plan: What to ask when.
        place: Where.
        pace: How fast.
        write: Gets each exchange, in the order of their ends.

    Raises:
        InvalidInput: the URL is none, or the pace cannot be kept.
    """
    headers = {"Authorization": f"Bearer {place.api_key}"}
    telling: list[asyncio.Task[bool]] = []
    async with httpx.AsyncClient(
        base_url=place.url, headers=headers, timeout=pace.timeout_s, trust_env=False
    ) as client:

        def take(exchange: Exchange) -> None:
            write(exchange)
            if exchange.error is None:
                telling.append(asyncio.get_running_loop().create_task(_tell(client, exchange)))

        traffic = await drive(
            plan, url=f"{place.url}/v1", model=place.workload, write=take, pace=pace, api_key=place.api_key
        )
        told = await asyncio.gather(*telling)
    return Used(traffic, sum(told))


async def _tell(client: httpx.AsyncClient, exchange: Exchange) -> bool:
    """Score an answer; return whether the gateway took it. Who says nothing is a score less, and no failed request."""
    body = {"request_id": exchange.answer_id, "score": float(exchange.is_right)}
    try:
        reply = await client.post("/anven/feedback", json=body)
    except httpx.HTTPError:
        return False
    return reply.status_code == _ACCEPTED
