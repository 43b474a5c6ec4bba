"""A trial whose target is a function: what a candidate answers to an item, and how that scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from anven_pipelines.domain.prompt_strategy import BudgetSpent, Shown
from anven_pipelines.domain.prompt_trial import Rewriting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate


@dataclass
class AnsweredTrial:
    """Keeps every answer and counts it once.

    Attributes:
        template: What is asked.
        inputs: What each item fills the slots with.
        right: The right answer of each item.
        target: Answers the messages of one call.
        must_hold: Words that every candidate must hold; one that does not is refused.
        budget: Answers that may be asked for.
        grader: Scores an answer to an item; equality with the right answer where absent.
        stratum: Item to stratum.
        account: Counts answers of the target that a strategy gets by itself.
        rewriting: Counts answers of a model that writes prompts.
    """

    template: PromptTemplate
    inputs: Sequence[Mapping[str, str]]
    right: Sequence[str | None]
    target: Callable[[list[dict[str, str]]], str]
    must_hold: Sequence[str] = ()
    budget: int = 10_000
    grader: Callable[[int, str], float] | None = None
    stratum: Mapping[int, str] = field(default_factory=dict)
    account: Rewriting = field(default_factory=Rewriting)
    rewriting: Rewriting = field(default_factory=Rewriting)
    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    _kept: dict[tuple[str, int], Shown] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return len(self.inputs)

    def scores(self, asked: Sequence[tuple[Candidate, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        for candidate, _ in asked:
            if refusal := self.refusal(candidate):
                raise AssertionError(refusal)
        new = {(candidate.version, item) for candidate, items in asked for item in items} - self._kept.keys()
        if len(self._kept) + len(new) > self.budget:
            raise BudgetSpent
        return [
            np.array([self._answer(candidate, item).score for item in items], dtype=np.float64)
            for candidate, items in asked
        ]

    def shown(self, candidate: Candidate, items: Sequence[int]) -> list[Shown]:
        return [self._kept[candidate.version, item] for item in items]

    def slots(self, item: int) -> Mapping[str, str]:
        return self.inputs[item]

    def right_answer(self, item: int) -> str | None:
        return self.right[item]

    def grade_answer(self, item: int, output: str) -> float:
        return self.grader(item, output) if self.grader else float(output == self.right[item])

    def strata(self) -> Mapping[int, str]:
        return self.stratum

    def spent(self) -> int:
        return len(self._kept)

    def refusal(self, candidate: Candidate) -> str | None:
        whole = "\n".join(message.content for message in candidate.messages)
        missing = [words for words in self.must_hold if words not in whole]
        return f"the candidate lacks {missing[0]!r}" if missing else None

    def _answer(self, candidate: Candidate, item: int) -> Shown:
        key = candidate.version, item
        if key not in self._kept:
            self.asked[key] += 1
            output = self.target(candidate.asked(self.inputs[item]))
            right = self.right[item]
            score = float(output == right)
            reason = None if score else f"found {output!r}, needed {right!r}"
            self._kept[key] = Shown(item, self.inputs[item], right, output, score, reason)
        return self._kept[key]
