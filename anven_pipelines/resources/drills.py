"""Rehearsed roll backs, as a Dagster resource: on the running gateway, by synthetic traffic, written as real ones are.

A drill has a route of its own, `<workload>--drill`, in the same traffic file and the same proxy processes. It gives
that route to the target, then rolls it back as the controller does (the log first, then the file, by the same writer)
and watches. A drill that is killed leaves its route with the target at worst: the gateway serves nobody but a drill by
it, and the next one takes it back. It leaves no `drilled` in the log, so it counts for nothing.
"""

from __future__ import annotations

import fcntl
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.drill import MOST_AFTER, MOST_BEFORE, DrillResult, judge_drill
from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService
from anven_pipelines.domain.rollout_status import change_key
from anven_pipelines.domain.traffic import Route, drill_of
from anven_pipelines.gateway.answers import cost_usd
from anven_pipelines.gateway.settings import KEY_ENV
from anven_pipelines.resources.drill_traffic import DrillTraffic
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.uptime import uptime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anven_pipelines.spec import Migration

TAKEN_S: Final = 10.0
"""Longest wait for the target to get the drill's traffic: the first request of an arm takes two seconds more."""
QUIET_S: Final = 1.0
"""How long it is watched after every worker has followed, for one that goes back."""
GIVE_UP_S: Final = 10.0
"""Longest watch behind the limit."""

_ENOUGH: Final = 4
"""Answers of the target before the roll back."""
_LOOK_S: Final = 0.02


class Drills(dg.ConfigurableResource[None]):
    """Rehearses roll backs and writes down how they went."""

    rollouts: Rollouts
    url: str = Field(description="Base URL of the gateway, without /v1.")

    def rehearse(self, workload: str, *, who: str, url: str | None = None) -> DrillResult:
        """Rehearse the roll back of a workload; the result is in the log when this returns.

        Args:
            workload: Its name.
            who: Who rehearses.
            url: Of the gateway, where it is not the deployment's.

        Raises:
            InvalidInput: the workload has no gateway, the key is missing or refused, another drill is under way, or
                the gateway does not serve it.
            TamperedLog: the log was altered.
            UnavailableService: the gateway, the state store or the traffic file does not answer. What goes wrong once
                the drill has begun is a failed drill in the log, too.
        """
        migration = self.rollouts.migrations.of(workload).migration
        if migration.gateway is None:
            message = f"{workload} has no section `gateway`, so no gateway serves it; add it (docs/gateway.md)"
            raise InvalidInput(message)
        self.rollouts.state.require_intact()
        traffic = DrillTraffic(url or self.url, _key(), workload)
        with self._only_one(workload), traffic:
            traffic.require_served()
            try:
                found = self._rehearsed(workload, traffic, limit_s=migration.rollout.drill_s)
            except AnvenError as error:
                self._keep(workload, who, {"passed": False, "seconds": None, "reasons": [str(error)]})
                raise
        found = replace(found, cost_usd=_cost(migration, found))
        self._keep(workload, who, found.to_json())
        return found

    def interrupted(self, workload: str) -> datetime | None:
        """Return when the newest drill began, if it never ended and none is under way; None otherwise."""
        last = self.rollouts.state.latest(drill_stream(workload))
        return last.ts if last is not None and last.kind == "begun" else None

    def _rehearsed(self, workload: str, traffic: DrillTraffic, *, limit_s: float) -> DrillResult:
        generation = self._next_generation(workload)
        try:
            self._write(workload, "begun", generation, share=1.0)
            traffic.allow(MOST_BEFORE)
            _until(lambda: _is_the_targets(traffic, generation), TAKEN_S)
            traffic.allow(MOST_AFTER)
        finally:
            # Also after Ctrl-C: nothing of the drill is left with the target.
            written_s = time.monotonic()
            self._write(workload, "rolled_back", generation + 1, share=0.0)

        def judged() -> DrillResult:
            return judge_drill(
                list(traffic.asked),
                list(traffic.heard),
                generation=generation + 1,
                written_s=written_s,
                living=traffic.all_living(),
                limit_s=limit_s,
            )

        _until(lambda: judged().seconds is not None, limit_s + GIVE_UP_S)
        _until(lambda: False, QUIET_S)
        traffic.finish()
        return judged()

    def _next_generation(self, workload: str) -> int:
        """Return a number above those of the log and of the file: the gateway takes no raised share below them."""
        route = self.rollouts.gateway.read().of(drill_of(workload))
        if route.killed:
            message = (
                f"the kill switch of {drill_of(workload)} is on: set `killed` to false in "
                f"{self.rollouts.gateway.traffic}, or the target gets nothing that could be rolled back"
            )
            raise InvalidInput(message)
        last = self.rollouts.state.latest(drill_stream(workload))
        return 1 + max(route.generation, last.payload["generation"] if last else 0)

    def _write(self, workload: str, kind: str, generation: int, *, share: float) -> None:
        """Write a change of the drill's route as the controller writes one: the log first, then the traffic file."""
        self.rollouts.state.append(
            stream=drill_stream(workload),
            kind=kind,
            key=change_key(generation),
            payload={"generation": generation, "share": share},
            now=datetime.now(UTC),
        )
        route = Route(drill_of(workload), attempt=generation, generation=generation, stage=0, share=share)
        self.rollouts.gateway.publish(route)

    def _keep(self, workload: str, who: str, found: dict[str, Any]) -> None:
        self.rollouts.act(workload, "drilled", {"who": who, **found}, now=datetime.now(UTC), uptime=uptime())

    @contextmanager
    def _only_one(self, workload: str) -> Iterator[None]:
        """Let one drill of a workload run at a time; a killed one leaves no lock behind."""
        path = Path(self.rollouts.gateway.traffic).with_name(f".{drill_of(workload)}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            message = f"the folder of the traffic file, {path.parent}, cannot be written: {error.strerror}"
            raise UnavailableService(message) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another drill of {workload} is under way; wait for its end"
                raise InvalidInput(message) from error
            yield


def drill_stream(workload: str) -> str:
    """Return the state stream of a workload's drill route."""
    return f"drill/{workload}"


def _is_the_targets(traffic: DrillTraffic, generation: int) -> bool:
    """Return whether every living worker has the drill's route, and the target answers by it."""
    has_it = {each.worker for each in list(traffic.heard) if each.generation >= generation}
    living = traffic.all_living()
    answers = sum(each.seen is not None and each.seen.served == "target" for each in list(traffic.asked))
    return bool(living) and living <= has_it and answers >= _ENOUGH


def _until(holds: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _key() -> str:
    try:
        return str(api_key(KEY_ENV, of="the gateway"))
    except InvalidInput as error:
        message = f"{KEY_ENV} is not set; the key that the gateway was started with is needed in it"
        raise InvalidInput(message) from error


def _cost(migration: Migration, found: DrillResult) -> float | None:
    costs = []
    for arm, price in (("legacy", migration.legacy.price), ("target", migration.target.price)):
        used = found.tokens[arm]
        costs.append(cost_usd(price, input_tokens=used["input"], output_tokens=used["output"], cached=0))
    return None if None in costs else sum(cost for cost in costs if cost is not None)
