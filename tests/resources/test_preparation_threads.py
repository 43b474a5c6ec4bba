"""What a cut-off request leaves behind in the threads is ended, and nothing that is awaited is."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.resources.preparation_threads import PreparationThreads

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Preparation:
    """Prepares in a thread until told, as LiteLLM does, and returns what is to be awaited."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> Coroutine[None, None, str]:
        self.begun.set()
        assert self.may_end.wait(timeout=20)
        return self.answer()

    async def answer(self) -> str:
        return "answered"


async def cut_off_while_prepared(threads: ThreadPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads)
    preparation = Preparation()
    asked = loop.run_in_executor(None, preparation)
    await asyncio.to_thread(preparation.begun.wait)
    asked.cancel()
    preparation.may_end.set()


def warned(threads: ThreadPoolExecutor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(cut_off_while_prepared(threads))
        gc.collect()
    return [str(each.message) for each in caught]


def test_a_request_that_is_cut_off_while_it_is_prepared_leaves_nothing_to_warn_of() -> None:
    assert warned(PreparationThreads()) == []


def test_with_the_loops_own_threads_python_warns() -> None:
    assert warned(ThreadPoolExecutor()) == ["coroutine 'Preparation.answer' was never awaited"]


@pytest.mark.parametrize("count", [3, 2_000])
def test_what_is_awaited_is_answered(count: int) -> None:
    async def ask() -> str:
        preparation = Preparation()
        preparation.may_end.set()
        return await (await asyncio.get_running_loop().run_in_executor(None, preparation))

    async def ask_all() -> list[str]:
        asyncio.get_running_loop().set_default_executor(threads)
        return await asyncio.gather(*(ask() for _ in range(count)))

    threads = PreparationThreads()
    assert asyncio.run(ask_all()) == ["answered"] * count


def test_an_error_and_a_plain_value_go_to_who_asked() -> None:
    with PreparationThreads() as threads:
        assert threads.submit(lambda: 7).result() == 7
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 / 0).result()
