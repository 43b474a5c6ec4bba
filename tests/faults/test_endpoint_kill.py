"""A batch that is killed, or told to stop, loses no durable answer and asks almost nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import polars as pl
import pytest

from anven_pipelines.resources.answer_batch import PART_ROWS
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.scripted_endpoint import asks_in, endpoint_process

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator
    from pathlib import Path

ITEMS: Final = 120
CONCURRENCY: Final = 4
DEADLINE_S: Final = 90.0  # LiteLLM alone takes 2 s to import, and ten times that on a busy machine

pytestmark = pytest.mark.timeout(4 * DEADLINE_S)

PROGRAM: Final = f"""
import sys
from pathlib import Path
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.folder_checkpoint import FolderCheckpoint

url, checkpoint, result = sys.argv[1:]
items = [f"item {{number}}" for number in range({ITEMS})]
answers = LlmClient().answer(
    EndpointTarget(engine="endpoint", model="m", url=url, concurrency={CONCURRENCY}),
    [CompletionRequest(item, [dict(role="user", content=item)], {{}}) for item in items],
    checkpoint=FolderCheckpoint(Path(checkpoint)),
    progress=lambda _: None,
)
answers.write_parquet(result)
"""


class Batch:
    """The batch as a process of its own, on a checkpoint and an endpoint that outlive it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.log = folder / "asks.jsonl"
        self.checkpoint = FolderCheckpoint(folder / "checkpoint")
        self.result = folder / "answers.parquet"
        self._command = [sys.executable, "-c", PROGRAM, url, str(self.checkpoint.folder), str(self.result)]

    @property
    def asked(self) -> Counter[str]:
        return asks_in(self.log)

    def wait_for_parts(self, count: int) -> None:
        wait_until(lambda: len(list(self.checkpoint.folder.glob("*.parquet"))) >= count, f"part {count}")

    def durable(self) -> set[str]:
        return set(self.checkpoint.load()["item_id"])

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def finish(self) -> pl.DataFrame:
        subprocess.run(self._command, check=True, timeout=DEADLINE_S)
        return pl.read_parquet(self.result)


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    with endpoint_process("--log", str(tmp_path / "asks.jsonl"), "--delay", "0.05") as url:
        yield Batch(tmp_path, url)


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.005)


def assert_whole(answers: pl.DataFrame) -> None:
    items = [f"item {number}" for number in range(ITEMS)]
    assert answers["item_id"].to_list() == items
    assert answers["status"].unique().to_list() == ["answered"]
    assert answers["output"].to_list() == [f"echo: {item}" for item in items]


def test_after_kill_9_every_item_is_answered_once_and_nothing_durable_is_asked_again(batch: Batch) -> None:
    with batch.running() as process:
        batch.wait_for_parts(3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before, durable = batch.asked, batch.durable()
    assert PART_ROWS <= len(durable) < ITEMS
    assert len(before) < ITEMS

    assert_whole(batch.finish())

    again = batch.asked - before
    assert not durable & set(again)
    twice = {item for item, count in batch.asked.items() if count > 1}
    assert len(twice) <= CONCURRENCY + PART_ROWS
    assert max(batch.asked.values()) == 2 or not twice


def test_a_batch_killed_again_and_again_still_ends_with_every_item_once(batch: Batch) -> None:
    for parts in (1, 2):
        with batch.running() as process:
            batch.wait_for_parts(parts)
            process.kill()
    assert_whole(batch.finish())
    assert sum(batch.asked.values()) <= ITEMS + 2 * (CONCURRENCY + PART_ROWS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_batch_that_is_told_to_stop_keeps_everything_that_is_done(batch: Batch, number: signal.Signals) -> None:
    with batch.running() as process:
        wait_until(lambda: sum(batch.asked.values()) >= 30, "the 30th request")
        process.send_signal(number)
        _, complaint = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -number
    assert complaint == "" or "KeyboardInterrupt" in complaint
    before, durable = batch.asked, batch.durable()
    assert sum(before.values()) - CONCURRENCY <= len(durable) < ITEMS  # all but what was in flight

    assert_whole(batch.finish())
    twice = {item for item, count in batch.asked.items() if count > 1}
    assert len(twice) <= CONCURRENCY
    assert not durable & twice
