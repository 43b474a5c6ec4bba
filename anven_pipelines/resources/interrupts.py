"""Signals that reach asynchronous work between two of its steps, never within one."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


@dataclass
class Interrupts:
    """Signals that came while the work ran; the first cancels the task that runs it."""

    received: list[int] = field(default_factory=list)
    _cancel: Callable[[], object] | None = None
    _first: asyncio.Task[None] | None = None  # kept, or it might be collected before it ends

    def cancel(
        self,
        task: asyncio.Task[Any] | None,
        *,
        after_s: float,
        first: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Cancel the task so long after the first signal, also after one that came before; a second one is at once.

        Args:
            task: Is cancelled.
            after_s: Seconds until then.
            first: Done at the first signal.
        """
        loop = asyncio.get_running_loop()

        def begin() -> None:
            self._first = loop.create_task(first()) if first else None

        def cancel() -> None:
            if task is not None and not loop.is_closed():
                wait_s = after_s if len(self.received) < 2 else 0.0  # noqa: PLR2004 - the second signal
                if len(self.received) == 1:
                    loop.call_soon_threadsafe(begin)
                # Between two steps of the loop, never within one.
                loop.call_soon_threadsafe(lambda: loop.call_later(wait_s, task.cancel))

        self._cancel = cancel
        if self.received:
            cancel()

    def receive(self, number: int, _: object) -> None:
        """Note a signal and cancel the task."""
        self.received.append(number)
        if self._cancel:
            self._cancel()


@contextmanager
def interrupts_deferred() -> Iterator[Interrupts]:
    """Hold SIGINT and SIGTERM back until the work has stopped, then hand them to whoever handled them before.

    A handler that raises, as Dagster's does, would otherwise raise in the middle of some coroutine. Outside of the
    main thread no signal arrives and nothing is changed.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = (number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN)
    previous = {number: signal.signal(number, interrupts.receive) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        if interrupts.received:
            signal.raise_signal(interrupts.received[0])
