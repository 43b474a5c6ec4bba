"""The HTTP API over an engine: chat completions whole and as a stream, models, health."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections import Counter
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.nano.faults import Faults
from anven_pipelines.nano.openai_wire import ApiError, Reply, read_request
from anven_pipelines.worker.engine import ContextLengthExceeded, EngineFailed, UnsupportedRequest, whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator

    from starlette.types import Receive, Scope, Send

    from anven_pipelines.worker.engine import Engine, EngineChunk, EngineRequest

T = TypeVar("T")

MAX_BODY_BYTES: Final = 1 << 20
_CLIENT_GONE: Final = 499  # nginx's number for it; nobody reads it
_OUTCOMES: Final = {"queue_full": "refused_busy", "fault_injected": "faulty", "engine_failed": "failed"}  # by error
_LATEST_SHARE: Final = 0.2  # of the newest answer in the moving mean of durations


class ChatApi:
    """Answers requests with an engine, as many at once as `capacity` says."""

    def __init__(self, engine: Engine, *, capacity: int, faults: Faults, api_key: str | None) -> None:
        """Begin without requests.

        Args:
            engine: Answers.
            capacity: Most requests that are computed or wait; one more is answered with 429.
            faults: What goes wrong on purpose.
            api_key: What clients must send as the bearer; None lets everyone in.
        """
        self._engine = engine
        self._capacity = capacity
        self._faults = faults
        self._api_key = api_key
        self._in_flight = 0
        self._seconds = 0.0
        self._outcomes: Counter[str] = Counter(
            dict.fromkeys(("answered", "refused", "refused_busy", "faulty", "failed", "unfinished"), 0)
        )

    def app(self) -> FastAPI:
        """Return the ASGI application; it closes the engine when it is shut down."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await self._engine.close()

        app = FastAPI(title="anven nano server", lifespan=lifespan, openapi_url=None)
        app.add_exception_handler(ApiError, _write_error)
        app.add_exception_handler(HTTPException, _write_error)
        app.add_exception_handler(Exception, _write_error)
        app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        app.add_api_route("/faults", self.change_faults, methods=["PUT"], response_model=None)
        return app

    async def complete(self, request: Request) -> Response:
        """Answer a chat completion, and count what became of it; a stream counts when it ends.

        Raises:
            ApiError: the request is refused, or the engine fails before the first token.
        """
        try:
            return await self._complete(request)
        except ApiError as error:
            self._outcomes[_outcome(error)] += 1
            raise
        except (_ClientGone, ClientDisconnect):
            self._outcomes["unfinished"] += 1
            return Response(status_code=_CLIENT_GONE)

    async def _complete(self, request: Request) -> Response:
        self._authorise(request)
        asked = read_request(await _body(request))
        if asked.model != self._engine.facts.model:
            message = f"the model {asked.model!r} does not exist; this server serves {self._engine.facts.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        content = asked.model_dump(mode="json", exclude={"stream", "stream_options"}, exclude_none=True)
        for_engine = self._faults.regressed(asked.for_engine(), content)
        async with AsyncExitStack() as stack:
            stack.enter_context(self._slot())
            begun = time.perf_counter()
            if self._faults.hits_with_error(content):
                message = "this server was asked to fail for a share of the requests (--fault-errors)"
                raise ApiError(500, message, kind="server_error", code="fault_injected")
            chunks = await stack.enter_async_context(aclosing(self._chunks(for_engine)))
            reply = Reply(self._engine.facts, asked)
            if asked.stream:
                first = await _unless_gone(request, anext(chunks))
                return EventStream(self._events(reply, first, chunks, begun=begun), stack.pop_all())
            answer = whole(await _unless_gone(request, _all(chunks)))
            self._count("answered", begun=begun)
            return JSONResponse(reply.whole(answer))

    async def models(self, request: Request) -> dict[str, Any]:
        """List the one model."""
        self._authorise(request)
        facts = self._engine.facts
        model = {"id": facts.model, "object": "model", "created": 0, "owned_by": "anven"}
        return {"object": "list", "data": [model | {"max_model_len": facts.context_length}]}

    async def health(self) -> Response:
        """Say what is served and how busy it is; 503 when the engine cannot answer."""
        facts, health = self._engine.facts, self._engine.health()
        body = {
            "status": "ok" if health.failure is None else "failed",
            "failure": health.failure,
            "model": facts.model,
            "engine": facts.engine,
            "precision": facts.precision,
            "weights": facts.weights,
            "context_length": facts.context_length,
            "features": sorted(facts.features),
            "json_mode": "unconstrained: an answer ends with its JSON object; one that holds none carries a warning",
            "faults": self._faults.shown(),
            "capacity": self._capacity,
            "in_flight": self._in_flight,
            "running": health.running,
            "waiting": health.waiting,
            "outcomes": dict(self._outcomes),
        }
        return JSONResponse(body, status_code=200 if health.failure is None else 503)

    async def change_faults(self, request: Request) -> Response:
        """Let a demonstration switch faults on and off while requests come; what is not named is off.

        Raises:
            ApiError: the key is wrong, or the body is no faults.
        """
        self._authorise(request)
        try:
            self._faults = Faults.read(json.loads(await _body(request)))
        except (ValueError, InvalidInput) as error:
            raise ApiError(400, str(error), code="invalid_faults") from error
        return JSONResponse({"faults": self._faults.shown()})

    def _authorise(self, request: Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise ApiError(401, "the bearer key is missing or wrong", code="invalid_api_key")

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the places of the bounded queue."""
        if self._in_flight >= self._capacity:
            wait = max(1, math.ceil(self._seconds))
            message = f"{self._in_flight} requests are in flight, as many as this server takes; try again in {wait} s"
            raise ApiError(429, message, kind="rate_limit_error", code="queue_full", headers={"retry-after": str(wait)})
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _count(self, outcome: str, *, begun: float) -> None:
        """Count an outcome, and how long an answer took: what fails at once says nothing about the wait for a place."""
        self._outcomes[outcome] += 1
        if outcome == "answered":
            self._seconds += _LATEST_SHARE * (time.perf_counter() - begun - self._seconds)

    async def _chunks(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Ask the engine, late where a fault says so, and translate its refusals.

        The last chunk has a finish reason: a stream that ends without one is an engine that failed.
        """
        await asyncio.sleep(self._faults.delay_ms / 1e3)
        ended = False
        try:
            async with aclosing(self._engine.stream(request)) as chunks:
                async for chunk in chunks:
                    ended = chunk.finish_reason is not None
                    yield chunk
            _require_end(ended=ended)
        except ContextLengthExceeded as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from error
        except UnsupportedRequest as error:
            raise ApiError(400, str(error), param=error.field, code="unsupported_value") from error
        except EngineFailed as error:
            raise ApiError(503, str(error), kind="server_error", code="engine_failed") from error

    async def _events(
        self, reply: Reply, first: EngineChunk, rest: AsyncGenerator[EngineChunk, None], *, begun: float
    ) -> AsyncGenerator[str, None]:
        """Write an answer as server-sent events; an engine that fails midway ends it with an error and no [DONE]."""
        text, tokens, opens = "", 0, True
        outcome = "unfinished"
        chunk = first
        try:
            while True:
                tokens += chunk.output_tokens
                ended = chunk.finish_reason is not None
                if chunk.text or chunk.logprobs or ended:
                    yield _event(reply.chunk(chunk, first=opens, text_before=text))
                    text, opens = text + chunk.text, False
                if ended:
                    outcome = "answered"
                    break
                chunk = await anext(rest)
            if reply.request.wants_usage():
                yield _event(reply.usage_chunk(chunk.prompt_tokens, tokens))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            outcome = _outcome(error)
            yield _event(error.body)
        finally:
            self._count(outcome, begun=begun)


class EventStream(StreamingResponse):
    """A response that frees what it holds however it ends, also when its body was never begun."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], held: AsyncExitStack) -> None:
        """Send the events, then close what is held."""
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with self._held, aclosing(self._events):
            await super().__call__(scope, receive, send)


class _ClientGone(Exception):  # noqa: N818 - it is what happened, and ends no program
    """The client closed its connection before it had an answer."""


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, unless the client closes the connection first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_end(*, ended: bool) -> None:
    if not ended:
        message = "the engine's stream ended without a finish reason"
        raise EngineFailed(message)


def _outcome(error: ApiError) -> str:
    """Return what an error counts as."""
    return _OUTCOMES.get(str(error.body["error"]["code"]), "refused")


async def _all(chunks: AsyncGenerator[EngineChunk, None]) -> list[EngineChunk]:
    return [chunk async for chunk in chunks]


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes", code="body_too_large")
    return bytes(body)


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _write_error(request: Request, error: Exception) -> Response:
    """Write any error in OpenAI's form."""
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    elif not isinstance(error, ApiError):
        error = ApiError(500, f"the server failed: {type(error).__name__}", kind="server_error")
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
