"""Any OpenAI-compatible endpoint, asked through LiteLLM.

LiteLLM sends the request; what comes back is read from the server's own chunks. Its stream wrapper is left out on
purpose: where the server sends no finish_reason it invents "stop", and where the server counts no tokens it
counts some itself, neither of which could be told from a measurement afterwards.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.completion import Answer, AnswerInProgress, Failure, wait_s, without_secrets
from anven_pipelines.resources.answer_batch import AnswerBatch, Asked, Checkpoint, Progress
from anven_pipelines.resources.endpoint_failure import failure_of
from anven_pipelines.resources.environment import NO_KEY, api_key, keep_private
from anven_pipelines.resources.pace import DEPARTURE, Pace
from anven_pipelines.resources.preparation_threads import PreparationThreads
from anven_pipelines.resources.warm_up import warm_up_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import ModuleType

    import httpx
    import polars as pl
    from openai import AsyncOpenAI

    from anven_pipelines.domain.completion import Outcome
    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.spec_target import EndpointTarget

# From the richest form to the plainest that an endpoint may insist on. The body's `stream` is what the server sees.
_FORMS: Final[tuple[Mapping[str, Any], ...]] = (
    {"stream_options": {"include_usage": True}},
    {},
    {"extra_body": {"stream": False}},
)
_FORM_REFUSED: Final = (400, 422)
_WARM_UP_SECONDS: Final = 10.0


def ask_endpoint(
    target: EndpointTarget,
    requests: Sequence[CompletionRequest],
    *,
    checkpoint: Checkpoint,
    progress: Callable[[Progress], None],
    environ: Mapping[str, str],
    pace: Pace | None = None,
    drain_s: float = 0.0,
) -> pl.DataFrame:
    """Ask every request that the checkpoint does not settle yet, and return ANSWERS in the order of `requests`.

    Args:
        target: The endpoint and how it may be asked.
        requests: The whole batch; each item once.
        checkpoint: Answers kept under the batch's work key.
        progress: Is told how far the batch is, at most once a second.
        environ: Holds the key.
        pace: Clock, sleep and chance; the real ones where absent.
        drain_s: Seconds that answers in flight get after an interrupt.

    Raises:
        InvalidInput: the key is missing, or the endpoint refuses key, model, URL or params.
        UnavailableService: the endpoint does not answer; what it answered before is kept.
    """
    paced = pace or Pace()
    endpoint = Endpoint(target, api_key(target.api_key_env, of=repr(target.model), environment=environ), paced)
    batch = AnswerBatch(
        requests=requests,
        ask=endpoint.ask,
        concurrency=target.concurrency,
        connected=endpoint.connected,
        endpoint=f"the endpoint {without_secrets(target.url, secrets=())} (model {target.model!r})",
        checkpoint=checkpoint,
        report=progress,
        clock=paced.clock,
        drain_s=drain_s,
    )
    return batch.run()


@cache
def load_litellm() -> ModuleType:
    """Import LiteLLM, 1.7 s, with everything off that reads a .env file, downloads, retries or chats."""
    keep_private()
    import litellm  # noqa: PLC0415 - the code location must load without it

    litellm.suppress_debug_info = True
    litellm.drop_params = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are kept as reasons; a log may show the key
    return litellm


class Endpoint:
    """One endpoint during one batch: what form of request it takes is found out once."""

    def __init__(self, target: EndpointTarget, key: str | None, pace: Pace) -> None:
        self._target = target
        self._key = key
        self._pace = pace
        self._proven_form: int | None = None
        self._connections: AsyncOpenAI | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections to the endpoint, warm, until all is asked."""
        load_litellm()
        asyncio.get_running_loop().set_default_executor(PreparationThreads())
        await self._warm_up()
        async with self._client(self._target.url) as self._connections:
            yield

    async def ask(self, request: CompletionRequest) -> Asked:
        """Ask until there is an answer, a failure that will not pass, or no attempt left."""
        asks = 0
        for attempt in range(1, self._target.max_attempts + 1):
            outcome, forms = await self._attempt(request)
            asks += forms
            if isinstance(outcome, Answer):
                break
            wait = wait_s(outcome, attempt=attempt, jitter=self._pace.jitter())
            if wait is None or attempt == self._target.max_attempts:
                break
            await self._pace.sleep(wait)
        return Asked(outcome, asks)

    async def _attempt(self, request: CompletionRequest) -> tuple[Outcome, int]:
        """Ask once; while the endpoint has taken no form of request yet, a refused one is tried in plainer forms."""
        asks = 0
        for form in range(self._proven_form or 0, len(_FORMS)):
            outcome = await self._ask_once(request, _FORMS[form])
            asks += 1
            if isinstance(outcome, Answer):
                self._proven_form = form if self._proven_form is None else self._proven_form
                break
            if outcome.status not in _FORM_REFUSED or self._proven_form is not None:
                break
        return outcome, asks

    async def _ask_once(self, request: CompletionRequest, form: Mapping[str, Any]) -> Outcome:
        if self._connections is None:
            message = "an endpoint is asked within connected()"
            raise RuntimeError(message)
        started = self._pace.clock()
        try:
            async with asyncio.timeout(self._target.timeout.total_seconds()):
                wrapper = await self._send(self._connections, request.messages, request.params, form)
                async with wrapper.completion_stream as stream:
                    return await self._read(stream, started)
        except Exception as error:  # noqa: BLE001 - whatever one item does, the others are still asked
            return self._failure(error)

    async def _read(self, stream: Any, started: float) -> Outcome:  # noqa: ANN401 - openai.AsyncStream, imported lazily
        """Read the server's own chunks, or its one JSON answer where it does not stream."""
        answer = AnswerInProgress()
        kind = stream.response.headers.get("content-type", "")
        if "json" in kind:
            body = await stream.response.aread()
            if not isinstance(whole := _json_of(body), dict):
                return Failure("broken_answer", f"the server answered with {len(body)} bytes that are no JSON object")
            answer.add(whole, elapsed_ms=None)
        elif await self._take_chunks(stream, answer, started, kind):
            return Failure(
                "broken_answer",
                f"the server answered with a page ({kind}) and no completion; the base URL of an OpenAI-compatible API "
                "is needed, which mostly ends in /v1",
            )
        return answer.whole(latency_ms=(self._pace.clock() - started) * 1e3)

    async def _take_chunks(self, stream: Any, answer: AnswerInProgress, started: float, kind: str) -> bool:  # noqa: ANN401
        """Add the stream's chunks to the answer; return whether a portal's or a proxy's page came in their place.

        The type alone does not tell it: Flask calls a stream text/html where nobody names another.
        """
        has_chunks = False
        try:
            async for chunk in stream:
                has_chunks = True
                elapsed_ms = (self._pace.clock() - started) * 1e3
                answer.add(chunk.model_dump(exclude_unset=True), elapsed_ms=elapsed_ms)
        except ValueError:  # what is no UTF-8 or no JSON: a page may be in another encoding
            if has_chunks or "html" not in kind:
                raise
        return "html" in kind and not has_chunks

    def _client(self, url: str) -> AsyncOpenAI:
        """Return a client of our own, where LiteLLM would leave one open for every event loop it has seen."""
        from litellm.llms.openai.openai import OpenAIChatCompletion  # noqa: PLC0415 - loaded with the first batch
        from openai import AsyncOpenAI  # noqa: PLC0415

        connections = OpenAIChatCompletion.get_async_http_client()
        if connections is not None:
            connections.event_hooks = {"request": [self._note_departure]}
        return AsyncOpenAI(
            base_url=url,
            api_key=self._key or NO_KEY,
            timeout=self._target.timeout.total_seconds(),
            max_retries=0,
            http_client=connections,
        )

    async def _note_departure(self, _: httpx.Request) -> None:
        if departure := DEPARTURE.get(None):
            departure.at = self._pace.clock()

    async def _send(
        self,
        client: AsyncOpenAI,
        messages: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        form: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401 - litellm.CustomStreamWrapper, imported lazily
        """Send a request through LiteLLM, unchanged.

        What stands in extra_body it neither drops nor renames. Messages stand there too: given as an argument alone,
        a `content` of null would be lost. Nor may it turn to another API for models whose name it knows.
        """
        return await load_litellm().acompletion(
            model=f"openai/{self._target.model}",
            client=client,
            api_base=str(client.base_url),
            api_key=client.api_key,
            messages=messages,
            stream=True,
            stream_options=form.get("stream_options"),
            extra_body={**params, "messages": messages, **form.get("extra_body", {})},
            timeout=self._target.timeout.total_seconds(),
            num_retries=0,
            max_retries=0,
            _skip_responses_api_bridge=True,
        )

    def _failure(self, error: Exception) -> Failure:
        timeout_s = self._target.timeout.total_seconds()
        headers = self._headers_of(error)
        return failure_of(error, headers, key=self._key, timeout_s=timeout_s, now=self._pace.now())

    def _headers_of(self, error: Exception) -> Mapping[str, str] | None:
        """Return the headers of a response that was an error; None where there was no response at all.

        LiteLLM gives an error without any HTTP response the status 500; only these headers tell.
        """
        headers: Mapping[str, str] | None = getattr(error, "litellm_response_headers", None)
        return headers

    async def _warm_up(self) -> None:
        """Ask a server on loopback that answers once and fails once.

        LiteLLM's first call takes 2 s and its first error 0.6 s, in which nothing else runs; neither is a latency
        of the target's.
        """
        with suppress(Exception):  # no loopback, or a proxy for it: the first answers are just slower
            async with (
                asyncio.timeout(_WARM_UP_SECONDS),
                warm_up_server() as server,
                self._client(server.url) as client,
            ):
                while server.replies:
                    wrapper = await self._send(client, [{"role": "user", "content": ""}], {}, _FORMS[0])
                    async with wrapper.completion_stream as stream:
                        await self._read(stream, self._pace.clock())


def _json_of(body: bytes) -> object:
    """Read JSON; None where it is none."""
    with suppress(ValueError):
        return json.loads(body)
    return None


class DirectEndpoint(Endpoint):
    """Sends the same requests over the same connections without LiteLLM, for whoever sends many of them a second.

    LiteLLM doubles what a request costs here, from 3.6 to 7.0 ms of computing, and prepares it in one of a few threads:
    it would wait there unseen.
    """

    async def _send(
        self,
        client: AsyncOpenAI,
        messages: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        form: Mapping[str, Any],
    ) -> _Streamed:
        options: Any = {name: form[name] for name in ("stream_options",) if name in form}
        asked: Any = messages
        stream = await client.chat.completions.create(
            model=self._target.model,
            messages=asked,
            stream=True,
            extra_body={**params, "messages": messages, **form.get("extra_body", {})},
            **options,
        )
        return _Streamed(stream)

    def _headers_of(self, error: Exception) -> Mapping[str, str] | None:
        response = getattr(error, "response", None)
        return None if response is None else response.headers


class _Streamed(NamedTuple):
    """An answer in the place where LiteLLM's wrapper has it."""

    completion_stream: Any
