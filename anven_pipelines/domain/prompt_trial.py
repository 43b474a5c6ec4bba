"""The trial that a search asks through: each candidate on each item at most once, within one budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import polars as pl

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.completion import FORM_REFUSED
from anven_pipelines.domain.inference import ANSWERS, request_for
from anven_pipelines.domain.prompt_strategy import BudgetSpent, Shown
from anven_pipelines.domain.prompts import Call
from anven_pipelines.domain.token_count import count_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.prompt_strategy import Account
    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate
    from anven_pipelines.spec_prompt import SearchBudget
    from anven_pipelines.spec_target import AskedTarget


class Ask(Protocol):
    """Answers requests; answers that are kept from earlier are not asked for again."""

    def __call__(self, requests: Sequence[CompletionRequest], /) -> pl.DataFrame:
        """Return ANSWERS, one row per request, in their order."""


class Grade(Protocol):
    """Scores answers by the migration's graders."""

    def __call__(self, answers: pl.DataFrame, golden: pl.DataFrame, /) -> pl.DataFrame:
        """Return GRADES: item_id, score in [0, 1] or NULL, reason."""


class Cost(NamedTuple):
    """What was spent.

    Attributes:
        calls: Answers of the target.
        tokens: Their prompt and answer tokens.
        usd: Their price; None where none is declared.
        seconds: Time of the search; what was kept from an earlier run took none.
        rewriting_calls: Answers of a model that writes prompts.
        rewriting_tokens: Their prompt and answer tokens.
        rewriting_usd: Their price; None where none is declared.
        computed: Whether tokens and price of the target's answers hold bytes, which stand for what is not counted.
        rewriting_computed: The same of the models that write prompts.
    """

    calls: int
    tokens: int
    usd: float | None
    seconds: float
    rewriting_calls: int = 0
    rewriting_tokens: int = 0
    rewriting_usd: float | None = None
    computed: bool = False
    rewriting_computed: bool = False


@dataclass
class Rewriting:
    """What models that write prompts have answered; each of them has a budget of its own."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    computed: bool = False

    def require(self, calls: int) -> None:
        """Allow everything."""

    def count(self, *, tokens: int, usd: float, computed: bool) -> None:
        """Count one answer."""
        self.calls += 1
        self.tokens += tokens
        self.usd += usd
        self.computed |= computed


@dataclass
class Spending:
    """One budget for all trials of a workload.

    Answers that an earlier run had paid for count as they did then, so that a search which starts again asks for the
    same and ends where it would have ended.

    Attributes:
        budget: What may be spent.
        price: Of an answer by its tokens (input, output), USD; None where no price is declared.
        clock: Seconds; only differences count.
        calls: Answers so far.
        tokens: Their tokens.
        usd: Their price.
        computed: Whether any of those tokens were computed.
        rewriting: What models that write prompts have answered.
        rewriting_priced: Whether their price is declared.
        until: Calls that may be spent by the end of what goes on now: a share of the budget. The other limits are
            reached at the same share of theirs, so that a strategy leaves what the proof needs.
        began: When the search began, on the clock.
    """

    budget: SearchBudget
    price: Callable[[int, int], float] | None
    clock: Callable[[], float]
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    computed: bool = False
    rewriting: Rewriting = field(default_factory=Rewriting)
    rewriting_priced: bool = False
    until: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock; all of the calls may be spent, until somebody gets a share of them."""
        self.began, self.until = self.clock(), self.budget.calls

    def require(self, calls: int) -> None:
        """Refuse a round that the budget does not allow.

        Raises:
            BudgetSpent: too few calls are left, or another limit is reached.
        """
        budget = self.budget
        share = self.until / max(1, budget.calls)
        if self.calls + calls > self.until:
            message = f"{self.calls} calls are spent, {calls} more are wanted, and {self.until} are allowed by here"
            raise BudgetSpent(message)
        if budget.tokens is not None and self.tokens >= budget.tokens * share:
            message = f"{self._most}{self.tokens} tokens are spent of {budget.tokens * share:.0f}"
            raise BudgetSpent(message)
        if budget.usd is not None and self.usd >= budget.usd * share:
            message = f"{self._most}{self.usd:.4f} USD are spent of {budget.usd * share:g}"
            raise BudgetSpent(message)
        if budget.time is not None and self.clock() - self.began >= budget.time.total_seconds() * share:
            message = f"{self.clock() - self.began:.0f} s have passed of {budget.time.total_seconds() * share:.0f}"
            raise BudgetSpent(message)

    def add(self, requests: Sequence[CompletionRequest], answers: pl.DataFrame) -> None:
        """Count answers, ANSWERS in the order of what was asked."""
        counted = [
            count_tokens(request.messages, row)
            for request, row in zip(requests, answers.iter_rows(named=True), strict=True)
            if row["status"] == "answered"
        ]
        sent, written = sum(each.sent for each in counted), sum(each.written for each in counted)
        self.calls += answers.height
        self.tokens += sent + written
        self.usd += self.price(sent, written) if self.price else 0.0
        self.computed |= any(each.computed for each in counted)

    def count(self, *, tokens: int, usd: float, computed: bool) -> None:
        """Count one answer of the target that a strategy got by itself."""
        self.calls += 1
        self.tokens += tokens
        self.usd += usd
        self.computed |= computed

    def cost(self) -> Cost:
        """Return what was spent until now."""
        usd = self.usd if self.price else None
        rewriting = self.rewriting
        rewriting_usd = rewriting.usd if self.rewriting_priced else None
        return Cost(
            calls=self.calls,
            tokens=self.tokens,
            usd=usd,
            seconds=self.clock() - self.began,
            rewriting_calls=rewriting.calls,
            rewriting_tokens=rewriting.tokens,
            rewriting_usd=rewriting_usd,
            computed=self.computed,
            rewriting_computed=rewriting.computed,
        )

    @property
    def _most(self) -> str:
        return "at most " if self.computed else ""


