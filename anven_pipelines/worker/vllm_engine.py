"""vLLM in this process: continuous batching by the same engine loop that `vllm.LLM.generate` runs.

vLLM's own asynchronous front end streams every token of every request through a queue, which a batch has no use for.
So its synchronous engine runs in a thread of ours, returns whole answers only, and its own statistics tell when the
first token was made. The engine's core is a process of its own (unless VLLM_ENABLE_V1_MULTIPROCESSING=0), so that
this process outlives it.

Source:
    https://docs.vllm.ai/en/latest/design/arch_overview.html; written for vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.worker.engine import (
    ContextLengthExceeded,
    EngineChunk,
    EngineFailed,
    EngineHealth,
    Feature,
    LikelyToken,
    ModelFacts,
    TokenLogprob,
    UnsupportedRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from anven_pipelines.spec_target import JobTarget
    from anven_pipelines.worker.engine import EngineRequest

_WATCH_EVERY_S: Final = 0.5
_IN_PROCESS: Final = SimpleNamespace(engine_dead=False)  # where the core lives and dies with us
_FEATURES: Final[frozenset[Feature]] = frozenset({"logprobs", "seed", "json_object", "json_schema", "penalties"})
_TOOLS: Final[frozenset[Feature]] = frozenset({"tools"})

_log = logging.getLogger(__name__)


@dataclass
class _Asked:
    """A request on its way through the engine's thread; the outcome goes to `answer`, or the error."""

    request_id: str
    tokens: list[int]
    sampling: Any  # vllm.SamplingParams, imported lazily
    answer: asyncio.Future[Any]

    def give(self, output: Any) -> None:  # noqa: ANN401 - vllm.RequestOutput
        """Hand the whole answer, or the error, to who waits; from the engine's thread."""
        loop = self.answer.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._settle, output)

    def _settle(self, output: Any) -> None:  # noqa: ANN401 - vllm.RequestOutput
        if self.answer.done():
            return
        if isinstance(output, Exception):
            self.answer.set_exception(output)
        else:
            self.answer.set_result(output)


