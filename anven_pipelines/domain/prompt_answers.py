"""What a search asks: which items may be scored, which may stand as examples, and the scores so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.prompt_moves import Example, Mode, Space, space_of
from anven_pipelines.domain.prompt_strategy import BudgetSpent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anven_pipelines.domain.prompt_strategy import Trial
    from anven_pipelines.domain.prompt_template import Candidate

EXAMPLE_SHARE: Final = 5  # of every so many items one may be an example ...
MOST_EXAMPLES: Final = 24  # ... up to this many


class Answers:
    """What a search has asked: scores by candidate and item, not a number where nothing was asked.

    Attributes:
        items: How many of the trial's first items may be asked.
        count: Number of answers.
    """

    def __init__(self, trial: Trial, items: int) -> None:
        """Start with nothing asked."""
        self._trial = trial
        self.items = items
        self.count = 0
        self._scores: dict[str, npt.NDArray[np.float64]] = {}

    def ask(self, candidates: Iterable[Candidate], items: npt.NDArray[np.int64]) -> None:
        """Ask each candidate on the items that it was not asked yet, all at once.

        Raises:
            BudgetSpent: the budget does not allow all of it; nothing new was asked.
        """
        self._take([(each, [int(at) for at in items if np.isnan(self.of(each)[at])]) for each in candidates])

    def _take(self, wanted: Iterable[tuple[Candidate, list[int]]]) -> None:
        asked = [(candidate, places) for candidate, places in wanted if places]
        for (candidate, places), scores in zip(asked, self._trial.scores(asked) if asked else [], strict=True):
            self._scores.setdefault(candidate.version, self.of(candidate))[places] = scores
            self.count += len(places)

    def ask_blocks(self, candidates: Sequence[Candidate], blocks: Sequence[npt.NDArray[np.int64]]) -> None:
        """Ask the candidates on all blocks at once; where the budget does not allow that, on as many as it does.

        Raises:
            BudgetSpent: it does not allow all of them; what was asked is kept.
        """
        asked = [
            (each, [int(at) for at in block if np.isnan(self.of(each)[at])]) for block in blocks for each in candidates
        ]
        try:
            self._take(asked)
        except BudgetSpent:
            for block in blocks:
                self.ask(candidates, block)

    def of(self, candidate: Candidate) -> npt.NDArray[np.float64]:
        """Return the scores of all items, not a number where none was asked."""
        return self._scores.get(candidate.version, np.full(self.items, np.nan))


def example_items(trial: Trial) -> list[int]:
    """Return the items set apart as few-shot examples: the last ones whose right answer is known."""
    count = min(trial.items // EXAMPLE_SHARE, MOST_EXAMPLES)
    return [at for at in range(trial.items - count, trial.items) if trial.right_answer(at) is not None]


def searched_space(trial: Trial, *, mode: Mode, reasons: bool, rng: np.random.Generator) -> tuple[Space, int]:
    """Return the space of a trial's template, and how many of its first items may be scored."""
    apart = example_items(trial)
    pool = [Example(trial.slots(at), answer) for at in apart if (answer := trial.right_answer(at)) is not None]
    space = space_of(trial.template, mode=mode, pool=pool, reasons=reasons, rng=rng)
    return space, min(apart, default=trial.items) if space.examples else trial.items
