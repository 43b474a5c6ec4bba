from __future__ import annotations

import gzip
import json
import random
from typing import TYPE_CHECKING

import fsspec
import pytest
import zstandard

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.ingest import lines as lines_module
from anven_pipelines.ingest.lines import RAW_KEPT_BYTES, RawLine, in_batches, read_elements, read_lines
from anven_pipelines.ingest.sources import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEMORY = fsspec.filesystem("memory")


def file_of(content: bytes, name: str = "log.jsonl") -> LogFile:
    MEMORY.pipe(f"/lines/{name}", content)
    return LogFile(f"memory://lines/{name}", name, "undated")


def lines_of(content: bytes, **options: int) -> list[RawLine]:
    return list(read_lines(file_of(content), **options))


def sound(content: bytes) -> list[tuple[int, bytes]]:
    found = lines_of(content)
    assert all(line.fault is None for line in found)
    return [(line.source_line, line.raw) for line in found]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\n\xef\xbb\xbfb\n", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
        (b"\n\na\n \t\r\n\nb\n\n", [(3, b"a"), (6, b"b")]),
        ("a\u2028b\x0bc\x85d\n".encode(), [(1, "a\u2028b\x0bc\x85d".encode())]),
        (b"", []),
        (b"\n\n", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_lines_keep_their_numbers_and_lose_their_ends(content: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert sound(content) == expected


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def incompressible_lines(count: int) -> list[bytes]:
    generator = random.Random(7)
    return [generator.randbytes(300).hex().encode() for _ in range(count)]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_the_first_bytes_decide_on_the_compression_and_not_the_name(pack: Callable[[bytes], bytes]) -> None:
    packed = file_of(pack(b"a\nb\n"), "plain-name.jsonl")
    plain = file_of(b"a\nb\n", "not-packed.jsonl.gz")
    assert [line.raw for line in read_lines(packed)] == [line.raw for line in read_lines(plain)] == [b"a", b"b"]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_concatenated_members_are_one_stream(pack: Callable[[bytes], bytes]) -> None:
    assert sound(pack(b"a\nb") + pack(b"c\n") + pack(b"d\n")) == [(1, b"a"), (2, b"bc"), (3, b"d")]


def test_padding_after_a_gzip_member_is_no_content() -> None:
    assert sound(gzip.compress(b"a\n") + bytes(10_000)) == [(1, b"a")]


@pytest.mark.parametrize(("kind", "pack"), PACKERS.items())
def test_a_stream_that_ends_early_keeps_what_came_before(kind: str, pack: Callable[[bytes], bytes]) -> None:
    written = incompressible_lines(2_000)
    packed = pack(b"\n".join(written) + b"\n")
    *kept, tail = lines_of(packed[: len(packed) // 2])
    assert len(kept) > 700
    assert [line.raw for line in kept] == written[: len(kept)]
    assert tail.fault is not None
    assert tail.fault.startswith(f"the {kind} stream ends early")
    assert tail.source_line == len(kept) + 1
    assert written[len(kept)].startswith(tail.raw)


@pytest.mark.parametrize(("kind", "pack"), PACKERS.items())
def test_a_corrupt_stream_keeps_what_came_before(kind: str, pack: Callable[[bytes], bytes]) -> None:
    written = incompressible_lines(2_000)
    packed = bytearray(pack(b"\n".join(written) + b"\n"))
    packed[len(packed) * 3 // 4 :] = random.Random(1).randbytes(len(packed) - len(packed) * 3 // 4)
    *kept, tail = lines_of(bytes(packed))
    assert len(kept) > 700
    assert [line.raw for line in kept][:700] == written[:700]
    assert f"the {kind} stream is corrupt here" in str(tail.fault)


@pytest.mark.parametrize(("kind", "pack"), PACKERS.items())
def test_garbage_after_a_member_is_a_torn_tail(kind: str, pack: Callable[[bytes], bytes]) -> None:
    first, tail = lines_of(pack(b"a\n") + b"garbage")
    assert first.raw == b"a"
    assert f"the {kind} stream is corrupt here" in str(tail.fault)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_of_the_limit_is_read_and_a_longer_one_is_cut(end: bytes) -> None:
    limit = 3 * 2**20
    fits, longer = lines_of(b"x" * limit + b"\r\n" + b"y" * (limit + 1) + end, max_line_bytes=limit)
    assert (len(fits.raw), fits.fault) == (limit, None)
    assert longer.raw == b"y" * RAW_KEPT_BYTES
    assert longer.fault == (
        f"the line has {limit + 1} bytes; at most {limit} are read; "
        f"the first {RAW_KEPT_BYTES} of {limit + 1} bytes are kept"
    )


def test_lines_after_an_oversized_one_are_read() -> None:
    before, big, after = lines_of(b"a\n" + b"x" * 5_000_000 + b"\nb\n", max_line_bytes=1_000_000)
    assert [before.raw, after.raw, after.source_line] == [b"a", b"b", 3]
    assert "5000000 bytes" in str(big.fault)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"PK\x03\x04...", "zip"), (b"PAR1....", "Parquet"), (b"BZh91AY", "bzip2"), ("{}\n".encode("utf-16"), "UTF-16")],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(content: bytes, kind: str) -> None:
    with pytest.raises(UnreadableSource, match=f"log.jsonl: is {kind}; .*convert it"):
        lines_of(content)


def test_a_file_that_cannot_be_opened_is_named_with_its_remedy(tmp_path: Path) -> None:
    gone = LogFile(str(tmp_path / "gone.jsonl"), "logs/gone.jsonl", "undated")
    with pytest.raises(UnreadableSource, match=r"logs/gone\.jsonl: cannot be read .*correct the path") as caught:
        list(read_lines(gone))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"a": 1}, {"b": [2, "]"]}]', [b'{"a": 1}', b'{"b": [2, "]"]}']),
        (b'\xef\xbb\xbf [\n  {"a": 1}\n, 5 ,"x"]\n', [b'{"a": 1}', b"5", b'"x"']),
        (gzip.compress(b'[{"a": 1}]', mtime=0), [b'{"a": 1}']),
        (b'["\xff"]', [b'"\xff"']),
        (b"[]", []),
    ],
)
def test_an_array_is_cut_into_its_elements(content: bytes, expected: list[bytes]) -> None:
    found = list(read_elements(file_of(content)))
    assert [(line.source_line, line.raw, line.fault) for line in found] == [
        (number, raw, None) for number, raw in enumerate(expected, start=1)
    ]


