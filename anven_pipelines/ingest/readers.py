"""Log files of a declared format, read as batches of the canonical request table.

Nothing is lost: every line that is read becomes (part of) a row, is quarantined with its reason and bytes, or is
counted as an exact duplicate. One bad line never takes its file down.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.request_log import REQUEST_LOG, LineCount
from anven_pipelines.ingest.canonical import read_canonical
from anven_pipelines.ingest.fields import open_engine
from anven_pipelines.ingest.lines import MAX_LINE_BYTES, in_batches, read_elements, read_lines
from anven_pipelines.ingest.litellm import read_litellm
from anven_pipelines.ingest.openai import read_openai
from anven_pipelines.ingest.openai_batch import hold, read_pairs
from anven_pipelines.ingest.screen import screen
from anven_pipelines.ingest.zeroeval import read_zeroeval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

    from anven_pipelines.ingest.lines import RawBatch
    from anven_pipelines.ingest.sources import LogFile
    from anven_pipelines.spec_values import LogFormat

_READERS: Final = {
    "canonical": read_canonical,
    "litellm": read_litellm,
    "openai": read_openai,
    "zeroeval": read_zeroeval,
}


class LogBatch(NamedTuple):
    """Some of a source's lines and what became of them.

    Attributes:
        rows: REQUEST_LOG, in the order of files and lines.
        rejected: REJECTED_LINES, in the order of files and lines.
        count: Lines of this batch; over all batches of a call the counts add up to the source.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    count: LineCount  # type: ignore[assignment]  # a tuple's own `count` is of no use here


def read_logs(
    files: Sequence[LogFile],
    *,
    log_format: LogFormat,
    batch_lines: int = 50_000,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[LogBatch]:
    """Read log files, at most `batch_lines` lines at once.

    Memory is bounded by a batch (and 100 bytes a line to know duplicates by), but for `openai-batch`, which holds
    all lines until they are paired, and `zeroeval`, which holds one file.

    Args:
        files: From `list_files`; each duplicate is one of a line in any of them.
        log_format: Layout of the lines.
        batch_lines: Lines in a batch, at most.
        max_line_bytes: Longer lines are rejected.

    Raises:
        UnreadableSource: a file cannot be opened, or is not of a kind that holds lines; raised when it is reached.
    """
    read = read_elements if log_format == "zeroeval" else read_lines
    lines = itertools.chain.from_iterable(read(file, max_line_bytes=max_line_bytes) for file in files)
    batches = in_batches(lines, batch_lines=batch_lines)
    with open_engine() as connection:
        if log_format == "openai-batch":
            yield from _paired(connection, batches, batch_lines=batch_lines)
        else:
            for batch in batches:
                screened = screen(connection, batch.lines)
                parsed = _READERS[log_format](connection, screened.lines)
                rejected = _quarantine(batch.rejected, screened.rejected, parsed.rejected)
                count = LineCount(batch.read, parsed.rows.height, rejected.height, batch.duplicates)
                yield LogBatch(parsed.rows, rejected, count)


def _paired(
    connection: duckdb.DuckDBPyConnection, batches: Iterator[RawBatch], *, batch_lines: int
) -> Iterator[LogBatch]:
    """Yield what cannot be read at once, and the rows when all lines are there to be paired."""
    for batch in batches:
        screened = screen(connection, batch.lines)
        hold(connection, screened.lines)
        rejected = _quarantine(batch.rejected, screened.rejected)
        count = LineCount(batch.read - screened.lines.height, 0, rejected.height, batch.duplicates)
        if count.read:
            yield LogBatch(REQUEST_LOG.empty(), rejected, count)
    for paired in read_pairs(connection, batch_lines=batch_lines):
        rejected = _quarantine(paired.parsed.rejected)
        yield LogBatch(paired.parsed.rows, rejected, LineCount(paired.read, paired.accepted, rejected.height))


def _quarantine(*rejected: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(rejected).sort("source_file", "source_line")
