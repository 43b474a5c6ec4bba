"""The embedded engine: Llama weights on the CPU through CTranslate2, without torch and without a GPU.

CTranslate2 has no continuous batching, and in a batch of prompts of different lengths it walks through the surplus of
the longer ones token by token. Measured with 120 tokens in and 20 out (ms per request, one thread): alone 9.9; in
fours of equal length 6.5, up to 8 tokens apart 7.1, 16 apart 10.8, anywhere from 100 to 300 long 20. So only prompts
of nearly equal length share a batch, and a batch never waits to fill.

It seeds its random generators for the whole process, each of them once, when its thread first samples. A request with
a seed therefore gets a generator, and with it a thread, of its own: 10 ms more, and the same tokens every time. While
it runs no other request samples, as a thread that then first did would keep that seed for good.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import ctranslate2

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.worker.engine import EngineFailed, EngineHealth, ModelFacts
from anven_pipelines.worker.generation import Generation
from anven_pipelines.worker.model_files import ModelFiles

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from anven_pipelines.worker.engine import EngineChunk, EngineRequest, Sampling
    from anven_pipelines.worker.generation import BatchStep

Precision = Literal["float32", "int8"]

MAX_BATCH: Final = 8
MAX_LENGTH_SPREAD: Final = 8  # tokens; see above
_UNSEEDED: Final = 2**32 - 1  # CTranslate2's mark for "draw a seed"
_SAMPLING: Final = threading.Lock()  # the seed belongs to the process, so to all engines in it
_GREEDY_BELOW: Final = 1e-5  # as vLLM does; logits divided by less overflow float32


class EmbeddedEngine:
    """Answers prompts with a model folder's CTranslate2 conversion."""

    def __init__(self, folder: Path, *, name: str, precision: Precision = "float32", threads: int = 1) -> None:
        """Load the model.

        Args:
            folder: Hugging Face layout with the conversion in `ctranslate2/`.
            name: Name under which the model is served.
            precision: What the weights are loaded as; int8 is faster and no longer equal to the reference.
            threads: Batches that are computed at the same time, each on one core.

        Raises:
            UnreadableSource: the folder is not of that layout.
        """
        self._files = ModelFiles.read(folder)
        self._precision = precision
        self._threads = threads
        self._generator: ctranslate2.Generator | None = self._load(threads)
        self._facts = ModelFacts(
            model=name,
            engine=f"ctranslate2 {ctranslate2.__version__}",
            weights=self._files.weights_digest,
            precision=self._generator.compute_type,
            context_length=self._files.context_length,
            features=frozenset({"logprobs", "seed", "json_object"}),
        )
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="embedded-engine")
        self._waiting: deque[Generation] = deque()
        self._running: set[Generation] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0  # workers that will look for another batch; one that has just ended is still in the set
        self._failure: str | None = None

    @property
    def facts(self) -> ModelFacts:
        """What answers."""
        return self._facts

    def health(self) -> EngineHealth:
        """Say how busy the engine is; a failure stands until a batch succeeds."""
        failure = "the engine is closed" if self._generator is None else self._failure
        return EngineHealth(len(self._running), len(self._waiting), failure)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Answer one request; see `Engine.stream`."""
        if self._generator is None:
            message = "the engine is closed"
            raise EngineFailed(message)
        generation = Generation(request, self._files)
        self._waiting.append(generation)
        if self._busy < self._threads:
            self._busy += 1
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        try:
            async for chunk in generation.chunks():
                yield chunk
        finally:
            generation.cancelled = True

    async def close(self) -> None:
        """Cancel what runs and free the model; closing twice does nothing."""
        generator, self._generator = self._generator, None
        for generation in (*self._waiting, *self._running):
            generation.fail(EngineFailed("the engine was closed before the answer was whole"))
        self._waiting.clear()
        await asyncio.gather(*self._workers)
        self._executor.shutdown()
        if generator is not None:
            generator.unload_model()

    async def _work(self) -> None:
        """Compute batches until none waits."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                self._running.update(batch)
                await loop.run_in_executor(self._executor, self._generate, batch)
                self._running.difference_update(batch)
        finally:
            self._busy -= 1

    def _next_batch(self) -> list[Generation]:
        """Take the request that has waited longest, and those that can share its batch."""
        batch: list[Generation] = []
        left: deque[Generation] = deque()
        while self._waiting:
            generation = self._waiting.popleft()
            if not generation.cancelled:
                (batch if _fits(generation, batch) else left).append(generation)
        self._waiting = left
        return batch

    def _generate(self, batch: list[Generation]) -> None:
        """Compute a batch; runs in the executor."""
        try:
            self._compute(batch)
            self._failure = None
        except Exception as error:  # noqa: BLE001 - whatever breaks a batch, the engine answers the next one
            # pybind11 goes on with the arguments, and so with the prompts.
            first_line = str(error).partition("\n")[0]
            self._failure = f"{type(error).__name__}: {first_line}"
        for generation in batch:
            generation.fail(EngineFailed(f"CTranslate2 left the answer unfinished: {self._failure or 'no reason'}"))

    def _compute(self, batch: list[Generation]) -> None:
        sampling = batch[0].request.sampling
        if _is_greedy(sampling):
            self._run_shared(batch)
            return
        with _SAMPLING:
            if sampling.seed is None:
                self._run_shared(batch)
                return
            ctranslate2.set_random_seed(sampling.seed % _UNSEEDED)
            try:
                self._run(self._load(threads=1), batch)
            finally:
                ctranslate2.set_random_seed(_UNSEEDED)

    def _run_shared(self, batch: list[Generation]) -> None:
        if self._generator is not None:
            self._run(self._generator, batch)

    def _run(self, generator: ctranslate2.Generator, batch: list[Generation]) -> None:
        request = batch[0].request
        generator.generate_batch(
            [generation.prompt for generation in batch],
            max_length=max(generation.limit for generation in batch),
            end_token=sorted(self._files.end_ids),
            include_prompt_in_result=False,
            return_logits_vocab=request.top_logprobs is not None,
            callback=partial(_take, batch),
            **_sampling_options(request.sampling, vocabulary=self._files.tokenizer.get_vocab_size()),
        )

    def _load(self, threads: int) -> ctranslate2.Generator:
        try:
            return ctranslate2.Generator(
                str(self._files.weights_folder),
                device="cpu",
                compute_type=self._precision,
                inter_threads=threads,
                intra_threads=1,
            )
        except (RuntimeError, ValueError) as error:
            message = f"CTranslate2 cannot load {self._files.weights_folder}: {error}"
            raise UnreadableSource(message) from error


