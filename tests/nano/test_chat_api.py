"""The API over an engine that does as told: what happens midway, where a real engine is too fast to be caught."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx
import pytest

from anven_pipelines.nano.chat_api import ChatApi
from anven_pipelines.nano.faults import Faults
from anven_pipelines.worker.engine import (
    ContextLengthExceeded,
    EngineChunk,
    EngineFailed,
    EngineHealth,
    EngineRequest,
    ModelFacts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BODY: Final = {"model": "told", "messages": [{"role": "user", "content": "go"}]}


@dataclass
class ToldEngine:
    """Gives some chunks and then does what it is told.

    Attributes:
        chunks: How many it gives.
        then: It waits until it is closed, fails, refuses the request, ends the stream without a finish reason, or ends
            the answer as it should.
        closed_streams: How many streams ended, in whatever way.
    """

    chunks: int = 2
    then: Literal["wait", "fail", "refuse", "end", "finish"] = "wait"
    closed_streams: int = 0
    facts: ModelFacts = field(
        default_factory=lambda: ModelFacts(
            model="told", engine="told", weights="0", precision="none", context_length=9, features=frozenset()
        )
    )

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        try:
            for number in range(self.chunks):
                yield EngineChunk(
                    text=f"{number}", output_tokens=1, prompt_tokens=len(request.messages), elapsed_ms=1.0
                )
            match self.then:
                case "wait":
                    await asyncio.Event().wait()
                case "fail":
                    message = "told to fail"
                    raise EngineFailed(message)
                case "refuse":
                    message = "told to refuse"
                    raise ContextLengthExceeded(message)
                case "finish":
                    yield EngineChunk(text="", output_tokens=0, prompt_tokens=1, elapsed_ms=2.0, finish_reason="stop")
        finally:
            self.closed_streams += 1

    def health(self) -> EngineHealth:
        return EngineHealth(0, 0, "told to fail" if self.then == "fail" else None)

    async def close(self) -> None:
        """Have nothing to close."""


def exchange(engine: ToldEngine, path: str = "/v1/chat/completions", **changed: Any) -> tuple[int, str, dict[str, Any]]:
    """Send a request over ASGI and leave once two parts of the body came, or at once if it is not streamed.

    Returns:
        Status (0 where none was sent), body, and the health afterwards.
    """
    api = ChatApi(engine, capacity=1, faults=Faults(), api_key=None)

    async def exchanged() -> tuple[int, str, dict[str, Any]]:
        status, body = await asked(path, {**BODY, **changed}, parts=2 if changed.get("stream") else 0)
        _, health = await asked("/health", None, parts=1)
        return status, body, json.loads(health)

    async def asked(path: str, content: dict[str, Any] | None, *, parts: int) -> tuple[int, str]:
        sent: list[dict[str, Any]] = []
        left = asyncio.Event()
        given = iter([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(given, None)) is not None:
                return message
            if parts:
                await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if sum(bool(one.get("body")) for one in sent) >= parts:
                left.set()

        method = "GET" if content is None else "POST"
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "asgi": {}}
        async with asyncio.timeout(30):
            await api.app()(scope, receive, send)
        status = next((one["status"] for one in sent if "status" in one), 0)
        return status, b"".join(one.get("body", b"") for one in sent).decode()

    return asyncio.run(exchanged())


def test_a_client_that_leaves_a_stream_stops_the_generation() -> None:
    engine = ToldEngine()
    status, body, health = exchange(engine, stream=True)
    assert status == 200
    assert '"content":"1"' in body
    assert "[DONE]" not in body
    assert engine.closed_streams == 1
    assert (health["in_flight"], health["outcomes"]["unfinished"]) == (0, 1)


def test_a_client_that_leaves_before_a_whole_answer_stops_the_generation() -> None:
    engine = ToldEngine()
    _, _, health = exchange(engine)
    assert engine.closed_streams == 1
    assert (health["in_flight"], health["outcomes"]["unfinished"]) == (0, 1)


def test_a_client_that_leaves_while_it_uploads_is_no_error() -> None:
    api = ChatApi(ToldEngine(), capacity=1, faults=Faults(), api_key=None)
    parts = iter(({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}))

    async def receive() -> dict[str, Any]:
        return next(parts)

    async def send(message: Any) -> None:
        """Nobody reads it."""

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
    asyncio.run(api.app()(scope, receive, send))
    assert outcomes_of(api) == {"unfinished": 1}


@pytest.mark.parametrize("then", ["fail", "end"])
def test_an_engine_that_fails_or_stops_midway_ends_the_stream_with_an_error(then: Literal["fail", "end"]) -> None:
    status, body, health = exchange(ToldEngine(chunks=1, then=then), stream=True)
    *_, last = body.strip().split("\n\n")
    assert status == 200
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert "[DONE]" not in body
    assert (health["in_flight"], health["outcomes"]["failed"], health["outcomes"]["unfinished"]) == (0, 1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_at_once_is_unavailable_and_shows_it(stream: bool) -> None:
    engine = ToldEngine(chunks=0, then="fail")
    api = ChatApi(engine, capacity=1, faults=Faults(), api_key=None)

    async def ask() -> tuple[int, int]:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://told") as client:
            failed = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
            return failed.status_code, (await client.get("/health")).status_code

    assert asyncio.run(ask()) == (503, 503)


def outcomes_of(api: ChatApi) -> dict[str, int]:
    """Return the counters that are not 0."""
    return {name: count for name, count in api._outcomes.items() if count}


def ask_once(api: ChatApi, **changed: Any) -> httpx.Response:
    """Ask once, as a client that stays."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://told") as client:
            return await client.post("/v1/chat/completions", json={**BODY, **changed})

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("engine", "changed", "status", "code", "outcome"),
    [
        (ToldEngine(then="finish"), {}, 200, None, "answered"),
        (ToldEngine(chunks=0, then="fail"), {}, 503, "engine_failed", "failed"),
        (ToldEngine(chunks=0, then="end"), {}, 503, "engine_failed", "failed"),
        (ToldEngine(chunks=0, then="refuse"), {}, 400, "context_length_exceeded", "refused"),
        (ToldEngine(), {"model": "other"}, 404, "model_not_found", "refused"),
        (ToldEngine(), {"made_up": 1}, 400, "unknown_parameter", "refused"),
    ],
)
def test_every_outcome_has_its_status_and_its_counter(
    engine: ToldEngine, changed: dict[str, Any], status: int, code: str | None, outcome: str, stream: bool
) -> None:
    api = ChatApi(engine, capacity=1, faults=Faults(), api_key=None)
    response = ask_once(api, **changed, stream=stream)
    assert response.status_code == status
    assert code is None or response.json()["error"]["code"] == code
    assert outcomes_of(api) == {outcome: 1}


def test_a_whole_answer_that_is_cut_is_a_failure_of_the_engine() -> None:
    api = ChatApi(ToldEngine(chunks=1, then="end"), capacity=1, faults=Faults(), api_key=None)
    response = ask_once(api)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")


@pytest.mark.parametrize(
    ("engine", "faults", "counts"),
    [
        (ToldEngine(then="finish"), Faults(), True),
        (ToldEngine(then="finish"), Faults(errors=1.0), False),
        (ToldEngine(chunks=0, then="refuse"), Faults(), False),
        (ToldEngine(chunks=0, then="fail"), Faults(), False),
    ],
)
def test_the_time_to_try_again_rests_on_answers_only(engine: ToldEngine, faults: Faults, counts: bool) -> None:
    api = ChatApi(engine, capacity=1, faults=faults, api_key=None)
    api._seconds = 60.0
    ask_once(api)
    assert (api._seconds < 60) == counts
