"""Time and chance of whoever asks an endpoint, and when a request left."""

from __future__ import annotations

import asyncio
import random
import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True)
class Pace:
    """Time and chance, so that a test needs neither."""

    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    jitter: Callable[[], float] = random.random


@dataclass
class Departure:
    """When a request left this process, on the clock of the endpoint's pace; None while it has not."""

    at: float | None = None


DEPARTURE: Final[ContextVar[Departure]] = ContextVar("departure")
"""Set by whoever wants to know when the request of the current task leaves."""
