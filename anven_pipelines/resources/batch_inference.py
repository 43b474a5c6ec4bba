"""Where a batch of requests is answered: by an endpoint, or by a worker of ours in a process of its own.

Without `from __future__ import annotations`: Dagster 1.13 does not see a `ResourceDependency` in quotes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO, Any, Final, NamedTuple

import dagster as dg
import polars as pl

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.inference import ANSWERS, CompletionRequest, merge_answers, without_timing
from anven_pipelines.domain.model_fit import fit_of, require_fit
from anven_pipelines.nano.models import model_folder, weights_digest
from anven_pipelines.resources.answer_batch import Progress
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec import AskedTarget, BatchTarget, EndpointTarget, JobTarget, NanoTarget
from anven_pipelines.worker.generate import write_job
from anven_pipelines.worker.job import EmbeddedSettings, EngineSettings, Job, VllmSettings
from anven_pipelines.worker.weight_sources import ModelCaches, source_of
from anven_pipelines.worker.weights import Weights

ATTEMPTS: Final = 3  # of a worker that dies; each goes on where the last one was
_BAD_INPUT: Final = 2
_GRACE_S: Final = 10.0  # for a worker to write what it holds, after it has drained
_SHOWN_LINES: Final = 8
_PACKAGES: Final = ("vllm", "polars", "pydantic", "fsspec", "regex", "dagster_pipes")
_PACKAGE: Final = Path(__file__).parents[1]


class BatchAnswers(NamedTuple):
    """ANSWERS in the order of the requests, and the worker's figures: rows, tokens, seconds, times in the batch."""

    answers: pl.DataFrame
    figures: Mapping[str, Any]


class BatchInference(dg.ConfigurableResource[None]):
    """Asks a target's endpoint, or runs `python -m anven_pipelines.worker` and brings its messages into the run's log.

    Attributes:
        artifacts: Holds the job and its answers.
        llm_client: Asks endpoints.
        worker_python: Interpreter of the environment with vLLM; models that need no vLLM run in this one.
        drain_s: Seconds that answers in flight get when the run is cancelled.
    """

    artifacts: dg.ResourceDependency[ArtifactStore]
    llm_client: dg.ResourceDependency[LlmClient]
    worker_python: str = ""
    drain_s: float = 20.0

    def answer(
        self,
        context: dg.AssetExecutionContext,
        target: AskedTarget,
        requests: Sequence[CompletionRequest],
        *,
        key: str,
    ) -> BatchAnswers:
        """Answer every request that has no durable answer yet.

        Args:
            context: Gets messages on how far it is.
            target: The endpoint, or the model and how it is run.
            requests: The whole batch; each item once.
            key: Work key; answers are reused under it.

        Raises:
            InvalidInput: the model cannot be run as declared.
            UnavailableService: the worker died too often, or the store does not work; what it answered is kept.
        """
        checkpoint = self.artifacts.checkpoint(ANSWERS, key)
        if isinstance(target, EndpointTarget):
            answers = self.llm_client.answer(
                target, requests, checkpoint=checkpoint, progress=lambda each: _tell(context, each)
            )
            return BatchAnswers(answers, {})
        settings = settings_of(target)
        job = Job(key=key, shards=[], settings=settings, concurrency=target.concurrency)
        uri = write_job(self.artifacts.folder, job, requests)
        figures = self._launch(context, self._command(settings, uri), log=self._log_of(uri)) if requests else {}
        answers = merge_answers([request.item_id for request in requests], checkpoint.load())
        return BatchAnswers(without_timing(answers), figures)

    def require_runnable(self, target: BatchTarget) -> None:
        """Find what the model lacks before anything is spent.

        Raises:
            InvalidInput: the model's files, a fitting GPU, or the environment of its engine are missing.
        """
        settings = settings_of(target)
        python = self._python_for(settings)
        if isinstance(settings, VllmSettings):
            weights_of(settings.target)
            _require_packages(python)

    def _command(self, settings: EngineSettings, job: str) -> list[str]:
        options = ["--store", self.artifacts.url, "--storage-options", json.dumps(self.artifacts.storage_options)]
        return [
            *(self._python_for(settings), "-m", "anven_pipelines.worker", *options, "--job", job),
            *("--drain-s", f"{self.drain_s:g}", "--until-stdin-closes"),
        ]

    def _python_for(self, settings: EngineSettings) -> str:
        python = self.worker_python if isinstance(settings, VllmSettings) else sys.executable
        if not python:
            message = (
                "engine: vllm-job needs an environment with vLLM; set ANVEN_WORKER_PYTHON to its python, in which "
                f"{', '.join(_PACKAGES)} can be imported (docs/batch-inference.md)"
            )
            raise InvalidInput(message)
        return python

    def _log_of(self, job: str) -> Path:
        """Return where the worker's own output goes: beside the job, where that is a folder of this machine."""
        return self.artifacts.folder.local_path(f"{job}.log") or Path(gettempdir()) / f"{Path(job).name}.log"

    def _launch(self, context: dg.AssetExecutionContext, command: list[str], *, log: Path) -> Mapping[str, Any]:
        """Run the worker until it has done its job, a few times over if it dies."""
        for attempt in range(1, ATTEMPTS + 1):
            with log.open("ab") as output:
                code, figures = self._run(context, command, output)
            if code == 0:
                return figures
            said = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
            if code == _BAD_INPUT:
                message = f"the worker cannot do the job: {said} (see {log})"
                raise InvalidInput(message)
            ended = f"signal {-code}" if code < 0 else f"status {code}"
            context.log.warning("the worker ended with %s in attempt %d of %d: %s", ended, attempt, ATTEMPTS, said)
        message = (
            f"the worker ended with {ended} in each of {ATTEMPTS} attempts; what it answered is kept, and the next run "
            f"asks only what is missing; the last it said (see {log}): {said}"
        )
        raise UnavailableService(message)

    def _run(
        self, context: dg.AssetExecutionContext, command: list[str], output: IO[bytes]
    ) -> tuple[int, Mapping[str, Any]]:
        """Run the worker once; return its exit status and figures."""
        with (
            _package_alone() as place,
            dg.open_pipes_session(
                context=context.op_execution_context,  # on the other, Dagster 1.13 calls what it deprecates
                context_injector=dg.PipesTempFileContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
            ) as session,
        ):
            paths = os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, **session.get_bootstrap_env_vars(), "PYTHONPATH": paths}
            # Its standard input closes with this process, however this process ends, and then it drains and stops.
            with subprocess.Popen(  # noqa: S603 - our own program
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
            ) as worker:
                try:
                    code = worker.wait()
                except BaseException:
                    worker.terminate()
                    try:
                        worker.wait(self.drain_s + _GRACE_S)
                    except subprocess.TimeoutExpired:
                        worker.kill()
                    raise
        figures = [each for each in session.get_custom_messages() if isinstance(each, dict)]
        return code, figures[-1] if figures else {}


