"""GEPA: a larger model reads what went wrong and rewrites the prompt, and a frontier of prompts evolves.

The search is GEPA's (Agrawal et al. 2025, arXiv:2507.19457): it picks a parent from the Pareto frontier of per-item
scores, shows what became of it on a few items to a model, and keeps the child if it does better on them. What is
asked, scored and paid for is ours, through a `Trial` and a `Reflector`.

Given the same seed, scores and answers, GEPA takes the same steps: its chance comes from one seeded generator, it
reads no clock, and its sets hold small integers, whose order Python does not vary. So its own state folder is not
used: a search that starts again walks through what is kept and pays for what is missing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_feedback import PERFECT, feedback_on, proposed_text, records_of, rules_for
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import SLOT, Candidate, TemplateMessage, unchanged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    import numpy as np
    from gepa.core.adapter import EvaluationBatch

    from anven_pipelines.domain.prompt_strategy import Shown, Trial
    from anven_pipelines.resources.reflector import Reflector

_log = logging.getLogger(__name__)

SYSTEM: Final = "system"
USER: Final = "user"
_WORDS: Final = {SYSTEM: "the system message", USER: "the user message"}
_REMEMBERED: Final = 3  # refused proposals that the model is told of
_IDLE_STEPS: Final = 5  # steps per allowed call: a step whose answers are all right calls nobody
_PRESENT: Final = """I use the following text as {part} of every request to an assistant:
```
<curr_param>
```"""
_ABSENT: Final = "My requests to an assistant have no text as {part} yet.<curr_param>"  # GEPA asks for the mark
_BRIEF: Final = """{present}

This is what became of requests with it, grouped by what went wrong:
<side_info>

Write a better text to stand in its place, for an assistant that is smaller than you are. Find out from the inputs and
the right answers what the task demands, and state it: what is asked for, facts that the assistant cannot know, and
the exact form of the answer. Mend the frequent failures first. What was right must stay right.

Keep these rules; a text that breaks one is thrown away untried:
{rules}

