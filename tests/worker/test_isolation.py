"""A request that kills the engine is found, and costs no other request its answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.worker.engine import (
    EngineAnswer,
    EngineChunk,
    EngineFailed,
    EngineHealth,
    EngineRequest,
    ModelFacts,
    UnsupportedRequest,
)
from anven_pipelines.worker.isolation import EngineBroken, IsolatingEngine, PoisonRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FACTS = ModelFacts(model="m", engine="mortal", weights="", precision="float32", context_length=64, features=frozenset())


@dataclass
class MortalEngine:
    """Echoes a request; dies, with everything in flight, soon after a request whose text is in `deadly` came in."""

    deadly: frozenset[str]
    facts: ModelFacts = FACTS
    died: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        text = str(request.messages[0]["content"])
        if text == "refused":
            message = "no"
            raise UnsupportedRequest(message, field="x")
        if text == "fails":
            message = "only this one"
            raise EngineFailed(message)
        if text in self.deadly:
            await asyncio.sleep(0)
            self.died.set()
        for _ in range(3):
            await asyncio.sleep(0)
            if self.died.is_set():
                message = "out of memory"
                raise EngineFailed(message)
        yield EngineChunk(text=text, output_tokens=1, prompt_tokens=1, elapsed_ms=1.0, finish_reason="stop")

    def health(self) -> EngineHealth:
        return EngineHealth(0, 0, "out of memory" if self.died.is_set() else None)

    async def close(self) -> None:
        self.closed = True


@dataclass
class Opener:
    deadly: frozenset[str]
    engines: list[MortalEngine] = field(default_factory=list)

    async def __call__(self) -> MortalEngine:
        self.engines.append(MortalEngine(self.deadly))
        return self.engines[-1]


def asked(
    texts: list[str], deadly: set[str], *, at_once: int = 64
) -> tuple[list[EngineAnswer | BaseException], Opener]:
    opener = Opener(frozenset(deadly))

    async def run() -> list[EngineAnswer | BaseException]:
        engine, places = IsolatingEngine(opener), asyncio.Semaphore(at_once)

        async def one(text: str) -> EngineAnswer:
            async with places:
                return await engine.answer(EngineRequest(messages=({"role": "user", "content": text},)))

        outcomes = await asyncio.gather(*map(one, texts), return_exceptions=True)
        await engine.close()
        return outcomes

    return asyncio.run(run()), opener


def answered(outcomes: list[EngineAnswer | BaseException]) -> list[str | None]:
    return [outcome.text if isinstance(outcome, EngineAnswer) else None for outcome in outcomes]


@pytest.mark.parametrize("culprits", ["0", "63", "17", "1 2", "5 40 41"])
@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_only_the_culprits_have_no_answer(culprits: str, at_once: int) -> None:
    deadly = set(culprits.split())
    texts = [str(number) for number in range(64)]
    outcomes, opener = asked(texts, deadly, at_once=at_once)
    assert answered(outcomes) == [None if text in deadly else text for text in texts]
    assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {PoisonRequest}
    assert all(engine.closed for engine in opener.engines)
    # A culprit kills one engine in the batch, one in each halving, and one alone.
    assert len(opener.engines) <= 1 + len(deadly) * (2 + at_once.bit_length())


def test_without_a_death_one_engine_does_it_all() -> None:
    outcomes, opener = asked(["a", "refused", "fails", "b"], set())
    assert answered(outcomes) == ["a", None, None, "b"]
    assert isinstance(outcomes[1], UnsupportedRequest)
    assert type(outcomes[2]) is EngineFailed
    assert len(opener.engines) == 1


def test_an_engine_that_dies_with_everything_is_broken_and_no_request_is_to_blame() -> None:
    texts = [str(number) for number in range(16)]
    outcomes, opener = asked(texts, {*texts, "Hello"})
    assert {type(outcome) for outcome in outcomes} == {EngineBroken}
    assert "out of memory" in str(outcomes[0])
    assert len(opener.engines) <= 10


def test_a_single_request_on_a_broken_engine_is_not_blamed() -> None:
    [outcome], _ = asked(["x"], {"x", "Hello"})
    assert isinstance(outcome, EngineBroken)


def test_a_request_that_killed_only_once_is_answered() -> None:
    engines: list[MortalEngine] = []

    async def first_one_dies() -> MortalEngine:
        engines.append(MortalEngine(frozenset() if engines else frozenset({"3"})))
        return engines[-1]

    async def run() -> list[EngineAnswer]:
        engine = IsolatingEngine(first_one_dies)
        requests = [EngineRequest(messages=({"role": "user", "content": str(number)},)) for number in range(8)]
        return await asyncio.gather(*map(engine.answer, requests))

    assert [answer.text for answer in asyncio.run(run())] == [str(number) for number in range(8)]
    assert len(engines) == 2


def test_an_engine_that_cannot_be_opened_again_ends_the_search() -> None:
    async def run() -> list[EngineAnswer | BaseException]:
        opened = [MortalEngine(frozenset({"3"}))]

        async def only_once() -> MortalEngine:
            if not opened:
                message = "no memory left on the device"
                raise UnavailableService(message)
            return opened.pop()

        engine = IsolatingEngine(only_once)
        requests = [EngineRequest(messages=({"role": "user", "content": str(number)},)) for number in range(8)]
        return await asyncio.gather(*map(engine.answer, requests), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert {type(outcome) for outcome in outcomes} == {EngineBroken}
    assert "no memory left on the device" in str(outcomes[0])