class VllmEngine:
    """Answers prompts with a model folder in Hugging Face layout."""

    def __init__(self, target: JobTarget, *, folder: Path, digest: str) -> None:
        """Load the model.

        Args:
            target: How the model is run.
            folder: Where it is on this machine.
            digest: SHA-256 of its weights.

        Raises:
            UnreadableSource: the folder is missing, or vLLM cannot load it.
        """
        import vllm  # noqa: PLC0415 - seconds, and only the GPU image has it
        from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

        arguments = {
            "model": str(folder),
            "served_model_name": target.model,
            "dtype": target.precision,
            "quantization": target.quantization,
            "max_model_len": target.max_model_len,
            "gpu_memory_utilization": target.kv_cache_fraction,
            "tensor_parallel_size": target.tensor_parallel,
            "max_num_seqs": target.max_num_seqs,
            "enforce_eager": target.enforce_eager,
            "enable_prefix_caching": True,
        }
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            self._engine = LLMEngine.from_engine_args(vllm.EngineArgs(**given))
        except (OSError, ValueError) as error:  # vLLM validates with pydantic, whose errors are ValueErrors
            message = f"vLLM cannot load {folder}: {error}"
            raise UnreadableSource(message) from error
        # A request's own times are kept without it. Nobody reads what it would count at every step for Prometheus.
        self._engine.logger_manager = None
        self._tokenizer = self._engine.get_tokenizer()
        self._tool_parser = target.tool_parser
        self._facts = ModelFacts(
            model=target.model,
            engine=f"vllm {vllm.__version__}",
            weights=digest,
            precision=str(self._engine.model_config.dtype).removeprefix("torch."),
            context_length=self._engine.model_config.max_model_len,
            features=_FEATURES | _TOOLS if target.tool_parser else _FEATURES,
        )
        self._ids = map(str, itertools.count())
        self._inbox: queue.SimpleQueue[_Asked | str | None] = queue.SimpleQueue()
        self._running: dict[str, _Asked] = {}
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()
        if hasattr(self._engine.engine_core, "outputs_queue"):  # the core is a process of its own
            threading.Thread(target=self._watch, name="vllm-watch", daemon=True).start()

    @property
    def facts(self) -> ModelFacts:
        """What answers."""
        return self._facts

    def health(self) -> EngineHealth:
        """Say how busy the engine is; a failure stands for good."""
        return EngineHealth(len(self._running), self._inbox.qsize(), self._failure)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Answer one request; see `Engine.stream`. The text comes at once, at the end."""
        if self._failure is not None:
            raise EngineFailed(self._failure)
        asked = _Asked(
            next(self._ids), self._prompt(request), self._sampling(request), asyncio.get_running_loop().create_future()
        )
        self._inbox.put(asked)
        try:
            output = await asked.answer
        finally:
            if asked.answer.cancelled():
                self._inbox.put(asked.request_id)
        for chunk in self._chunks(request, output):
            yield chunk

    async def close(self) -> None:
        """Cancel what runs and free the model; closing twice does nothing."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """Feed the engine and step it until it is closed or dies; runs in a thread of its own."""
        try:
            while self._take_in():
                for output in self._engine.step():
                    if output.finished and (asked := self._running.pop(output.request_id, None)):
                        asked.give(output)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine answers no more
            _log.exception("vLLM died")
            self._failure = f"vLLM died: {type(error).__name__}: {error}"
        else:
            self._failure = "the engine is closed"
        self._engine.engine_core.shutdown()
        while not self._inbox.empty():
            if isinstance(late := self._inbox.get(), _Asked):
                self._running[late.request_id] = late
        for left in self._running.values():
            left.give(EngineFailed(self._failure))
        self._running.clear()

    def _take_in(self) -> bool:
        """Hand new requests to the engine, waiting for one where it has nothing to do; False when it is closed."""
        while not self._inbox.empty() or not self._engine.has_unfinished_requests():
            match self._inbox.get():
                case None:
                    return False
                case str(request_id):
                    if self._running.pop(request_id, None):
                        self._engine.abort_request([request_id])
                case asked if not asked.answer.done():
                    self._add(asked)
        return True

    def _add(self, asked: _Asked) -> None:
        self._running[asked.request_id] = asked  # before anything can fail, so that it is told in any case
        try:
            self._engine.add_request(asked.request_id, {"prompt_token_ids": asked.tokens}, asked.sampling)
        except Exception as error:
            if getattr(self._engine.engine_core, "resources", _IN_PROCESS).engine_dead:
                raise
            del self._running[asked.request_id]
            asked.give(UnsupportedRequest(str(error), field="params"))  # how vLLM refuses a request

    def _watch(self) -> None:
        """Wake the engine's thread when the core's process was killed: vLLM notices, and waits for its output for ever.

        Runs in a thread of its own.
        """
        core = self._engine.engine_core
        while self._thread.is_alive():
            if core.resources.engine_dead:
                core.outputs_queue.put_nowait(RuntimeError("the process of the engine's core died"))
                return
            self._thread.join(_WATCH_EVERY_S)

    def _prompt(self, request: EngineRequest) -> list[int]:
        """Write the prompt's tokens; the template places every special token."""
        if request.tools and not self._tool_parser:
            message = "the job names no tool_parser, so tool calls could not be read out of an answer"
            raise UnsupportedRequest(message, field="tools")
        try:
            text = self._tokenizer.apply_chat_template(
                list(request.messages), tools=list(request.tools) or None, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            message = f"the model's chat template cannot write these messages: {error}"
            raise UnsupportedRequest(message, field="messages") from error
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        context, asked = self._facts.context_length, request.max_tokens or 1
        if len(tokens) + asked > context:
            message = (
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{len(tokens) + asked} tokens ({len(tokens)} in the messages, {asked} in the completion)."
            )
            raise ContextLengthExceeded(message)
        return tokens

    def _sampling(self, request: EngineRequest) -> Any:  # noqa: ANN401 - vllm.SamplingParams
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams  # noqa: PLC0415

        match request.response_format:
            case "text":
                structure = None
            case "json_object":
                structure = StructuredOutputsParams(json_object=True)
            case schema:
                structure = StructuredOutputsParams(json=dict(schema))
        sampling = request.sampling
        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                stop=list(request.stop),
                max_tokens=request.max_tokens,
                logprobs=request.top_logprobs,
                structured_outputs=structure,
                skip_special_tokens=not request.tools,  # some tool calls are marked by special tokens
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,  # made for this request alone; a deep copy was a fifth of this thread's work
            )
        except ValueError as error:
            raise UnsupportedRequest(str(error), field="params") from error

    def _chunks(self, request: EngineRequest, output: Any) -> list[EngineChunk]:  # noqa: ANN401 - vllm.RequestOutput
        """Return a chunk made with the first token, and one made with the last, which holds the answer."""
        completion, times = output.outputs[0], output.metrics
        if completion.finish_reason not in {"stop", "length"}:
            message = f"vLLM ended the answer with {completion.finish_reason!r}"
            raise EngineFailed(message)
        ended_by_model = completion.finish_reason == "stop" and completion.stop_reason is None
        generated = max(0, len(completion.token_ids) - ended_by_model)
        first_ms = times.first_token_latency * 1e3
        last_ms = first_ms + (times.last_token_ts - times.first_token_ts) * 1e3
        text, calls = self._tool_calls(request, completion.text)
        head = EngineChunk(
            text="", output_tokens=min(1, generated), prompt_tokens=len(output.prompt_token_ids), elapsed_ms=first_ms
        )
        tail = EngineChunk(
            text=text,
            output_tokens=generated - head.output_tokens,
            prompt_tokens=head.prompt_tokens,
            elapsed_ms=last_ms,
            logprobs=self._logprobs(completion, generated, request.top_logprobs),
            finish_reason="tool_calls" if calls else completion.finish_reason,
            tool_calls=calls,
            cached_tokens=output.num_cached_tokens,
        )
        return [head, tail]

    def _logprobs(self, completion: Any, generated: int, top: int | None) -> tuple[TokenLogprob, ...]:  # noqa: ANN401
        if top is None or completion.logprobs is None:
            return ()
        return tuple(
            TokenLogprob(
                self._likely(token_id, likely[token_id].logprob),
                tuple(
                    self._likely(each, entry.logprob)
                    for each, entry in sorted(likely.items(), key=lambda item: item[1].rank)[:top]
                ),
            )
            for token_id, likely in zip(completion.token_ids[:generated], completion.logprobs, strict=False)
        )

    def _likely(self, token_id: int, logprob: float) -> LikelyToken:
        text = self._tokenizer.decode([token_id])
        return LikelyToken(text, text.encode(), float(logprob))

    def _tool_calls(self, request: EngineRequest, text: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
        """Read tool calls out of an answer with vLLM's parser; text that is none stays text."""
        if not request.tools or not self._tool_parser:
            return text, ()
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: PLC0415
        from vllm.tool_parsers import ToolParserManager  # noqa: PLC0415

        asked = ChatCompletionRequest(
            model=self._facts.model, messages=list(request.messages), tools=[dict(tool) for tool in request.tools]
        )
        parser = ToolParserManager.get_tool_parser(self._tool_parser)(self._tokenizer, asked.tools)
        found = parser.extract_tool_calls(text, asked)
        calls: Sequence[Any] = found.tool_calls if found.tools_called else ()
        written = tuple(
            {"type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
            for call in calls
        )
        return (found.content or "") if written else text, written
