"""A source made of bytes, read to its end."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import fsspec
import polars as pl
import pytest

from anven_pipelines.domain.request_log import REJECTED_LINES, REQUEST_LOG, LineCount, log_day
from anven_pipelines.ingest.readers import LogBatch, read_logs
from anven_pipelines.ingest.sources import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def read() -> Callable[..., LogBatch]:
    """Read bytes, or several named files, as one source; give back one batch with everything in it."""

    def read_all(content: bytes | dict[str, bytes], log_format: Any = "canonical", **options: Any) -> LogBatch:
        folder = f"memory://{uuid.uuid4()}"
        named = content if isinstance(content, dict) else {"log.jsonl": content}
        system = fsspec.filesystem("memory")
        for name, data in named.items():
            system.pipe(f"{folder}/{name}", data)
        files = [LogFile(f"{folder}/{name}", name, log_day(name)) for name in sorted(named)]
        batches = list(read_logs(files, log_format=log_format, **options))
        system.rm(folder, recursive=True)
        if not batches:
            return LogBatch(REQUEST_LOG.empty(), REJECTED_LINES.empty(), LineCount())
        rows, rejected, counts = zip(*batches, strict=True)
        return LogBatch(pl.concat(rows), pl.concat(rejected), sum(counts, LineCount()))

    return read_all