@pytest.mark.parametrize(
    ("content", "kept", "fault"),
    [
        (b'[{"a":1},{"b":', 1, "the JSON array breaks here"),
        (b'[{"a":1} {"b":2}]', 0, "',' or ']' is needed"),
        (b'[{"a":1}', 0, "',' or ']' is needed"),
        (b'[{"a":1},', 1, "the JSON array breaks here"),
        (b'[{"a":1}] {"b":2}', 1, "stands after the end of the JSON array"),
        (b"[" * 100_000, 0, "the JSON array breaks here"),
    ],
)
def test_an_array_that_breaks_keeps_the_elements_before(content: bytes, kept: int, fault: str) -> None:
    *before, last = read_elements(file_of(content))
    assert [line.fault for line in before] == [None] * kept
    assert fault in str(last.fault)


def test_an_array_in_a_torn_stream_keeps_the_elements_before() -> None:
    packed = gzip.compress(json.dumps([line.decode() for line in incompressible_lines(500)]).encode())
    *before, last = read_elements(file_of(packed[: len(packed) // 2]))
    assert len(before) > 200
    assert "the gzip stream ends early" in str(last.fault)


def test_an_oversized_element_is_cut() -> None:
    small, big = read_elements(file_of(b'["a", "' + b"x" * 100_000 + b'"]'), max_line_bytes=99_999)
    assert small.fault is None
    assert len(big.raw) == RAW_KEPT_BYTES
    assert "100002 bytes; at most 99999" in str(big.fault)


@pytest.mark.parametrize("content", [b"", b'{"a": 1}', b"null", b"  "])
def test_a_file_without_an_array_is_refused_as_a_whole(content: bytes) -> None:
    with pytest.raises(UnreadableSource, match="a JSON array of records is needed"):
        list(read_elements(file_of(content)))


def test_batches_close_at_their_number_of_lines() -> None:
    batches = list(in_batches((RawLine("f", n, b"%d" % n) for n in range(1, 26)), batch_lines=10))
    assert [(batch.read, batch.lines.height) for batch in batches] == [(10, 10), (10, 10), (5, 5)]


def test_batches_close_at_their_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BATCH_BYTES", 1_000)
    batches = list(in_batches((RawLine("f", n, b"%0100d" % n) for n in range(25)), batch_lines=1_000))
    assert [batch.read for batch in batches] == [10, 10, 5]


def test_a_line_that_came_before_is_counted_and_left_out_across_files_and_batches() -> None:
    lines = [RawLine("f", 1, b"a"), RawLine("f", 2, b"b"), RawLine("f", 3, b"a"), RawLine("g", 1, b"b")]
    batches = list(in_batches(lines, batch_lines=2))
    assert [(batch.read, batch.lines.height, batch.duplicates) for batch in batches] == [(2, 2, 0), (2, 0, 2)]


def test_the_cut_bytes_of_a_faulty_line_make_no_duplicate() -> None:
    lines = [RawLine("f", 1, b"a", "cut"), RawLine("f", 2, b"a", "cut"), RawLine("f", 3, b"a")]
    (batch,) = in_batches(lines, batch_lines=10)
    assert (batch.lines.height, batch.rejected.height, batch.duplicates) == (1, 2, 0)
