"""Jobs over the shipped anven-nano, and its worker as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.inference import ANSWERS, CompletionRequest
from anven_pipelines.nano.models import model_folder, weights_digest
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.resources.checkpoint import checkpoint
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.worker.generate import write_job
from anven_pipelines.worker.job import EmbeddedSettings, Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from anven_pipelines.worker.job import EngineSettings

REPOSITORY: Final = Path(__file__).parents[1]
KEY: Final = "work"
NANO: Final = EmbeddedSettings(
    name="anven-nano", folder=str(model_folder("anven-nano")), weights=weights_digest("anven-nano")
)


def questions(count: int) -> list[CompletionRequest]:
    """Return so many questions of the golden split, to be answered greedily."""
    return [
        CompletionRequest(f"item-{at:05d}", [dict(each) for each in anven_messages(item)], {"temperature": 0})
        for at, item in enumerate(generate("golden", count, seed=11))
    ]


def written(
    store: Path, requests: Sequence[CompletionRequest], *, settings: EngineSettings = NANO, shards: int = 1
) -> str:
    """Write a job and return its URI."""
    job = Job(key=KEY, shards=[], settings=settings, concurrency=32)
    return write_job(DurableFolder(str(store), {}), job, requests, shards=shards)


def command(store: Path, job: str, *options: str, python: str = sys.executable) -> list[str]:
    """Return the worker's command line."""
    return [python, "-m", "anven_pipelines.worker", "--store", str(store), "--job", job, *options]


def worked(store: Path, job: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the worker to its end."""
    return subprocess.run(
        command(store, job, *options), cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200, **more
    )


def kept(store: Path) -> pl.DataFrame:
    """Return every row that is durable."""
    return checkpoint(DurableFolder(str(store), {}), KEY, ANSWERS).load()
