"""A batch keeps what it bought, whatever ends it, and stays small whatever its size."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.completion import Answer, Failure
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.resources.answer_batch import PART_ROWS, AnswerBatch, Asked, Progress
from tests.fakes.folder_checkpoint import FolderCheckpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from anven_pipelines.domain.completion import Kind, Outcome

ANSWER = Answer("fine", None, "stop", "m", 2, 1, None, 1.0, 2.0)


class Interrupted(BaseException):
    """What a framework's signal handler raises."""


@dataclass
class Model:
    """Answers at once, but for what `outcomes` says, and counts."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    most_tasks: int = 0
    takes_s: float = 0.0
    after: Callable[[int], None] = lambda _: None

    async def ask(self, request: CompletionRequest) -> Asked:
        await asyncio.sleep(self.takes_s)
        self.asked.append(request.item_id)
        self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
        self.after(len(self.asked))
        return Asked(self.outcomes.get(request.item_id, ANSWER), 1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> FolderCheckpoint:
    return FolderCheckpoint(tmp_path / "parts")


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def framework_signal(request: pytest.FixtureRequest) -> Iterator[int]:
    """Install a handler that raises, as Dagster does, and yield its signal."""
    number: int = request.param

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    previous = signal.signal(number, interrupt)
    yield number
    signal.signal(number, previous)


def batch_of(
    model: Model,
    requests: Sequence[CompletionRequest],
    checkpoint: Any,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    concurrency: int = 4,
    clock: Callable[[], float] = time.perf_counter,
    drain_s: float = 0.0,
) -> AnswerBatch:
    return AnswerBatch(
        requests=requests,
        ask=model.ask,
        concurrency=concurrency,
        endpoint="the endpoint",
        checkpoint=checkpoint,
        report=report,
        clock=clock,
        drain_s=drain_s,
    )


def numbered(count: int) -> list[CompletionRequest]:
    return [CompletionRequest(str(number), [], {}) for number in range(count)]


def test_a_large_batch_needs_no_more_tasks_than_workers(checkpoint: FolderCheckpoint) -> None:
    model = Model()
    answers = batch_of(model, numbered(20_000), checkpoint, concurrency=8).run()
    assert answers.height == 20_000
    assert len(model.asked) == 20_000
    assert model.most_tasks <= 8 + 3  # workers, keeper and the batch itself


def test_answers_are_kept_in_parts_while_the_batch_runs(checkpoint: FolderCheckpoint) -> None:
    durable: list[int] = []
    model = Model(after=lambda _: durable.append(sum(checkpoint.parts)), takes_s=0.005)
    batch_of(model, numbered(200), checkpoint).run()
    assert sum(checkpoint.parts) == 200
    assert max(asked - kept for asked, kept in enumerate(durable)) < 200
    assert len(checkpoint.parts) >= 3
    assert min(checkpoint.parts[:-1]) >= PART_ROWS


@pytest.mark.parametrize("concurrency", [4, 40])
def test_however_slow_the_store_no_more_than_a_part_waits_for_it(tmp_path: Path, concurrency: int) -> None:
    @dataclass
    class Slow(FolderCheckpoint):
        def append(self, frame: pl.DataFrame) -> None:
            time.sleep(0.05)
            super().append(frame)

    slow = Slow(tmp_path / "parts")
    unkept: list[int] = []
    model = Model(after=lambda asked: unkept.append(asked - sum(slow.parts)))
    batch_of(model, numbered(400), slow, concurrency=concurrency).run()
    assert sum(slow.parts) == 400
    assert max(unkept) <= concurrency + max(PART_ROWS, concurrency)


def test_a_slow_answer_does_not_keep_others_from_becoming_durable(checkpoint: FolderCheckpoint) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @dataclass
    class Announced(FolderCheckpoint):
        kept: asyncio.Event = field(default_factory=asyncio.Event)

        def append(self, frame: pl.DataFrame) -> None:
            super().append(frame)
            if not loops[0].is_closed():
                loops[0].call_soon_threadsafe(self.kept.set)

    announced = Announced(checkpoint.folder)

    async def ask(request: CompletionRequest) -> Asked:
        loops.append(asyncio.get_running_loop())
        if request.item_id == "0":
            await asyncio.wait_for(announced.kept.wait(), timeout=20)  # the slow one ends once the others are durable
        return Asked(ANSWER, 1)

    batch = batch_of(Model(), numbered(4), announced)
    batch.ask = ask
    batch.run()
    assert announced.parts == [3, 1]


def test_progress_is_reported_once_a_second_and_at_the_end(checkpoint: FolderCheckpoint) -> None:
    now = [100.0]
    reports: list[Progress] = []

    async def ask(_: CompletionRequest) -> Asked:
        now[0] += 0.125
        await asyncio.sleep(0)
        return Asked(ANSWER, 1)

    batch = batch_of(Model(), numbered(400), checkpoint, report=reports.append, concurrency=1, clock=lambda: now[0])
    batch.ask = ask
    batch.run()
    gaps = [later.elapsed_s - earlier.elapsed_s for earlier, later in pairwise(reports[:-1])]
    assert min(gaps, default=1.0) >= 1.0
    assert reports[-1] == (400, 400, 0, 1200, 50.0, 0)


def test_the_end_is_reported_once_though_a_report_is_due_with_the_last_answer(checkpoint: FolderCheckpoint) -> None:
    now = [100.0]
    reports: list[Progress] = []

    async def ask(_: CompletionRequest) -> Asked:
        now[0] += 2.0
        return Asked(ANSWER, 1)

    requests = numbered(PART_ROWS)  # the last answer fills a part
    batch = batch_of(Model(), requests, checkpoint, report=reports.append, concurrency=1, clock=lambda: now[0])
    batch.ask = ask
    batch.run()
    assert [each.done for each in reports].count(PART_ROWS) == 1


def test_the_time_to_load_and_to_free_the_model_is_no_time_of_the_batch(checkpoint: FolderCheckpoint) -> None:
    now = [100.0]
    reports: list[Progress] = []

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        now[0] += 60.0
        yield
        now[0] += 5.0

    async def ask(_: CompletionRequest) -> Asked:
        now[0] += 0.5
        return Asked(ANSWER, 1)

    batch = batch_of(Model(), numbered(10), checkpoint, report=reports.append, concurrency=1, clock=lambda: now[0])
    batch.ask, batch.connected = ask, connected
    batch.run()
    assert reports[-1].elapsed_s == 5.0


class TestInterrupt:
    @pytest.mark.parametrize("at", [1, 20, 99])
    def test_what_is_done_is_kept_and_the_signal_reaches_its_handler(
        self, checkpoint: FolderCheckpoint, framework_signal: int, at: int
    ) -> None:
        def interrupt(asked: int) -> None:
            if asked == at:
                signal.raise_signal(framework_signal)

        model = Model(after=interrupt, takes_s=0.005)
        handler = signal.getsignal(framework_signal)
        with pytest.raises(Interrupted):
            batch_of(model, numbered(100), checkpoint).run()
        done = checkpoint.load()["item_id"].to_list()
        assert at <= len(model.asked) <= at + 4
        assert len(model.asked) - 4 <= len(done) <= len(model.asked)
        assert signal.getsignal(framework_signal) is handler
        again = Model()
        assert batch_of(again, numbered(100), checkpoint).run().height == 100
        assert sorted([*again.asked, *done], key=int) == [request.item_id for request in numbered(100)]

    def test_a_keyboard_interrupt_is_one(self, checkpoint: FolderCheckpoint) -> None:
        interrupt = lambda asked: signal.raise_signal(signal.SIGINT) if asked == 30 else None  # noqa: E731
        model = Model(after=interrupt, takes_s=0.005)
        with pytest.raises(KeyboardInterrupt):
            batch_of(model, numbered(100), checkpoint).run()
        assert 26 <= checkpoint.load().height <= 34

    def test_what_is_in_flight_is_waited_for_and_nothing_starts(self, checkpoint: FolderCheckpoint) -> None:
        interrupt = lambda asked: signal.raise_signal(signal.SIGINT) if asked == 10 else None  # noqa: E731
        model = Model(after=interrupt, takes_s=0.05)
        with pytest.raises(KeyboardInterrupt):
            batch_of(model, numbered(100), checkpoint, drain_s=60.0).run()
        done = checkpoint.load()["item_id"].to_list()
        assert sorted(done) == sorted(model.asked)
        assert 10 <= len(done) <= 14

    @pytest.mark.parametrize(("signals", "drain_s"), [(1, 0.05), (2, 60.0)], ids=["in time", "second signal"])
    def test_what_takes_too_long_is_given_up(self, checkpoint: FolderCheckpoint, signals: int, drain_s: float) -> None:
        async def ask(request: CompletionRequest) -> Asked:
            if request.item_id == "9":
                for _ in range(signals):
                    signal.raise_signal(signal.SIGINT)
            if int(request.item_id) > 5:
                await asyncio.sleep(100)
            return Asked(ANSWER, 1)

        batch = batch_of(Model(), numbered(100), checkpoint, concurrency=8, drain_s=drain_s)
        batch.ask = ask
        with pytest.raises(KeyboardInterrupt):
            batch.run()
        assert sorted(checkpoint.load()["item_id"]) == [str(number) for number in range(6)]

    def test_an_ignored_signal_stays_ignored(self, checkpoint: FolderCheckpoint) -> None:
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            model = Model(after=lambda asked: signal.raise_signal(signal.SIGTERM) if asked == 3 else None)
            assert batch_of(model, numbered(10), checkpoint).run().height == 10
        finally:
            signal.signal(signal.SIGTERM, previous)


class TestHopelessEndpoint:
    @pytest.mark.parametrize(
        ("kind", "error", "asked"),
        [
            ("refused", InvalidInput, 3),
            ("unreachable", UnavailableService, 3),
            ("timeout", UnavailableService, 20),
            ("busy", UnavailableService, 20),
            ("server_error", UnavailableService, 20),
            ("broken_answer", UnavailableService, 20),
        ],
    )
    def test_it_is_given_up_after_failures_in_a_row(
        self, checkpoint: FolderCheckpoint, kind: Kind, error: type[Exception], asked: int
    ) -> None:
        outcomes: dict[str, Outcome] = {str(number): Failure(kind, "x") for number in range(50, 100)}
        model = Model(outcomes)
        with pytest.raises(error, match="the endpoint"):
            batch_of(model, numbered(100), checkpoint, concurrency=1).run()
        assert len(model.asked) == 50 + asked
        assert checkpoint.load().filter(pl.col("status") == "answered").height == 50

    @pytest.mark.parametrize("kind", ["refused", "timeout", "busy", "server_error", "broken_answer"])
    def test_items_that_always_fail_do_not_stop_a_later_run(self, checkpoint: FolderCheckpoint, kind: Kind) -> None:
        outcomes: dict[str, Outcome] = {str(number): Failure(kind, "x") for number in range(0, 100, 2)}
        for run in (1, 2):
            answers = batch_of(Model(outcomes), numbered(100), checkpoint, concurrency=1).run()
            failed = answers.filter(pl.col("status") == "failed")
            assert failed.height == 50
            assert failed["attempts"].unique().to_list() == [run]

    def test_bad_requests_say_nothing_about_an_endpoint_that_has_answered(self, checkpoint: FolderCheckpoint) -> None:
        outcomes: dict[str, Outcome] = {str(number): Failure("bad_request", "x", 400) for number in range(1, 100)}
        answers = batch_of(Model(outcomes), numbered(100), checkpoint, concurrency=1).run()
        assert answers["status"].to_list() == ["answered"] + ["failed"] * 99

    def test_what_the_endpoint_is_blamed_for_is_no_failure_of_the_items(self, checkpoint: FolderCheckpoint) -> None:
        refusing = Model({str(number): Failure("bad_request", "no such model", 400) for number in range(100)})
        with pytest.raises(InvalidInput, match="no such model"):
            batch_of(refusing, numbered(100), checkpoint).run()
        assert len(refusing.asked) <= 20 + 4
        assert checkpoint.load().is_empty()


def test_a_round_that_is_too_long_throughout_is_its_requests_own_doing(checkpoint: FolderCheckpoint) -> None:
    batch_of(Model(), [CompletionRequest("earlier", [], {})], checkpoint).run()
    refusing = Model({str(number): Failure("bad_request", "too long", 400) for number in range(100)})
    answers = batch_of(refusing, [CompletionRequest(str(number), [], {}) for number in range(100)], checkpoint).run()
    assert answers["status"].unique().to_list() == ["failed"]
    assert len(refusing.asked) == 100


def test_a_checkpoint_that_cannot_keep_ends_the_batch(checkpoint: FolderCheckpoint) -> None:
    @dataclass
    class FullDisk(FolderCheckpoint):
        def append(self, frame: pl.DataFrame) -> None:
            message = f"no space left on device for {frame.height} rows"
            raise OSError(message)

    model = Model(takes_s=0.005)
    batch = batch_of(model, numbered(2_000), FullDisk(checkpoint.folder))
    with pytest.raises(OSError, match="no space left"):
        batch.run()
    assert len(model.asked) < 1_000


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress(0, 90, 0, 0, 0.0), "0 of 90 answered, 0 failed"),
        (Progress(40, 90, 0, 0, 1.0, earlier=40), "40 of 90 answered, 0 failed"),
        (
            Progress(50, 90, 2, 600, 5.0, earlier=40),
            "48 of 90 answered, 2 failed, 2.0 requests/s, 120 tokens/s, about 20 s left",
        ),
        (
            Progress(10, 4_000, 0, 0, 5.0),
            "10 of 4,000 answered, 0 failed, 2.0 requests/s, 0 tokens/s, about 33 min left",
        ),
        (
            Progress(1, 40_000, 0, 0, 1.0),
            "1 of 40,000 answered, 0 failed, 1.0 requests/s, 0 tokens/s, about 11.1 h left",
        ),
        (Progress(90, 90, 1, 900, 9.0), "89 of 90 answered, 1 failed, 10.0 requests/s, 100 tokens/s"),
    ],
)
def test_progress_says_how_far_how_fast_and_how_long(progress: Progress, said: str) -> None:
    assert str(progress) == said


def test_what_an_earlier_run_answered_is_no_speed_of_this_one(checkpoint: FolderCheckpoint) -> None:
    batch_of(Model(), numbered(20), checkpoint).run()
    reports: list[Progress] = []
    batch_of(Model(), numbered(50), checkpoint, report=reports.append).run()
    assert (reports[-1].done, reports[-1].earlier) == (50, 20)
