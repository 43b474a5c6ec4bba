"""What a search over the moves of a prompt gains on the nano models, and how many calls it needs for it.

    python benchmarks/prompt_search.py [--json] [--quick] [--seeds N] [--policy]
    python benchmarks/prompt_search.py --noise N [--json] [--quick]

Each task's legacy prompt is asked of anven-nano in the embedded engine, live and greedily; the grade is exact match.
With `--policy` one sentence of the legacy prompts has to stay. A search asks items of its own split only. Every figure
of a prompt is measured on validation items that no search saw.

The whole grid has 37,800 prompts for two of the tasks and 378,000 for `answer`, far beyond any budget here; it is
walked from the unchanged prompt on in its own order, the last dimension fastest, until the budget ends. Random search
and the grid ask each candidate on the same 24 items. Searches are deterministic and their answers are kept, so what a
search would return at a smaller budget is found by running it again with that budget. `calls to goal` is the smallest
number of calls tried from which on every result reaches 95 % of the best validation score that any search found.

With `--noise N` no model is asked: N whole adaptations of prompts that are all equally good (`prompt_noise.py`), and
how many of them claim a gain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from anven_pipelines.domain.prompt_answers import searched_space
from anven_pipelines.domain.prompt_search import Racing, RandomSearch, sweep
from anven_pipelines.domain.prompt_strategy import BudgetSpent, Shown
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, unchanged
from anven_pipelines.domain.prompt_trial import Rewriting
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import LEGACY_SYSTEM, LEGACY_USER
from anven_pipelines.nano.tasks import MAX_ANSWER_TOKENS, TASKS, Item, Task, generate
from anven_pipelines.stats.paired import difference_interval
from anven_pipelines.worker.embedded import EmbeddedEngine
from anven_pipelines.worker.engine import ContextLengthExceeded, EngineRequest, Sampling, answer
from benchmarks import prompt_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from anven_pipelines.domain.prompt_strategy import Strategy, Trial

MODEL: Final = "anven-nano"
LEVEL: Final = 0.95
GOAL: Final = 0.95
SWEPT_ITEMS: Final = 24
AT_ONCE: Final = 8
POLICY: Final = "Never guess, never promise anything to a customer, and never share private data with third parties."


class Size(NamedTuple):
    """How much is asked."""

    search_items: int
    validation_items: int
    budgets: tuple[int, ...]
    seeds: int


FULL: Final = Size(200, 300, (100, 200, 300, 450, 600, 900, 1200), 1)
QUICK: Final = Size(100, 40, (150,), 1)


class Target:
    """The model, with every answer kept."""

    def __init__(self) -> None:
        self._loop = asyncio.Runner()
        self._engine = self._loop.run(self._load())
        self._kept: dict[tuple[str, str], float] = {}

    async def _load(self) -> EmbeddedEngine:
        return EmbeddedEngine(model_folder(MODEL), name=MODEL)

    def ask(self, asked: Sequence[tuple[Candidate, Item]]) -> list[float]:
        """Return 1 for each answer that is right, character for character."""
        new = {(one.version, item.item_id): (one, item) for one, item in asked}
        new = {key: pair for key, pair in new.items() if key not in self._kept}
        self._kept.update(self._loop.run(self._grades(new)))
        return [self._kept[one.version, item.item_id] for one, item in asked]

    async def _grades(self, new: dict[tuple[str, str], tuple[Candidate, Item]]) -> dict[tuple[str, str], float]:
        async def grade(candidate: Candidate, item: Item) -> float:
            request = EngineRequest(
                messages=tuple(candidate.asked(slots_of(item))),
                max_tokens=MAX_ANSWER_TOKENS,
                sampling=Sampling(temperature=0),
            )
            try:
                return float((await answer(self._engine, request)).text == item.answer)
            except ContextLengthExceeded:
                return 0.0

        grades = await asyncio.gather(*(grade(*pair) for pair in new.values()))
        return dict(zip(new, grades, strict=True))

    def close(self) -> None:
        self._loop.run(self._engine.close())
        self._loop.close()


class LiveTrial:
    """Items of one task, asked of the target within a budget of calls."""

    def __init__(self, template: PromptTemplate, items: Sequence[Item], target: Target, *, budget: int) -> None:
        self.template = template
        self.items = len(items)
        self._items, self._target, self._budget = items, target, budget
        self._paid: set[tuple[str, int]] = set()
        self.account, self.rewriting = Rewriting(), Rewriting()  # no strategy here asks a model by itself

    def scores(self, asked: Sequence[tuple[Candidate, Sequence[int]]]) -> list[npt.NDArray[np.float64]]:
        wanted = {(candidate.version, item) for candidate, items in asked for item in items}
        if len(self._paid | wanted) > self._budget:
            raise BudgetSpent
        self._paid |= wanted
        flat = self._target.ask([(candidate, self._items[item]) for candidate, items in asked for item in items])
        ends = np.cumsum([len(items) for _, items in asked])
        return np.split(np.array(flat), ends[:-1])

    def shown(self, candidate: Candidate, items: Sequence[int]) -> list[Shown]:
        scores = self._target.ask([(candidate, self._items[item]) for item in items])
        return [
            Shown(item, self.slots(item), self.right_answer(item), None, score, None)
            for item, score in zip(items, scores, strict=True)
        ]

    def slots(self, item: int) -> dict[str, str]:
        return slots_of(self._items[item])

    def right_answer(self, item: int) -> str | None:
        return self._items[item].answer

    def grade_answer(self, item: int, output: str) -> float:
        """Score an answer that a strategy got by itself."""
        return float(output == self.right_answer(item))

    def strata(self) -> dict[int, str]:
        return {}

    def spent(self) -> int:
        return len(self._paid)

    def refusal(self, candidate: Candidate) -> str | None:
        text = "\n".join(message.content for message in candidate.messages)
        missing = [policy for policy in self.template.policies if policy not in text]
        return f"the policy {missing[0]!r} is missing" if missing else None


class Grid:
    """The whole space in its own order, until the budget ends."""

    name = "grid"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        space, _ = searched_space(trial, mode="full", reasons=False, rng=rng)
        rendered = (space.candidate(genome, origin=self.name) for genome in space.grid())
        return sweep(trial, rendered, items=SWEPT_ITEMS, at_once=AT_ONCE)


def slots_of(item: Item) -> dict[str, str]:
    """Return what a call of the item's task fills its template with."""
    return {"context": item.context, "question": item.question} if item.context else {"question": item.question}


