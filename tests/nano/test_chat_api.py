"""The API over an engine that does as told: what happens midway, where a real engine is too fast to be caught."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from anven_pipelines.nano.chat_api import ChatApi
from anven_pipelines.nano.faults import Faults
from anven_pipelines.worker.engine import (
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
    """Gives two chunks; then it waits until it is closed, or fails.

    Attributes:
        fails_after: Chunks before it fails; None waits instead.
        closed_streams: How many streams ended, in whatever way.
    """

    fails_after: int | None = None
    closed_streams: int = 0
    facts: ModelFacts = field(
        default_factory=lambda: ModelFacts(
            model="told", engine="told", weights="0", precision="none", context_length=9, features=frozenset()
        )
    )

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        try:
            for number in range(2):
                if number == self.fails_after:
                    message = "told to fail"
                    raise EngineFailed(message)
                yield EngineChunk(
                    text=f"{number}", output_tokens=1, prompt_tokens=len(request.messages), elapsed_ms=1.0
                )
            await asyncio.Event().wait()
        finally:
            self.closed_streams += 1

    def health(self) -> EngineHealth:
        return EngineHealth(0, 0, "told to fail" if self.fails_after is not None else None)

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


def test_an_engine_that_fails_midway_ends_the_stream_with_an_error() -> None:
    status, body, health = exchange(ToldEngine(fails_after=1), stream=True)
    *_, last = body.strip().split("\n\n")
    assert status == 200
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert (health["in_flight"], health["outcomes"]["unfinished"]) == (0, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_at_once_is_unavailable_and_shows_it(stream: bool) -> None:
    engine = ToldEngine(fails_after=0)
    api = ChatApi(engine, capacity=1, faults=Faults(), api_key=None)

    async def ask() -> tuple[int, int]:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://told") as client:
            failed = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
            return failed.status_code, (await client.get("/health")).status_code

    assert asyncio.run(ask()) == (503, 503)
