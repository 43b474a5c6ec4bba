"""Where a batch of requests is answered: by an endpoint, by a worker of this machine, or by a Job on Kubernetes.

Without `from __future__ import annotations`: Dagster 1.13 does not see a `ResourceDependency` in quotes.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final, NamedTuple

import dagster as dg
import polars as pl

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import InvalidInput, UnavailableService, UnreadableSource
from anven_pipelines.domain.gpu_job import GpuJobSettings, Work
from anven_pipelines.domain.inference import ANSWERS, CompletionRequest, merge_answers, settled, without_timing
from anven_pipelines.domain.model_fit import fit_of, require_fit
from anven_pipelines.domain.prompt_trial import Ask
from anven_pipelines.nano.models import model_folder, weights_digest
from anven_pipelines.resources.answer_batch import Progress
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.checkpoint import Remembered
from anven_pipelines.resources.kubernetes_launcher import KubernetesLauncher
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.resources.subprocess_launcher import PACKAGES, SubprocessLauncher, require_packages
from anven_pipelines.section_file import read_section
from anven_pipelines.spec_target import AskedTarget, BatchTarget, EndpointTarget, JobTarget, NanoTarget
from anven_pipelines.worker.asking import SearchDeaths
from anven_pipelines.worker.generate import read_job, write_job
from anven_pipelines.worker.job import EmbeddedSettings, EngineSettings, Job, VllmSettings
from anven_pipelines.worker.weight_sources import ModelCaches, is_on_worker, source_of
from anven_pipelines.worker.weights import Weights, refused_by_vllm

JOBS: Final = 3
"""Jobs on Kubernetes that one batch may use up in search of requests that kill its pods."""


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
        gpu_job: YAML file of GpuJobSettings; with it workers run as Jobs on Kubernetes, not on this machine.
        drain_s: Seconds that answers in flight get when the run is cancelled.
    """

    artifacts: dg.ResourceDependency[ArtifactStore]
    llm_client: dg.ResourceDependency[LlmClient]
    worker_python: str = ""
    gpu_job: str = ""
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
            UnavailableService: the worker died too often, or a service does not work; what was answered is kept.
        """
        checkpoint = self.artifacts.checkpoint(ANSWERS, key)
        if isinstance(target, EndpointTarget):
            answers = self.llm_client.answer(
                target, requests, checkpoint=checkpoint, progress=lambda each: _tell(context, each)
            )
            return BatchAnswers(answers, {})
        figures: Mapping[str, Any] = {}
        if {request.item_id for request in requests} - set(settled(checkpoint.load())["item_id"]):
            figures = self._launch(context, target, requests, key=key)
        kept = checkpoint.load()
        if lost := {request.item_id for request in requests} - set(kept["item_id"]):
            message = (
                f"the worker says that it is done, and {len(lost):,} of {len(requests):,} requests have neither an "
                f"answer nor a failure in {self.artifacts.url}; look at what it printed, and whether it writes there"
            )
            raise UnavailableService(message)
        answers = merge_answers([request.item_id for request in requests], kept)
        return BatchAnswers(without_timing(answers), figures)

    def asker(self, context: dg.AssetExecutionContext, target: AskedTarget, *, key: str) -> Ask:
        """Return what answers request after request; their ids say what is asked, and name each answer for good.

        An endpoint's answers are kept in one place and read once. A model of our own is loaded for each round, whose
        answers have a place of their own.
        """
        if isinstance(target, EndpointTarget):
            kept = Remembered(self.artifacts.checkpoint(ANSWERS, key))
            return lambda requests: self.llm_client.answer(target, requests, checkpoint=kept, progress=lambda _: None)

        def ask(requests: Sequence[CompletionRequest]) -> pl.DataFrame:
            round_key = digest_of([key, [request.item_id for request in requests]])
            return self.answer(context, target, requests, key=round_key).answers

        return ask

    def require_runnable(self, target: BatchTarget) -> None:
        """Find what the model lacks before anything is spent.

        Raises:
            InvalidInput: the model's files, a fitting GPU, the environment of its engine, or the cluster's settings
                are missing.
            UnavailableService: the cluster does not answer.
        """
        cluster = self._gpu_job_settings() if self.gpu_job else None
        settings = settings_of(target, elsewhere=bool(cluster), environment=cluster.env if cluster else os.environ)
        if cluster:
            self._require_shared_store(cluster)
            KubernetesLauncher(cluster).require_reachable()
        elif isinstance(settings, VllmSettings):
            require_packages(self._python_for(settings))

    def _launch(
        self, context: dg.AssetExecutionContext, target: BatchTarget, requests: Sequence[CompletionRequest], *, key: str
    ) -> Mapping[str, Any]:
        cluster = self._gpu_job_settings() if self.gpu_job else None
        environment = cluster.env if cluster else os.environ
        settings = settings_of(target, elsewhere=bool(cluster), environment=environment, warn=context.log.warning)
        job = Job(key=key, shards=[], settings=settings, concurrency=target.concurrency)
        if cluster is None:
            if target.pods > 1:
                context.log.warning("target.pods is %d and counts on Kubernetes only (ANVEN_GPU_JOB)", target.pods)
            python = self._python_for(settings)
            uri = write_job(self.artifacts.folder, job, requests)
            launcher = SubprocessLauncher(python, log=self._log_of(uri), drain_s=self.drain_s)
            searched = SearchDeaths(self.artifacts.folder, key).any_more
            return launcher.launch(context, self._arguments(uri), searched=searched)
        self._require_shared_store(cluster)
        uri = write_job(self.artifacts.folder, job, requests, shards=target.pods)
        shards = read_job(self.artifacts.folder, uri).shards
        work = Work(
            key=key,
            store=self.artifacts.url,
            workload=context.partition_key if context.has_partition_key else "",
            arguments=self._arguments(uri),
            pods=min(target.pods, len(shards)),
            gpus=0 if isinstance(target, NanoTarget) else target.tensor_parallel,
            drain_s=self.drain_s,
        )
        return together(self._launched(context, KubernetesLauncher(cluster), work, job_uri=uri), pods=work.pods)

    def _launched(
        self, context: dg.AssetExecutionContext, launcher: KubernetesLauncher, work: Work, *, job_uri: str
    ) -> list[dict[str, Any]]:
        """Run the Job, and another one while pods die in search of a request that kills them.

        Raises:
            UnavailableService: a Job failed for another reason, or the last of JOBS for any.
        """
        search = SearchDeaths(self.artifacts.folder, work.key)
        for _ in range(JOBS - 1):
            try:
                return launcher.launch(context, work, job_uri=job_uri)
            except UnavailableService as error:
                if not search.any_more():
                    raise
                context.log.warning("%s; its pods were in search of a request that kills them, which goes on", error)
        return launcher.launch(context, work, job_uri=job_uri)

    def _arguments(self, job: str) -> list[str]:
        options = ["--store", self.artifacts.url, "--storage-options", json.dumps(self.artifacts.storage_options)]
        return [*options, "--job", job, "--drain-s", f"{self.drain_s:g}"]

    def _python_for(self, settings: EngineSettings) -> str:
        python = self.worker_python if isinstance(settings, VllmSettings) else sys.executable
        if not python:
            message = (
                "engine: vllm-job needs an environment with vLLM; set ANVEN_WORKER_PYTHON to its python, in which "
                f"{', '.join(PACKAGES)} can be imported, or ANVEN_GPU_JOB to the settings of a cluster "
                "(docs/batch-inference.md)"
            )
            raise InvalidInput(message)
        return python

    def _gpu_job_settings(self) -> GpuJobSettings:
        """Read the deployment's settings.

        Raises:
            UnreadableSource: the file cannot be read.
            InvalidInput: it holds something else.
        """
        try:
            text = Path(self.gpu_job).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            message = f"ANVEN_GPU_JOB names {self.gpu_job}, which cannot be read: {error}"
            raise UnreadableSource(message) from error
        found = read_section(text, GpuJobSettings, needed="a mapping with `image` is needed")
        if isinstance(found, tuple):
            problems = "\n".join(f"{self.gpu_job}: {problem}" for problem in found)
            message = f"{problems}\n(k8s/gpu-job.yaml is an example with every field)"
            raise InvalidInput(message)
        return found

    def _require_shared_store(self, settings: GpuJobSettings) -> None:
        """Refuse a store that the pods would not see.

        Raises:
            InvalidInput: it is a folder of this machine that no volume brings into the pods.
        """
        local = self.artifacts.folder.local_path(".")
        mounted = [Path(each.get("mountPath", "/dev/null")) for each in settings.volume_mounts]
        if local is not None and not any(local.resolve().is_relative_to(place) for place in mounted):
            message = (
                f"the artifact store is {self.artifacts.url}, a folder of this machine, and the pods of {self.gpu_job} "
                "do not see it; use an object store (ANVEN_ARTIFACTS_URL), or mount the folder under its own path with "
                "`volumes` and `volume_mounts`"
            )
            raise InvalidInput(message)

    def _log_of(self, job: str) -> Path:
        """Return where the worker's own output goes: beside the job, where that is a folder of this machine."""
        return self.artifacts.folder.local_path(f"{job}.log") or Path(gettempdir()) / f"{Path(job).name}.log"