def template_of(task: Task, *, policies: tuple[str, ...] = ()) -> PromptTemplate:
    """Return the legacy prompt of a task as mining the log finds it: a slot that is always empty is text."""
    filled = task == "answer"
    return PromptTemplate(
        name=task,
        system=LEGACY_SYSTEM[task],
        user=LEGACY_USER if filled else LEGACY_USER.replace("{context}", ""),
        slots=("context", "question") if filled else ("question",),
        policies=policies,
    )


def of_task(task: Task, count: int, *, seed: int) -> list[Item]:
    """Return new items of one task."""
    return [item for item in generate("golden", count * len(TASKS), seed=seed) if item.task == task]


def measured(task: Task, size: Size, target: Target, *, policies: tuple[str, ...]) -> dict[str, Any]:
    """Search a better prompt for one task with each strategy, and measure what they return."""
    template = template_of(task, policies=policies)
    unseen = of_task(task, size.validation_items, seed=4242)
    searches: list[Strategy] = [Racing(), RandomSearch(candidates=10_000), Grid()]
    before = target.ask([(unchanged(template), item) for item in unseen])
    found: dict[str, Any] = {"unchanged": float(np.mean(before)), "strategies": {}}
    for strategy in searches:
        runs = [curve(strategy, template, size, target, seed=seed, unseen=unseen) for seed in range(size.seeds)]
        found["strategies"][strategy.name] = {"runs": runs}
    curves = [run["curve"] for each in found["strategies"].values() for run in each["runs"]]
    goal = GOAL * max(point["validation"] for each in curves for point in each)
    found["goal"] = goal
    for each in found["strategies"].values():
        for run in each["runs"]:
            run["calls_to_goal"] = calls_to_goal(run["curve"], goal)
    return found


