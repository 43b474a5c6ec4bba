"""Reads the gateway's event log incrementally: each whole line that lies behind the cursor of the last look."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import GATEWAY_EVENTS, GatewayEvent, parse_event
from anven_pipelines.domain.gateway_text import GATEWAY_TEXTS, GatewayText, parse_text
from anven_pipelines.gateway.segments import segments_in, stem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anven_pipelines.domain.table import Table

_READ_BYTES: Final = 64 * 2**20  # of one segment at once
_OF_BREAKER: Final = b'"breaker"'


class Stream(NamedTuple):
    """A kind of lines that the gateway writes; each has `event_id`, `worker`, `seq` and `ts`."""

    table: Table
    parse: Callable[[bytes], GatewayEvent | GatewayText]


EVENTS: Final = Stream(GATEWAY_EVENTS, parse_event)
TEXTS: Final = Stream(GATEWAY_TEXTS, parse_text)
"""Redacted texts, in the folder `texts` of the event log; they are ingested into a folder of their own."""


class BadLine(NamedTuple):
    """A whole line that is no event."""

    file: str
    line_at: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """What one look at the log found.

    Attributes:
        events: The stream's table, in the order of the files; an id that stands there twice is kept once.
        cursor: Segment to the byte up to which it is read.
        duplicates: Events that were left out because their id was there before.
        bad_lines: Whole lines that are no event; `line_at` is the byte at which the line starts.
        torn: Segments whose last line has no end, with its bytes; of a live writer it will be read later.
        repeats: Worker and number of each event that was left out: its number is no gap.
    """

    events: pl.DataFrame
    cursor: Mapping[str, int]
    duplicates: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    torn: Mapping[str, int] = field(default_factory=dict)
    repeats: tuple[tuple[str, int], ...] = ()


def read_batch(folder: Path, cursor: Mapping[str, int], stream: Stream = EVENTS) -> Batch:
    """Read the whole lines of all segments that lie behind the cursor.

    Args:
        folder: The gateway's event log.
        cursor: What `Batch.cursor` said last; empty to read everything.
        stream: What the folder holds.
    """
    found: dict[str, GatewayEvent | GatewayText] = {}
    bad: list[BadLine] = []
    torn: dict[str, int] = {}
    repeats: list[tuple[str, int]] = []
    segments = segments_in(folder)
    # A segment that the gateway removed needs no place in the cursor. Were one missed in the moment in which it is
    # renamed, its lines would be read again and left out as duplicates.
    now = {name: cursor[name] for name in map(stem_of, segments) if name in cursor}
    for path in segments:
        name = stem_of(path)
        lines, tail = _whole_lines(path, now.get(name, 0))
        if tail:
            torn[name] = tail
        for start, line in lines:
            try:
                event = stream.parse(line)
            except InvalidInput as error:
                bad.append(BadLine(path.name, start, str(error)))
                continue
            if found.setdefault(event.event_id, event) is not event:
                repeats.append((event.worker, event.seq))
        if lines:
            now[name] = lines[-1][0] + len(lines[-1][1])
    rows = [event.to_row() for event in found.values()]
    return Batch(pl.DataFrame(rows, schema=stream.table.schema), now, len(repeats), tuple(bad), torn, tuple(repeats))


def breaker_events(folder: Path) -> pl.DataFrame:
    """Return the breakers' events that a log still holds, of all segments that can be read.

    The other events, which may be millions, are not parsed.
    """
    found: dict[str, GatewayEvent] = {}
    for path in segments_in(folder):
        lines: list[tuple[int, bytes]] = []
        with suppress(OSError):
            lines, _ = _whole_lines(path, 0)
        for _, line in lines:
            if _OF_BREAKER in line:
                with suppress(InvalidInput):
                    event = parse_event(line)
                    found[event.event_id] = event
    return pl.DataFrame([event.to_row() for event in found.values()], schema=GATEWAY_EVENTS.schema)


def _whole_lines(path: Path, start: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return each whole line behind a byte with where it starts, and the bytes of a tail without an end."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(_READ_BYTES)
            is_all = not file.read(1)
    except FileNotFoundError:  # closed under its final name since it was listed: found there the next time
        return [], 0
    lines: list[tuple[int, bytes]] = []
    end = data.rfind(b"\n") + 1
    for line in data[:end].split(b"\n")[:-1]:  # bytes.splitlines would cut at a carriage return, too
        lines.append((start, line + b"\n"))
        start += len(line) + 1
    return lines, len(data) - end if is_all else 0