def together(figures: Sequence[Mapping[str, Any]], *, pods: int) -> Mapping[str, Any]:
    """Add up what several workers did; percentiles cannot be added, and stay with each.

    No sum is made where some did not tell, as the output of a lost node is gone, or told twice (a Job was made again).
    """
    if pods == 1 and figures:
        return figures[-1]
    if len(figures) != pods:
        told = f"{len(figures)} times by {pods} pods"
        return {"told": told, "pods": list(figures)} if figures else {}
    sums = {name: sum(each[name] for each in figures) for name in ("rows", "answered", "failed", "tokens")}
    return {**sums, "seconds": max(each["seconds"] for each in figures), "pods": list(figures)}


def _tell(context: dg.AssetExecutionContext, progress: Progress) -> None:
    context.log.info("%s", progress)


def weights_of(target: JobTarget) -> Weights:
    """Look at a model where it lies; of an object store only a listing and config.json are read.

    Raises:
        InvalidInput: there is no such model, or not all of it.
        UnavailableService: its store does not answer.
    """
    return Weights.of(source_of(target.weights, target.revision, hub=ModelCaches.of(os.environ).hub))


def settings_of(
    target: BatchTarget,
    *,
    elsewhere: bool,
    environment: Mapping[str, str],
    warn: Callable[[str], object] = lambda _: None,
) -> EngineSettings:
    """Return what the worker is told about the model.

    Args:
        target: The model.
        elsewhere: The worker runs on another machine, where a local path may name what is not here; it looks itself.
        environment: The worker's, as far as it is declared.
        warn: Is told what may turn out to be refused.

    Raises:
        InvalidInput: there is no such model, the files of a shipped one are not installed, it does not fit the
            declared GPU, or vLLM would refuse its settings.
        UnavailableService: the store of the weights does not answer.
    """
    if isinstance(target, NanoTarget):
        model_folder(target.model)
        return EmbeddedSettings(name=target.model, weights=weights_digest(target.model))
    if elsewhere and is_on_worker(target.weights):
        return VllmSettings(target=target)
    weights = weights_of(target)
    if doubt := refused_by_vllm(target, weights, environment=environment):
        warn(doubt)
    if target.gpu_memory_gib is not None:
        fit = fit_of(
            weights.shape(),
            gpu_gib=target.gpu_memory_gib,
            gpus=target.tensor_parallel,
            fraction=target.kv_cache_fraction,
            precision=target.precision,
            max_model_len=target.max_model_len,
        )
        require_fit(fit, model=target.model)
    return VllmSettings(target=target)
