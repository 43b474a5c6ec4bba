"""From log files to raw lines: decompression, line ends, oversized lines, exact duplicates.

Bytes go in and bytes come out; what a line means is not known here. A line counts when it holds more than
whitespace. Blank lines are no lines, but keep their number, so that line numbers agree with an editor's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import fsspec.core
import polars as pl
import zstandard

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.request_log import REJECTED_LINES
from anven_pipelines.ingest.sources import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from anven_pipelines.ingest.sources import LogFile

MAX_LINE_BYTES: Final = 32 * 2**20  # base64 images make lines of many megabytes; beyond this it is no log line
RAW_KEPT_BYTES: Final = 64 * 2**10  # of an oversized line or a broken tail: enough to recognise it
BATCH_BYTES: Final = 64 * 2**20  # a batch closes here even if it has lines left, so that memory stays bounded

_READ_BYTES: Final = 2**20
_INFLATE_BYTES: Final = 4 * 2**10  # zstd packs up to 64 MiB of zeros into this; a broken piece loses no more than it
_BOM: Final = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class RawLine(NamedTuple):
    """A line as it stands in its file; `fault` says why it cannot be read, if so."""

    source_file: str
    source_line: int
    raw: bytes
    fault: str | None = None


class RawBatch(NamedTuple):
    """Lines to be parsed (source_file, source_line, raw), those already rejected, and how many were left out."""

    lines: pl.DataFrame
    rejected: pl.DataFrame
    read: int
    duplicates: int


class _Decompressor(Protocol):
    """What zlib and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _TornStreamError(Exception):
    """A compressed stream ends early or is corrupt."""


def read_lines(file: LogFile, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawLine]:
    """Yield the lines of a file that are not blank.

    Args:
        file: Plain, gzip or zstd; the first bytes decide, not the name.
        max_line_bytes: A longer line is yielded with a fault and its first RAW_KEPT_BYTES.

    Raises:
        UnreadableSource: the file cannot be opened or read, or is of a kind that holds no lines.
    """
    splitter = _Splitter(file.name, max_line_bytes)
    try:
        for chunk in _content(file):
            yield from splitter.feed(chunk)
    except _TornStreamError as torn:
        yield splitter.torn(str(torn))
    else:
        yield from splitter.feed(b"\n")


def read_elements(file: LogFile, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawLine]:
    """Yield the elements of a file that holds one JSON array, numbered from 1; the file is held in memory.

    Args:
        file: Plain, gzip or zstd.
        max_line_bytes: A longer element is yielded with a fault and its first RAW_KEPT_BYTES.

    Raises:
        UnreadableSource: the file cannot be opened or read, or holds no JSON array.
    """
    chunks: list[bytes] = []
    torn = None
    try:
        chunks.extend(_content(file))  # what came before a tear stays in the list
    except _TornStreamError as error:
        torn = str(error)
    # Bytes that are not UTF-8 pass through as surrogates, so that they condemn their own element only.
    text = b"".join(chunks).removeprefix(_BOM).decode(errors="surrogateescape").strip()
    if not text.startswith("["):
        found = f"begins with {text[:1]!r}" if text else "is empty"
        message = f"{file.name}: {found}; a JSON array of records is needed: correct the format or the file"
        raise UnreadableSource(message)
    for number, (element, fault) in enumerate(_elements(text, torn), start=1):
        raw = element.encode(errors="surrogateescape")
        too_long = _oversized(len(raw), max_line_bytes) if len(raw) > max_line_bytes else None
        reason = fault or too_long
        yield RawLine(file.name, number, raw[:RAW_KEPT_BYTES] if reason else raw, reason)


def in_batches(lines: Iterable[RawLine], *, batch_lines: int) -> Iterator[RawBatch]:
    """Gather lines into batches of at most `batch_lines` lines and about BATCH_BYTES, leaving duplicates out.

    A line is a duplicate when its bytes are those of an earlier line of any file. Digests of 128 bits stand for
    the lines, so that a long source needs 100 bytes a line and not the lines themselves.
    """
    seen: set[bytes] = set()
    kept: list[RawLine] = []
    read = duplicates = size = 0
    for line in lines:  # a loop, because lines arrive one by one from a stream
        digest = b"" if line.fault else hashlib.blake2b(line.raw, digest_size=16).digest()
        read += 1
        if digest in seen:
            duplicates += 1
        else:
            kept.append(line)
            size += len(line.raw)
        if digest:  # a faulty line's bytes were cut, so they say nothing about its likeness
            seen.add(digest)
        if read >= batch_lines or size >= BATCH_BYTES:
            yield _batch(kept, read, duplicates)
            kept, read, duplicates, size = [], 0, 0, 0
    if read:
        yield _batch(kept, read, duplicates)


def _batch(lines: list[RawLine], read: int, duplicates: int) -> RawBatch:
    files, numbers, raws, faults = zip(*lines, strict=True) if lines else ((), (), (), ())
    frame = pl.DataFrame(
        {"source_file": files, "source_line": numbers, "raw": raws, "reason": faults},
        schema={"source_file": pl.String, "source_line": pl.Int64, "raw": pl.Binary, "reason": pl.String},
    )
    sound = pl.col("reason").is_null()
    return RawBatch(frame.filter(sound).drop("reason"), REJECTED_LINES.conform(frame.filter(~sound)), read, duplicates)


