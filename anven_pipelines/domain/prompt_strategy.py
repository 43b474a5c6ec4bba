"""What a strategy that looks for a better prompt is given, and what it returns.

A strategy sees one template and the items of the search split that it asks; the validation split and the sealed items
do not reach it. What it asks is answered through a `Trial`, which keeps every answer and counts against one budget,
so a killed search that starts again with the same seed asks for the same and pays for nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate


class Shown(NamedTuple):
    """One item that was asked with a candidate, for a strategy that reads what went wrong.

    Attributes:
        item: Its number within the trial.
        slots: What the call filled the slots with.
        ground_truth: The right answer; None where the graders need none.
        output: What the target answered; None where it failed.
        score: In [0, 1]; an answer that is missing or could not be graded counts 0.
        reason: Why the score is below 1.
    """

    item: int
    slots: Mapping[str, str]
    ground_truth: str | None
    output: str | None
    score: float
    reason: str | None


class BudgetSpent(Exception):  # noqa: N818 - no error: a strategy returns its best so far
    """The trial's budget does not allow what was asked; nothing of it was."""


class Account(Protocol):
    """Where answers are counted that a strategy gets from a model by itself."""

    def require(self, calls: int) -> None:
        """Refuse what the budget does not allow.

        Raises:
            BudgetSpent: so many more calls are too many.
        """

    def count(self, *, tokens: int, usd: float, computed: bool) -> None:
        """Count one answer, its prompt and answer tokens, and its price (0 where none is declared).

        Args:
            tokens: Of prompt and answer.
            usd: Their price.
            computed: Whether any of those tokens are not the server's count.
        """


class Trial(Protocol):
    """A template, its items, and the target to ask."""

    @property
    def template(self) -> PromptTemplate:
        """What is to be asked better."""

    @property
    def items(self) -> int:
        """Number of items of the search split, in an order that is random and the same in every run."""

    def scores(self, asked: Sequence[tuple[Candidate, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        """Ask each candidate on its items, all at once, and return the scores in [0, 1] in their order.

        Answers that are kept from earlier cost nothing.

        Raises:
            BudgetSpent: the budget does not allow all of it; nothing new was asked.
        """

    def shown(self, candidate: Candidate, items: Sequence[int]) -> list[Shown]:
        """Return what became of items that `scores` has asked."""

    def slots(self, item: int) -> Mapping[str, str]:
        """Return what an item filled the slots with, for few-shot examples."""

    def right_answer(self, item: int) -> str | None:
        """Return what a few-shot example of the item would answer; None where nothing says so."""

    def grade_answer(self, item: int, output: str) -> float:
        """Return the score in [0, 1] of an answer that a strategy got by itself; 0 where it cannot be graded."""

    def strata(self) -> Mapping[int, str]:
        """Return the stratum of each item in words, by which failures are told apart; empty where all are alike."""

    def spent(self) -> int:
        """Return how many answers of the target were asked for, kept ones of an earlier run included."""

    @property
    def account(self) -> Account:
        """Where answers of the target are counted that a strategy gets by itself."""

    @property
    def rewriting(self) -> Account:
        """Where answers of a model are counted that writes prompts."""

    def refusal(self, candidate: Candidate) -> str | None:
        """Say which hard constraint a candidate breaks; None where it may be asked. `scores` asks none that breaks."""


class Strategy(Protocol):
    """Looks for a better prompt."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        """Return the best candidate found; the unchanged prompt where nothing looked better.

        Args:
            trial: The template, its items and the budget.
            rng: Seeded by the caller; the same seed asks for the same.

        Raises:
            InvalidInput: it cannot search until somebody mends what the message says; the other strategies go on.
            UnavailableService: what it needs does not answer, and a later run may go on; the other strategies do.
        """