Way = Callable[[int], Call]
"""Makes what the target is asked for an item, by its number within a trial."""


@dataclass
class TargetTrial:
    """A template, its items in the order in which they are asked, and the target.

    Attributes:
        template: What is to be asked better.
        rows: GOLDEN rows, in their random order.
        filled: What each item filled the slots with.
        way: Makes a candidate's way to ask.
        target: What is asked; its own parameters replace those of a call.
        ask: Asks it.
        grade: Scores answers.
        spending: The budget, shared with the other trials.
        refuse: Says which hard constraint a candidate breaks.
        few_shot: Whether items may be shown in a prompt with their right answers.
        stratified: Columns of the rows by which failures are told apart.
        failure: What ended asking or grading, should a strategy turn it into something else; None where nothing did.
    """

    template: PromptTemplate
    rows: pl.DataFrame
    filled: Sequence[Mapping[str, str]]
    way: Callable[[Candidate], Way]
    target: AskedTarget
    ask: Ask
    grade: Grade
    spending: Spending
    refuse: Callable[[Candidate], str | None]
    few_shot: bool = True
    stratified: Sequence[str] = ()
    failure: Exception | None = field(default=None, init=False)
    _known: dict[str, Shown] = field(default_factory=dict)
    _unmeasured: set[str] = field(default_factory=set)

    @property
    def items(self) -> int:
        """Number of items of the search split."""
        return self.rows.height

    def scores(self, asked: Sequence[tuple[Candidate, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        """Ask each candidate on its items, all at once, and return the scores in [0, 1] in their order.

        Raises:
            BudgetSpent: the budget does not allow all of it; nothing new was asked.
            ValueError: a candidate breaks a hard constraint, and may not be asked.
        """
        for candidate, _ in asked:
            if (reason := self.refuse(candidate)) is not None:
                message = f"a candidate of {candidate.origin} breaks a hard constraint and is not asked: {reason}"
                raise ValueError(message)
        return self.scores_of([(self.way(candidate), items) for candidate, items in asked])

    def scores_of(self, asked: Sequence[tuple[Way, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        """Do what `scores` does, for any way to ask; what was not measured scores 0."""
        return [np.nan_to_num(scores, nan=0.0) for scores in self.measured_of(asked)]

    def measured_of(self, asked: Sequence[tuple[Way, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        """Do what `scores_of` does, with NaN for what was not measured: no answer came, or it could not be graded.

        A request that the target refuses as it stands (HTTP 400) is measured: asked that way, it scores 0.
        """
        named = [[self._request(way, item) for item in items] for way, items in asked]
        wanted = {
            request.item_id: (item, request)
            for (_, items), requests in zip(asked, named, strict=True)
            for item, request in zip(items, requests, strict=True)
        }
        missing = [each for name, each in wanted.items() if name not in self._known]
        if missing:
            self.spending.require(len(missing))
            self._ask(missing)
        return [np.array([self._measured(request.item_id) for request in requests]) for requests in named]

    def _measured(self, name: str) -> float:
        return np.nan if name in self._unmeasured else self._known[name].score

    def _request(self, way: Way, item: int) -> CompletionRequest:
        """Build a request named by its item and by what is asked: two ways that ask the same are one question."""
        request = request_for("", way(item), self.target)
        content = digest_of([request.messages, request.params])
        return request._replace(item_id=f"{content[:32]}/{self.rows['id'][item]}")

    def _ask(self, missing: Sequence[tuple[int, CompletionRequest]]) -> None:
        """Ask, grade and remember; an answer that is missing or cannot be graded scores 0."""
        requests = [request for _, request in missing]
        with self._failures_noted():
            answers = self.ask(requests)
        self.spending.add(requests, answers)
        golden = self.rows[[item for item, _ in missing]].with_columns(
            pl.Series("id", [request.item_id for request in requests])
        )
        with self._failures_noted():
            grades = self.grade(answers, golden)
        told = answers.select("item_id", "output", failure="reason")
        graded = told.join(grades, on="item_id", how="left", maintain_order="left")
        truths = golden["ground_truth"].to_list()
        for (item, request), truth, row in zip(missing, truths, graded.iter_rows(named=True), strict=True):
            self._known[request.item_id] = Shown(
                item=item,
                slots=self.filled[item],
                ground_truth=truth,
                output=row["output"],
                score=row["score"] or 0.0,
                reason=row["reason"],
            )
            if row["score"] is None and not _is_refused(row["failure"]):
                self._unmeasured.add(request.item_id)

    def shown(self, candidate: Candidate, items: Sequence[int]) -> list[Shown]:
        """Return what became of items that `scores` has asked."""
        way = self.way(candidate)
        return [self._known[self._request(way, item).item_id] for item in items]

    def slots(self, item: int) -> Mapping[str, str]:
        """Return what an item filled the slots with."""
        return self.filled[item]

    def right_answer(self, item: int) -> str | None:
        """Return what a few-shot example of the item would answer; None where nothing says so."""
        truth: str | None = self.rows["ground_truth"][item] if self.few_shot else None
        return truth

    def grade_answer(self, item: int, output: str) -> float:
        """Return the score in [0, 1] of an answer that a strategy got by itself; 0 where it cannot be graded."""
        answered = {"item_id": self.rows["id"][item], "status": "answered", "output": output}
        with self._failures_noted():
            graded = self.grade(ANSWERS.conform(pl.DataFrame([answered])), self.rows[[item]])
        return graded["score"][0] or 0.0

    @contextmanager
    def _failures_noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def strata(self) -> Mapping[int, str]:
        """Return the stratum of each item, of the columns in which items differ."""
        told = [name for name in self.stratified if self.rows[name].n_unique() > 1]
        rows = self.rows.select(told).iter_rows() if told else ()
        return {
            item: ", ".join(f"{name} {value}" for name, value in zip(told, row, strict=True))
            for item, row in enumerate(rows)
        }

    def spent(self) -> int:
        """Return how many answers were asked for, over all trials of the workload."""
        return self.spending.calls

    @property
    def account(self) -> Account:
        """Where answers of the target are counted that a strategy gets by itself: the workload's budget."""
        return self.spending

    @property
    def rewriting(self) -> Account:
        """Where answers of a model are counted that writes prompts; it has a budget of its own."""
        return self.spending.rewriting

    def refusal(self, candidate: Candidate) -> str | None:
        """Say which hard constraint a candidate breaks; None where it may be asked."""
        return self.refuse(candidate)


def _is_refused(failure: str | None) -> bool:
    """Say whether the target does not take a request as it is asked, by the reason of its answer."""
    return (failure or "").partition(":")[0] in FORM_REFUSED
