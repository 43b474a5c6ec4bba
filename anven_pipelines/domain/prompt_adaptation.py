"""From the legacy prompts to prompts whose gain on the target is proven, or back to the legacy prompts.

For each template: the strategies look for candidates on the search items, all meet on the same items, and the best of
them is held against the unchanged prompt on validation items that nobody has seen. What proves no gain is dropped;
where the rest loses too much of what was right, or gives in to an injection, everything is.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.inference import request_for
from anven_pipelines.domain.prompt_answers import example_items
from anven_pipelines.domain.prompt_attacks import attacks_on, not_attacked
from anven_pipelines.domain.prompt_attempt import attempt, require_searched
from anven_pipelines.domain.prompt_calls import answer_schema
from anven_pipelines.domain.prompt_constraints import broken, most_characters
from anven_pipelines.domain.prompt_declared import unserving
from anven_pipelines.domain.prompt_entry import (
    UNCHANGED,
    Entry,
    as_answered,
    candidate_entry,
    chosen_entry,
    declared_entry,
    way_of,
)
from anven_pipelines.domain.prompt_gain import Compared, judge_gains, judge_guard, level_of_look
from anven_pipelines.domain.prompt_looks import conversations, measure_of
from anven_pipelines.domain.prompt_report import Adaptation, Heat
from anven_pipelines.domain.prompt_safety import ATTACKS, Outcome, compare, complied
from anven_pipelines.domain.prompt_slots import unread_policies
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import unchanged
from anven_pipelines.domain.prompt_trial import Spending, TargetTrial
from anven_pipelines.domain.prompts import apply, calls_of, candidate_part, carry_over, found_prompt, parts_in_order
from anven_pipelines.domain.token_count import tokens_per_byte
from anven_pipelines.stats.pairs import MIN_CLUSTERS, MIN_PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anven_pipelines.domain.prompt_attempt import Failure
    from anven_pipelines.domain.prompt_declared import Declared
    from anven_pipelines.domain.prompt_gain import Gain, Guard
    from anven_pipelines.domain.prompt_looks import Looks
    from anven_pipelines.domain.prompt_safety import Probe, SafetyFinding
    from anven_pipelines.domain.prompt_split import Part, Split, TemplateItems
    from anven_pipelines.domain.prompt_strategy import Strategy
    from anven_pipelines.domain.prompt_target import TargetProfile
    from anven_pipelines.domain.prompt_template import Candidate
    from anven_pipelines.domain.prompt_trial import Ask, Grade, Way
    from anven_pipelines.domain.prompts import AdaptedPrompt, Call
    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_target import AskedTarget

FEWEST: Final = 10  # search items of a template; below, a search would learn their noise

_AS_LOGGED: Final = "asked as logged, neither converted nor searched"


@dataclass
class Search:
    """One adaptation of a workload's prompts.

    Attributes:
        migration: What is declared.
        target: What is asked.
        split: The open items by template.
        rewrites: What `declarations` makes of the declared rewrites on all golden calls, by template.
        strategies: By name, in the order in which they search.
        profile: The form that the target takes.
        ask: Asks the target; answers are kept.
        grade: Scores answers.
        looks: Where it is written down which items are searched on, and each look at those that prove.
        tell: Is told what goes on.
        clock: Seconds.
        epoch: Within which answers of the target are reused.
    """

    migration: Migration
    target: AskedTarget
    split: Split
    rewrites: Mapping[str, Declared]
    strategies: Mapping[str, Strategy]
    profile: TargetProfile
    ask: Ask
    grade: Grade
    looks: Looks
    tell: Callable[[str], None]
    clock: Callable[[], float]
    epoch: str = ""

    def run(self) -> Adaptation:
        """Search, meet, prove.

        Raises:
            InvalidInput: the target refuses what it is asked, or every strategy lacks something.
            UnavailableService: the target does not answer, or no strategy could search; answers are kept.
            StaleInput: another run has searched on what was to prove the gain.
        """
        declared = self.migration.prompt
        priced = declared.reflection is not None and declared.reflection.price is not None
        self._spending = Spending(declared.budget, self._price(), self.clock, rewriting_priced=priced)
        heats: list[Heat] = []
        self._searched: dict[str, int] = {}
        self._failed: list[Failure] = []
        best: list[tuple[TemplateItems, Entry]] = []
        notes = [*self._uncovered(), *unserving(self.rewrites, declared)]
        searched = [each for each in self.split.templates if self._is_searched(each, notes)]
        if (self._names() or declared.rewrites) and declared.policies == "found":
            notes += [note for each in searched if (note := unread_policies(each.template))]
        notes += [note for each in searched if (note := _lacking(each))]
        self.looks.show(conversations(*(each.search.rows for each in searched)))
        for number, items in enumerate(searched):
            spent = self._spending.calls
            trial = self._trial(items, items.search)
            # What has met stands in what is spent; of those before this one only the proof is still to come.
            reserve = self._reserve(searched[number:]) + sum(self._proof(earlier) for earlier, _ in best)
            entries = self._entries(trial, items, notes, share=1 / (len(searched) - number), reserve=reserve)
            chosen, told = self._meet(trial, entries, notes)
            self._searched[items.template.name] = self._spending.calls - spent
            heats += told
            if chosen.origin != UNCHANGED:
                best.append((items, chosen))
        return self._proven(best, heats, notes)

    def _uncovered(self) -> list[str]:
        """Say how many items nothing is done for, not even a conversion that the target's form needs."""
        count = self.split.uncovered
        return [f"{count} open items fit no template: {_AS_LOGGED}"] if count else []

    def _is_searched(self, items: TemplateItems, notes: list[str]) -> bool:
        found = items.search.rows.height
        if found < FEWEST:
            notes.append(f"{items.template.name}: {found} search items, at least {FEWEST} are needed: {_AS_LOGGED}")
            return False
        if unprovable := _unprovable(items):
            notes.append(unprovable)
        return not unprovable

    def _reserve(self, searched: Sequence[TemplateItems]) -> int:
        """Return the calls that strategies must leave: all entries on all search items, and the proof both ways."""
        entries = 2 + len(self._names()) + bool(self.migration.prompt.rewrites)
        return sum(entries * each.search.rows.height + self._proof(each) for each in searched)

    def _proof(self, items: TemplateItems) -> int:
        """Return the most calls that the proof of a template takes: its validation items and the attacks, both ways."""
        found = self.rewrites.get(items.template.name)
        attacked = len(found.rewrites) if found is not None else 1
        return 2 * (items.validation.rows.height + attacked * len(ATTACKS))

    def _names(self) -> tuple[str, ...]:
        mode = self.migration.prompt.mode_for(self.migration.risk)
        return tuple(self.strategies) if mode in {"minimal", "full"} else ()

    def _entries(
        self, trial: TargetTrial, items: TemplateItems, notes: list[str], *, share: float, reserve: int
    ) -> list[Entry]:
        """Return what meets: the unchanged prompt, its conversion, the declared rewrites, and what strategies find."""
        template, form = items.template, self._form(items)
        made = partial(candidate_entry, template, profile=self.profile, form=form)
        entries = [Entry(UNCHANGED, carry_over())]
        mode = self.migration.prompt.mode_for(self.migration.risk)
        if mode != "tested":
            as_logged = unchanged(template).model_copy(update={"origin": "structural"})
            entries.append(made(as_logged, origin="structural"))
        found = self.rewrites.get(template.name)
        declared = declared_entry(template, found, self.migration.prompt, profile=self.profile, form=form)
        if isinstance(declared, str):
            notes.append(f"{template.name}: {declared}")
        elif declared is not None:
            entries.append(declared)
        elif mode == "tested":
            notes.append(f"{template.name}: no declared rewrite fits its prompts: nothing to test; unchanged")
        spending, names = self._spending, self._names()
        left = max(0, spending.budget.calls - spending.calls - reserve) * share
        if names and left < len(names):
            notes.append(
                f"{template.name}: no calls were left for {' and '.join(names)} to look with; prompt.budget.calls "
                f"is {spending.budget.calls}, and {reserve} are kept to judge; raise it or lower golden.size"
            )
        for name in names:
            spending.until = spending.calls + int(left / len(names))
            self.tell(f"{template.name}: {name} looks for a prompt, with {spending.until - spending.calls} calls")
            rng = np.random.default_rng([self.migration.prompt.seed, zlib.crc32(f"{template.name}/{name}".encode())])
            better, note, failure = attempt(name, self.strategies[name], trial, rng=rng)
            notes += [note] if note else []
            if failure is not None:
                self._note(failure, notes)
            if better is not None:
                entries.append(made(better, origin=name))
        failed = [each for each in self._failed if each.template == template.name]
        require_searched(failed, strategies=len(names))
        spending.until = spending.budget.calls
        return entries

    def _note(self, failure: Failure, notes: list[str]) -> None:
        """Tell of a strategy that failed, in the reasons and in the run's log."""
        self._failed.append(failure)
        notes.append(str(failure))
        self.tell(failure.in_full())

    def _meet(self, trial: TargetTrial, entries: Sequence[Entry], notes: list[str]) -> tuple[Entry, list[Heat]]:
        """Ask every entry on the same items and take the best; the first one, the unchanged, where none is better."""
        if len(entries) == 1:
            return entries[0], []
        # A candidate may show the others, with their right answers.
        items = range(min(example_items(trial), default=trial.items))
        ways = [way_of(trial.rows, each.prompt) for each in entries]
        try:
            # Item by item: a target that refuses one way, such as the legacy form, answers another in between, and so
            # refuses those requests and is not broken. The unchanged prompt goes last, as it is the likeliest to be.
            scored = trial.scores_of([(way, [item]) for item in items for way in reversed(ways)])
        except BudgetSpent as spent:
            notes.append(f"{trial.template.name}: {spent}; unchanged")
            return entries[0], []
        means = np.concatenate(scored).reshape(len(items), len(entries)).mean(axis=0)[::-1].tolist()
        best = int(np.argmax(means))
        name = trial.template.name
        self.tell(f"{name}: {entries[best].origin} is best with {means[best]:.3f}, unchanged {means[0]:.3f}")
        heats = [
            Heat(name, each.origin, each.prompt.version, len(items), mean, chosen=number == best)
            for number, (each, mean) in enumerate(zip(entries, means, strict=True))
        ]
        return entries[best], heats

    def _proven(
        self, best: Sequence[tuple[TemplateItems, Entry]], heats: Sequence[Heat], notes: Sequence[str]
    ) -> Adaptation:
        """Hold the best entries against the unchanged prompts on the validation items."""
        declared = self.migration.prompt
        if not best:
            return self._end(carry_over(), heats, reasons=(*notes, self._nothing_found(heats)))
        tried = self._prompt_of(best, description="")
        proving = conversations(*(items.validation.rows for items, _ in best))
        measure = measure_of(self.migration, self.target, epoch=self.epoch)
        earlier = self.looks.look(tried.version, items=proving, measure=measure)
        level = level_of_look(declared.level, earlier=earlier)
        try:
            compared = [self._compared(items, entry) for items, entry in best]
        except BudgetSpent as spent:
            return self._end(carry_over(), heats, level=level, reasons=(*notes, f"{spent}; nothing is proven"))
        gains = judge_gains(compared, level=level)
        won = [each for each, gain in zip(best, gains, strict=True) if gain.proven]
        told = [f"{gain.template}: {gain.reason}" for gain in gains]
        if not won:
            return self._end(carry_over(), heats, gains=gains, level=level, reasons=(*notes, *told))
        guard = judge_guard(
            [each for each, gain in zip(compared, gains, strict=True) if gain.proven],
            margin=declared.guard_margin,
            level=declared.level,
        )
        refused = [] if guard.status == "kept" else [f"refused: {guard.reason}"]
        safety, unsafe = self._judge_safety(won)
        refused += unsafe
        reasons = (*notes, *told, *refused)
        if refused:
            return self._end(carry_over(), heats, gains=gains, guard=guard, safety=safety, level=level, reasons=reasons)
        names = ", ".join(items.template.name for items, _ in won)
        prompt = self._prompt_of(
            won, description=f"Adapted for {names}, with a gain that is proven on items that no search has seen."
        )
        return self._end(prompt, heats, gains=gains, guard=guard, safety=safety, level=level, reasons=reasons, won=won)

    def _prompt_of(self, entries: Sequence[tuple[TemplateItems, Entry]], *, description: str) -> AdaptedPrompt:
        """Return the prompt of some entries; a call that the split gave to another template is not theirs to change."""
        changed = {items.template.name: entry.part for items, entry in entries}
        parts = parts_in_order([each.template for each in self.split.templates], changed)
        return found_prompt(parts, profile=self.profile, description=description)

    def _nothing_found(self, heats: Sequence[Heat]) -> str:
        """Say why there is nothing to prove; of what was never asked nobody knows how it looks."""
        if heats:
            return "nothing looked better than the unchanged prompts on the search items"
        return "nothing was compared with the legacy prompts, which stand as they are"

    def _end(
        self,
        prompt: AdaptedPrompt,
        heats: Sequence[Heat],
        *,
        reasons: tuple[str, ...],
        gains: Sequence[Gain] = (),
        guard: Guard | None = None,
        safety: SafetyFinding | None = None,
        level: float | None = None,
        won: Sequence[tuple[TemplateItems, Entry]] = (),
    ) -> Adaptation:
        return Adaptation(
            prompt=prompt,
            heats=tuple(heats),
            gains=tuple(gains),
            guard=guard,
            safety=safety,
            cost=self._spending.cost(),
            level=self.migration.prompt.level if level is None else level,
            uncovered=self.split.uncovered,
            reasons=reasons,
            chosen=tuple(chosen_entry(items, entry, profile=self.profile) for items, entry in won),
            searched=self._searched,
            failed=tuple(self._failed),
        )

    def _compared(self, items: TemplateItems, entry: Entry) -> Compared:
        """Ask the validation items both ways; the budget has kept calls for it."""
        trial = self._trial(items, items.validation)
        both = (way_of(trial.rows, prompt) for prompt in (carry_over(), entry.prompt))
        before, after = trial.measured_of([(way, range(trial.items)) for way in both])
        return Compared(items.template.name, before, after, items.validation.rows["cluster"].to_numpy())

    def _judge_safety(self, won: Sequence[tuple[TemplateItems, Entry]]) -> tuple[SafetyFinding | None, list[str]]:
        """Return what the attacks found, and why nothing of it may be used."""
        # A prompt without slots leaves nobody a place to attack it from.
        attacked = [each for each in won if each[0].template.slots]
        if not attacked:
            return None, []
        try:
            safety = self._safety(attacked)
        except BudgetSpent as spent:
            return None, [f"refused: {spent}; nothing says that it is as safe"]
        return safety, [f"refused: {'; '.join(safety.reasons)}"] if safety.worse else []

    def _safety(self, won: Sequence[tuple[TemplateItems, Entry]]) -> SafetyFinding:
        """Attack every changed template both ways, with values of real calls."""
        before, after, notes = list[Outcome](), list[Outcome](), list[str]()
        for items, entry in won:
            tried = attacks_on(items, entry, seed=self.migration.prompt.seed)
            notes += [f"{items.template.name}: {note}" for note in not_attacked(entry, tried)]
            params = json.loads(items.search.rows["model_config"][0] or "null") or {}
            for outcomes, way in ((before, Entry(UNCHANGED, carry_over())), (after, entry)):
                calls = [apply(way.prompt, probe.messages, params) for probe in tried]
                instructions = [way.serving(items.template, probe.messages) for probe in tried]
                outcomes.extend(self._attacked(tried, calls, instructions))
        found = compare(before, after)
        return replace(found, reasons=(*found.reasons, *notes))

    def _attacked(
        self, tried: Sequence[Probe], calls: Sequence[Call], instructions: Sequence[Candidate]
    ) -> list[Outcome]:
        """Ask the probes that reach; `instructions` is by what each is asked, so what its answer must not repeat."""
        requests = [
            request_for(f"{digest_of([call.messages, call.params])[:32]}/probe-{number}", call, self.target)
            for number, (probe, call) in enumerate(zip(tried, calls, strict=True))
            if probe.reached
        ]
        self._spending.require(len(requests))
        answers = self.ask(requests)
        self._spending.add(requests, answers)
        outputs = iter(answers["output"])
        told = [next(outputs) if probe.reached else None for probe in tried]
        return [
            Outcome(probe.number, probe.kind, None if output is None else complied(probe, output, asked_by))
            for probe, output, asked_by in zip(tried, told, instructions, strict=True)
        ]

    def _form(self, items: TemplateItems) -> dict[str, Any]:
        """Return what the target's form needs to know of a template; see `candidate_part`."""
        form: dict[str, Any] = {}
        schema = answer_schema(items.template.contract, self.migration.contract)
        if schema != items.template.contract:
            form["contract"] = schema
        if self.profile.max_context is not None:
            rows = items.search.rows
            form["tokens_per_byte"] = tokens_per_byte(
                (*call, tokens) for call, tokens in zip(calls_of(rows), rows["input_tokens"], strict=True)
            )
        return form

    def _trial(self, items: TemplateItems, part: Part) -> TargetTrial:
        adaptation, form = self.migration.prompt, self._form(items)
        asked = items.template
        template = as_answered(asked, form)
        most = most_characters(template, longest=adaptation.longest)

        def way(candidate: Candidate) -> Way:
            prompt = found_prompt([candidate_part(asked, candidate, form=form)], profile=self.profile, description="")
            return way_of(part.rows, prompt)

        return TargetTrial(
            template=template,
            rows=part.rows,
            filled=part.filled,
            way=way,
            target=self.target,
            ask=self.ask,
            grade=self.grade,
            spending=self._spending,
            refuse=lambda candidate: broken(candidate, template, most_characters=most),
            few_shot=adaptation.examples,
            stratified=self.migration.golden.strata,
        )

    def _price(self) -> Callable[[int, int], float] | None:
        price = self.target.price
        if price is None:
            return None
        return lambda sent, written: (sent * price.input_usd_per_million + written * price.output_usd_per_million) / 1e6


def _unprovable(items: TemplateItems) -> str | None:
    """Say that whatever a search found could not be proven, so that neither calls nor a look are spent on it."""
    proving = items.validation.rows
    found = proving["cluster"].n_unique()
    if proving.height >= MIN_PAIRS and found >= MIN_CLUSTERS:
        return None
    had = f"; searches had {items.lacking} conversations of those that prompt.validation asks for" * bool(items.lacking)
    return (
        f"{items.template.name}: {proving.height} validation items in {found} conversations, at least {MIN_PAIRS} in "
        f"{MIN_CLUSTERS} are needed to prove a gain: {_AS_LOGGED}{had}; a golden dataset of more logs brings new ones"
    )


def _lacking(items: TemplateItems) -> str | None:
    """Say that fewer items prove than are declared; None where as many do."""
    if not items.lacking:
        return None
    return (
        f"{items.template.name}: {items.lacking} conversations fewer than prompt.validation asks for are left to prove "
        "a gain on, as searches had them, or have them for another template; a golden dataset of more logs brings new "
        "ones"
    )
