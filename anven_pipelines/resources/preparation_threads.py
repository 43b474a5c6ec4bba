"""The threads in which LiteLLM prepares its requests; what nobody fetches from them is ended here."""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

_SWEPT_AT: Final = 256


class PreparationThreads(ThreadPoolExecutor):
    """A loop's default executor for as long as LiteLLM is asked within it.

    `litellm.acompletion` runs `completion` in the loop's default executor, which gives it a coroutine to await. Of a
    request that is cut off meanwhile the thread goes on, and the coroutine is left to nobody, in a cycle: Python warns
    of it ("was never awaited") whenever its collector comes by. Shut down, as `asyncio.run` does with a loop's default
    executor (https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.loop.shutdown_default_executor), this
    one closes those that were never started.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="litellm")
        self._made: set[Coroutine[Any, Any, Any]] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - as its base
        """Run `fn` in a thread, and remember the coroutine that it returns until somebody has started it."""
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._remember)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as its base
        """Let the threads end; with `wait`, close what none of their callers has awaited."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            with self._lock:
                for coroutine in self._never_started():
                    coroutine.close()
                self._made.clear()

    def _remember(self, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None or not inspect.iscoroutine(made := future.result()):
            return
        with self._lock:
            self._made.add(made)
            if len(self._made) >= _SWEPT_AT:
                self._made = self._never_started()

    def _never_started(self) -> set[Coroutine[Any, Any, Any]]:
        return {made for made in self._made if inspect.getcoroutinestate(made) == inspect.CORO_CREATED}
