"""A search finds what is there, claims nothing that is not, and pays for no answer twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from anven_pipelines.domain.prompt_answers import example_items, searched_space
from anven_pipelines.domain.prompt_search import Racing, RandomSearch, sweep
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, unchanged
from anven_pipelines.stats.paired import difference_interval
from tests.fakes.scored_trial import Killed, ScoredTrial

if TYPE_CHECKING:
    from anven_pipelines.domain.prompt_strategy import Strategy

TEMPLATE = PromptTemplate(
    name="desk",
    system="You are a clerk. You will be given notes and a question. Reply with the exact value and nothing else.",
    user="Context: {notes}\nQuestion: {question}\nAnswer:",
    slots=("notes", "question"),
)
# A search of a few dozen calls a round, so that hundreds of them take seconds.
SMALL = Racing(mode="minimal", rounds=2, at_once=4, finalists=3, first_lap=12)
NOISE_RUNS = 400
CALLS = 600


def interacting(candidate: Candidate) -> float:
    """Score .4; two moves add a tenth each, and both together half a point: 1 in 25 prompts has both."""
    moves = candidate.moves
    layout, label = moves.get("layout") == "heading", moves.get("directive") == "short"
    return 0.4 + 0.1 * layout + 0.1 * label + 0.3 * (layout and label)


def found(strategy: Strategy, trial: ScoredTrial, seed: int) -> Candidate:
    return strategy.search(trial, rng=np.random.default_rng(seed))


def test_pure_noise_claims_a_gain_no_more_often_than_the_test_allows() -> None:
    claims = changed = 0
    for seed in range(NOISE_RUNS):
        trial = ScoredTrial(TEMPLATE, lambda _: 0.6, items=60, seed=seed)
        best = found(SMALL, trial, seed)
        changed += best != unchanged(TEMPLATE)
        unseen = ScoredTrial(TEMPLATE, lambda _: 0.6, items=100, seed=10_000 + seed)
        target, legacy = unseen.scores([(best, range(100)), (unchanged(TEMPLATE), range(100))])
        claims += best != unchanged(TEMPLATE) and difference_interval(target, legacy, level=0.9).lower > 0
    assert changed > NOISE_RUNS / 4, "a search that never proposes anything proves nothing about the test"
    monte_carlo_error = 3 * (0.05 * 0.95 / NOISE_RUNS) ** 0.5
    assert claims / NOISE_RUNS <= 0.05 + monte_carlo_error


def test_a_planted_interaction_is_found_more_often_than_at_random() -> None:
    hits = {}
    for strategy in (Racing(), RandomSearch()):
        trials = [ScoredTrial(TEMPLATE, interacting, seed=seed, budget=CALLS) for seed in range(12)]
        bests = [found(strategy, trial, seed) for seed, trial in enumerate(trials)]
        hits[strategy.name] = sum(interacting(best) > 0.85 for best in bests)
    assert hits["racing"] >= 10, hits
    assert hits["racing"] > hits["random"], hits


@pytest.mark.parametrize("dies_after", [0, 1, 29, 30, 77, 111, 150])
@pytest.mark.parametrize("strategy", [SMALL, RandomSearch(candidates=12, items=12)], ids=lambda each: each.name)
def test_a_search_that_was_killed_goes_on_to_the_same_result(strategy: Strategy, dies_after: int) -> None:
    whole = ScoredTrial(TEMPLATE, interacting, items=60)
    expected = found(strategy, whole, 5)
    killed = ScoredTrial(TEMPLATE, interacting, items=60, dies_after=dies_after)
    with pytest.raises(Killed):
        found(strategy, killed, 5)
    resumed = ScoredTrial(TEMPLATE, interacting, items=60, kept=killed.kept)

    assert found(strategy, resumed, 5) == expected
    both = killed.asked + resumed.asked
    assert len(both) == len(set(both)), "an item was asked twice"
    assert set(both) == set(whole.asked)


def test_a_kept_search_runs_again_without_a_call() -> None:
    first = ScoredTrial(TEMPLATE, interacting, items=60)
    again = ScoredTrial(TEMPLATE, interacting, items=60, kept=first.kept)
    assert found(SMALL, first, 5) == found(SMALL, again, 5)
    assert again.asked == []


@pytest.mark.parametrize("budget", [0, 29, 30, 31, 100, 163])
@pytest.mark.parametrize("strategy", [SMALL, RandomSearch(items=12)], ids=lambda each: each.name)
def test_the_budget_is_kept_and_the_best_so_far_returned(strategy: Strategy, budget: int) -> None:
    free = ScoredTrial(TEMPLATE, interacting, items=60)
    found(strategy, free, 5)
    trial = ScoredTrial(TEMPLATE, interacting, items=60, budget=budget)
    best = found(strategy, trial, 5)

    assert len(trial.asked) <= budget
    assert trial.asked == free.asked[: len(trial.asked)], "the budget changed what was asked first"
    asked = {version for version, _ in trial.asked}
    assert best.version in {*asked, unchanged(TEMPLATE).version}


def test_the_unchanged_prompt_is_asked_on_every_item_that_a_candidate_is() -> None:
    trial = ScoredTrial(TEMPLATE, interacting)
    found(SMALL, trial, 1)
    start = unchanged(TEMPLATE).version
    assert {item for version, item in trial.asked} == {item for version, item in trial.asked if version == start}


def test_several_candidates_are_asked_at_once() -> None:
    trial = ScoredTrial(TEMPLATE, interacting)
    found(Racing(), trial, 1)
    assert trial.batches[0] == (Racing().at_once + 1) * Racing().block


def test_a_lap_of_the_race_is_asked_at_once() -> None:
    trial = ScoredTrial(TEMPLATE, interacting, items=60)
    found(Racing(rounds=1, at_once=4, finalists=3, races=1), trial, 1)
    laps = 2  # of 24 items, and of the 48 that there are
    assert len(trial.batches) <= 1 + laps


@pytest.mark.parametrize("budget", range(60, 120, 7))
def test_of_a_lap_that_the_budget_does_not_allow_the_first_blocks_are_asked(budget: int) -> None:
    plan = Racing(rounds=1, at_once=4, finalists=3, races=1)
    free = ScoredTrial(TEMPLATE, interacting, items=60)
    found(plan, free, 1)
    trial = ScoredTrial(TEMPLATE, interacting, items=60, budget=budget)
    found(plan, trial, 1)
    most = (plan.finalists + 1) * plan.block  # of one block
    assert budget - most < len(trial.asked) <= budget
    assert trial.asked == free.asked[: len(trial.asked)]


def test_rounds_and_race_begin_again_until_a_race_is_won_by_the_winner_of_the_last() -> None:
    scores: dict[int, list[float]] = {1: [], 3: []}
    for seed in range(8):
        asked = []
        for races, into in scores.items():
            trial = ScoredTrial(TEMPLATE, interacting, items=60, seed=seed)
            into.append(interacting(found(Racing(races=races), trial, seed)))
            asked.append(trial.asked)
        assert asked[1][: len(asked[0])] == asked[0]
    assert np.mean(scores[3]) > np.mean(scores[1])


def test_a_winner_that_answered_everything_right_ends_the_search() -> None:
    once, thrice = (ScoredTrial(TEMPLATE, lambda _: 1.0, items=60) for _ in range(2))
    assert found(Racing(races=1), once, 1) == found(Racing(), thrice, 1) == unchanged(TEMPLATE)
    assert thrice.asked == once.asked


def test_after_a_race_all_that_is_one_move_from_its_winner_is_asked() -> None:
    trial = ScoredTrial(TEMPLATE, interacting, items=60)
    winner = found(Racing(races=1), ScoredTrial(TEMPLATE, interacting, items=60), 0)
    found(Racing(races=2), trial, 0)
    space, _ = searched_space(trial, mode="full", reasons=False, rng=np.random.default_rng(0))
    options = {name: winner.moves.get(name, each[0]) for name, each in space.dimensions.items()}
    near = [{**options, name: option} for name, each in space.dimensions.items() for option in each]
    asked = {version for version, _ in trial.asked}
    assert {space.candidate(genome, origin="racing").version for genome in near} <= asked


def test_items_that_may_stand_as_examples_are_never_scored() -> None:
    trial = ScoredTrial(TEMPLATE, interacting, items=50)
    space, items = searched_space(trial, mode="full", reasons=False, rng=np.random.default_rng(0))
    found(Racing(), trial, 0)

    assert example_items(trial) == list(range(40, 50))
    assert items == 40
    assert {item for _, item in trial.asked} <= set(range(40))
    own = {int(example.answer.split()[1]) for chosen in space.examples.values() for example in chosen}
    assert own <= {item % 5 for item in range(40, 50)}


def test_where_no_right_answer_is_known_there_are_no_examples_and_all_items_are_scored() -> None:
    class Untold(ScoredTrial):
        def right_answer(self, item: int) -> str | None:  # noqa: ARG002 - it knows none
            return None

    trial = Untold(TEMPLATE, interacting, items=50)
    space, items = searched_space(trial, mode="full", reasons=False, rng=np.random.default_rng(0))
    assert items == 50
    assert "examples" not in space.dimensions


def test_a_refused_candidate_is_neither_asked_nor_returned() -> None:
    def refuses(candidate: Candidate) -> str | None:
        return "headings are not allowed" if candidate.moves.get("layout") == "heading" else None

    for strategy in (SMALL, RandomSearch(candidates=30)):
        trial = ScoredTrial(TEMPLATE, interacting, items=60, refuses=refuses)
        assert refuses(found(strategy, trial, 2)) is None


@pytest.mark.parametrize("strategy", [Racing(), RandomSearch()], ids=lambda each: each.name)
def test_where_every_change_does_harm_the_prompt_stays_unchanged(strategy: Strategy) -> None:
    trial = ScoredTrial(TEMPLATE, lambda candidate: 0.8 if not candidate.moves else 0.2, budget=CALLS)
    assert found(strategy, trial, 3) == unchanged(TEMPLATE)


@pytest.mark.parametrize("strategy", [Racing(mode="structural"), RandomSearch(mode="structural")])
def test_without_a_move_nothing_is_asked(strategy: Strategy) -> None:
    trial = ScoredTrial(TEMPLATE, interacting)
    assert found(strategy, trial, 0) == unchanged(TEMPLATE)
    assert trial.asked == []


def test_a_proven_leader_ends_the_race_early() -> None:
    clear, alike = (
        ScoredTrial(TEMPLATE, probability, seed=4)
        for probability in (lambda each: 0.95 if each.moves.get("cue") else 0.1, lambda _: 0.5)
    )
    assert found(Racing(finalists=1), clear, 4).moves["cue"] == "none"
    found(Racing(finalists=1), alike, 4)
    assert clear.spent() < alike.spent()


def test_a_sweep_returns_the_first_of_the_best() -> None:
    trial = ScoredTrial(TEMPLATE, lambda each: 1.0 if each.moves else 0.0, items=20)
    space, _ = searched_space(trial, mode="minimal", reasons=False, rng=np.random.default_rng(0))
    candidates = [space.candidate(genome, origin="grid") for genome, _ in zip(space.grid(), range(4), strict=False)]
    assert sweep(trial, candidates, items=5, at_once=2) == candidates[1]
    assert trial.spent() == 20
