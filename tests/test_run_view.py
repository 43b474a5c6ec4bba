"""What of a run reaches the terminal, or a log file."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from io import BufferedWriter, RawIOBase, StringIO, TextIOWrapper
from typing import Any

import dagster as dg
import pytest
from rich.console import Console
from sqlalchemy.exc import OperationalError

from anven_pipelines.chain import (
    CHAIN_ASSETS,
    CHAIN_STEPS,
    LOAD_ASSETS,
    LOAD_STEPS,
    LOG_ASSETS,
    VERDICT_CHECK,
)
from anven_pipelines.definitions import MODULES
from anven_pipelines.run_view import QUIET_S, RunView
from anven_pipelines.run_watch import DONE, STARTED, RunWatch, Told

STEP = "target_answers"


class Shown:
    """A view over text, whose clock stands still until it is moved."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.now = 0.0
        self._text = StringIO()
        console = Console(file=self._text, force_terminal=is_terminal, width=200, color_system=None)
        self.view = RunView(console, "support", steps=3, clock=lambda: self.now)

    def tell(self, *texts: str, warning: bool = False) -> list[str]:
        """Tell a step's texts and return what was written so far."""
        for text in texts:
            self.view.tell(Told(STEP, text, warning))
        return self._text.getvalue().splitlines()


class Disk(RawIOBase):
    """A file on a disk that is full until there is room."""

    def __init__(self) -> None:
        self.has_room = False
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.has_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.content += bytes(data)
        return len(data)


@pytest.mark.parametrize(("is_buffered", "times"), [(False, 1), (True, 2)], ids=["unbuffered", "buffered"])
def test_a_line_that_is_tried_again_and_again_is_not_written_as_often(is_buffered: bool, times: int) -> None:
    """Rich keeps what it could not write for its next line, and so does Python's own buffer before a file."""
    disk = Disk()
    file: Any = BufferedWriter(disk) if is_buffered else disk
    view = RunView(
        Console(file=TextIOWrapper(file, line_buffering=True, write_through=True), width=200), "support", steps=1
    )
    for _ in range(5):
        with pytest.raises(OSError, match="No space left"):
            view.tell(Told(STEP, "loading the model m"))
    disk.has_room = True
    view.tell(Told(STEP, "loading the model m"))
    assert disk.content.decode().splitlines() == [f"{STEP}: loading the model m"] * times


def test_what_happens_once_is_written_and_what_is_counted_now_and_then() -> None:
    shown = Shown()
    shown.tell(STARTED, "job anven/anven-1 created", "loading the model m")
    for at in range(1, 100):
        shown.now = at * 1.0
        shown.tell(f"{at} of 100 answered, 0 failed, 1.0 requests/s")
    assert shown.tell(DONE) == [
        f"{STEP}: job anven/anven-1 created",
        f"{STEP}: loading the model m",
        *(f"{STEP}: {at} of 100 answered, 0 failed, 1.0 requests/s" for at in range(1, 100, int(QUIET_S))),
        f"{STEP}: done",
    ]


def test_the_next_steps_first_count_is_not_held_back() -> None:
    shown = Shown()
    shown.tell("1 of 100 answered", "2 of 100 answered", DONE)
    assert shown.tell("3 of 100 answered")[-1] == f"{STEP}: 3 of 100 answered"


def test_on_a_terminal_counts_are_drawn_and_what_happens_once_stays() -> None:
    shown = Shown(is_terminal=True)
    counts = ("1 of 2 answered", "1.00 GiB of 2.00 GiB fetched", "2,000 lines read, 0 rejected")
    assert shown.tell(STARTED, "60 requests in 1 of 2 shards", "loading the model m", *counts, DONE) == [
        f"{STEP}: 60 requests in 1 of 2 shards",
        f"{STEP}: loading the model m",
    ]