def curve(
    strategy: Strategy, template: PromptTemplate, size: Size, target: Target, *, seed: int, unseen: Sequence[Item]
) -> dict[str, Any]:
    """Run a search with each budget and measure on unseen items what it returns."""
    items = of_task(template.name, size.search_items, seed=1000 + seed)  # type: ignore[arg-type] # named after its task
    before = target.ask([(unchanged(template), item) for item in unseen])
    points, begun = [], time.perf_counter()
    for budget in size.budgets:
        trial = LiveTrial(template, items, target, budget=budget)
        best = strategy.search(trial, rng=np.random.default_rng(seed))
        after = target.ask([(best, item) for item in unseen])
        gain = difference_interval(np.array(after), np.array(before), level=LEVEL)
        points.append(
            {
                "budget": budget,
                "calls": trial.spent(),
                "validation": float(np.mean(after)),
                "gain": [gain.estimate, gain.lower, gain.upper],
                "moves": best.moves,
            }
        )
    return {"seed": seed, "curve": points, "seconds": round(time.perf_counter() - begun, 1)}


def calls_to_goal(points: Sequence[dict[str, Any]], goal: float) -> int | None:
    """Return the calls spent from which on every result reaches the goal; None where the last one does not."""
    reached = None
    for point in reversed(points):
        if point["validation"] < goal:
            break
        reached = point["calls"]
    return reached


def main() -> None:
    """Measure each task and print a table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer items, small budgets and one seed")
    parser.add_argument("--seeds", type=int, default=1, help="searches of each strategy, with items of their own")
    parser.add_argument("--policy", action="store_true", help="a policy sentence of the legacy prompts has to stay")
    parser.add_argument("--noise", type=int, metavar="N", help="adapt equal prompts N times and count claims of a gain")
    options = parser.parse_args()
    if options.noise:
        figures = prompt_noise.measured(options.noise, prompt_noise.QUICK if options.quick else prompt_noise.FULL)
        print(json.dumps(figures) if options.json else prompt_noise.told(figures))
        return
    size = (QUICK if options.quick else FULL)._replace(seeds=options.seeds)
    target = Target()
    found: dict[str, Any] = {}
    if not options.json:
        print(
            f"{size.validation_items} validation items a task; gain over the unchanged prompt with {LEVEL:.0%} interval"
        )
        print("task    unchanged  strategy  seed  adapted  gain                     calls  calls to goal")
    for task in TASKS:
        found[task] = measured(task, size, target, policies=(POLICY,) if options.policy else ())
        if not options.json:
            print("\n".join(lines(task, found[task])), flush=True)
    target.close()
    summary = means(found)
    if options.json:
        print(json.dumps({"size": size._asdict(), "tasks": found, "mean": summary}))
    else:
        print("mean of the tasks: " + ", ".join(f"{name} {value:.3f}" for name, value in summary.items()))


def means(found: dict[str, Any]) -> dict[str, float]:
    """Return the mean validation score over tasks and seeds, before and after each search at its largest budget."""
    names = next(iter(found.values()))["strategies"]
    after = {
        name: float(
            np.mean(
                [run["curve"][-1]["validation"] for task in found.values() for run in task["strategies"][name]["runs"]]
            )
        )
        for name in names
    }
    return {"unchanged": float(np.mean([task["unchanged"] for task in found.values()])), **after}


def lines(task: str, figures: dict[str, Any]) -> list[str]:
    """Write one row for each search and seed."""
    rows = []
    for name, each in figures["strategies"].items():
        for run in each["runs"]:
            last = run["curve"][-1]
            estimate, lower, upper = last["gain"]
            calls = run["calls_to_goal"]
            goal = f"more than {last['calls']}" if calls is None else str(calls)
            rows.append(
                f"{task:7} {figures['unchanged']:9.3f}  {name:8}  {run['seed']:4}  {last['validation']:7.3f}  "
                f"{estimate:+.3f} [{lower:+.3f}, {upper:+.3f}]  {last['calls']:5}  {goal}"
            )
    return [*rows, f"{task:7} goal {figures['goal']:.3f}"]


if __name__ == "__main__":
    main()
