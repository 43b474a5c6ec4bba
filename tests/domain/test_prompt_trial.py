"""The trial asks nothing twice, keeps to the budget, and lets nothing unmeasured pass for right."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage, unchanged
from anven_pipelines.domain.prompt_trial import Cost, Spending, TargetTrial
from anven_pipelines.domain.prompts import Call
from anven_pipelines.spec_prompt import SearchBudget
from anven_pipelines.spec_target import EndpointTarget
from tests.builders import golden_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.prompt_trial import Way

TEMPLATE = PromptTemplate(name="desk", user="Question: {question}", slots=("question",))
TARGET = EndpointTarget(
    engine="endpoint", model="m", url="http://localhost:1/v1", params={"max_tokens": 9, "stop": None}
)
ITEMS = 20


def asking(text: str, **fields: Any) -> Candidate:
    return Candidate(template="desk", messages=(TemplateMessage(role="user", content=text),), **fields)


@dataclass
class Target:
    """Answers with the number in the question; items in `silent` fail, those in `ungraded` cannot be graded."""

    silent: frozenset[int] = frozenset()
    ungraded: frozenset[int] = frozenset()
    rounds: list[int] = field(default_factory=list)
    asked: list[CompletionRequest] = field(default_factory=list)

    def ask(self, requests: Sequence[CompletionRequest]) -> pl.DataFrame:
        self.rounds.append(len(requests))
        self.asked += requests
        numbers = [int(each.messages[-1]["content"].split()[-1]) for each in requests]
        return ANSWERS.conform(
            pl.DataFrame(
                {
                    "item_id": [each.item_id for each in requests],
                    "status": ["failed" if number in self.silent else "answered" for number in numbers],
                    "reason": ["timeout: 5 s" if number in self.silent else None for number in numbers],
                    "output": [None if number in self.silent else str(number % 10) for number in numbers],
                    "input_tokens": pl.Series(
                        [None if number in self.silent else 7 for number in numbers], dtype=pl.Int64
                    ),
                    "output_tokens": pl.Series(
                        [None if number in self.silent else 3 for number in numbers], dtype=pl.Int64
                    ),
                }
            )
        )

    def grade(self, answers: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
        truths = dict(golden.select("id", "ground_truth").iter_rows())
        rows = []
        for name, output in answers.select("item_id", "output").iter_rows():
            missing = output is None or int(truths[name]) in self.ungraded
            score = None if missing else float(output == truths[name])
            rows.append((name, score, None if score else "no answer" if missing else f"found {output}"))
        return pl.DataFrame(rows, schema=["item_id", "score", "reason"], orient="row", infer_schema_length=None)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def trial_of(target: Target, budget: dict[str, Any] | None = None, **changes: Any) -> TargetTrial:
    def way(candidate: Candidate) -> Way:
        return lambda item: Call(candidate.asked({"question": f"what is {item}"}), dict(candidate.params))

    clock = changes.pop("clock", Clock())
    price = changes.pop("price", None)
    fields = {
        "template": TEMPLATE,
        "rows": golden_of(ITEMS),
        "filled": [{"question": f"what is {at}"} for at in range(ITEMS)],
        "way": way,
        "target": TARGET,
        "ask": target.ask,
        "grade": target.grade,
        "spending": Spending(SearchBudget.model_validate(budget or {}), price, clock),
        "refuse": lambda candidate: "it has no slot" if "{question}" not in candidate.messages[0].content else None,
    }
    return TargetTrial(**{**fields, **changes})


ONE, OTHER = asking("Question: {question}"), asking("Q: {question}")


def test_answers_are_scored_in_the_order_in_which_they_were_wanted() -> None:
    trial = trial_of(Target())
    assert trial.items == ITEMS
    [one, other] = trial.scores([(ONE, [9, 10, 0]), (OTHER, [11])])
    assert (one.tolist(), other.tolist()) == ([1.0, 0.0, 1.0], [0.0])
    assert [scores.tolist() for scores in trial.scores([(ONE, []), (OTHER, [11, 11])])] == [[], [0.0, 0.0]]


def test_nothing_is_asked_twice() -> None:
    target = Target()
    trial = trial_of(target)
    trial.scores([(ONE, [0, 1, 2]), (OTHER, [1]), (ONE, [2, 3])])
    trial.scores([(ONE, [3, 4]), (OTHER, [1, 2])])
    trial.scores([(ONE, range(5))])
    assert target.rounds == [5, 2], "one round for all candidates, and none where everything is known"
    assert max(Counter(each.item_id for each in target.asked).values()) == 1
    assert trial.spent() == 7


def test_equal_requests_of_two_candidates_are_one_question() -> None:
    target = Target()
    trial = trial_of(target)
    renamed = asking("Question: {question}", origin="another", moves={"layout": "as it was"})
    same = asking("Question: {question}", params={"max_tokens": 500})  # the target's own parameters replace it
    trial.scores([(ONE, [0, 1]), (renamed, [0, 1]), (same, [0, 1])])
    assert target.rounds == [2]
    assert len(trial.scores([(asking("Question: {question}", params={"top_k": 1}), [0])])) == 1
    assert target.rounds == [2, 1], "another parameter is another question"


def test_equal_requests_of_two_items_are_two_questions() -> None:
    """Each draws its own answer: a target that is asked twice the same may answer twice differently."""
    target = Target()
    trial = trial_of(target, way=lambda _: lambda _: Call([{"role": "user", "content": "what is 5"}], {}))
    [scores] = trial.scores([(ONE, [5, 6])])
    assert target.rounds == [2]
    assert scores.tolist() == [1.0, 0.0]


def test_the_targets_parameters_are_laid_over_those_of_the_call() -> None:
    target = Target()
    trial_of(target).scores([(asking("{question}", params={"stop": ["x"], "top_p": 1, "max_tokens": 1}), [0])])
    assert target.asked[0].params == {"max_tokens": 9, "top_p": 1}


@pytest.mark.parametrize("changes", [{"silent": frozenset({1})}, {"ungraded": frozenset({1})}])
def test_what_was_not_measured_scores_nothing_and_counts(changes: dict[str, Any]) -> None:
    trial = trial_of(Target(**changes))
    [scores] = trial.scores([(ONE, [0, 1])])
    assert scores.tolist() == [1.0, 0.0]
    assert trial.spent() == 2
    assert trial.shown(ONE, [1])[0].reason == "no answer"


def test_a_limit_on_tokens_holds_where_the_server_counts_none() -> None:
    """Each byte of question and answer counts as one, and the cost says that nobody counted them."""
    target = Target()

    def uncounted(requests: Sequence[CompletionRequest]) -> pl.DataFrame:
        return target.ask(requests).with_columns(
            input_tokens=pl.lit(None, pl.Int64), output_tokens=pl.lit(None, pl.Int64)
        )

    trial = trial_of(target, {"tokens": 40}, ask=uncounted)
    trial.scores([(ONE, [0])])
    assert trial.spending.tokens == len('[{"content":"Question: what is 0","role":"user"}]') + len("0")
    with pytest.raises(BudgetSpent, match="at most 50 tokens are spent of 40"):
        trial.scores([(ONE, [1])])
    assert trial.spending.cost().computed


def test_items_are_shown_as_they_were_answered() -> None:
    trial = trial_of(Target())
    trial.scores([(ONE, [3, 12])])
    right, wrong = trial.shown(ONE, [3, 12])
    assert right._asdict() == {
        "item": 3,
        "slots": {"question": "what is 3"},
        "ground_truth": "3",
        "output": "3",
        "score": 1.0,
        "reason": None,
    }
    assert (wrong.item, wrong.output, wrong.score, wrong.reason) == (12, "2", 0.0, "found 2")
    with pytest.raises(KeyError):
        trial.shown(OTHER, [3])


def test_a_refused_candidate_is_not_asked_and_neither_are_those_beside_it() -> None:
    target = Target()
    trial = trial_of(target)
    refused = asking("no slot", origin="careless")
    assert trial.refusal(refused) == "it has no slot"
    assert trial.refusal(ONE) is None
    with pytest.raises(
        ValueError, match="a candidate of careless breaks a hard constraint and is not asked: it has no"
    ):
        trial.scores([(ONE, [0]), (refused, [0])])
    assert (target.rounds, trial.spent()) == ([], 0)


def test_the_budget_of_calls_is_exact() -> None:
    target = Target()
    trial = trial_of(target, {"calls": 5})
    trial.scores([(ONE, range(3))])
    with pytest.raises(BudgetSpent, match="3 calls are spent, 3 more are wanted, and 5 are allowed"):
        trial.scores([(OTHER, range(3))])
    assert target.rounds == [3], "nothing of it was asked"
    trial.scores([(ONE, range(5))])
    assert trial.spent() == 5
    trial.scores([(ONE, range(5))])
    with pytest.raises(BudgetSpent):
        trial.scores([(ONE, [5])])
    assert trial.spent() == 5


def test_no_calls_at_all_is_a_budget_too() -> None:
    with pytest.raises(BudgetSpent):
        trial_of(Target(), {"calls": 0}).scores([(ONE, [0])])


def test_a_share_of_the_calls_ends_a_strategy_and_not_the_search() -> None:
    trial = trial_of(Target(), {"calls": 10})
    trial.spending.until = 2
    with pytest.raises(BudgetSpent, match="and 2 are allowed by here"):
        trial.scores([(ONE, range(3))])
    trial.spending.until = 10
    trial.scores([(ONE, range(3))])


def test_tokens_and_money_are_looked_at_between_two_rounds() -> None:
    price = lambda sent, written: (sent + 10 * written) / 1000  # noqa: E731 - as the search builds it
    for limit, said in (({"tokens": 40}, "40 tokens are spent of 40"), ({"usd": 0.1}, "0.1480 USD are spent of 0.1")):
        trial = trial_of(Target(), limit, price=price)
        trial.scores([(ONE, range(2))])
        trial.scores([(ONE, range(4))])
        with pytest.raises(BudgetSpent, match=f"^{said}"):
            trial.scores([(ONE, range(5))])
        trial.scores([(ONE, range(4))])  # what is known costs nothing
        assert trial.spending.cost()[:2] == (4, 40)
        assert trial.spending.cost().usd == pytest.approx(0.148)


def test_a_share_of_the_calls_is_the_same_share_of_tokens_money_and_time() -> None:
    """Else a strategy spends all of it, and nothing is left to prove what it found."""
    clock = Clock()
    price = lambda sent, written: float(sent + written)  # noqa: E731 - as the search builds it
    for limit in ({"tokens": 40}, {"usd": 40.0}, {"time": "40s"}):
        trial = trial_of(Target(), {"calls": 100, **limit}, price=price, clock=clock)
        trial.spending.until = 50
        trial.scores([(ONE, range(2))])
        clock.now += 20
        with pytest.raises(BudgetSpent, match="of 20"):
            trial.scores([(ONE, range(3))])
        trial.spending.until = 100
        trial.scores([(ONE, range(3))])


def test_time_is_looked_at_between_two_rounds() -> None:
    clock = Clock()
    trial = trial_of(Target(), {"time": timedelta(seconds=60)}, clock=clock)
    trial.scores([(ONE, [0])])
    clock.now += 59
    trial.scores([(ONE, [1])])
    clock.now += 1
    with pytest.raises(BudgetSpent, match="60 s have passed of 60"):
        trial.scores([(ONE, [2])])
    assert trial.spending.cost().seconds == 60


def test_failures_count_as_calls_without_tokens_and_without_a_price_the_cost_is_unknown() -> None:
    trial = trial_of(Target(silent=frozenset({0})))
    trial.scores([(ONE, [0, 1])])
    assert trial.spending.cost() == Cost(2, 10, None, 0.0)


def test_trials_of_one_workload_share_a_budget() -> None:
    one = trial_of(Target(), {"calls": 3})
    other = trial_of(Target(), spending=one.spending)
    one.scores([(ONE, [0, 1])])
    with pytest.raises(BudgetSpent):
        other.scores([(ONE, [0, 1])])
    assert other.spent() == 2


def test_right_answers_are_told_only_where_items_may_be_examples() -> None:
    assert trial_of(Target()).right_answer(4) == "4"
    assert trial_of(Target(), few_shot=False).right_answer(4) is None
    assert trial_of(Target()).slots(4) == {"question": "what is 4"}


def test_an_answer_from_elsewhere_is_graded_and_costs_nothing() -> None:
    trial = trial_of(Target(ungraded=frozenset({5})))
    assert [trial.grade_answer(4, "4"), trial.grade_answer(4, "3"), trial.grade_answer(5, "5")] == [1.0, 0.0, 0.0]
    assert trial.spent() == 0


def test_what_a_strategy_asks_by_itself_counts_against_the_same_budget() -> None:
    trial = trial_of(Target(), {"calls": 5}, price=lambda sent, written: float(sent + written))
    trial.scores([(ONE, [0, 1])])
    trial.account.require(3)
    for _ in range(3):
        trial.account.count(tokens=4, usd=0.5, computed=False)
    with pytest.raises(BudgetSpent, match="5 calls are spent, 1 more"):
        trial.account.require(1)
    with pytest.raises(BudgetSpent):
        trial.scores([(ONE, [2])])
    trial.rewriting.require(10**6)
    trial.rewriting.count(tokens=100, usd=0.25, computed=False)
    assert trial.spending.cost() == Cost(5, 2 * 10 + 3 * 4, 2 * 10 + 3 * 0.5, 0.0, 1, 100, None)
    trial.spending.rewriting_priced = True
    assert trial.spending.cost().rewriting_usd == 0.25
    trial.rewriting.count(tokens=1, usd=0.0, computed=True)
    assert trial.spending.cost()[-2:] == (False, True)
    trial.account.count(tokens=1, usd=0.0, computed=True)
    assert trial.spending.cost()[-2:] == (True, True)


def test_strata_are_told_by_the_columns_in_which_items_differ() -> None:
    rows = golden_of(ITEMS, task=["total" if at % 2 else "count" for at in range(ITEMS)])
    told = trial_of(Target(), rows=rows, stratified=["application", "task"]).strata()
    assert (told[0], told[1], len(told)) == ("task count", "task total", ITEMS)
    assert trial_of(Target(), stratified=["application"]).strata() == {}


def test_the_unchanged_template_is_what_was_logged() -> None:
    target = Target()
    trial_of(target).scores([(unchanged(TEMPLATE), [7])])
    assert json.dumps(target.asked[0].messages) == '[{"role": "user", "content": "Question: what is 7"}]'
