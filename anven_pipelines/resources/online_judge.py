"""The online judge, as a Dagster resource: scores answers of production, and tells the gateway, in passes that end.

A score goes the way of every feedback: to the gateway's endpoint, under a key made of the request and the judge, into
the event log, where it counts once however often it is sent. What has been judged is read off that log and kept nowhere
else, so a pass that is killed has lost at most what was in flight, which the next one judges again.

The gateway's redacted texts are taken in before anything is judged, as they rotate away there, and kept only as long as
an answer may still have to be judged.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg
import polars as pl
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError, UnknownWorkload
from anven_pipelines.domain.gateway_text import FOLDER
from anven_pipelines.domain.judge_progress import JudgeProgress
from anven_pipelines.domain.online_judge import Asked, asked_of, due_of, with_texts
from anven_pipelines.domain.rollout_plan import judge_outcome
from anven_pipelines.gateway.segments import segments_in
from anven_pipelines.ingest.event_store import EventStore
from anven_pipelines.ingest.gateway_events import TEXTS
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.judge_round import Round
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.told import claimed

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.online_judge import Due
    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.domain.rollout_status import RolloutStatus
    from anven_pipelines.spec_grading import OnlineJudge

MOST_IN_PASS: Final = 1_000
"""Judgements that a pass begins at most; it begins none after `judge_round.PASS_S` either, so that it ends."""
PACE: Final = timedelta(minutes=1)
"""Wait between two passes; less where scores have to be there sooner."""
UNKNOWN_KEPT: Final = timedelta(minutes=10)
"""How long a text stays whose request's event has not come: it is written some seconds after the answer."""

_PROGRESS: Final = "progress.json"


class _Work(NamedTuple):
    """What is judged: the attempt, its plan, and the judge as it is asked now."""

    status: RolloutStatus
    plan: RolloutPlan
    judge: OnlineJudge


