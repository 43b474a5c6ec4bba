"""Garbage collections at a safe place.

Before Python 3.12 a collection inside `ContextVar.set` can free what it reads (cpython#148891), and the coroutines that
LiteLLM leaves to the collector reset such a variable: about one proxy in 23 crashed among its first requests. So the
automatic collections are off (`PYTHON_GC_THRESHOLD=0,0,0`), and a thread collects instead: it runs between two
byte codes of the others, never inside the call. What stands after the start is frozen, so a collection looks at what
came since. It waits for a moment without a request, as long as one comes: a collection holds up whatever is in flight,
by some ten milliseconds where streams have left a second's worth behind.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S: Final = 0.05
EARLIEST_S: Final = 0.5
LATEST_S: Final = 3.0
FULL_EVERY: Final = 60
_SETTLED_S: Final = 5.0


def collect_aside(is_idle: Callable[[], bool]) -> None:
    """Collect in a thread of its own where the automatic collections are off; else do nothing.

    Args:
        is_idle: Whether no request is in flight.
    """
    if gc.get_threshold()[0] == 0:
        threading.Thread(target=_collect, args=(is_idle,), name="anven-collection", daemon=True).start()


def _collect(is_idle: Callable[[], bool]) -> None:
    time.sleep(_SETTLED_S)
    gc.collect()
    gc.freeze()
    while True:
        for _ in range(FULL_EVERY):
            _await_idleness(is_idle)
            gc.collect(1)
        _await_idleness(is_idle)
        gc.collect()


def _await_idleness(is_idle: Callable[[], bool]) -> None:
    time.sleep(EARLIEST_S)
    latest = time.monotonic() + LATEST_S - EARLIEST_S
    while not is_idle() and time.monotonic() < latest:
        time.sleep(LOOK_S)
