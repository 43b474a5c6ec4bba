"""Sends requests when they are due, whatever has become of the earlier ones, and measures what comes back.

Open loop: nothing waits for an answer. Only the safety cap holds a request back, and that is told.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg
import polars as pl

from anven_pipelines.domain.completion import Answer
from anven_pipelines.domain.load import LOAD_REQUESTS, Timing, request_row, unsent_row
from anven_pipelines.resources.endpoint import DirectEndpoint
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.interrupts import interrupts_deferred
from anven_pipelines.resources.pace import DEPARTURE, Departure, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.load_plan import Due, LoadPlan
    from anven_pipelines.resources.interrupts import Interrupts
    from anven_pipelines.spec_target import EndpointTarget

TELL_SECONDS: Final = 5.0
LEAD_S: Final = 0.2  # from the start of a rate to its moment zero, so that no first request is late


class Driven(NamedTuple):
    """What a server did.

    Attributes:
        rows: LOAD_REQUESTS without judgement, a frame for each rate that was run.
        silent: Why nothing was run: no warm-up request was answered; None where one was.
    """

    rows: list[pl.DataFrame]
    silent: str | None


class LoadDriver(dg.ConfigurableResource[None]):
    """Puts an endpoint under load; the key is read from the environment variable that the target names."""

    def drive(
        self,
        server: EndpointTarget,
        *,
        arm: str,
        warm_up: Sequence[CompletionRequest],
        next_plan: Callable[[Sequence[pl.DataFrame]], LoadPlan | None],
        cap: int,
        tell: Callable[[str], None],
    ) -> Driven:
        """Do what `drive_load` does, with the key from this process's environment."""
        return drive_load(server, arm=arm, warm_up=warm_up, next_plan=next_plan, cap=cap, tell=tell, environ=os.environ)


def drive_load(
    server: EndpointTarget,
    *,
    arm: str,
    warm_up: Sequence[CompletionRequest],
    next_plan: Callable[[Sequence[pl.DataFrame]], LoadPlan | None],
    cap: int,
    tell: Callable[[str], None],
    environ: Mapping[str, str],
) -> Driven:
    """Run one rate after the other, each once the one before it has been answered or has timed out.

    Args:
        server: The endpoint; each request is asked once.
        arm: Stands in the rows.
        warm_up: Asked one after the other before the first rate; they open connections and count for nothing.
        next_plan: Gives the next rate, from the rows of those that were run; None ends it.
        cap: Most requests in flight.
        tell: Is told how far it is, at most once in TELL_SECONDS and after each rate, in another thread.
        environ: Holds the key.

    Raises:
        InvalidInput: the key is missing.
    """
    pace = Pace()
    endpoint = DirectEndpoint(server, api_key(server.api_key_env, of=repr(server.model), environment=environ), pace)
    driver = _Driver(endpoint, pace, arm=arm, cap=cap, tell=tell)
    with interrupts_deferred() as interrupts:
        return asyncio.run(driver.run(warm_up, next_plan, interrupts))


class _Driver:
    """One server during its rates."""

    def __init__(
        self, endpoint: DirectEndpoint, pace: Pace, *, arm: str, cap: int, tell: Callable[[str], None]
    ) -> None:
        self._endpoint = endpoint
        self._clock = pace.clock
        self._arm = arm
        self._cap = cap
        self._tell = tell
        self._start = 0.0
        self._in_flight = 0
        self._rows: list[dict[str, Any]] = []

    async def run(
        self,
        warm_up: Sequence[CompletionRequest],
        next_plan: Callable[[Sequence[pl.DataFrame]], LoadPlan | None],
        interrupts: Interrupts,
    ) -> Driven:
        interrupts.cancel(asyncio.current_task(), after_s=0.0)
        done: list[pl.DataFrame] = []
        async with self._endpoint.connected():
            outcomes = [(await self._endpoint.ask(request)).outcome for request in warm_up]
            if not any(isinstance(outcome, Answer) for outcome in outcomes):
                last = outcomes[-1]
                reason = "" if isinstance(last, Answer) else last.reason
                return Driven([], f"none of {len(outcomes)} warm-up requests was answered; the last failed: {reason}")
            while (plan := next_plan(done)) is not None:
                done.append(await self._rate(plan))
        return Driven(done, None)

    async def _rate(self, plan: LoadPlan) -> pl.DataFrame:
        self._rows = []
        self._start = self._clock() + LEAD_S
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell_now_and_then(plan))
            async with asyncio.TaskGroup() as asking:
                for number, due in enumerate(plan.due):
                    await asyncio.sleep(self._start + due.at_s - self._clock())  # late: lets the others run once
                    if self._in_flight >= self._cap:
                        self._rows.append({"number": number, **unsent_row(due, cap=self._cap)})
                    else:
                        self._in_flight += 1
                        asking.create_task(self._ask(number, due))
            telling.cancel()
        await asyncio.to_thread(self._tell, self._progress(plan, "all of"))
        named = ({"arm": self._arm, "rate": plan.rate, **row} for row in self._rows)
        return pl.DataFrame(list(named), schema=LOAD_REQUESTS.schema).sort("number")

    async def _ask(self, number: int, due: Due) -> None:
        departure = Departure()
        DEPARTURE.set(departure)  # of this task alone
        started = self._clock()
        try:
            outcome = (await self._endpoint.ask(due.request)).outcome
        finally:
            self._in_flight -= 1
        left_s = None if departure.at is None else departure.at - self._start
        self._rows.append({"number": number, **request_row(due, outcome, Timing(started - self._start, left_s))})

    async def _tell_now_and_then(self, plan: LoadPlan) -> None:
        """Report in a thread: a slow event log must not delay a request."""
        while True:
            await asyncio.sleep(TELL_SECONDS)
            elapsed = min(plan.seconds, max(0.0, self._clock() - self._start))
            await asyncio.to_thread(self._tell, self._progress(plan, f"{elapsed:.0f} of {plan.seconds:g} s,"))

    def _progress(self, plan: LoadPlan, how_far: str) -> str:
        failed = sum(row["status"] != "answered" for row in self._rows)
        return (
            f"{self._arm} at {plan.rate:g}/s: {how_far} {len(plan.due):,} requests: {len(self._rows):,} done, "
            f"{failed:,} of them without an answer, {self._in_flight} in flight"
        )
