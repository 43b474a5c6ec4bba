"""Tells the gateway up to which byte its segments were ingested, so that it may remove them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from anven_pipelines.gateway.segments import ingested_bytes, mark_of, segments_in, stem_of
from anven_pipelines.resources.durable_folder import flush_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def mark_ingested(log: Path, cursor: Mapping[str, int]) -> str | None:
    """Mark the segments of a log; return why that could not be done, None where it was.

    What was read is kept by then: a folder that takes no marks makes the log fill up, and the evidence no worse.

    Args:
        log: The gateway's event log.
        cursor: Segment to the byte up to which it is kept.
    """
    try:
        for path in segments_in(log):
            read = cursor.get(stem_of(path), 0)
            if read != ingested_bytes(path):
                _write(mark_of(path), read)
        flush_folder(log)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return (
            f"the gateway's log {log} takes no marks of what was read ({reason}): let the controller write there, or "
            "the log fills up and new events are dropped"
        )
    return None


def _write(mark: Path, read: int) -> None:
    temporary = mark.with_name(f".{mark.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(str(read))
        temporary.replace(mark)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
