"""One request while CTranslate2 answers it: tokens come in on the engine's thread, chunks go out on the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from anven_pipelines.worker.engine import (
    ContextLengthExceeded,
    EngineChunk,
    EngineFailed,
    LikelyToken,
    TokenLogprob,
    UnsupportedRequest,
)
from anven_pipelines.worker.text_stream import TextStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anven_pipelines.worker.engine import EngineRequest, FinishReason
    from anven_pipelines.worker.model_files import ModelFiles


class Step(Protocol):
    """What CTranslate2 says about a token that it generated.

    Attributes:
        token_id: The token.
        logits: Before temperature, top_p and top_k, shape (1, vocabulary); only where they were asked for.
    """

    token_id: int
    logits: Any


class BatchStep(Step, Protocol):
    """A token, and whose it is.

    Attributes:
        batch_id: Place of the request in its batch.
    """

    batch_id: int


class Generation:
    """The state of one request.

    Attributes:
        request: What was asked.
        prompt: The prompt's tokens.
        limit: Most tokens of the answer.
        cancelled: Nobody waits for the answer any more.
    """

    def __init__(self, request: EngineRequest, files: ModelFiles) -> None:
        """Write the prompt and check that it fits.

        Raises:
            ContextLengthExceeded: prompt and answer are longer than the context.
            UnsupportedRequest: tools, a JSON Schema, or messages that the chat template refuses.
        """
        _refuse_unsupported(request)
        self.request = request
        self.prompt = files.prompt_tokens(request.messages)
        self.limit = _room(len(self.prompt), request.max_tokens, files.context_length)
        self.cancelled = False
        self._files = files
        self._text = TextStream(
            files.tokenizer, stop=request.stop, ends_with_json=request.response_format == "json_object"
        )
        self._generated = 0
        self._ended = False
        self._accepted = time.perf_counter()
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[EngineChunk | EngineFailed] = asyncio.Queue()

    async def chunks(self) -> AsyncGenerator[EngineChunk, None]:
        """Yield what was generated, as it comes.

        Raises:
            EngineFailed: the engine broke or was closed.
        """
        while True:
            chunk = await self._chunks.get()
            if isinstance(chunk, EngineFailed):
                raise chunk
            yield chunk
            if chunk.finish_reason is not None:
                return

    def take(self, step: Step) -> bool:
        """Take a token and return whether the answer has ended; runs on CTranslate2's thread.

        An exception that leaves a callback aborts the process, so every one becomes the request's own failure.
        """
        if self._is_over():
            return True
        try:
            self._put(self._chunk(step))
        except Exception as error:  # noqa: BLE001 - see above
            self.fail(EngineFailed(f"a generated token could not be handled: {type(error).__name__}: {error}"))
        return self._is_over()

    def _is_over(self) -> bool:
        return self.cancelled or self._ended

    def fail(self, error: EngineFailed) -> None:
        """End the request without a whole answer, unless it has ended."""
        if not self._ended:
            self._ended = True
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, error)

    def _put(self, chunk: EngineChunk) -> None:
        if chunk.finish_reason is not None:
            self._ended = True
        self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

    def _chunk(self, step: Step) -> EngineChunk:
        if step.token_id in self._files.end_ids:
            return self._made(self._text.finish(), tokens=0, finish_reason="stop")
        self._generated += 1
        logprobs = () if self.request.top_logprobs is None else (self._logprob(step, self.request.top_logprobs),)
        text = self._text.add(step.token_id)
        if self._text.ended:
            return self._made(text, finish_reason="stop", logprobs=logprobs)
        if self._generated >= self.limit:
            return self._made(text + self._text.finish(), finish_reason="length", logprobs=logprobs)
        return self._made(text, finish_reason=None, logprobs=logprobs)

    def _made(
        self,
        text: str,
        *,
        tokens: int = 1,
        finish_reason: FinishReason | None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> EngineChunk:
        return EngineChunk(
            text=text,
            output_tokens=tokens,
            prompt_tokens=len(self.prompt),
            elapsed_ms=(time.perf_counter() - self._accepted) * 1e3,
            logprobs=logprobs,
            finish_reason=finish_reason,
        )

    def _logprob(self, step: Step, alternatives: int) -> TokenLogprob:
        """Return log-probabilities from the logits before temperature, top_p and top_k."""
        logits = np.array(step.logits, dtype=np.float64).reshape(-1)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top = np.argsort(-logprobs, kind="stable")[:alternatives]
        likely = [
            LikelyToken(*self._files.token(int(token_id)), float(logprobs[token_id]))
            for token_id in (step.token_id, *top)
        ]
        return TokenLogprob(likely[0], tuple(likely[1:]))


def _refuse_unsupported(request: EngineRequest) -> None:
    if request.tools:
        message = "the embedded engine reads no tool calls out of an answer; ask for JSON in the prompt"
        raise UnsupportedRequest(message, field="tools")
    if isinstance(request.response_format, dict):
        message = "the embedded engine cannot hold an answer to a JSON Schema; json_object is the nearest it can do"
        raise UnsupportedRequest(message, field="response_format")
    if request.sampling.presence_penalty or request.sampling.frequency_penalty:
        message = "the embedded engine knows no presence or frequency penalty; leave them out"
        raise UnsupportedRequest(message, field="presence_penalty")


def _room(prompt: int, asked: int | None, context: int) -> int:
    """Return the most tokens of the answer."""
    room = context - prompt
    if room < (asked or 1):
        # Clients, LiteLLM among them, tell this error from others by OpenAI's own words.
        message = (
            f"This model's maximum context length is {context} tokens. However, you requested {prompt + (asked or 1)} "
            f"tokens ({prompt} in the messages, {asked or 1} in the completion). Shorten the messages or max_tokens."
        )
        raise ContextLengthExceeded(message)
    return asked or room
