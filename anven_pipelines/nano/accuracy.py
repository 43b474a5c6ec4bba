"""How many tasks a nano model answers exactly right, asked in a given prompt style."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.tasks import MAX_ANSWER_TOKENS, TASKS, Item, Task
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import EngineRequest, Sampling, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Style = Callable[[Item], list[dict[str, str]]]

AT_ONCE: Final = 64


class Score(NamedTuple):
    """How many of a task's items were answered with exactly the expected text."""

    task: Task
    right: int
    items: int


def measure(name: str, items: Sequence[Item], style: Style, *, folder: Path | None = None) -> list[Score]:
    """Ask a model greedily and compare its answers with the expected texts, character for character.

    Args:
        name: `legacy-nano` or `anven-nano`.
        items: What to ask.
        style: Turns an item into messages.
        folder: Another folder than the shipped model's.

    Returns:
        One score for each task that occurs.
    """
    texts = asyncio.run(_answers(name, [style(item) for item in items], folder or model_folder(name)))
    right = [item.task for item, text in zip(items, texts, strict=True) if text == item.answer]
    asked = [item.task for item in items]
    return [Score(task, right.count(task), asked.count(task)) for task in TASKS if task in asked]


async def _answers(name: str, prompts: list[list[dict[str, str]]], folder: Path) -> list[str]:
    """Return the answers in the order of the prompts."""
    engine = EmbeddedEngine(folder, name=name)
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(messages: list[dict[str, str]]) -> str:
        async with places:
            request = EngineRequest(
                messages=tuple(messages), max_tokens=MAX_ANSWER_TOKENS, sampling=Sampling(temperature=0)
            )
            return (await answer(engine, request)).text

    try:
        return await asyncio.gather(*(ask(messages) for messages in prompts))
    finally:
        await engine.close()
