"""Searches that race candidates made of moves against the unchanged prompt.

All of them ask in batches and keep to one order of the items. Items that may stand in a prompt as examples are never
scored. A search that is cut short by the budget returns the best it has.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.domain.prompt_answers import Answers, searched_space
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import Candidate, unchanged
from anven_pipelines.stats.factor_model import FactorModel, Observations
from anven_pipelines.stats.paired import difference_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anven_pipelines.domain.prompt_moves import Genome, Mode, Space
    from anven_pipelines.domain.prompt_strategy import Trial

PROOF_LEVEL: Final = 0.9
TRIES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Racing:
    """Thompson sampling over the moves, then successive halving among the leaders.

    Each round draws effects of the moves from what is known of them and asks the combinations that are best under
    them on the next block of items, beside the unchanged prompt and the best combination so far. The rounds end when
    going on promises less than `promise` score points. The leaders, and the combination that the model holds for the
    best, are then asked on ever more items, the better half of them each time, until one is left or is proven ahead of
    the rest and of the unchanged prompt. What the race has taught begins the next rounds: a few items mislead now and
    then, and the search goes on, first with all that is one move from the winner, until one race is won by the winner
    of the last, or by one that answered everything right.

    Attributes:
        mode: Which moves may be made.
        reasons: Whether the target's chat template can switch reasoning on and off.
        rounds: Most rounds of Thompson sampling.
        at_once: Combinations of a round.
        block: Items of a round.
        promise: Expected gain, in score points, below which no further round is worth its calls.
        finalists: Leaders that are raced.
        first_lap: Items of the first comparison among them; each later one has twice as many.
        races: Most races, each with rounds before it.

    Source:
        Karnin, Koren and Somekh (2013), ICML, for successive halving; Russo and Van Roy (2014), Mathematics of
        Operations Research 39:1221, for Thompson sampling in a linear model.
    """

    mode: Mode = "full"
    reasons: bool = False
    rounds: int = 8
    at_once: int = 8
    block: int = 6
    promise: float = 0.05
    finalists: int = 6
    first_lap: int = 24
    races: int = 3
    name: str = field(default="racing", init=False)

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        """Return the best candidate found; see `Strategy`."""
        space, items = searched_space(trial, mode=self.mode, reasons=self.reasons, rng=rng)
        if not space.dimensions or not items:
            return unchanged(trial.template)
        race = _Race(self, trial, space, items, rng)
        try:
            for _ in range(self.races):
                before = race.winner
                race.explore()
                race.run()
                if race.winner is before or not race.has_room():
                    break
        except BudgetSpent:
            pass  # what was found so far stands
        return race.explained(race.best())


class _Race:
    """One search of `Racing`.

    Attributes:
        winner: Who leads the last race; None before the first lap.
    """

    def __init__(self, plan: Racing, trial: Trial, space: Space, items: int, rng: np.random.Generator) -> None:
        self._plan, self._trial, self._space, self._rng = plan, trial, space, rng
        self._answers = Answers(trial, items)
        self._start = unchanged(trial.template)
        self._genomes: dict[str, tuple[Candidate, Genome]] = {self._start.version: (self._start, space.start)}
        self._refused: set[str] = set()
        self.winner: Candidate | None = None
        self._round = 0
        self._fitted: tuple[int, FactorModel] | None = None
        self._blocks = [np.arange(at, min(at + plan.block, items)) for at in range(0, items, plan.block)]

    def explore(self) -> None:
        """Ask what Thompson sampling picks, round by round; after a race, what is one move from its winner first."""
        if self.winner is not None:
            self._ask_next([self.winner, *self._neighbours(self.winner)])
        for number in range(self._plan.rounds):
            picks, promise = self._picks()
            if number and promise < self._plan.promise:
                return
            self._ask_next(picks)

    def _ask_next(self, candidates: Sequence[Candidate]) -> None:
        """Ask candidates and the unchanged prompt on the next block."""
        asked = {each.version: each for each in (self._start, *candidates)}
        self._answers.ask(asked.values(), self._blocks[self._round % len(self._blocks)])
        self._round += 1

    def _neighbours(self, candidate: Candidate) -> list[Candidate]:
        """Return what may be asked and differs from a candidate in one dimension."""
        genome = self._genome_of(candidate)
        moved = ({**genome, name: option} for name, options in self._space.dimensions.items() for option in options)
        return [each for each in map(self._candidate, moved) if each is not None]

    def run(self) -> None:
        """Race the leaders; half of them stay for twice as many items."""
        left = self._leaders()
        lap = self._plan.first_lap
        while left:
            items = np.arange(min(lap, self._answers.items))
            blocks = [block[block < len(items)] for block in self._blocks if block[0] < len(items)]
            self._answers.ask_blocks([self._start, *left], blocks)
            left.sort(key=lambda each: -float(self._answers.of(each)[items].mean()))
            ahead = self._answers.of(left[0])[items].mean() > self._answers.of(self._start)[items].mean()
            self.winner = left[0] if ahead else self._start
            if len(left) == 1 or self._is_decided(left, items) or len(items) == self._answers.items:
                return
            left = left[: max((len(left) + 1) // 2, 1)]
            lap *= 2

    def has_room(self) -> bool:
        """Say whether the winner can be beaten at all: not where it answered everything right."""
        return self.winner is None or bool(np.nanmean(self._answers.of(self.winner)) < 1)

    def best(self) -> Candidate:
        """Return who leads the race; before its first lap the candidate with the highest expected gain above 0."""
        if self.winner is not None:
            return self.winner
        model = self._model()
        asked = self._asked()
        if model is None or not asked:
            return self._start
        gains = model.means(self._levels([self._genomes[each.version][1] for each in asked]))
        return asked[int(np.argmax(gains))] if gains.max() > 0 else self._start

    def explained(self, candidate: Candidate) -> Candidate:
        """Return a candidate with what each of its moves is worth beside the others, by the model of all answers."""
        model, moved = self._model(), list(candidate.moves)
        if model is None or not moved:
            return candidate
        genome = self._genome_of(candidate)
        without = [{**genome, name: self._space.start[name]} for name in moved]
        whole, *rest = model.means(self._levels([genome, *without]))
        reasons = {
            name: f"without it, a score {abs(left - whole):.3f} {'lower' if left < whole else 'higher'} is expected"
            for name, left in zip(moved, rest, strict=True)
        }
        return candidate.model_copy(update={"reasons": reasons})

    def _is_decided(self, left: Sequence[Candidate], items: npt.NDArray[np.int64]) -> bool:
        """Say whether the first is proven ahead of the others, and of the unchanged prompt."""
        first, *rest = [self._answers.of(each)[items] for each in (*left, self._start)]
        try:
            bounds = [difference_interval(first, other, level=PROOF_LEVEL).lower for other in rest]
        except TooFewPairs:
            return False
        return min(bounds) > 0

    def _picks(self) -> tuple[list[Candidate], float]:
        """Return different candidates that may be asked, the best known first, and what a step from it promises.

        No step leads above a score of 1.
        """
        model, best = self._model(), self.best()
        start = self._levels([self._genome_of(best)])
        room = 1.0
        if model is not None:
            room -= float(np.nanmean(self._answers.of(self._start)) + model.means(start)[0])
        found = {} if best == self._start else {best.version: best}
        leads = []
        for _ in range(self._plan.at_once * TRIES):
            if model is None:
                genome = self._space.draw(self._rng)
            else:
                levels, lead = model.sampled(self._rng, start=start[0])
                genome = self._genome(levels)
                leads.append(min(lead, max(room, 0.0)))
            candidate = self._candidate(genome)
            if candidate is not None and candidate.version != self._start.version:
                found[candidate.version] = candidate
            if len(found) >= self._plan.at_once:
                break
        return list(found.values()), float(np.mean(leads)) if leads else np.inf

    def _leaders(self) -> list[Candidate]:
        """Return the candidates to race: what the model holds for the best, then the best of those that were asked."""
        model, asked = self._model(), self._asked()
        if model is None or not asked:
            return []
        levels = self._levels([self._genomes[each.version][1] for each in asked])
        order = np.argsort(-model.means(levels), kind="stable")
        believed = self._candidate(self._genome(model.best(self._rng, start=levels[order[0]])))
        known = [asked[int(at)] for at in order]
        first = [each for each in (self.winner, believed) if each is not None]
        leaders = {each.version: each for each in [*first, *known]}
        leaders.pop(self._start.version, None)
        return list(leaders.values())[: self._plan.finalists]

    def _candidate(self, genome: Genome) -> Candidate | None:
        """Render a genome; None where a hard constraint refuses it."""
        candidate = self._space.candidate(genome, origin=self._plan.name)
        if candidate.version in self._genomes:
            return self._genomes[candidate.version][0]
        if candidate.version in self._refused or self._trial.refusal(candidate) is not None:
            self._refused.add(candidate.version)
            return None
        self._genomes[candidate.version] = candidate, genome
        return candidate

    def _asked(self) -> list[Candidate]:
        """Return the candidates that were asked, without the unchanged prompt."""
        return [
            candidate
            for candidate, _ in self._genomes.values()
            if candidate is not self._start and not np.isnan(self._answers.of(candidate)).all()
        ]

    def _model(self) -> FactorModel | None:
        """Return the model fitted to all answers so far; None before the first."""
        if self._answers.count == 0:
            return None
        if self._fitted is None or self._fitted[0] != self._answers.count:
            self._fitted = self._answers.count, self._fit()
        return self._fitted[1]

    def _fit(self) -> FactorModel:
        """Fit the model to the mean score of each candidate on each block."""
        asked = [self._start, *self._asked()]
        scores = np.stack([self._answers.of(each) for each in asked])
        edges = [int(block[0]) for block in self._blocks]
        items = np.add.reduceat(~np.isnan(scores), edges, axis=1, dtype=np.int64)
        sums = np.add.reduceat(np.nan_to_num(scores), edges, axis=1)
        rows, blocks = np.nonzero(items)
        levels = self._levels([self._genomes[each.version][1] for each in asked])
        count = items[rows, blocks]
        counts = [len(options) for options in self._space.dimensions.values()]
        seen = Observations(levels[rows], blocks, count, sums[rows, blocks] / count)
        return FactorModel(seen, counts=counts, reference=[0] * len(counts))

    def _levels(self, genomes: Sequence[Genome]) -> npt.NDArray[np.int64]:
        return np.array(
            [[options.index(each[name]) for name, options in self._space.dimensions.items()] for each in genomes]
        )

    def _genome(self, levels: npt.NDArray[np.int64]) -> Genome:
        return {
            name: options[int(at)] for (name, options), at in zip(self._space.dimensions.items(), levels, strict=True)
        }

    def _genome_of(self, candidate: Candidate) -> Genome:
        return self._genomes[candidate.version][1]


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Candidates drawn at random, each asked on the same items; what a search has to beat.

    Attributes:
        mode: Which moves may be made.
        reasons: Whether the target's chat template can switch reasoning on and off.
        candidates: Most candidates.
        items: Items that each is asked on.
        at_once: Candidates asked together.
    """

    mode: Mode = "full"
    reasons: bool = False
    candidates: int = 100
    items: int = 24
    at_once: int = 8
    name: str = field(default="random", init=False)

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        """Return the best candidate found; see `Strategy`."""
        space, items = searched_space(trial, mode=self.mode, reasons=self.reasons, rng=rng)
        if not space.dimensions or not items:
            return unchanged(trial.template)
        drawn = (space.draw(rng) for _ in range(self.candidates))
        rendered = (space.candidate(genome, origin=self.name) for genome in drawn)
        return sweep(trial, rendered, items=min(self.items, items), at_once=self.at_once)


