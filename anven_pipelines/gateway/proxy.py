"""LiteLLM's own program, with an end that leaves the plugin time to write what it holds.

On SIGTERM uvicorn serves what is in flight, restores the handler that stood before its own and raises the signal again.
By default that ends the process on the spot, without a word to `atexit`. So a handler stands before uvicorn's.
The process still ends by the signal, and does not wait for threads that LiteLLM may have left behind.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_closing: list[Callable[[], None]] = []


def close_at_end(close: Callable[[], None]) -> None:
    """Have something called when SIGTERM ends this program, once no request is in flight."""
    _closing.append(close)


def main() -> None:
    """Run LiteLLM's proxy with this process's arguments."""
    signal.signal(signal.SIGTERM, _end)
    from litellm import run_server  # noqa: PLC0415 - seconds in which SIGTERM would find no handler

    sys.exit(run_server())


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    try:
        for close in _closing:
            close()
    finally:
        signal.raise_signal(number)