Give the new text, and nothing else, between ``` marks."""


@dataclass(frozen=True)
class GepaStrategy:
    """Looks for a better system and user text with GEPA.

    Attributes:
        reflector: Makes the model that rewrites, with a fresh budget, once per search.
        metric_calls: At most so many answers of the target are asked for, each item of each candidate counted once.
        minibatch: Items that are shown in one step, and on which a child must beat its parent.
        frontier_items: At most so many items score a candidate that did; the others serve as minibatches.
        examples: Answers that are shown of each kind of failure.
    """

    reflector: Callable[[], Reflector]
    metric_calls: int
    minibatch: int = 8
    frontier_items: int = 64
    examples: int = 3
    name: str = "gepa"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        """Return the best candidate found; the unchanged prompt where nothing looked better.

        Raises:
            InvalidInput: the extra `adapt` is not installed, or the reflection endpoint refuses what it is asked.
            UnavailableService: the target or the reflection endpoint does not answer; what it answered is kept.
        """
        if not trial.items:
            return unchanged(trial.template)
        gepa = load_gepa()
        seed = int(rng.integers(2**32))
        reflector = self.reflector()
        reflector.account = trial.rewriting
        search = _Search(self, trial, reflector)
        tried, shown = _split(trial.items, self.frontier_items, self.minibatch)
        try:
            gepa.optimize(
                seed_candidate=search.texts_of_template(),
                trainset=shown,
                valset=tried,
                adapter=search,
                seed=seed,
                reflection_minibatch_size=min(self.minibatch, len(shown)),
                stop_callbacks=search.is_over,
                callbacks=[search],
                logger=_Quiet(),
            )
        except BudgetSpent as spent:
            _log.info("gepa stops: %s", spent)
        search.raise_failure()
        return search.result()


@dataclass
class _Search:
    """One search: GEPA's adapter, its observer, and what says when it is over."""

    strategy: GepaStrategy
    trial: Trial
    reflector: Reflector
    _asked: set[tuple[str, int]] = field(default_factory=set)
    _refused: dict[str, list[str]] = field(default_factory=lambda: {SYSTEM: [], USER: []})
    _failure: BaseException | None = None
    _first: float | None = None
    _best: tuple[float, dict[str, str]] | None = None

    def texts_of_template(self) -> dict[str, str]:
        """Return what GEPA rewrites."""
        template = self.trial.template
        return {SYSTEM: template.system or "", USER: template.user}

    def candidate_of(self, texts: Mapping[str, str]) -> Candidate:
        """Return the candidate that GEPA's texts stand for; its unchanged texts are the unchanged prompt."""
        template = self.trial.template
        if dict(texts) == self.texts_of_template():
            return unchanged(template)
        system = [TemplateMessage(role="system", content=texts[SYSTEM])] if texts[SYSTEM].strip() else []
        return Candidate(
            template=template.name,
            messages=(*system, *template.examples, TemplateMessage(role="user", content=texts[USER])),
            moves={"rewritten": " and ".join(_WORDS[part] for part in _changed(self.texts_of_template(), texts))},
            origin=self.strategy.name,
        )

    def evaluate(
        self,
        batch: list[int],
        candidate: dict[str, str],
        capture_traces: bool = False,  # noqa: FBT001, FBT002 - GEPA's signature
    ) -> EvaluationBatch[Shown, str | None]:
        """Score a candidate on items: nothing is asked of one that breaks a hard constraint, and it scores 0."""
        from gepa.core.adapter import EvaluationBatch  # noqa: PLC0415 - the extra `adapt`

        whole = self.candidate_of(candidate)
        if self.trial.refusal(whole) is not None:
            return EvaluationBatch([None] * len(batch), [0.0] * len(batch), None, num_metric_calls=0)
        new = {(whole.version, item) for item in batch} - self._asked
        if len(self._asked) + len(new) > self.strategy.metric_calls:
            message = f"{len(self._asked)} of {self.strategy.metric_calls} answers of the target are used"
            raise BudgetSpent(message)
        (scores,) = self.trial.scores([(whole, batch)])
        self._asked |= new
        shown = self.trial.shown(whole, batch) if capture_traces else None
        outputs: list[str | None] = [each.output for each in shown] if shown else [None] * len(batch)
        return EvaluationBatch(outputs, [float(score) for score in scores], shown, num_metric_calls=len(new))

    def make_reflective_dataset(
        self,
        candidate: dict[str, str],  # noqa: ARG002 - GEPA's signature
        eval_batch: EvaluationBatch[Shown, str | None],
        components_to_update: list[str],
    ) -> dict[str, list[dict[str, object]]]:
        """Tell what went wrong, how often and where, and what earlier proposals broke."""
        feedback = feedback_on(
            eval_batch.trajectories or [], strata=self.trial.strata(), examples=self.strategy.examples
        )
        return {part: records_of(feedback, refused=self._refused[part]) for part in components_to_update}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Ask for new texts; a part for which none came stays out.

        GEPA takes an exception here for one bad proposal, tries once more and goes on. So what must end the search is
        noted, and asked of nobody again.
        """
        if self._failure is not None:
            return {}
        try:
            texts = {part: self._proposal(part, candidate, reflective_dataset[part]) for part in components_to_update}
        except Exception as error:  # noqa: BLE001 - raised again once GEPA has stopped
            self._failure = error
            return {}
        return {part: text for part, text in texts.items() if text is not None}

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Remember the first best candidate; GEPA returns none when it is stopped by an exception."""
        score = event["average_score"]
        self._first = score if self._first is None else self._first
        if self._best is None or score > self._best[0]:
            self._best = (score, dict(event["candidate"]))
            _log.info("gepa: a candidate scores %.3f on its items, the unchanged prompt %.3f", score, self._first)

    def is_over(self, state: Any) -> bool:  # noqa: ANN401 - GEPAState, imported lazily
        """Stop on failure, at the end of a budget, when nothing is left to mend, or where no step asks anything."""
        return (
            self._failure is not None
            or self.reflector.exhausted() is not None
            or len(self._asked) >= self.strategy.metric_calls
            or (self._best is not None and self._best[0] >= PERFECT)
            or state.i + 1 >= _IDLE_STEPS * self.reflector.budget.calls
        )

    def raise_failure(self) -> None:
        """Raise what ended the search; the end of a budget is no failure."""
        if isinstance(self._failure, BudgetSpent):
            _log.info("gepa stops: %s", self._failure)
        elif self._failure is not None:
            raise self._failure

    def result(self) -> Candidate:
        """Return the best candidate, or the unchanged prompt."""
        if self._best is None:
            return unchanged(self.trial.template)
        score, texts = self._best
        found = self.candidate_of(texts)
        why = f"{score:.3f} on the items that GEPA scores with, {self._first:.3f} unchanged"
        return found.model_copy(update={"reasons": dict.fromkeys(found.moves, why)})

    def _proposal(self, part: str, texts: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> str | None:
        from gepa.strategies.instruction_proposal import InstructionProposalSignature  # noqa: PLC0415 - the extra `adapt`

        template = self.trial.template
        slots = [name for name in SLOT.findall(texts[part]) if name in template.slots]
        rules = "\n".join(f"- {rule}" for rule in rules_for(template, slots=slots))
        brief = _BRIEF.replace("{present}", _PRESENT if texts[part].strip() else _ABSENT)
        asked = {
            "current_instruction_doc": texts[part],
            "dataset_with_feedback": records,
            "prompt_template": brief.replace("{part}", _WORDS[part]).replace("{rules}", rules),
        }
        reply = self.reflector(str(InstructionProposalSignature.prompt_renderer(asked)))
        text = proposed_text(reply.text) if reply.text is not None and reply.is_whole else None
        if text is None or text == texts[part]:
            return None
        if refusal := self.trial.refusal(self.candidate_of({**texts, part: text})):
            self._refused[part] = [*self._refused[part], refusal][-_REMEMBERED:]
            return None  # GEPA would count it as a step of the search and learn nothing
        return text


class _Quiet:
    """Takes GEPA's log, which quotes prompts and answers."""

    def log(self, message: str) -> None:
        """Drop it; the search tells of its steps itself."""


def load_gepa() -> ModuleType:
    """Import GEPA, 0.5 s.

    Raises:
        InvalidInput: the extra `adapt` is not installed.
    """
    try:
        import gepa  # noqa: PLC0415 - an extra
    except ImportError as error:
        message = f"the strategy gepa needs the extra adapt ({error}): pip install 'anven-pipelines[adapt]'"
        raise InvalidInput(message) from error
    return gepa


def _split(items: int, frontier_items: int, minibatch: int) -> tuple[list[int], list[int]]:
    """Return the items that score candidates, and those that are shown: apart where there are enough of them."""
    everything = list(range(items))
    if items >= frontier_items + minibatch:
        return everything[:frontier_items], everything[frontier_items:]
    if items >= 4 * minibatch:
        return everything[: items // 2], everything[items // 2 :]
    return everything, everything


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [part for part in (SYSTEM, USER) if before[part] != after[part]]
