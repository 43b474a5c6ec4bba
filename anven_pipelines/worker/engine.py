"""The protocol of an inference engine: one request in, one stream of chunks out.

An engine batches as it likes; whoever asks sees one async stream per request, starts many at once and closes a stream
to cancel it. Prompts are messages, because the chat template belongs to the model's folder. Every chunk says when it
was made, so that a time to first token is the engine's own measurement, whether or not the answer was sent on as a
stream.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from anven_pipelines.domain.errors import InvalidInput, UnavailableService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

Feature = Literal["logprobs", "seed", "json_object", "json_schema", "tools", "penalties"]
FinishReason = Literal["stop", "length", "tool_calls"]
ResponseFormat = Literal["text", "json_object"] | dict[str, Any]  # a dict is a JSON Schema


class ContextLengthExceeded(InvalidInput):
    """The prompt, with the tokens that the answer may take, does not fit the model's context."""


class UnsupportedRequest(InvalidInput):
    """The request needs something that the engine or the model's chat template cannot do."""

    def __init__(self, message: str, *, field: str) -> None:
        """Keep the name of the request's field beside the message."""
        self.field = field
        super().__init__(message)


class EngineFailed(UnavailableService):
    """The engine broke, or was closed while it answered; what it had not finished has no answer."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: Keep the likeliest tokens that together reach this probability.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        seed: The same request with the same seed gets the same tokens from the same engine; None draws afresh.
        presence_penalty: Taken off the logit of every token that the answer already holds.
        frequency_penalty: The same, once for each time that it holds the token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One prompt and how to answer it.

    Attributes:
        messages: Turns with `role` and `content`, as the model's chat template takes them.
        max_tokens: Most tokens of the answer; None goes on to the end of the context.
        sampling: How tokens are chosen.
        stop: Texts that end the answer; they are not part of it.
        top_logprobs: None for no log-probabilities, else how many alternatives come with each token's own.
        response_format: Plain text, any JSON object, or a JSON Schema.
        tools: Tool definitions for the chat template.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    response_format: ResponseFormat = "text"
    tools: tuple[Mapping[str, Any], ...] = ()


class LikelyToken(NamedTuple):
    """A token with its natural log-probability under the model, before temperature, top_p and top_k."""

    token: str
    token_bytes: bytes
    logprob: float


class TokenLogprob(NamedTuple):
    """The chosen token and the likeliest ones in its place, the likeliest first."""

    chosen: LikelyToken
    top: tuple[LikelyToken, ...]


@dataclass(frozen=True, kw_only=True)
class EngineChunk:
    """What was added to an answer.

    Attributes:
        text: New text; empty while it may still become a stop text or half a character.
        output_tokens: How many tokens were generated for it; the end-of-turn token is not counted.
        prompt_tokens: Length of the whole prompt, the same in every chunk.
        elapsed_ms: Milliseconds from the request's arrival at the engine to this chunk.
        logprobs: One entry per token of `output_tokens`, where they were asked for.
        finish_reason: Why the answer ended; None in every chunk but the last.
        tool_calls: Tool calls of the chat completions API; only in the last chunk, and then no text is left of them.
        cached_tokens: Of the prompt, those whose keys and values were cached; None where the engine does not say.
    """

    text: str
    output_tokens: int
    prompt_tokens: int
    elapsed_ms: float
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    cached_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineAnswer:
    """A whole answer. Times are the engine's, without any transport; no token was generated where `ttft_ms` is None."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float | None
    latency_ms: float
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    cached_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What answers.

    Attributes:
        model: Name under which the model is served.
        engine: Name and version of the inference library.
        weights: SHA-256, in hex, of the weights that were loaded.
        precision: What the engine computes in, e.g. float32 or int8_float32.
        context_length: Most tokens of prompt and answer together.
        features: What a request may ask for beyond text.
    """

    model: str
    engine: str
    weights: str
    precision: str
    context_length: int
    features: frozenset[Feature]


class EngineHealth(NamedTuple):
    """Requests being computed, requests that wait, and why the engine can answer no more, if it cannot."""

    running: int
    waiting: int
    failure: str | None


class Engine(Protocol):
    """Answers prompts with one model."""

    @property
    def facts(self) -> ModelFacts:
        """What answers."""

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Answer one request; the last chunk carries the finish reason. Closing the stream cancels the request.

        Raises:
            ContextLengthExceeded: with the first chunk.
            UnsupportedRequest: with the first chunk.
            EngineFailed: at any time.
        """

    def health(self) -> EngineHealth:
        """Say how busy the engine is, and whether it works."""

    async def close(self) -> None:
        """Cancel what runs and free the model; closing twice does nothing."""


async def answer(engine: Engine, request: EngineRequest) -> EngineAnswer:
    """Return the whole answer to one request.

    Raises:
        ContextLengthExceeded, UnsupportedRequest, EngineFailed: as `Engine.stream` does.
    """
    async with aclosing(engine.stream(request)) as stream:
        return whole([chunk async for chunk in stream])


def whole(chunks: list[EngineChunk]) -> EngineAnswer:
    """Join the chunks of one answer.

    Raises:
        EngineFailed: the last chunk is missing; a cut answer never passes as a whole one.
    """
    if not chunks or (finish_reason := chunks[-1].finish_reason) is None:
        message = f"the engine's stream ended after {len(chunks)} chunks without a finish reason"
        raise EngineFailed(message)
    return EngineAnswer(
        text="".join(chunk.text for chunk in chunks),
        finish_reason=finish_reason,
        prompt_tokens=chunks[-1].prompt_tokens,
        output_tokens=sum(chunk.output_tokens for chunk in chunks),
        ttft_ms=next((chunk.elapsed_ms for chunk in chunks if chunk.output_tokens), None),
        latency_ms=chunks[-1].elapsed_ms,
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        tool_calls=chunks[-1].tool_calls,
        cached_tokens=chunks[-1].cached_tokens,
    )
