"""A strategy that fails leaves the others to go on, and the target that fails leaves nobody."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, UnavailableService
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import unchanged
from tests.domain.test_prompt_adaptation import DESK, GOOD, World, adapt, finds, half_and, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.prompt_strategy import Strategy, Trial
    from anven_pipelines.domain.prompt_template import Candidate

DOWN = UnavailableService("the model 'large' gave no answer; see that it is up")
NO_KEY = InvalidInput("the model 'large' refuses its key; check it")


@dataclass(frozen=True)
class Falls:
    """Asks five items, then fails."""

    error: Exception
    name: str = "falls"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> NoReturn:  # noqa: ARG002 - it needs no chance
        trial.scores([(written(DESK, "Try"), range(5))])
        raise self.error


@dataclass(frozen=True)
class Returns:
    """Returns what it was given, unasked."""

    found: Candidate
    name: str = "returns"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:  # noqa: ARG002 - it needs no chance
        return self.found


def world() -> World:
    return World(half_and("Good", 9))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DOWN, str(DOWN)),
        (NO_KEY, str(NO_KEY)),
        (KeyError("what a customer wrote"), "it broke with KeyError in test_prompt_attempt.py, line "),
        (UnavailableService("x" * 5_000), "x" * 1_000),
    ],
    ids=["down", "key", "bug", "long"],
)
@pytest.mark.parametrize("order", [("falls", "finds"), ("finds", "falls")], ids=["first", "last"])
def test_the_others_go_on_and_the_failure_is_told(error: Exception, why: str, order: Sequence[str]) -> None:
    both: dict[str, Strategy] = {"falls": Falls(error), **finds(GOOD)}
    adaptation = adapt(world(), {name: both[name] for name in order})
    assert adaptation.adapted, adaptation.reasons
    assert [heat.origin for heat in adaptation.heats if heat.chosen] == ["finds"]
    [failure] = adaptation.to_json()["failed"]
    assert (failure["template"], failure["strategy"]) == ("desk", "falls")
    assert failure["why"].startswith(why)
    assert "materialise adapted_prompt again" in failure["mend"]
    [reason] = [each for each in adaptation.reasons if each.startswith("desk: falls failed")]
    assert failure["why"] in reason
    assert failure["mend"] in reason
    assert f"| desk | falls | {why}" in adaptation.failed_markdown()
    assert "what a customer wrote" not in canonical_json(adaptation.to_json())


def test_without_a_failure_none_is_told() -> None:
    adaptation = adapt(world(), finds(GOOD))
    assert (adaptation.to_json()["failed"], adaptation.failed_markdown()) == ([], "No strategy failed.")


def test_what_the_others_ask_does_not_depend_on_who_failed() -> None:
    """So that a later run, in which it does not, finds their answers kept."""
    asked = []
    for first in (Falls(DOWN), Returns(unchanged(DESK))):
        each = world()
        adapt(each, {"first": first, **finds(GOOD)})
        asked.append({request.item_id for request in each.asked})
    assert asked[1] < asked[0]


@pytest.mark.parametrize(
    ("errors", "raised", "said"),
    [
        ([DOWN], UnavailableService, str(DOWN)),
        ([NO_KEY], InvalidInput, str(NO_KEY)),
        ([KeyError("bug")], KeyError, "bug"),
        ([NO_KEY, NO_KEY], InvalidInput, "every strategy failed, so nothing was searched or proven"),
        ([NO_KEY, DOWN], UnavailableService, f"0: {NO_KEY}; 1: {DOWN}"),
    ],
)
def test_where_nobody_could_search_nothing_is_looked_at(
    errors: list[Exception], raised: type[Exception], said: str
) -> None:
    each = world()
    with pytest.raises(raised) as caught:
        adapt(each, {str(number): Falls(error) for number, error in enumerate(errors)})
    assert said in str(caught.value)
    assert each.looks == []


def test_a_store_that_is_not_sound_ends_all() -> None:
    with pytest.raises(CorruptArtifact):
        adapt(world(), {"falls": Falls(CorruptArtifact("other bytes")), **finds(GOOD)})


@dataclass
class FailsOnce(World):
    """A target or a grader that is down for one call, and well before and after."""

    broken: str = "target"
    at: int = 0
    calls: int = 0

    def ask(self, requests: Sequence[CompletionRequest]) -> pl.DataFrame:
        self._fail("target")
        return super().ask(requests)

    def grade(self, answers: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
        self._fail("grader")
        return super().grade(answers, golden)

    def _fail(self, part: str) -> None:
        if part == self.broken:
            self.calls += 1
            if self.calls == self.at + 1:
                message = f"the {part} is down"
                raise UnavailableService(message)


@dataclass(frozen=True)
class Hides:
    """Asks, and makes of a failure what it likes."""

    error: Exception | None
    name: str = "hides"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:  # noqa: ARG002 - it needs no chance
        with suppress(UnavailableService):
            trial.scores([(written(DESK, "Try"), range(5))])
        with suppress(UnavailableService):
            trial.grade_answer(0, "1")
        if self.error is not None:
            raise self.error
        return unchanged(trial.template)


@pytest.mark.parametrize("error", [None, KeyError("hidden"), InvalidInput("hidden")])
@pytest.mark.parametrize(
    ("broken", "at"), [("target", 0), ("grader", 0), ("grader", 1)], ids=["target", "grader", "grader of own answers"]
)
def test_a_target_or_a_grader_that_fails_ends_all_whatever_a_strategy_makes_of_it(
    broken: str, at: int, error: Exception | None
) -> None:
    """So that a run which starts again asks for the same, and ends where it would have ended."""
    with pytest.raises(UnavailableService, match=f"the {broken} is down"):
        adapt(FailsOnce(half_and("Good", 9), broken=broken, at=at), {"hides": Hides(error), **finds(GOOD)})


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (Falls(BudgetSpent("7 of 7 calls are used")), "had found nothing when its budget ended: 7 of 7 calls are used"),
        (
            Returns(GOOD.model_copy(update={"messages": GOOD.messages[1:]})),
            "found breaks a hard constraint and is not used: ",
        ),
        (
            Returns(unchanged(DESK).model_copy(update={"moves": {"returns": "3 items have a right answer"}})),
            "left the prompt as it is: 3 items have a right answer",
        ),
    ],
    ids=["budget", "constraint", "reason"],
)
def test_what_came_to_nothing_is_no_failure_and_is_told(other: Any, note: str) -> None:
    adaptation = adapt(world(), {"other": other, **finds(GOOD)})
    assert adaptation.adapted
    assert adaptation.failed == ()
    assert any(note in reason for reason in adaptation.reasons), adaptation.reasons
    alone = adapt(world(), {"other": other})
    assert (alone.adapted, alone.failed) == (False, ())