def sweep(trial: Trial, candidates: Iterable[Candidate], *, items: int, at_once: int) -> Candidate:
    """Ask candidates as they come, a batch at a time, and return the best; the unchanged prompt where none is better.

    Args:
        trial: What is asked.
        candidates: Any number; the budget may end before them.
        items: How many of the first items each is asked on.
        at_once: Candidates of a batch.
    """
    answers, start = Answers(trial, items), unchanged(trial.template)
    best, most = start, -np.inf
    allowed = (each for each in candidates if trial.refusal(each) is None)
    batches = itertools.chain([[start]], iter(lambda: list(itertools.islice(allowed, at_once)), []))
    for batch in batches:
        try:
            answers.ask(batch, np.arange(items))
            asked = batch
        except BudgetSpent:
            asked = _affordable(answers, batch, np.arange(items))
        for candidate in asked:
            if (mean := float(answers.of(candidate).mean())) > most:
                best, most = candidate, mean
        if len(asked) < len(batch):
            break
    return best


def _affordable(answers: Answers, batch: Sequence[Candidate], items: npt.NDArray[np.int64]) -> list[Candidate]:
    """Ask one candidate after the other and return those that the budget allowed."""
    asked: list[Candidate] = []
    try:
        for candidate in batch:
            answers.ask([candidate], items)
            asked.append(candidate)
    except BudgetSpent:
        pass  # those before it stand
    return asked