@contextmanager
def _package_alone() -> Iterator[str]:
    """Yield a folder that holds this package and nothing else.

    The worker's environment finds it there; beside it, in an installation, stand packages that would hide the
    environment's own.
    """
    with TemporaryDirectory(prefix="anven-worker-") as folder:
        (Path(folder) / _PACKAGE.name).symlink_to(_PACKAGE)
        yield folder


def _require_packages(python: str) -> None:
    """Look for what the worker imports, without importing it.

    Raises:
        InvalidInput: it cannot be started, or lacks a package.
    """
    look = f"import importlib.util as u; print(*(n for n in {_PACKAGES} if u.find_spec(n) is None))"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True)  # noqa: S603 - named by us
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"ANVEN_WORKER_PYTHON is {python!r}, which does not run: {error}; name the python of an environment"
        raise InvalidInput(message) from error
    if missing := found.stdout.split():
        message = f"the environment of {python} lacks {', '.join(missing)}; install them there"
        raise InvalidInput(message)


def _tell(context: dg.AssetExecutionContext, progress: Progress) -> None:
    said = f"{progress.done:,} of {progress.total:,} asked, {progress.failed:,} failed, {progress.tokens:,} tokens"
    context.log.info("%s, %.0f s", said, progress.elapsed_s)


def weights_of(target: JobTarget) -> Weights:
    """Look at a model where it lies; of an object store only a listing and config.json are read.

    Raises:
        InvalidInput: there is no such model, or not all of it.
        UnavailableService: its store does not answer.
    """
    return Weights.of(source_of(target.weights, target.revision, hub=ModelCaches.of(os.environ).hub))


def settings_of(target: BatchTarget) -> EngineSettings:
    """Return what the worker is told about the model.

    Raises:
        InvalidInput: the files of a shipped model are not installed, or the model does not fit the declared GPU.
        UnavailableService: the store of the weights does not answer.
    """
    if isinstance(target, NanoTarget):
        folder = str(model_folder(target.model))
        return EmbeddedSettings(name=target.model, folder=folder, weights=weights_digest(target.model))
    if target.gpu_memory_gib is not None:
        fit = fit_of(
            weights_of(target).shape(),
            gpu_gib=target.gpu_memory_gib,
            gpus=target.tensor_parallel,
            fraction=target.kv_cache_fraction,
            precision=target.precision,
            max_model_len=target.max_model_len,
        )
        require_fit(fit, model=target.model)
    return VllmSettings(target=target)
