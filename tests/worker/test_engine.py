"""The embedded engine behind the engine protocol: limits, sampling, batches, cancelling, failing, closing."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import (
    ContextLengthExceeded,
    Engine,
    EngineAnswer,
    EngineChunk,
    EngineFailed,
    EngineRequest,
    Sampling,
    UnsupportedRequest,
    answer,
    whole,
)
from anven_pipelines.worker.generation import Generation
from anven_pipelines.worker.model_files import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from anven_pipelines.worker.embedded import Precision
    from anven_pipelines.worker.generation import Step

T = TypeVar("T")

GREEDY: Final = Sampling(temperature=0)
HOT: Final = Sampling(temperature=2)
ITEMS: Final = generate("golden", 12, seed=5)
PROMPTS: Final = [tuple(anven_messages(item)) for item in ITEMS]
# A tool call has the longest answers: 20 to 40 tokens, a dozen before anything is left to chance.
ASK: Final = EngineRequest(
    messages=next(tuple(anven_messages(item)) for item in ITEMS if item.task == "tool"), max_tokens=40, sampling=GREEDY
)


@dataclass
class Token:
    """A generated token, as CTranslate2 hands it over."""

    token_id: int = 300
    logits: object = None


def with_engine(
    use: Callable[[Engine], Awaitable[T]],
    *,
    precision: Precision = "float32",
    folder: Path | None = None,
    threads: int = 1,
) -> T:
    """Use an engine in an event loop of its own, and close it."""

    async def used() -> T:
        engine = EmbeddedEngine(
            folder or model_folder("anven-nano"), name="anven-nano", precision=precision, threads=threads
        )
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(used())


def answered(*requests: EngineRequest, precision: Precision = "float32", threads: int = 1) -> list[EngineAnswer]:
    """Ask all requests at once."""

    async def ask_all(engine: Engine) -> list[EngineAnswer]:
        return await asyncio.gather(*(answer(engine, request) for request in requests))

    return with_engine(ask_all, precision=precision, threads=threads)


def test_chunks_carry_the_answer_and_its_measurements() -> None:
    async def ask(engine: Engine) -> list[EngineChunk]:
        async with aclosing(engine.stream(replace(ASK, sampling=replace(HOT, seed=1)))) as stream:
            return [chunk async for chunk in stream]

    chunks = with_engine(ask)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason in {"stop", "length"}
    elapsed = [chunk.elapsed_ms for chunk in chunks]
    assert elapsed == sorted(elapsed)
    joined = whole(chunks)
    assert joined.ttft_ms == elapsed[0]
    assert joined.latency_ms == elapsed[-1] > elapsed[0] > 0
    assert {chunk.prompt_tokens for chunk in chunks} == {joined.prompt_tokens}


def test_a_stream_without_an_end_is_no_answer() -> None:
    chunk = EngineChunk(text="a", output_tokens=1, prompt_tokens=1, elapsed_ms=1.0)
    with pytest.raises(EngineFailed, match="after 1 chunks without a finish reason"):
        whole([chunk])


def test_max_tokens_is_the_most_that_is_generated() -> None:
    short, long = answered(replace(ASK, max_tokens=3), replace(ASK, max_tokens=9))
    assert (short.output_tokens, short.finish_reason) == (3, "length")
    assert (long.output_tokens, long.finish_reason) == (9, "length")
    assert long.text.startswith(short.text)


def test_without_max_tokens_the_answer_may_fill_the_context() -> None:
    (found,) = answered(replace(ASK, max_tokens=None, sampling=replace(HOT, seed=3)))
    assert found.finish_reason == "stop" or found.prompt_tokens + found.output_tokens == 512


def test_prompt_and_answer_must_fit_the_context() -> None:
    (found,) = answered(replace(ASK, max_tokens=1))
    room = 512 - found.prompt_tokens
    answered(replace(ASK, max_tokens=room))
    with pytest.raises(
        ContextLengthExceeded, match=f"length is 512 tokens.*513 tokens .{found.prompt_tokens} in the messages"
    ):
        answered(replace(ASK, max_tokens=room + 1))
    with pytest.raises(ContextLengthExceeded, match="Shorten"):
        answered(replace(ASK, messages=({"role": "user", "content": "seven " * 600},), max_tokens=None))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (replace(ASK, tools=({"type": "function"},)), "tools"),
        (replace(ASK, response_format={"type": "object"}), "response_format"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(request_: EngineRequest, field: str) -> None:
    with pytest.raises(UnsupportedRequest) as raised:
        answered(request_)
    assert raised.value.field == field


def test_an_answer_does_not_depend_on_what_shares_its_batch() -> None:
    requests = [replace(ASK, messages=messages) for messages in PROMPTS]
    together = answered(*requests)
    alone = [answered(request)[0] for request in requests[:4]]
    assert [found.text for found in together[:4]] == [found.text for found in alone]
    assert len({found.text for found in together}) > 1


def test_a_seed_repeats_an_answer_whatever_runs_beside_it() -> None:
    seeded = [replace(ASK, sampling=replace(HOT, seed=seed)) for seed in (7, 7, 8)]
    first, again, other = answered(*seeded)
    noise = [replace(ASK, messages=messages, sampling=HOT) for messages in PROMPTS]
    _, later, *_ = answered(noise[0], seeded[0], *noise)
    assert first.text == again.text == later.text != other.text


def test_without_a_seed_every_answer_is_drawn_afresh() -> None:
    assert len({found.text for found in answered(*[replace(ASK, sampling=HOT)] * 6)}) > 1


def test_a_request_without_a_seed_takes_none_from_a_seeded_one_beside_it() -> None:
    seeded, free = answered(
        replace(ASK, max_tokens=300, sampling=replace(HOT, seed=7)),
        replace(ASK, max_tokens=300, sampling=HOT),
        threads=2,
    )
    assert seeded.text != free.text


@pytest.mark.parametrize(
    "narrow",
    [
        Sampling(temperature=2, top_k=1),
        Sampling(temperature=2, top_p=1e-6),
        Sampling(temperature=1e-4),
        Sampling(temperature=1e-40),
    ],
)
def test_the_narrowest_sampling_is_greedy(narrow: Sampling) -> None:
    sampled, greedy = answered(replace(ASK, sampling=narrow), ASK)
    assert sampled.text == greedy.text


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    (found,) = answered(replace(ASK, sampling=replace(HOT, top_k=10**6, seed=1)))
    assert found.output_tokens


@pytest.mark.parametrize("at", range(0, 12, 3))
def test_a_stop_text_ends_the_answer_before_it(at: int) -> None:
    (free,) = answered(ASK)
    stop = free.text[at : at + 4]
    (found,) = answered(replace(ASK, stop=("\x00never", stop)))
    assert found.text == free.text.partition(stop)[0]
    assert found.finish_reason == "stop"
    assert found.output_tokens < free.output_tokens


def test_log_probabilities_are_the_models_own() -> None:
    cold, hot = answered(
        replace(ASK, top_logprobs=3), replace(ASK, top_logprobs=0, sampling=replace(HOT, seed=1, top_k=5))
    )
    assert len(cold.logprobs) == cold.output_tokens
    for entry in cold.logprobs:
        assert entry.chosen == entry.top[0]
        assert entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob
        assert sum(math.exp(token.logprob) for token in entry.top) <= 1 + 1e-9
    assert [entry.top for entry in hot.logprobs] == [()] * hot.output_tokens
    assert b"".join(entry.chosen.token_bytes for entry in cold.logprobs).decode() == cold.text


def test_closing_a_stream_cancels_its_request_and_frees_the_engine() -> None:
    async def leave(engine: Engine) -> int:
        request = replace(ASK, max_tokens=300, sampling=replace(HOT, seed=1))
        async with aclosing(engine.stream(request)) as stream, aclosing(engine.stream(request)) as second:
            await anext(stream)
            waiting = asyncio.ensure_future(anext(second))
            await asyncio.sleep(0)
            assert engine.health()[:2] == (1, 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return (await answer(engine, ASK)).output_tokens

    assert with_engine(leave) > 0


def test_a_closed_engine_fails_what_it_had_not_finished_and_takes_no_more() -> None:
    async def close_early(engine: Engine) -> list[EngineAnswer | BaseException]:
        request = replace(ASK, max_tokens=300, sampling=replace(HOT, seed=1))
        asking = [asyncio.ensure_future(answer(engine, request)) for _ in range(3)]
        await asyncio.sleep(0)
        await engine.close()
        await engine.close()
        assert engine.health().failure == "the engine is closed"
        return await asyncio.gather(*asking, answer(engine, ASK), return_exceptions=True)

    assert [type(outcome) for outcome in with_engine(close_early)] == [EngineFailed] * 4


def test_a_token_that_cannot_be_handled_fails_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ModelFiles, token_id: int) -> tuple[str, bytes]:
        message = f"token {token_id} is broken"
        raise RuntimeError(message)

    async def ask(engine: Engine) -> EngineAnswer:
        monkeypatch.setattr(ModelFiles, "token", broken)
        with pytest.raises(EngineFailed, match=r"token .* is broken"):
            await answer(engine, replace(ASK, top_logprobs=1))
        return await answer(engine, ASK)

    assert with_engine(ask).output_tokens


def test_a_failed_request_stays_failed_while_its_token_is_being_handled() -> None:
    async def fail_midway(monkeypatch: pytest.MonkeyPatch) -> tuple[bool, bool]:
        generation = Generation(ASK, ModelFiles.read(model_folder("anven-nano")))
        made = generation._chunk

        def closed_meanwhile(step: Step) -> EngineChunk:
            generation.fail(EngineFailed("closed"))
            return made(step)

        monkeypatch.setattr(generation, "_chunk", closed_meanwhile)
        return generation.take(Token()), generation.take(Token())

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert asyncio.run(fail_midway(monkeypatch)) == (True, True)


def test_a_token_for_nobody_is_the_last() -> None:
    async def leave_midway(monkeypatch: pytest.MonkeyPatch) -> bool:
        generation = Generation(ASK, ModelFiles.read(model_folder("anven-nano")))
        made = generation._chunk

        def left_meanwhile(step: Step) -> EngineChunk:
            generation.cancelled = True
            return made(step)

        monkeypatch.setattr(generation, "_chunk", left_meanwhile)
        return generation.take(Token())

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert asyncio.run(leave_midway(monkeypatch))


def test_a_failed_batch_shows_in_the_health_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(engine: Engine) -> list[str | None]:
        with monkeypatch.context() as patch:
            patch.setattr("anven_pipelines.worker.embedded._sampling_options", lambda *_, **__: {"sampling_topk": -1})
            with pytest.raises(EngineFailed, match="left the answer unfinished"):
                await answer(engine, ASK)
        broken = engine.health().failure
        await answer(engine, ASK)
        await answer(engine, ASK)  # begins when the batch before it has ended
        return [broken, engine.health().failure]

    broken, mended = with_engine(ask)
    assert broken == (
        "TypeError: generate_batch(): incompatible function arguments. The following argument types are supported:"
    )
    assert mended is None


def test_int8_answers_nearly_always_as_float32_does() -> None:
    requests = [replace(ASK, messages=messages) for messages in PROMPTS]
    pairs = list(zip(answered(*requests), answered(*requests, precision="int8"), strict=True))
    # 12 of 12 where this was written, and 120 of 120 others; processors round int8 products differently.
    assert sum(exact.text == rounded.text for exact, rounded in pairs) >= 10


def test_a_request_that_comes_as_the_engine_falls_idle_is_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = asyncio.Event()
    late: list[asyncio.Task[EngineAnswer]] = []
    next_batch = EmbeddedEngine._next_batch

    def ask_when_none_is_left(engine: EmbeddedEngine) -> list[Generation]:
        batch = next_batch(engine)
        if not batch and not late:
            late.append(asyncio.create_task(answer(engine, ASK)))
            idle.set()
        return batch

    async def ask(engine: Engine) -> EngineAnswer:
        async with asyncio.timeout(30):
            await answer(engine, ASK)
            await idle.wait()
            return await late[0]

    monkeypatch.setattr(EmbeddedEngine, "_next_batch", ask_when_none_is_left)
    assert with_engine(ask).output_tokens