class OnlineJudges(dg.ConfigurableResource[None]):
    """Judges the answers of each workload whose open rollout declares a judge."""

    rollouts: Rollouts
    judge: Judge
    url: str = Field(description="Base URL of the gateway, without /v1.")
    folder: str = Field(description="Where texts wait to be judged; whoever judges shares it.")

    def is_due(self, workload: str, *, now: datetime) -> bool:
        """Return whether a pass has something to judge or to remove, by what is cheap to see.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        progress = self._progress(workload)
        if not progress.is_due(now):
            return False
        if self._store(workload).rows():
            return True
        return self._work(workload) is not None and self._log_bytes() != progress.seen_bytes

    def run(self, workload: str, *, now: datetime) -> dict[str, Any] | None:
        """Do one pass, unless another one is under way, and return what `report` does.

        What goes wrong with the judge, the gateway or a text is told there, and is tried again by a later pass.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        folder = self._folder(workload)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with claimed(folder / ".pass.lock") as is_mine:
            if is_mine:
                self._pass(workload, now=now)
        return self.report(workload, now=now)

    def report(self, workload: str, *, now: datetime) -> dict[str, Any] | None:
        """Return how a workload's judge fares; None where none judges it.

        Raises:
            UnavailableService: the state store or the folder does not answer.
        """
        work = self._work(workload)
        if work is None:
            return None
        progress, most = self._progress(workload), work.judge.judgements_per_day
        return {
            "model": work.judge.model,
            "asked_today": most - progress.left_today(most, now),
            "most_a_day": most,
            "scored": progress.scored,
            "waiting": progress.waiting,
            "without_text": progress.unjudged,
            "last_at": progress.last_at,
            "next_at": progress.next_at,
            "problem": progress.problem,
        }

    def _pass(self, workload: str, *, now: datetime) -> None:
        work, progress, size = self._work(workload), self._progress(workload), self._log_bytes()
        if work is None:
            store = self._store(workload)
            with store.alone():
                store.retain(pl.lit(value=False))
            return
        progress = replace(progress, seen_bytes=size).reserved(0, now)
        pace = min(PACE, work.plan.rollout.label_delay / 4)
        try:
            due, texts = self._take_in(work, now=now)
            progress, failure, told = self._ask(work, due, texts, progress, now=now)
        except (AnvenError, OSError, pl.exceptions.PolarsError) as error:
            failure, told = str(error), None
        self._keep(workload, progress.ended(failure=failure, told=told, pace=pace, now=now))

    def _take_in(self, work: _Work, *, now: datetime) -> tuple[Due, pl.DataFrame]:
        """Take in the texts that are new, remove those that are needed no more, and return what is due with the rest.

        Texts come first: the event of one that is there has been written before it.
        """
        workload, log = work.plan.workload, Path(self.rollouts.metrics.events) / FOLDER
        of_requests = (pl.col("workload") == workload) & (pl.col("kind") == "request") & pl.col("problem").is_null()
        store = self._store(workload)
        with store.alone():
            if log.is_dir():
                store.ingest(log, wanted=of_requests)
            events = self.rollouts.metrics.events_of(workload, attempt=work.status.attempt)
            due = due_of(events, work.plan, work.judge, now=now)
            is_unknown = ~pl.col("request_id").is_in(due.known.implode()) & (pl.col("ts") > now - UNKNOWN_KEPT)
            return due, store.retain(pl.col("request_id").is_in(due.needed.implode()) | is_unknown)

    def _ask(
        self, work: _Work, due: Due, texts: pl.DataFrame, progress: JudgeProgress, *, now: datetime
    ) -> tuple[JudgeProgress, str | None, str | None]:
        """Judge what waits; return the progress, what ended the pass before its time, and what else is to be told."""
        held = with_texts(due, texts)
        there = held.filter(pl.col("answer").is_not_null(), pl.col("messages").is_not_null())
        ready = there.filter(pl.Series([progress.may_ask(name, now) for name in there["request_id"]], dtype=pl.Boolean))
        ready = ready.with_columns(pl.Series("tried", [progress.tried(name) for name in ready["request_id"]], pl.Int64))
        left = progress.left_today(work.judge.judgements_per_day, now)
        # What failed before comes last, or some that always fail would end each pass before the others are judged. Then
        # the earliest due come first; within a pass no order of time could tell who answered sooner.
        first = ready.sort("tried", maintain_order=True).head(min(left, MOST_IN_PASS))
        chosen = first.sort("tried", pl.col("request_id").hash(seed=1))
        items = [asked_of(*row) for row in chosen.select("request_id", "messages", "answer").iter_rows()]
        done = self._round(work, items, progress, now=now)
        waiting = held.height - len(done.scored)
        # A score that the log will not hold, as it was told under a key that somebody had used, must not be paid for in
        # each pass: it waits as what failed does, and is forgotten once it is there.
        progress = progress.reserved(done.begun, now).failed_answers(
            [*done.failed, *done.scored], waiting=due.waiting["request_id"].to_list(), now=now
        )
        without = held.height - there.height
        progress = replace(progress, scored=len(done.scored), waiting=waiting, unjudged=without)
        held_back = there.height - ready.height
        told = _told(done, work, ready=ready.height, left=left, without=without, held_back=held_back)
        if held_back and not done.begun and progress.problem:
            told = progress.problem  # it still stands
        return progress, done.failure, told

    def _round(self, work: _Work, items: list[Asked], progress: JudgeProgress, *, now: datetime) -> Round:
        """Ask the judge, with all of it counted before: who is killed has spent what he may have begun."""
        asked = Round(work.judge, judge_outcome(work.judge), self.url)
        if items:
            self._keep(work.plan.workload, progress.reserved(len(items), now))
            asyncio.run(asked.ask(self.judge, items))
        return asked

    def _work(self, workload: str) -> _Work | None:
        """Return what is judged of a workload; None where no rollout with a judge is open.

        The plan of the attempt says who judges and by what; how he is asked is as the file says now.
        """
        status = self.rollouts.status(workload)
        if not status.is_open:
            return None
        try:
            plan = self.rollouts.plan(workload, status)
        except UnknownWorkload:
            return None
        judge = plan.rollout.judge
        if judge is None:
            return None
        try:
            declared = self.rollouts.migrations.of(workload).migration.rollout.judge
        except UnknownWorkload:
            declared = None
        is_same = declared is not None and judge_outcome(declared) == judge_outcome(judge)
        return _Work(status, plan, declared if declared is not None and is_same else judge)

    def _log_bytes(self) -> int:
        return sum(path.stat().st_size for path in segments_in(Path(self.rollouts.metrics.events) / FOLDER))

    def _store(self, workload: str) -> EventStore:
        return EventStore(self._folder(workload) / "texts", TEXTS)

    def _progress(self, workload: str) -> JudgeProgress:
        return JudgeProgress.from_bytes(self._files(workload).read(_PROGRESS))

    def _keep(self, workload: str, progress: JudgeProgress) -> None:
        self._files(workload).write(_PROGRESS, progress.to_bytes())

    def _files(self, workload: str) -> DurableFolder:
        return DurableFolder(str(self._folder(workload)), {})

    def _folder(self, workload: str) -> Path:
        return Path(self.folder) / workload


def _told(done: Round, work: _Work, *, ready: int, left: int, without: int, held_back: int) -> str | None:
    """Say what keeps answers from being judged although nothing ended the pass; None where nothing does."""
    told = []
    if done.failed:
        told.append(f"{len(done.failed):,} answers could not be judged, and are tried again: {done.reason}")
    if held_back:
        told.append(
            f"{held_back:,} answers could not be judged before, or their score has not come; they are tried again later"
        )
    if ready > left:
        told.append(
            f"the {work.judge.judgements_per_day:,} judgements of the day (UTC) are used up, "
            f"{ready - left:,} answers wait: raise rollout.judge.judgements_per_day, or judge fewer units (judged)"
        )
    if without:
        told.append(
            f"{without:,} answers have no text: it could not be redacted, or the gateway's log of texts lost it before "
            "a pass read it"
        )
    return "; ".join(told) or None
