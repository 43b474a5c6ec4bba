"""Garbage collections at a safe place.

Before Python 3.12 a collection inside `ContextVar.set` can free what it reads (cpython#148891), and the coroutines that
LiteLLM leaves to the collector reset such a variable: about one proxy in 23 crashed among its first requests. So the
automatic collections are off (`PYTHON_GC_THRESHOLD=0,0,0`), and a thread collects instead: it runs between two
byte codes of the others, never inside the call. What stands after the start is frozen, so a collection looks at what
came since.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Final

YOUNG_S: Final = 1.0
FULL_EVERY: Final = 60
_SETTLED_S: Final = 5.0


def collect_aside() -> None:
    """Collect in a thread of its own where the automatic collections are off; else do nothing."""
    if gc.get_threshold()[0] == 0:
        threading.Thread(target=_collect, name="anven-collection", daemon=True).start()


def _collect() -> None:
    time.sleep(_SETTLED_S)
    gc.collect()
    gc.freeze()
    while True:
        for _ in range(FULL_EVERY):
            time.sleep(YOUNG_S)
            gc.collect(1)
        gc.collect()
