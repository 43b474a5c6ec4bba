"""What is being asked is durable before it is asked, is written seldom, and is taken back in order."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.completion import Answer
from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.domain.suspects import ALONE_DEATHS
from anven_pipelines.resources.answer_batch import AnswerBatch, Asked
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.worker.asking import MOST_FILES, Asking, AskingJournal, SearchDeaths, deaths
from tests.fakes.folder_checkpoint import FolderCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWER = Answer("fine", None, "stop", "m", 2, 1, None, 1.0, 2.0)
ITEMS = [f"item-{at:03d}" for at in range(100)]


class Counting(DurableFolder):
    """Counts what is written, and refuses what a test likes."""

    refuses: tuple[str, ...] = ()
    writes = 0

    def write(self, uri: str, data: bytes) -> None:
        self.writes += 1
        if "write" in self.refuses:
            message = "no space left on device"
            raise UnavailableService(message)
        super().write(uri, data)

    def remove(self, uri: str) -> None:
        if "remove" in self.refuses:
            message = "access denied"
            raise UnavailableService(message)
        super().remove(uri)


@pytest.fixture(params=["local", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Counting:
    return Counting(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}", {})


def died(folder: DurableFolder, *items: str, search: bool = True, worker: str | None = None) -> str:
    """Leave behind what a dead worker asked; return its name."""
    name = worker or uuid.uuid4().hex
    said = Asking(at="2026-11-21T20:00:00.000+00:00", search=search, items=list(items))
    folder.write(f"asking/k/{name}.json", said.model_dump_json().encode())
    return name


def run(
    folder: DurableFolder,
    tmp_path: Path,
    *,
    items: list[str] = ITEMS,
    while_asked: Callable[[str], Any] = lambda _: None,
    while_proving: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, str], list[str]]:
    """Answer the items with a journal; return their reasons, where they failed, and what was said."""
    said: list[str] = []

    async def ask(request: CompletionRequest) -> Asked:
        await asyncio.sleep(0.001)
        while_asked(request.item_id)
        return Asked(ANSWER, attempts=1)

    async def prove_alive() -> None:
        while_proving()

    journal = AskingJournal(folder, "k", mine=items, block=8, say=said.append)
    batch = AnswerBatch(
        requests=[CompletionRequest(item, [{"role": "user", "content": item}], {}) for item in items],
        ask=journal.judging(ask, prove_alive=prove_alive),
        concurrency=8,
        endpoint="the engine",
        checkpoint=FolderCheckpoint(tmp_path / "parts"),
        report=lambda _: None,
        journal=journal,
    )
    answers = batch.run()
    assert answers["item_id"].to_list() == items
    return dict(answers.drop_nulls("reason").select("item_id", "reason").iter_rows()), said


def test_what_is_in_flight_stands_in_the_file_and_the_file_is_written_once_a_block(
    folder: Counting, tmp_path: Path
) -> None:
    most = 0

    def look(item: str) -> None:
        nonlocal most
        (death,) = deaths(folder, "k")
        assert item in death.asking
        most = max(most, len(death.asking))

    assert run(folder, tmp_path, while_asked=look) == ({}, [])
    assert folder.writes <= -(-len(ITEMS) // 8)
    assert 8 <= most <= 8 + 8 + 8 // 2  # in flight, and what the file runs ahead
    assert not deaths(folder, "k")


def test_a_suspect_stands_in_the_file_alone_or_with_its_group(folder: Counting, tmp_path: Path) -> None:
    died(folder, *ITEMS[:32], search=False)
    died(folder, *ITEMS[90:92])
    seen: dict[str, tuple[str, ...]] = {}

    def look(item: str) -> None:
        (mine,) = [death for death in deaths(folder, "k") if death.at > "2026-11-21T20:00:01"]
        seen[item] = mine.asking

    failed, said = run(folder, tmp_path, while_asked=look)
    assert failed == {}
    assert len(said) == 1
    assert said[0].startswith("workers before this one died 2 times; 34 requests that were in flight have no answer")
    assert [*seen][66:] == [*ITEMS[:32], *ITEMS[90:92]]
    assert [seen[item] for item in ITEMS[:32]] == [tuple(ITEMS[at // 2 * 2 : at // 2 * 2 + 2]) for at in range(32)]
    assert [seen[item] for item in ITEMS[90:92]] == [(ITEMS[90],), (ITEMS[91],)]
    assert not deaths(folder, "k")  # all of them are answered, so nothing that was said means anything


def accuse(folder: DurableFolder, item: str) -> str:
    """Leave the evidence that just blames an item; return one of its witnesses."""
    died(folder, item, ITEMS[0])
    return [died(folder, item) for _ in range(ALONE_DEATHS)][-1]


def test_an_accused_request_fails_with_its_reason_and_is_not_asked(folder: Counting, tmp_path: Path) -> None:
    accuse(folder, ITEMS[50])
    asked: list[str] = []
    failed, _ = run(folder, tmp_path, while_asked=asked.append)
    assert failed == {
        ITEMS[50]: "poison: the worker died 3 times with this request alone in flight, last after "
        "2026-11-21T20:00:00.000+00:00; a harmless one was answered"
    }
    assert sorted(asked) == [item for item in ITEMS if item != ITEMS[50]]
    assert not deaths(folder, "k")


def test_a_worker_that_was_cut_off_and_lives_takes_its_evidence_back(folder: Counting, tmp_path: Path) -> None:
    witness = accuse(folder, ITEMS[50])
    asked: list[str] = []
    failed, _ = run(
        folder, tmp_path, while_asked=asked.append, while_proving=lambda: died(folder, ITEMS[51], worker=witness)
    )
    assert failed == {}
    assert asked[0] == ITEMS[50]


def test_nobody_is_blamed_by_an_engine_that_dies_of_something_harmless(folder: Counting, tmp_path: Path) -> None:
    accuse(folder, ITEMS[50])

    def die() -> None:
        message = "the engine died"
        raise UnavailableService(message)

    with pytest.raises(UnavailableService, match="the engine died"):
        run(folder, tmp_path, while_proving=die)
    assert len(deaths(folder, "k")) == 1 + ALONE_DEATHS
    assert FolderCheckpoint(tmp_path / "parts").load().is_empty()


def test_the_files_of_other_shares_are_left_alone_and_old_ones_forgotten(folder: Counting, tmp_path: Path) -> None:
    others = died(folder, "item of another share", ITEMS[0])
    for _ in range(MOST_FILES + 10):
        died(folder, ITEMS[1])
    left: set[int] = set()
    run(folder, tmp_path, while_asked=lambda _: left.add(len(deaths(folder, "k"))))
    assert max(left) <= MOST_FILES + 2
    assert [death.worker for death in deaths(folder, "k")] == [others]


def test_a_store_that_takes_nothing_stops_the_batch_before_anything_is_asked(folder: Counting, tmp_path: Path) -> None:
    folder.refuses = ("write",)
    asked: list[str] = []
    with pytest.raises(UnavailableService, match="no space left"):
        run(folder, tmp_path, while_asked=asked.append)
    assert asked == []


def test_a_store_that_lets_nothing_be_removed_is_told_that_nothing_is_asked(folder: Counting, tmp_path: Path) -> None:
    died(folder, ITEMS[0], search=False)
    folder.refuses = ("remove",)
    assert run(folder, tmp_path)[0] == {}
    assert sorted(death.asking for death in deaths(folder, "k")) == [(), (ITEMS[0],)]


def test_a_request_that_fails_of_itself_leaves_nothing_behind(folder: Counting, tmp_path: Path) -> None:
    def fail(item: str) -> None:
        if item == ITEMS[20]:
            message = "no engine lives"
            raise UnavailableService(message)

    with pytest.raises(UnavailableService, match="no engine lives"):
        run(folder, tmp_path, while_asked=fail)
    assert not deaths(folder, "k")


def test_each_death_in_the_search_is_news_once(folder: Counting) -> None:
    died(folder, ITEMS[0])
    search = SearchDeaths(folder, "k")
    assert not search.any_more()
    died(folder, ITEMS[0], search=False)
    died(folder)
    assert not search.any_more()
    died(folder, ITEMS[1])
    assert search.any_more()
    assert not search.any_more()


def test_a_name_that_is_no_path_keeps_its_files_apart(folder: Counting) -> None:
    folder.write("asking/k/x.json", json.dumps({"at": "", "search": True, "items": ["a"]}).encode())
    assert [death.worker for death in deaths(folder, "k")] == ["x"]
    assert not deaths(folder, "../k")
