"""The model that rewrites prompts: asked through the same client as a target, each answer kept and counted.

An answer is kept under the digest of what was asked, so a search that was killed and starts again with the same seed
is answered from what is kept. It counts against the budget all the same: a search must end where it would have ended.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.completion import ASKED_AGAIN
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.token_count import count_tokens
from anven_pipelines.resources.endpoint import ask_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_strategy import Account
    from anven_pipelines.domain.token_count import TokenCount
    from anven_pipelines.resources.answer_batch import Checkpoint, Progress
    from anven_pipelines.resources.pace import Pace
    from anven_pipelines.spec_target import EndpointTarget

_MILLION: Final = 1e6


@dataclass(frozen=True)
class ReflectionBudget:
    """What a search may spend on a model beside the target.

    Calls are held exactly. What a call costs is known after it, so none begins once tokens or money are used up, and
    the last one may pass the mark. Where a server counts no tokens, each byte of the text counts as one.
    """

    calls: int
    tokens: int | None = None
    usd: float | None = None


class Conversation(NamedTuple):
    """What is asked once, with parameters beyond the endpoint's own."""

    messages: list[dict[str, Any]]
    params: dict[str, Any]


class Reply(NamedTuple):
    """What came of it.

    Attributes:
        text: The answer; None where there is none.
        reason: Why there is none.
        is_whole: Whether it ended by itself, and not at the longest that was allowed.
        input_tokens: Tokens of the prompt, as counted or computed.
        output_tokens: Tokens of the answer, as counted or computed.
    """

    text: str | None
    reason: str | None
    is_whole: bool
    input_tokens: int
    output_tokens: int


@dataclass
class Spent:
    """What was used, kept answers included; `computed` says that some of the tokens are not the server's count."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    computed: bool = False


@dataclass
class Reflector:
    """Asks one endpoint within a budget; a new search needs a new one.

    Attributes:
        endpoint: The model; its `params` are sent with every call.
        checkpoint: Keeps the answers, under `reflection_key(endpoint)`.
        budget: What may be spent.
        environ: Holds the key.
        pace: Clock, sleep and chance; the real ones where absent.
        asks_anew: Whether a question that is asked once more wants another answer; else it gets the same one for
            nothing.
        account: Where answers are counted beside `spent`, and where they may be refused too; nowhere where absent.
        spent: What was used so far.
    """

    endpoint: EndpointTarget
    checkpoint: Checkpoint
    budget: ReflectionBudget
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    pace: Pace | None = None
    asks_anew: bool = True
    account: Account | None = None
    spent: Spent = field(default_factory=Spent, init=False)
    _times: Counter[str] = field(default_factory=Counter, init=False)
    _earlier: list[CompletionRequest] = field(default_factory=list, init=False)
    _replies: dict[str, Reply] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse a budget that could not be held."""
        if self.budget.usd is not None and self.endpoint.price is None:
            message = (
                f"a budget of {self.budget.usd:g} USD is set for {self.endpoint.model!r}, whose price is not known; "
                "name its `price`, or set the budget in calls or tokens"
            )
            raise InvalidInput(message)

    def __call__(self, prompt: str) -> Reply:
        """Ask one question.

        Raises:
            BudgetSpent: it would go beyond the budget; it was not asked.
            InvalidInput: the key is missing, or the endpoint refuses key, model, URL or params.
            UnavailableService: there was no answer, and a later run may get one.
        """
        return self.ask([Conversation([{"role": "user", "content": prompt}], {})])[0]

    def ask(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Ask all at once and return what came of each, in their order.

        Raises:
            BudgetSpent: all of them would go beyond the budget; none was asked.
            InvalidInput: the key is missing, or the endpoint refuses key, model, URL or params.
            UnavailableService: there was no answer to one of them, and a later run may get one.
        """
        requests = [self._request(each) for each in conversations]
        new = list({each.item_id: each for each in requests if each.item_id not in self._replies}.values())
        if new and (spent_out := self.exhausted(len(new))):
            raise BudgetSpent(spent_out)
        if new and self.account:
            self.account.require(len(new))
        # What it has answered before goes along, though it is not asked again: it shows that the endpoint is well, so
        # that one question which it cannot take does not count against key or model.
        answers = ask_endpoint(
            self.endpoint,
            [*self._earlier, *new],
            checkpoint=self.checkpoint,
            progress=_ignore,
            environ=self.environ,
            pace=self.pace,
        ).tail(len(new))
        self._earlier += new
        for request, row in zip(new, answers.iter_rows(named=True), strict=True):
            self._replies[request.item_id] = self._reply(request, row)
        return [self._replies[request.item_id] for request in requests]

    def exhausted(self, calls: int = 1) -> str | None:
        """Say which part of the budget does not allow so many calls; None where all do."""
        most = "at most " if self.spent.computed else ""
        if self.spent.calls + calls > self.budget.calls:
            return f"{self.spent.calls} of {self.budget.calls} calls to {self.endpoint.model!r} are used"
        if self.budget.tokens is not None and self.spent.tokens >= self.budget.tokens:
            return f"{most}{self.spent.tokens} of {self.budget.tokens} tokens of {self.endpoint.model!r} are used"
        if self.budget.usd is not None and self.spent.usd >= self.budget.usd:
            return f"{most}{self.spent.usd:.4f} of {self.budget.usd:g} USD for {self.endpoint.model!r} are used"
        return None

    def _request(self, asked: Conversation) -> CompletionRequest:
        params = {**asked.params, **self.endpoint.params}
        question = digest_of({"messages": asked.messages, "params": params})
        self._times[question] += 1
        return CompletionRequest(f"{question}-{self._times[question] if self.asks_anew else 1}", asked.messages, params)

    def _reply(self, request: CompletionRequest, row: Mapping[str, Any]) -> Reply:
        """Count what an answer used, and read it."""
        kind = (row["reason"] or "").partition(":")[0]
        if kind in ASKED_AGAIN:
            message = (
                f"the model {self.endpoint.model!r} at {self.endpoint.url} gave no answer ({row['reason']}; "
                f"attempts: {row['attempts']}); see that it is up, then run again: what it answered before is kept"
            )
            raise UnavailableService(message)
        text = row["output"] or ""
        tokens = count_tokens(request.messages, row)
        self._count(tokens)
        is_answered = row["status"] == "answered"
        is_whole = is_answered and row["finish_reason"] != "length"
        return Reply(text if is_answered else None, row["reason"], is_whole, tokens.sent, tokens.written)

    def _count(self, counted: TokenCount) -> None:
        tokens, usd = counted.sent + counted.written, 0.0
        if price := self.endpoint.price:
            cost = counted.sent * price.input_usd_per_million + counted.written * price.output_usd_per_million
            usd = cost / _MILLION
        self.spent.calls += 1
        self.spent.tokens += tokens
        self.spent.usd += usd
        self.spent.computed |= counted.computed
        if self.account:
            self.account.count(tokens=tokens, usd=usd, computed=counted.computed)


def reflection_key(endpoint: EndpointTarget) -> str:
    """Return the key under which answers of a model are kept: equal keys would be asked the same of the same model."""
    return digest_of({"reflection": {"model": endpoint.model, "url": endpoint.url, "params": endpoint.params}})


def _ignore(progress: Progress) -> None:
    """Say nothing: a search tells of its own steps."""