def _take(batch: list[Generation], step: BatchStep) -> bool:
    return batch[step.batch_id].take(step)


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature < _GREEDY_BELOW or sampling.top_k == 1


def _fits(generation: Generation, batch: list[Generation]) -> bool:
    """Say whether a request can join a batch, whose options are all its requests'.

    A seeded request samples alone. So does one with log-probabilities: CTranslate2 4.8 hands the logits of a step to
    the first request of a batch only.
    """
    if not batch:
        return True
    lengths = [len(other.prompt) for other in (*batch, generation)]
    return (
        len(batch) < MAX_BATCH
        and (key := _shared_options(generation.request)) is not None
        and key == _shared_options(batch[0].request)
        and max(lengths) - min(lengths) <= MAX_LENGTH_SPREAD
    )


def _shared_options(request: EngineRequest) -> tuple[float, ...] | None:
    """Return what the requests of a batch must have in common; None for a request that runs alone."""
    sampling = request.sampling
    if request.top_logprobs is not None:
        return None
    if _is_greedy(sampling):
        return (0.0,)
    return None if sampling.seed is not None else (sampling.temperature, sampling.top_p, sampling.top_k)


def _sampling_options(sampling: Sampling, *, vocabulary: int) -> dict[str, Any]:
    if _is_greedy(sampling):
        return {"sampling_topk": 1}
    return {
        "sampling_temperature": sampling.temperature,
        "sampling_topp": sampling.top_p,
        "sampling_topk": sampling.top_k if sampling.top_k < vocabulary else 0,
    }
