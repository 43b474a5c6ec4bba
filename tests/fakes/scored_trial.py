"""A trial without a target: a function says how likely each prompt is to be answered right."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from anven_pipelines.domain.prompt_strategy import BudgetSpent, Shown
from anven_pipelines.domain.prompt_trial import Rewriting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate


HARDNESS = 0.3  # share of the items whose answer is decided by the item alone, alike for candidates alike in score


class Killed(BaseException):
    """The process ended in the middle of a search."""


class ScoredTrial:
    """Answers by chance with a probability of its own for each candidate and keeps every answer.

    Attributes:
        template: What is asked.
        items: Number of items.
        kept: Answers by candidate's version and item; give them to another trial to go on from there.
        asked: Each new answer that was asked for, in order.
        batches: New answers of each call of `scores`.
        account: Counts answers of the target that a strategy gets by itself.
        rewriting: Counts answers of a model that writes prompts.
    """

    def __init__(
        self,
        template: PromptTemplate,
        probability: Callable[[Candidate], float],
        *,
        items: int = 200,
        budget: int = 10**9,
        seed: int = 0,
        kept: dict[tuple[str, int], float] | None = None,
        dies_after: int | None = None,
        refuses: Callable[[Candidate], str | None] = lambda _: None,
    ) -> None:
        """Set up the trial; `dies_after` raises `Killed` once so many new answers were kept."""
        self.template = template
        self.items = items
        self.kept = {} if kept is None else kept
        self.asked: list[tuple[str, int]] = []
        self.batches: list[int] = []
        self.account, self.rewriting = Rewriting(), Rewriting()
        self._probability, self._budget, self._seed = probability, budget, seed
        self._dies_after, self._refuses = dies_after, refuses
        self._paid: set[tuple[str, int]] = set()

    def scores(self, asked: Sequence[tuple[Candidate, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        for candidate, items in asked:
            assert self._refuses(candidate) is None, "a refused candidate was asked"
            assert all(0 <= item < self.items for item in items)
        wanted = dict.fromkeys((each.version, item) for each, items in asked for item in items)
        if len(self._paid | set(wanted)) > self._budget:
            raise BudgetSpent
        by_version = {each.version: each for each, _ in asked}
        new = [key for key in wanted if key not in self.kept]
        if new:
            self.batches.append(len(new))
        for version, item in new:
            if self._dies_after is not None and len(self.asked) >= self._dies_after:
                raise Killed
            self.kept[version, item] = self.answer(by_version[version], item)
            self.asked.append((version, item))
        self._paid |= set(wanted)
        return [np.array([self.kept[each.version, item] for item in items]) for each, items in asked]

    def answer(self, candidate: Candidate, item: int) -> float:
        """Return the same score whenever a candidate is asked on an item; hard items are hard for all candidates."""
        difficulty, other, chance = (_uniform(self._seed, item, what) for what in ("", "which", candidate.version))
        return float((difficulty if other < HARDNESS else chance) < self._probability(candidate))

    def shown(self, candidate: Candidate, items: Sequence[int]) -> list[Shown]:
        return [
            Shown(item, self.slots(item), self.right_answer(item), None, self.kept[candidate.version, item], None)
            for item in items
        ]

    def slots(self, item: int) -> Mapping[str, str]:
        return {name: f"{name} number {item}" for name in self.template.slots}

    def right_answer(self, item: int) -> str | None:
        return f"answer {item % 5}"

    def grade_answer(self, item: int, output: str) -> float:
        return float(output == self.right_answer(item))

    def strata(self) -> Mapping[int, str]:
        return {}

    def spent(self) -> int:
        return len(self._paid)

    def refusal(self, candidate: Candidate) -> str | None:
        return self._refuses(candidate)


def _uniform(*key: object) -> float:
    """Return the number in [0, 1) that belongs to a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") / 2**64
