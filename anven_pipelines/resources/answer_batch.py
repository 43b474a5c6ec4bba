"""A batch of questions to one endpoint: every answer durable once, nothing asked twice without need.

Workers take requests from one iterator, so memory does not grow with the batch. What they bring back goes to the
checkpoint in small parts. An interrupt keeps what is done; a dead or refusing endpoint stops the batch with one
error instead of failing every item.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import polars as pl

from anven_pipelines.domain.inference import ANSWERS, merge_answers, settled
from anven_pipelines.domain.outage import Outage
from anven_pipelines.resources.interrupts import interrupts_deferred

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from anven_pipelines.domain.completion import Outcome
    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.outage import Blame
    from anven_pipelines.resources.interrupts import Interrupts

PART_ROWS: Final = 16
PART_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 1.0


class Progress(NamedTuple):
    """How far a batch is.

    Attributes:
        done: Items with an answer or a failure, those of earlier runs included.
        total: Items of the batch.
        failed: Of `done`, those without an answer.
        tokens: Prompt and answer tokens that the server counted in this run.
        elapsed_s: Seconds since the first request of this run, at the end those to the last durable answer; loading
            and freeing a model is not part of it.
        earlier: Of `done`, those of earlier runs.
    """

    done: int
    total: int
    failed: int
    tokens: int
    elapsed_s: float
    earlier: int = 0

    def __str__(self) -> str:
        """Say how far it is, how fast, and about how long it will take."""
        done = self.done - self.earlier
        said = f"{self.done - self.failed:,} of {self.total:,} answered, {self.failed:,} failed"
        if done <= 0 or self.elapsed_s <= 0:
            return said
        rate = done / self.elapsed_s
        left = f", about {_span((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{said}, {rate:,.1f} requests/s, {self.tokens / self.elapsed_s:,.0f} tokens/s{left}"


class Checkpoint(Protocol):
    """Keeps ANSWERS rows through a killed process."""

    def load(self) -> pl.DataFrame:
        """Return every row that is durable."""

    def append(self, frame: pl.DataFrame, /) -> None:
        """Keep the rows; when this returns, they are durable, all or none of them."""


class Journal(Protocol):
    """Says what is being asked, so that whoever comes after a killed process knows it."""

    def turns(self, pending: Sequence[CompletionRequest], /) -> Iterable[Sequence[CompletionRequest]]:
        """Cut what is open into turns; the next one is taken when nothing of the last is in flight."""

    async def asking(self, request: CompletionRequest, /) -> None:
        """Return when it is durable that the request of this turn may be in flight."""

    def asked(self, request: CompletionRequest, /) -> None:
        """Take in that the request is not in flight any more."""

    async def drain(self) -> None:
        """Take in that the process is to end: if it dies from now on, nothing that it asks is the reason."""

    def end(self) -> None:
        """Take in that nothing is in flight, and nothing will be; a second time does nothing."""


class NoJournal:
    """For what asks servers: no request of theirs kills this process."""

    def turns(self, pending: Sequence[CompletionRequest], /) -> list[Sequence[CompletionRequest]]:
        """Ask all at once."""
        return [pending]

    async def asking(self, request: CompletionRequest, /) -> None:
        """Ask at once."""

    def asked(self, request: CompletionRequest, /) -> None:
        """Forget it."""

    async def drain(self) -> None:
        """Go on."""

    def end(self) -> None:
        """Leave nothing behind."""


class Asked(NamedTuple):
    """How an item came out, after that many attempts."""

    outcome: Outcome
    attempts: int


@dataclass
class AnswerBatch:
    """One run over the requests that have no settled row yet.

    Attributes:
        requests: The whole batch, in order.
        ask: Asks one request to the end of its attempts; never raises for what is wrong with one item.
        concurrency: Requests in flight at once.
        endpoint: The endpoint in words, for the error that stops the batch.
        checkpoint: Keeps the answers.
        report: Is told how far the batch is, at most once a second and at the end.
        connected: Entered before the first ask, left after the last.
        clock: Seconds; only differences count.
        drain_s: Seconds that requests in flight get after an interrupt; no new one starts.
        journal: Is told what is in flight, and says what is asked beside what.
    """

    requests: Sequence[CompletionRequest]
    ask: Callable[[CompletionRequest], Awaitable[Asked]]
    concurrency: int
    endpoint: str
    checkpoint: Checkpoint
    report: Callable[[Progress], None]
    connected: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    clock: Callable[[], float] = time.perf_counter
    drain_s: float = 0.0
    journal: Journal = field(default_factory=NoJournal)
    _earlier: dict[str, int] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _suspects: list[dict[str, Any]] = field(default_factory=list)
    _part_is_full: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: asyncio.Condition = field(default_factory=asyncio.Condition)
    _being_kept: int = 0
    _all_asked: bool = False
    _done: int = 0
    _before: int = 0
    _failed: int = 0
    _has_answered: bool = False
    _tokens: int = 0
    _started: float = 0.0
    _ended: float | None = None
    _reported: float = 0.0

    def run(self) -> pl.DataFrame:
        """Ask what is open and return ANSWERS, one row per request in their order.

        Raises:
            InvalidInput: the endpoint refuses what it is asked (key, model, URL or params are wrong).
            UnavailableService: the endpoint does not answer.
        """
        pending = self._open_requests()
        self._started = self.clock()
        with interrupts_deferred() as interrupts:
            try:
                if pending:
                    asyncio.run(self._ask_all(pending, interrupts))
                self._rows += self._suspects
            finally:
                try:
                    if self._rows:
                        self.checkpoint.append(_frame(self._rows))
                finally:
                    self.journal.end()
        self._tell(now=self.clock() if self._ended is None else self._ended)
        return merge_answers([request.item_id for request in self.requests], self.checkpoint.load())

    def is_open(self) -> bool:
        """Whether anything is to be asked."""
        return bool(self._open_requests())

    def _open_requests(self) -> list[CompletionRequest]:
        """Leave out what is settled; remember how often the rest was asked."""
        asked = pl.Series("item_id", [request.item_id for request in self.requests], dtype=pl.String)
        everything = self.checkpoint.load()
        # The answers to other requests, too: a search asks round after round, and one round may be too long throughout.
        self._has_answered = (everything["status"] == "answered").any()
        kept = everything.filter(pl.col("item_id").is_in(asked.implode()))
        ended = settled(kept)
        answered = ended.filter(pl.col("status") == "answered")["item_id"]
        closed = frozenset(ended["item_id"])
        self._done, self._failed = len(closed), len(closed) - answered.n_unique()
        self._before = self._done
        self._earlier = dict(kept.group_by("item_id").agg(pl.col("attempts").max()).iter_rows())
        return [request for request in self.requests if request.item_id not in closed]

    async def _ask_all(self, pending: Sequence[CompletionRequest], interrupts: Interrupts) -> None:
        interrupts.cancel(asyncio.current_task(), after_s=self.drain_s, first=self.journal.drain)
        outage = Outage(self.endpoint, len(pending), self.concurrency, has_answered=self._has_answered)
        try:
            async with self.connected():
                self._started = self.clock()  # a model may take minutes to load, which is no speed of its answers
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._keep_parts())
                        for turn in self.journal.turns(pending):
                            await self._ask_turn(turn, group, outage, interrupts)
                            await self._keep_part()  # if the next turn kills this process, these are cleared
                        self._all_asked = True
                        self._part_is_full.set()
                finally:
                    self.journal.end()  # before the engine is freed, of which nothing that was asked is the reason
                self._ended = self.clock()  # and seconds to free it
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first ended the batch; others can only say the same

    async def _ask_turn(
        self, turn: Sequence[CompletionRequest], group: asyncio.TaskGroup, outage: Outage, interrupts: Interrupts
    ) -> None:
        # Shared: each request goes to the worker that asks for it. The cancellation takes a few turns of the loop to
        # reach the workers; what comes in meanwhile must not start another request.
        queue = takewhile(lambda _: not interrupts.received, turn)
        workers = range(min(self.concurrency, len(turn)))
        await asyncio.wait([group.create_task(self._work(queue, outage)) for _ in workers])

    async def _work(self, queue: Iterator[CompletionRequest], outage: Outage) -> None:
        while (request := await self._next(queue)) is not None:
            await self.journal.asking(request)
            asked = await self.ask(request)
            self.journal.asked(request)
            earlier = self._earlier.get(request.item_id)
            row = asked.outcome.row(request.item_id, attempts=asked.attempts + (earlier or 0))
            self._take(row, outage.blame(asked.outcome, is_new=earlier is None))
            if error := outage.error(kept=self._done - self._failed):
                self._suspects.clear()  # the one error speaks for them; a later run asks them as new
                raise error

    async def _next(self, queue: Iterator[CompletionRequest]) -> CompletionRequest | None:
        """Return the next request once less than a part of answers waits for the disk, or than are in flight if more.

        While a part is being written the next one fills; without this a slow store would let a kill lose any number. A
        part alone, where hundreds are in flight, would make the engine wait for each write.
        """
        most = max(PART_ROWS, self.concurrency)
        async with self._kept:
            await self._kept.wait_for(lambda: len(self._rows) + self._being_kept < most)
        return next(queue, None)

    def _take(self, row: dict[str, Any], blame: Blame) -> None:
        """Count a row and queue it for the checkpoint; hold back what may turn out to be the endpoint's failure."""
        self._done += 1
        self._failed += row["status"] != "answered"
        self._tokens += (row.get("input_tokens") or 0) + (row.get("output_tokens") or 0)
        if blame == "endpoint":
            self._suspects.append(row)
            return
        if blame == "item":
            self._rows += self._suspects
            self._suspects.clear()
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self._part_is_full.set()

    async def _keep_parts(self) -> None:
        """Append to the checkpoint, and report, whenever a part is full or a second has passed."""
        while not self._all_asked:
            with suppress(TimeoutError):  # not wait_for: in Python 3.11 it can swallow the cancellation
                async with asyncio.timeout(PART_SECONDS):  # real time, whatever the clock is
                    await self._part_is_full.wait()
            self._part_is_full.clear()
            await self._keep_part()
            is_due = (now := self.clock()) - self._reported >= PROGRESS_SECONDS
            if is_due and self._done < len(self.requests):  # the end is told once, by `run`
                self._tell(now=now)

    async def _keep_part(self) -> None:
        """Append what has come in, in a thread: a slow store must not delay a first token."""
        part, self._rows = self._rows, []
        if not part:
            return
        self._being_kept += len(part)
        keeping = asyncio.ensure_future(asyncio.to_thread(self.checkpoint.append, _frame(part)))
        try:
            await asyncio.wait([keeping])
        except asyncio.CancelledError:
            await asyncio.wait([keeping])  # what is under way is not kept a second time
            raise
        finally:
            self._being_kept -= len(part)
            if keeping.done() and keeping.exception():
                self._rows = part + self._rows
        keeping.result()
        async with self._kept:
            self._kept.notify_all()

    def _tell(self, *, now: float) -> None:
        self._reported = now
        self.report(
            Progress(self._done, len(self.requests), self._failed, self._tokens, now - self._started, self._before)
        )


def _span(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if seconds < 120:  # noqa: PLR2004 - of minutes one would say little
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - as above


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ANSWERS.schema)
