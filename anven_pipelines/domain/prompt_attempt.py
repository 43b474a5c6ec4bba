"""One strategy's search on one template: what it found, or why it found nothing, so that the others can go on.

A strategy may be a program of somebody else's that asks an endpoint of somebody else's: that it fails says nothing
about the others. The target and the graders are everybody's: where one of them fails, nobody can go on.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService
from anven_pipelines.domain.prompt_strategy import BudgetSpent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from anven_pipelines.domain.prompt_strategy import Strategy
    from anven_pipelines.domain.prompt_template import Candidate
    from anven_pipelines.domain.prompt_trial import TargetTrial

AGAIN: Final = "mend that, then materialise adapted_prompt again: what was answered is kept and not paid for twice"
MOST_CHARACTERS: Final = 1_000
"""Of what a failure says: a foreign program's last lines may be long."""


class Failure(NamedTuple):
    """A strategy that failed on a template.

    Attributes:
        template: The template's name.
        strategy: The name under which it is declared.
        error: What it raised.
    """

    template: str
    strategy: str
    error: Exception

    @property
    def why(self) -> str:
        """Say what was found and needed; of an error that nobody raised on purpose, its kind and place only."""
        if isinstance(self.error, AnvenError):
            return str(self.error)[:MOST_CHARACTERS]
        frames = traceback.extract_tb(self.error.__traceback__)
        at = f" in {PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        return f"it broke with {type(self.error).__name__}{at}; the run's log has the whole of it"

    def to_json(self) -> dict[str, str]:
        """Return what failed, why, and what to do."""
        return {"template": self.template, "strategy": self.strategy, "why": self.why, "mend": AGAIN}

    def in_full(self) -> str:
        """Say it for the run's log, with the stack where nobody raised it on purpose."""
        stack = [] if isinstance(self.error, AnvenError) else traceback.format_exception(self.error)
        return "\n".join([str(self), *stack])

    def __str__(self) -> str:
        """Say it as one of the reasons of an adaptation."""
        return f"{self.template}: {self.strategy} failed and found nothing: {self.why}; {AGAIN}"


class Attempt(NamedTuple):
    """What came of it: a candidate, or none and why; `note` says what else is to be told."""

    found: Candidate | None = None
    note: str | None = None
    failure: Failure | None = None


def attempt(name: str, strategy: Strategy, trial: TargetTrial, *, rng: np.random.Generator) -> Attempt:
    """Have a strategy search.

    Args:
        name: What it is declared as.
        strategy: Who searches.
        trial: The template, its items and the budget.
        rng: The strategy's own.

    Raises:
        AnvenError: the target or a grader failed, whatever the strategy made of it, or our own store did.
    """
    template = trial.template.name
    try:
        found = strategy.search(trial, rng=rng)
    except BudgetSpent as spent:
        return Attempt(note=f"{template}: {name} had found nothing when its budget ended: {spent}")
    except Exception as error:
        if trial.failure is not None:
            raise trial.failure from error
        if isinstance(error, AnvenError) and not isinstance(error, InvalidInput | UnavailableService):
            raise
        return Attempt(failure=Failure(template, name, error))
    if trial.failure is not None:
        raise trial.failure
    if (refusal := trial.refuse(found)) is not None:
        return Attempt(note=f"{template}: what {name} found breaks a hard constraint and is not used: {refusal}")
    reason = found.moves.get(strategy.name)  # where it leaves the prompt as it is and says why
    return Attempt(found, note=f"{template}: {name} left the prompt as it is: {reason}" if reason else None)


def require_searched(failures: Sequence[Failure], *, strategies: int) -> None:
    """Refuse to go on with a template that no strategy could search.

    What would go on has not been searched for, and would spend what cannot be had again: a look at the validation
    items, and the sealed ones at the sign-off. A later run loses nothing, as all answers are kept.

    Raises:
        InvalidInput: all that failed need something mended.
        UnavailableService: a later run may go on.
        Exception: what the only strategy raised.
    """
    if not failures or len(failures) < strategies:
        return
    *_, last = failures
    if len(failures) == 1:
        raise last.error
    said = "; ".join(f"{each.strategy}: {each.why}" for each in failures)
    message = f"{last.template}: every strategy failed, so nothing was searched or proven ({said}); {AGAIN}"
    kind = InvalidInput if all(isinstance(each.error, InvalidInput) for each in failures) else UnavailableService
    raise kind(message) from last.error