def test_each_rate_of_a_load_benchmark_is_written() -> None:
    shown = Shown()
    lines = [f"target at {rate}/s is within: 60 requests; 95.0% of 60 requests within the limits" for rate in (1, 2, 4)]
    lines.append("target at 8/s is unmeasured: 480 requests; 9 of 480 requests left more than 50 ms late")
    counts = ("target at 1/s: 5 of 60 s, 60 requests: 5 done", "target at 1/s: all of 60 requests: 60 done")
    assert shown.tell(*counts, *lines) == [
        f"{STEP}: {counts[0]}",
        *(f"{STEP}: {line}" for line in lines),
    ]


def test_warnings_are_written_at_once_but_for_the_verdicts() -> None:
    shown = Shown()
    assert shown.tell(f"check {VERDICT_CHECK} failed", "1 of 2 [red]", warning=True) == [
        f"warning {STEP}: 1 of 2 [red]"
    ]


@pytest.mark.parametrize(
    ("assets", "steps"),
    [((*LOG_ASSETS, "workload_inventory", *CHAIN_ASSETS), CHAIN_STEPS), ((*LOG_ASSETS, *LOAD_ASSETS), LOAD_STEPS)],
    ids=["migrate", "load"],
)
def test_the_bar_is_full_when_every_step_is_done(assets: tuple[str, ...], steps: int) -> None:
    loaded = [each for each in dg.load_assets_from_modules(MODULES) if isinstance(each, dg.AssetsDefinition)]
    of_asset = {key.to_user_string(): each.node_def.name for each in loaded for key in each.keys}
    assert len({of_asset[asset] for asset in assets}) == steps


def test_dagsters_own_words_on_a_worker_are_kept_from_the_terminal() -> None:
    @dg.asset
    def step(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster reads annotations
        context.log.warning("[pipes] did not receive closed message from external process.")
        context.log.debug("a detail")
        context.log.info("loading the model m")
        context.log.warning("the worker ended with status 3")

    told: list[Told] = []
    with dg.DagsterInstance.ephemeral() as instance, RunWatch(instance, told.append) as watch:
        dg.Definitions(assets=[step]).resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, run_id=watch.run_id
        )
    texts = [each.text for each in told if each.step == "step"]
    assert [each for each in texts if each not in {STARTED, DONE}] == [
        "loading the model m",
        "the worker ended with status 3",
    ]


def test_a_log_that_cannot_be_read_for_a_moment_is_read_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies says so in a stack trace, and nothing of the rest of the run."""

    @dg.asset
    def step(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster reads annotations
        is_read.wait(30)
        context.log.info("loading the model m")

    looks, is_read, told = [0], threading.Event(), list[Told]()
    with dg.DagsterInstance.ephemeral() as instance:
        read = instance.get_records_for_run

        failure = OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))

        def fails_once(*arguments: Any, **options: Any) -> Any:
            looks[0] += 1
            if looks[0] == 1:
                raise failure
            is_read.set()
            return read(*arguments, **options)

        monkeypatch.setattr(instance, "get_records_for_run", fails_once)
        with RunWatch(instance, told.append) as watch:
            dg.Definitions(assets=[step]).resolve_implicit_global_asset_job_def().execute_in_process(
                instance=instance, run_id=watch.run_id
            )
    assert [each.text for each in told if each.step == "step"] == [STARTED, "loading the model m", DONE]


def test_what_could_not_be_told_for_a_moment_is_told_once_at_the_next_look() -> None:
    """The log was read already: nobody would come back for the rest of what was read."""

    @dg.asset
    def step(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster reads annotations
        context.log.info("loading the model m")
        context.log.info("loaded")
        is_told.wait(30)
        context.log.info("1 of 1 answered")

    told, is_told, failures = list[Told](), threading.Event(), [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def tell(each: Told) -> None:
        if each.text == "loading the model m" and failures:
            raise failures.pop()
        told.append(each)
        if each.text == "loaded":
            is_told.set()  # by the watch, while the run goes on

    with dg.DagsterInstance.ephemeral() as instance, RunWatch(instance, tell) as watch:
        dg.Definitions(assets=[step]).resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, run_id=watch.run_id
        )
        assert is_told.is_set()
    assert [each.text for each in told if each.step == "step"] == [
        STARTED,
        "loading the model m",
        "loaded",
        "1 of 1 answered",
        DONE,
    ]
