"""What production shows of a workload, from the gateway's counters as a Prometheus server scraped them.

Everything is asked of one moment, so that numbers belong together. What is not whole is unknown: a target that is down,
a worker that vanished, a server that warns, was down too long, or knows only what is old.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import AnvenError, UnavailableService
from anven_pipelines.domain.rollout_counts import MOST_WORKERS, CountWindow, assignment_of_counts, compare_counts
from anven_pipelines.domain.rollout_evidence import Comparison, Evidence
from anven_pipelines.domain.rollout_measure import spans_of
from anven_pipelines.domain.rollout_scrape import (
    Seen,
    Snapshot,
    gap_of,
    in_order,
    missing_workers,
    share_problem,
    silence_of,
    snapshot_of,
    unsound,
    window_counts,
)
from anven_pipelines.resources.prometheus import Prometheus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus
    from anven_pipelines.domain.unit_counts import WorkerCounts

_STEPS: Final = 60
_SHORTEST_STEP: Final = timedelta(minutes=1)
_AFTER: Final = timedelta(minutes=2)
"""How long after a score was due its counter has certainly been scraped."""
_HOUR: Final = timedelta(hours=1)


def prometheus_evidence(plan: RolloutPlan, status: RolloutStatus, *, now: datetime) -> Evidence:
    """Return what is known of a workload at this moment.

    A server that does not answer, or not in full, is evidence of nothing: the reason stands in `problem`. A breaker
    that tripped is told whatever else is missing.
    """
    known = Evidence(generation=status.generation, as_of=None)
    if status.stage is None or status.entered_at is None:
        return known
    try:
        look = _Look(plan, status, status.entered_at, now)
        present = look.present()
        known = replace(known, breaker=present.trips.get(status.generation))
        return look.evidence(known, present)
    except (AnvenError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        is_told = isinstance(error, UnavailableService)
        problem = str(error) if is_told else f"the metrics cannot be evaluated: {type(error).__name__}: {error}"
        return replace(known, problem=problem)


class _Look:
    """One look at the generation that is in force."""

    def __init__(self, plan: RolloutPlan, status: RolloutStatus, entered_at: datetime, now: datetime) -> None:
        self._plan, self._status, self._entered_at, self._now = plan, status, entered_at, now
        self._server = Prometheus(plan.rollout.metrics)
        self._matched = [
            *(f"{name}={json.dumps(value)}" for name, value in plan.rollout.metrics.match.items()),
            f"workload={json.dumps(plan.workload)}",
        ]

    def present(self) -> Snapshot:
        """Return what is known now."""
        return snapshot_of(self._server.instant(self._selector("worker|unit|breaker_trips"), at=self._now))

    def evidence(self, known: Evidence, present: Snapshot) -> Evidence:
        """Return the evidence of what is known now, if it is whole."""
        history, known_at = self._history()
        problem = self._down()
        silence, as_of = silence_of(present, history, now=self._now, stale=self._plan.rollout.stale)
        problem = problem or silence or gap_of(known_at, since=self._entered_at, now=self._now)
        problem = problem or share_problem(self._status.generation, present, share=self._status.share(self._plan))
        if problem:
            return replace(known, problem=problem)
        started = {name: said.get("started_seconds", 0.0) for name, said in present.told.items()}
        counts = dict(present.of(self._status.generation))
        for name in missing_workers(history, present):
            ended = self._ended(name, history[name].at)
            counts |= ended.of(self._status.generation)
            started |= {each: said.get("started_seconds", 0.0) for each, said in ended.told.items()}
        workers = in_order(counts, started)
        if problem := self._unusable(workers):
            return replace(known, problem=problem)
        if not workers:
            return replace(known, as_of=as_of)
        stage = self._status.stage or 0
        windows = self._windows(workers, started)
        before = self._before() if self._plan.stages[stage].share == 1 else []
        comparisons = compare_counts(self._plan, stage, windows, before=before)
        return replace(
            known,
            as_of=as_of,
            comparisons=tuple(self._with_scores_as_planned(each, present) for each in comparisons),
            assignment=assignment_of_counts(self._plan, stage, workers),
        )

    def _history(self) -> tuple[dict[str, Seen], list[datetime]]:
        """Return what each worker of this generation last said of itself, and when any was known."""
        step = max((self._now - self._entered_at) / _STEPS, _SHORTEST_STEP)
        start = self._entered_at + step
        series = self._server.over_time(
            f"last_over_time({self._selector('worker')}[{_span(step)}])",
            start=start,
            end=max(self._now, start) + step,
            step=step,
        )
        seen: dict[str, Seen] = {}
        for each in series:
            name = each.labels.get("worker", "")
            at, value = each.points[-1]
            before = seen.get(name, Seen(at, None, None))
            at = max(at, before.at)
            if each.labels.get("__name__") == "anven_worker_up":
                # Two targets may tell of one worker; the later one knows more, and 0 is final.
                before = before._replace(is_up=bool(value) and before.is_up is not False)
            seen[name] = before._replace(at=at)
        return seen, sorted({at for each in series for at, _ in each.points if at <= self._now})

    def _down(self) -> str | None:
        """Say which target of the gateway cannot be scraped; None where all can."""
        stale = _span(max(self._plan.rollout.stale, _SHORTEST_STEP))
        told = f"last_over_time({self._selector('worker')}[{stale}])"
        found = self._server.instant(
            f"max by (job, instance) (up) and on (job, instance) group by (job, instance) ({told})", at=self._now
        )
        if not found:
            return "Prometheus has not scraped the gateway of late: is it in its scrape_configs, and `match` right?"
        down = sorted(each.labels.get("instance", "") for each in found if each.value != 1)
        return f"Prometheus cannot scrape the gateway at {', '.join(down)}: it is down" if down else None

    def _ended(self, worker: str, at: datetime) -> Snapshot:
        """Return the last counts of a worker that ended longer ago than the others tell of it."""
        step = max((self._now - self._entered_at) / _STEPS, _SHORTEST_STEP)
        selector = self._selector("worker|unit", f"worker={json.dumps(worker)}")
        return snapshot_of(self._server.instant(f"last_over_time({selector}[{_span(step)}])", at=at))

    def _windows(self, workers: list[WorkerCounts], started: Mapping[str, float]) -> list[CountWindow]:
        whole, *recent = spans_of(self._plan, entered_at=self._entered_at, now=self._now)
        windows = [CountWindow(workers, whole.harm_level)]
        for span in recent:
            if span.since == self._entered_at:
                windows.append(CountWindow(workers, span.harm_level))
                continue
            before = snapshot_of(self._server.instant(self._selector("worker|unit"), at=span.since))
            counted = window_counts(
                workers, before, generation=self._status.generation, started=started, since=span.since
            )
            if counted is None:
                continue  # what was counted before is in the whole stage, which looks for harm as well
            if problem := unsound(counted, is_difference=True):
                raise UnavailableService(problem)
            windows.append(CountWindow(counted, span.harm_level))
        return windows

    def _before(self) -> list[WorkerCounts]:
        """Return the counts of the last generation of this attempt in which legacy had traffic, all scores in."""
        rollout = self._plan.rollout
        at = min(self._now, self._entered_at + rollout.settle + rollout.label_delay + _AFTER)
        found = snapshot_of(
            self._server.instant(f"last_over_time({self._selector('worker|unit')}[{_span(_HOUR)}])", at=at)
        )
        shared = found.shared_before(self._status.generation, attempt=self._status.attempt)
        if shared is None:
            return []
        return in_order(
            found.counts[shared], {name: said.get("started_seconds", 0.0) for name, said in found.told.items()}
        )

    def _unusable(self, workers: list[WorkerCounts]) -> str | None:
        if len(workers) > MOST_WORKERS:
            return f"{len(workers)} workers counted in this generation, restarts included; at most {MOST_WORKERS} may"
        return unsound(workers)

    def _with_scores_as_planned(self, found: Comparison, present: Snapshot) -> Comparison:
        """Refuse scores that the gateway takes for due at another time than the plan does."""
        if found.metric not in ("quality", "safety"):
            return found
        rollout = self._plan.rollout
        wait_s = (rollout.settle + rollout.label_delay).total_seconds()
        for name, said in sorted(present.told.items()):
            waits = said.get("score_wait_seconds"), said.get("judged_share")
            if said.get("up") and waits != (wait_s, rollout.judged):
                why = (
                    f"worker {name} takes scores as due after {waits[0]} s for a share of {waits[1]} of the units, the "
                    f"plan after {wait_s:g} s for {rollout.judged:g}: start the gateway anew with the migration file"
                )
                return Comparison(metric=found.metric, unit=found.unit, unknown=why)
        return found

    def _selector(self, kinds: str, *more: str) -> str:
        names = "|".join(f"anven_{each}_.+" for each in kinds.split("|"))
        return "{" + ", ".join([f'__name__=~"{names}"', *self._matched, *more]) + "}"


def _span(span: timedelta) -> str:
    """Write a span as PromQL does, in whole milliseconds."""
    return f"{max(round(span / timedelta(milliseconds=1)), 1)}ms"
