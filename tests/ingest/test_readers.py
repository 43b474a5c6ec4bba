from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.domain.canonical import digest_of_rows
from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.request_log import REJECTED_LINES, REQUEST_LOG, LineCount
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import LogFile, list_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anven_pipelines.ingest.readers import LogBatch

GOOD = st.integers(0, 40).map(lambda n: json.dumps({"request_id": str(n), "prompt": f"Question {n}"}).encode())
NO_NEWLINE = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" ").replace(b"\r", b" "))
BAD = st.sampled_from([b"{", b"[]", b"{}", b'{"prompt": 7}', b'{"prompt": NaN}', b"\xff", b"\0", b'"\\ud800"'])
BLANK = st.sampled_from([b"", b" ", b"\t\t"])
# Begun with a line of the format: a file that begins as UTF-16 or a zip does is refused whole, which is another test's.
FILE = st.builds(lambda first, rest: [first, *rest], GOOD, st.lists(GOOD | BAD | BLANK | NO_NEWLINE, max_size=40))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(FILE, min_size=1, max_size=3),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 50),
)
def test_no_line_is_lost_whatever_the_mixture(
    read: Callable[..., LogBatch], files: list[list[bytes]], end: bytes, packed: bool, batch_lines: int
) -> None:
    content = {f"{number}.jsonl": b"".join(line + end for line in lines) for number, lines in enumerate(files)}
    stored = {name: gzip.compress(data) if packed else data for name, data in content.items()}
    batch = read(stored, "canonical", batch_lines=batch_lines)
    written = [line for lines in files for line in lines if line.strip()]
    assert batch.count.read == len(written)
    assert batch.count.duplicates == len(written) - len(set(written))
    assert (batch.count.accepted, batch.count.rejected) == (batch.rows.height, batch.rejected.height)
    for name, number, raw in batch.rejected.select("source_file", "source_line", "raw").iter_rows():
        assert files[int(name.removesuffix(".jsonl"))][number - 1] == raw


@pytest.fixture(scope="module")
def long_log() -> tuple[LogFile, int]:
    """200,000 lines, every tenth a duplicate and every thousandth broken."""
    records = ({"request_id": str(n), "prompt": f"Question {n % 99}", "output": "Yes."} for n in range(200_000))
    lines = [json.dumps(record) for record in records]
    lines[9::10] = [lines[0]] * 20_000
    lines[500::1000] = [f"{{{n}" for n in range(200)]
    fsspec.filesystem("memory").pipe("/long/log.jsonl.gz", gzip.compress("\n".join(lines).encode(), 1))
    return LogFile("memory://long/log.jsonl.gz", "log.jsonl.gz", "undated"), 200_000


def test_a_long_log_comes_in_batches_of_bounded_size(long_log: tuple[LogFile, int]) -> None:
    file, lines = long_log
    total, batches, peak = LineCount(), 0, 0
    for batch in read_logs([file], log_format="canonical", batch_lines=40_000):
        total += batch.count
        batches += 1
        peak = max(peak, batch.count.read, batch.rows.height + batch.rejected.height)
    assert total == LineCount(lines, 179_800, 200, 20_000)
    assert (batches, peak) == (5, 40_000)


def test_batches_come_while_later_files_are_still_unread(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"prompt": "%d"}\n' % n for n in range(10)))
    files = [*list_files(["a.jsonl"], base=str(tmp_path)), LogFile(str(tmp_path / "gone"), "gone.jsonl", "undated")]
    batches = read_logs(files, log_format="canonical", batch_lines=5)
    assert [next(batches).count.accepted, next(batches).count.accepted] == [5, 5]
    with pytest.raises(UnreadableSource, match=r"gone\.jsonl: cannot be read .*correct the path"):
        next(batches)


def test_batches_carry_the_tables_and_the_order_of_files_and_lines(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(b'{"prompt": "%s 1"}\n\n{\n{"prompt": "%s 2"}\n' % (name.encode(), name.encode()))
    batches = list(read_logs(list_files(["*.jsonl"], base=str(tmp_path)), log_format="canonical", batch_lines=2))
    assert all(batch.rows.schema == REQUEST_LOG.schema for batch in batches)
    assert all(batch.rejected.schema == REJECTED_LINES.schema for batch in batches)
    rows = pl.concat([batch.rows for batch in batches]).select("source_file", "source_line").rows()
    assert rows == [("a.jsonl", 1), ("a.jsonl", 4), ("b.jsonl", 1), ("b.jsonl", 4)]


def test_the_digest_is_the_same_wherever_the_folder_lies_and_however_it_is_batched(tmp_path: Path) -> None:
    digests = set()
    for place, batch_lines in [("here", 1), ("there", 2), ("elsewhere", 100)]:
        (tmp_path / place / "logs").mkdir(parents=True)
        (tmp_path / place / "logs" / "2026-11-20.jsonl").write_bytes(
            b'{"prompt": "1"}\n{"prompt": "2"}\n{"prompt": "3"}\n'
        )
        files = list_files(["logs/*"], base=str(tmp_path / place))
        rows = pl.concat([batch.rows for batch in read_logs(files, log_format="canonical", batch_lines=batch_lines)])
        digests.add(digest_of_rows(rows))
    assert len(digests) == 1


def test_an_oversized_line_and_a_torn_stream_are_quarantined(read: Callable[..., LogBatch]) -> None:
    lines = b'{"prompt": "short"}\n{"prompt": "%s"}\n' % (b"x" * 100_000)
    packed = gzip.compress(lines + b'{"prompt": "last"}\n')
    batch = read(packed[:-9], "canonical", max_line_bytes=50_000)
    assert batch.count.read == batch.count.accepted + 2
    assert [reason.split(";")[0] for reason in batch.rejected.get_column("reason")] == [
        "the line has 100014 bytes",
        "the gzip stream ends early",
    ]


def test_no_files_and_empty_files_give_no_batch(read: Callable[..., LogBatch]) -> None:
    assert list(read_logs([], log_format="canonical")) == []
    assert read({"a": b"", "b": gzip.compress(b""), "c": b"\n\n"}).count == LineCount()
