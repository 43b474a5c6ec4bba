"""One worker's run: what of its shards has no durable answer yet is asked, and every answer is durable once.

What a killed worker had in flight is asked again by the next one. Answers are kept under the job's work key in parts
named by their content, so workers can share a job, and a job that is started twice costs time but no answer.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from anven_pipelines.domain.errors import CorruptArtifact, MissingInput
from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.resources.answer_batch import AnswerBatch
from anven_pipelines.resources.checkpoint import checkpoint, parquet_of
from anven_pipelines.worker.alone import alone
from anven_pipelines.worker.asking import AskingJournal
from anven_pipelines.worker.engines import LocalModel
from anven_pipelines.worker.job import EndpointSettings, Job, Shard, from_frame, packed, to_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.resources.answer_batch import Progress
    from anven_pipelines.resources.checkpoint import Checkpoint
    from anven_pipelines.resources.durable_folder import DurableFolder
    from anven_pipelines.spec_target import EndpointTarget
    from anven_pipelines.worker.weight_sources import ModelCaches

SHARD_ROWS: Final = 2_000
_FOLDER: Final = "jobs"


@dataclass(frozen=True)
class Watch:
    """What a run tells, and how it ends early.

    Attributes:
        report: Is told how far the batch is, at most once a second.
        say: Is told what a person should know.
        drain_s: Seconds that answers in flight get after SIGTERM or SIGINT.
    """

    report: Callable[[Progress], None]
    say: Callable[[str], None]
    drain_s: float = 0.0


def write_job(folder: DurableFolder, job: Job, requests: Sequence[CompletionRequest], *, shards: int = 1) -> str:
    """Write a job with its requests and return its URI; writing the same one again changes nothing.

    Args:
        folder: The artifact store's folder.
        job: What to do; its shards are filled in.
        requests: The whole batch.
        shards: Into how many equal shares the batch will be cut; each is one shard, or as many as the others.
    """
    ordered = packed(requests)
    each = -(-len(ordered) // (shards * SHARD_ROWS))  # shards of one share
    rows = max(1, -(-len(ordered) // max(1, shards * each)))
    written = [_write_shard(folder, to_frame(ordered[start : start + rows])) for start in range(0, len(ordered), rows)]
    data = job.model_copy(update={"shards": written}).model_dump_json(indent=2).encode()
    uri = f"{_FOLDER}/{hashlib.sha256(data).hexdigest()}.json"
    folder.write(uri, data)
    return uri


def read_job(folder: DurableFolder, uri: str) -> Job:
    """Read a job.

    Raises:
        MissingInput: there is none.
        CorruptArtifact: its bytes are not those that were written.
    """
    return Job.model_validate_json(_read(folder, uri, sha256=uri.rsplit("/", 1)[-1].removesuffix(".json")))


def generate(
    folder: DurableFolder, job: Job, shards: Sequence[Shard], watch: Watch, *, caches: ModelCaches
) -> pl.DataFrame:
    """Answer what the shards ask and return ANSWERS, one row per request.

    Args:
        folder: The artifact store's folder.
        job: What to do.
        shards: Which of its shards are ours.
        watch: Is told how far it is.
        caches: Where models are on this machine.

    Raises:
        InvalidInput: an endpoint refuses what it is asked, or there is no such model.
        UnavailableService: the engine or a store does not work, or the model finds no room.
        MissingInput, CorruptArtifact: a shard is gone or changed, or the weights are not the declared ones.
    """
    requests = packed([request for shard in shards for request in _requests(folder, shard)])
    if not requests:  # an index without a share needs no engine
        return ANSWERS.empty()
    with _alone(folder, job, shards, watch):
        kept = checkpoint(folder, job.key, ANSWERS)
        if isinstance(job.settings, EndpointSettings):
            return _asked_of_endpoint(kept, job.settings.target, requests, watch)
        model, names = LocalModel(job.settings), [request.item_id for request in requests]
        journal = AskingJournal(folder, job.key, mine=names, block=job.concurrency, say=watch.say)
        batch = AnswerBatch(
            requests=requests,
            ask=journal.judging(model.ask, prove_alive=model.prove_alive),
            concurrency=job.concurrency,
            connected=model.connected,
            endpoint=f"the engine {job.settings.engine} with {job.settings.name}",
            checkpoint=kept,
            report=watch.report,
            drain_s=watch.drain_s,
            journal=journal,
        )
        if batch.is_open():
            model.fetch(caches, watch.say)  # here, where a signal ends it: nothing is in flight yet
            watch.say(f"loading the model {job.settings.name}")
        return batch.run()


def summary(answers: pl.DataFrame, progress: Progress | None) -> dict[str, Any]:
    """Return what a run came to, in figures that JSON can hold."""
    answered = answers.filter(pl.col("status") == "answered")
    seconds = progress.elapsed_s if progress else 0.0
    tokens = progress.tokens if progress else 0
    return {
        "rows": answers.height,
        "answered": answered.height,
        "failed": answers.height - answered.height,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else None,
        "ttft_p50_ms": answered["ttft_ms"].quantile(0.5),
        "ttft_p95_ms": answered["ttft_ms"].quantile(0.95),
        "latency_p95_ms": answered["latency_ms"].quantile(0.95),
    }


def _asked_of_endpoint(
    kept: Checkpoint, target: EndpointTarget, requests: Sequence[CompletionRequest], watch: Watch
) -> pl.DataFrame:
    from anven_pipelines.resources.endpoint import ask_endpoint  # noqa: PLC0415 - loads LiteLLM

    return ask_endpoint(
        target, requests, checkpoint=kept, progress=watch.report, environ=os.environ, drain_s=watch.drain_s
    )


@contextmanager
def _alone(folder: DurableFolder, job: Job, shards: Sequence[Shard], watch: Watch) -> Iterator[None]:
    """Wait until no other worker of this machine is at the same share of the work, as both would ask the same.

    An object store has no such lock: there a Kubernetes Job of a fixed name keeps a second one away.
    """
    share = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
    path = folder.local_path(f"{_FOLDER}/{job.key}-{share}.lock")
    if path is None:
        yield
        return
    with alone(path, waiting=lambda: watch.say("another worker is at this work; waiting for it to end")):
        yield


def _write_shard(folder: DurableFolder, rows: pl.DataFrame) -> Shard:
    data = parquet_of(rows)
    digest = hashlib.sha256(data).hexdigest()
    uri = f"{_FOLDER}/{digest}.parquet"
    folder.write(uri, data)
    return Shard(uri=uri, sha256=digest, rows=rows.height)


def _requests(folder: DurableFolder, shard: Shard) -> list[CompletionRequest]:
    return from_frame(pl.read_parquet(BytesIO(_read(folder, shard.uri, sha256=shard.sha256))))


def _read(folder: DurableFolder, uri: str, *, sha256: str) -> bytes:
    data = folder.read(uri)
    if data is None:
        message = f"{folder.location(uri)} is missing; run the step again, which writes it"
        raise MissingInput(message)
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        message = f"{folder.location(uri)} has the digest {found}; run the step again, which writes it afresh"
        raise CorruptArtifact(message)
    return data
