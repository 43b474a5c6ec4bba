"""The engines that a job may name, and how an engine's outcome becomes a row of ANSWERS."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.completion import Answer, Failure
from anven_pipelines.domain.errors import CorruptArtifact
from anven_pipelines.nano.models import model_folder
from anven_pipelines.resources.answer_batch import Asked
from anven_pipelines.worker.chat_request import engine_request
from anven_pipelines.worker.engine import ContextLengthExceeded, EngineFailed, UnsupportedRequest
from anven_pipelines.worker.isolation import HARMLESS, EngineBroken, IsolatingEngine, PoisonRequest
from anven_pipelines.worker.job import EmbeddedSettings, VllmSettings
from anven_pipelines.worker.model_cache import local_folder
from anven_pipelines.worker.weight_sources import source_of
from anven_pipelines.worker.weights import Weights, refused_by_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anven_pipelines.domain.completion import Outcome
    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.worker.engine import Engine, EngineAnswer
    from anven_pipelines.worker.weight_sources import ModelCaches


def load(settings: EmbeddedSettings | VllmSettings, folder: Path) -> Engine:
    """Load a model, which may take minutes.

    Args:
        settings: Which model, and how it is run.
        folder: Where it is on this machine; weights for vLLM were compared with their digest there.

    Raises:
        UnreadableSource: the folder holds no model of that engine's layout.
        CorruptArtifact: the weights are not the declared ones.
    """
    match settings:
        case EmbeddedSettings():
            from anven_pipelines.worker.embedded import EmbeddedEngine  # noqa: PLC0415 - the GPU image lacks it

            engine: Engine = EmbeddedEngine(
                folder, name=settings.name, precision=settings.precision, threads=settings.threads
            )
        case VllmSettings():
            from anven_pipelines.worker.vllm_engine import VllmEngine  # noqa: PLC0415 - only the GPU image has it

            engine = VllmEngine(settings.target, folder=folder, digest=settings.target.digest)
        case _:
            assert_never(settings)
    if settings.weights not in {None, engine.facts.weights}:
        message = (
            f"{folder} holds weights with the digest {engine.facts.weights}, declared is {settings.weights}; "
            "declare the new ones, or restore the files"
        )
        raise CorruptArtifact(message)
    return engine


@dataclass
class LocalModel:
    """A model in this process, asked as an endpoint is."""

    settings: EmbeddedSettings | VllmSettings
    _folder: Path | None = None

    def __post_init__(self) -> None:
        """Prepare the engine; it is opened by the first request."""
        self._engine = IsolatingEngine(self._open)

    def fetch(self, caches: ModelCaches, say: Callable[[str], None]) -> None:
        """Bring the model to this machine and verify it, before a GPU is taken.

        Raises:
            UnreadableSource: there is no such model.
            CorruptArtifact: the weights are not the declared ones.
            UnavailableService: their store does not answer, or they find no room here.
            InvalidInput: vLLM would refuse the model's settings.
        """
        match self.settings:
            case EmbeddedSettings(folder=folder):
                self._folder = Path(folder) if folder else model_folder(self.settings.name)
            case VllmSettings(target=target):
                source = source_of(target.weights, target.revision, hub=caches.hub)
                self._folder = local_folder(source, digest=target.digest, cache=caches.models, say=say)
                if doubt := refused_by_vllm(target, Weights.in_folder(self._folder), environment=os.environ):
                    say(doubt)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep the model loaded until all is asked."""
        try:
            await self._engine.opened()
            yield
        finally:
            await self._engine.close()

    async def ask(self, request: CompletionRequest) -> Asked:
        """Ask once.

        Raises:
            EngineBroken: no engine lives.
        """
        return Asked(await self._outcome(request), attempts=1)

    async def prove_alive(self) -> None:
        """Ask something harmless.

        Raises:
            EngineBroken: no engine lives with that either.
        """
        try:
            await self._engine.answer(HARMLESS)
        except PoisonRequest as error:
            message = f"the engine died with a harmless request: {error}"
            raise EngineBroken(message) from error

    async def _outcome(self, request: CompletionRequest) -> Outcome:
        try:
            answer = await self._engine.answer(engine_request(request.messages, request.params))
        except (UnsupportedRequest, ContextLengthExceeded) as error:
            return Failure("unsupported", str(error))
        except PoisonRequest as error:
            return Failure("poison", str(error))
        except EngineBroken:
            raise
        except EngineFailed as error:
            return Failure("server_error", str(error))
        return _as_logged(answer, model=self.settings.name)

    async def _open(self) -> Engine:
        if self._folder is None:
            message = "the model was not fetched"
            raise ValueError(message)
        return await asyncio.to_thread(load, self.settings, self._folder)  # minutes, in which a signal must get through


def _as_logged(answer: EngineAnswer, *, model: str) -> Answer:
    return Answer(
        output=answer.text if answer.text or not answer.tool_calls else None,
        tool_calls=canonical_json(list(answer.tool_calls)) if answer.tool_calls else None,
        finish_reason=answer.finish_reason,
        model=model,
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cached_tokens=answer.cached_tokens,
        ttft_ms=answer.ttft_ms,
        latency_ms=answer.latency_ms,
    )