@dataclass
class _Splitter:
    """Cuts chunks into lines and never holds more than one line and one chunk."""

    name: str
    max_line_bytes: int
    number: int = 0
    pieces: list[bytes] = field(default_factory=list)
    length: int = 0

    def feed(self, chunk: bytes) -> Iterator[RawLine]:
        """Yield the lines that the chunk completes."""
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            self._hold(end)
            if line := self._take():
                yield line
        self._hold(rest)

    def torn(self, reason: str) -> RawLine:
        """Return the tail that a torn stream leaves behind."""
        self.number += 1
        kept = b"".join(self.pieces)[:RAW_KEPT_BYTES]
        return RawLine(self.name, self.number, kept, f"{reason}; {_cut(len(kept), self.length)}")

    def _hold(self, piece: bytes) -> None:
        self.length += len(piece)
        if self.length <= self.max_line_bytes + 1:  # a carriage return is not counted yet
            self.pieces.append(piece)
        else:
            self.pieces = [b"".join([*self.pieces, piece])[:RAW_KEPT_BYTES]]

    def _take(self) -> RawLine | None:
        raw, length = b"".join(self.pieces), self.length
        self.pieces, self.length = [], 0
        self.number += 1
        if length == len(raw) and raw.endswith(b"\r"):
            raw, length = raw[:-1], length - 1
        if self.number == 1 and raw.startswith(_BOM):
            raw, length = raw.removeprefix(_BOM), length - len(_BOM)
        if length > self.max_line_bytes:
            return RawLine(self.name, self.number, raw[:RAW_KEPT_BYTES], _oversized(length, self.max_line_bytes))
        return RawLine(self.name, self.number, raw) if raw.strip() else None


def _content(file: LogFile) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file."""
    chunks = _chunks(file)
    first = next(chunks, b"")
    for magic, kind in _FOREIGN.items():
        if first.startswith(magic):
            message = f"{file.name}: is {kind}; UTF-8 text is needed, plain or packed with gzip or zstd: convert it"
            raise UnreadableSource(message)
    if first.startswith(b"\x1f\x8b"):
        yield from _inflate(first, chunks, "gzip", lambda: zlib.decompressobj(wbits=31))
    elif first.startswith(b"\x28\xb5\x2f\xfd"):
        yield from _inflate(first, chunks, "zstd", lambda: zstandard.ZstdDecompressor().decompressobj())
    else:
        yield first
        yield from chunks


def _chunks(file: LogFile) -> Iterator[bytes]:
    with reading(file.name, file.url):
        system, path = fsspec.core.url_to_fs(file.url)
        with system.open(path, "rb") as stream:
            while chunk := stream.read(_READ_BYTES):
                yield chunk


def _inflate(first: bytes, rest: Iterator[bytes], kind: str, make: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Decompress one or more concatenated members piece by piece, so that a tear loses one piece at most."""
    member = make()
    for chunk in itertools.chain((first,), rest):
        for start in range(0, len(chunk), _INFLATE_BYTES):
            piece = chunk[start : start + _INFLATE_BYTES]
            while piece:
                if member.eof:
                    if not (piece := piece.lstrip(b"\0")):  # padding after the last member
                        break
                    member = make()
                try:
                    yield member.decompress(piece)
                except (zlib.error, zstandard.ZstdError) as error:
                    message = f"the {kind} stream is corrupt here ({error})"
                    raise _TornStreamError(message) from error
                piece = member.unused_data
    if not member.eof:
        message = f"the {kind} stream ends early"
        raise _TornStreamError(message)


def _elements(text: str, torn: str | None) -> Iterator[tuple[str, str | None]]:
    """Cut a JSON array's text into the text of its elements; what cannot be cut any further is the last one."""
    decoder = json.JSONDecoder()
    at = _skip_space(text, 1)
    while text[at : at + 1] != "]" or torn:
        try:
            end = decoder.raw_decode(text, at)[1]
            after = _skip_space(text, end)
            if text[after : after + 1] not in {",", "]"}:
                needed = "',' or ']' is needed"
                raise json.JSONDecodeError(needed, text, after)
        except (ValueError, RecursionError) as error:
            why = torn or f"the JSON array breaks here ({error})"
            yield text[at:], f"{why}; {_cut(min(len(text) - at, RAW_KEPT_BYTES), len(text) - at)}"
            return
        yield text[at:end], None
        at = _skip_space(text, after + 1) if text[after] == "," else after
    if trailing := text[at + 1 :]:
        yield trailing, "stands after the end of the JSON array; one array and nothing else is needed"


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _oversized(length: int, limit: int) -> str:
    return f"the line has {length} bytes; at most {limit} are read; {_cut(min(length, RAW_KEPT_BYTES), length)}"


def _cut(kept: int, length: int) -> str:
    return f"all {length} bytes of it are kept" if kept == length else f"the first {kept} of {length} bytes are kept"
