"""What the proxy's log may hold: no text of a request or an answer, and not more than its bound.

LiteLLM 1.106.2 logs an upstream's error body, which may quote the request, and the whole of a request that both arms
failed. So of its records only the place, the class of the error and its status are kept.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES: Final = 16 * 2**20
"""Size above which the log is moved to `proxy.log.1`; the two together hold at most twice as much."""

_LOOK_S: Final = 5.0
_FRAMES: Final = 4
_OWN: Final = "anven."
_PLAIN: Final = (
    "uvicorn",  # its lines are path and status, and how it starts and ends
    "opentelemetry.exporter",  # why a receiver took no spans, in which no text of a request stands
)

_log = logging.getLogger("anven.gateway")


def keep_text_out() -> None:
    """Take the text out of all records that are logged from here on, but for lines that quote no request."""
    make = logging.getLogRecordFactory()

    def without_text(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401 - logging's own signature
        return _without_text(make(*args, **kwargs))

    logging.setLogRecordFactory(without_text)


def _without_text(record: logging.LogRecord) -> logging.LogRecord:
    found = record.exc_info[1] if record.exc_info else None
    if found is None and isinstance(record.args, tuple):
        found = next((each for each in record.args if isinstance(each, BaseException)), None)
    is_kept = record.name.startswith((_OWN, *_PLAIN))
    if is_kept and found is None:
        return record
    said = record.getMessage() if record.name.startswith(_OWN) else "its text may quote a request and is not written"
    record.msg = f"{said}{_place_of(found)}"
    record.args, record.exc_info, record.exc_text = None, None, None
    return record


def _place_of(error: BaseException | None) -> str:
    """Return the class of an error, its status and where it was raised, innermost first; never its message."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = ", ".join(f"{each.filename}:{each.lineno}" for each in reversed(frames))
    return f"; {type(error).__name__} {getattr(error, 'status_code', '')} at {places or 'no place that is known'}"


def keep_small(path: Path) -> None:
    """Look after the size of a log in a thread of its own; whoever writes it must append."""

    def run() -> None:
        while True:
            time.sleep(_LOOK_S)
            try:
                turn(path, most_bytes=MOST_BYTES)
            except OSError as error:
                _log.warning("%s cannot be kept small: %s", path, error.strerror)

    threading.Thread(target=run, name="anven-proxy-log", daemon=True).start()


def turn(path: Path, *, most_bytes: int) -> None:
    """Move a log's content to `<name>.1` where it is too large, in place of what was there.

    Lines that are written between the copy and the cut are lost: a writer's file cannot be renamed under it.

    Raises:
        OSError: it cannot be copied or cut.
    """
    if path.stat().st_size <= most_bytes:
        return
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    with path.open("r+b") as file:
        file.truncate(0)
