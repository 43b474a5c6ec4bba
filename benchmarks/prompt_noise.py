"""How often a whole adaptation of prompts claims a gain where every prompt is equally good.

    python benchmarks/prompt_search.py --noise N [--json] [--quick]

The items of a run differ in how hard they are, and each prompt is right on an item with that item's probability, drawn
for each prompt and item alone: nothing is better than anything else, and some looks so. Everything but the target is
the product's own: split, searches, meeting, graders, looks, gain, guard and safety. Any gain that is claimed is false.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl

from anven_pipelines.domain.golden import GOLDEN
from anven_pipelines.domain.grading import grade_rows
from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.domain.prompt_adaptation import Search
from anven_pipelines.domain.prompt_search import Racing, RandomSearch
from anven_pipelines.domain.prompt_split import split_items
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import PromptTemplate
from anven_pipelines.spec import Migration
from anven_pipelines.stats.proportions import clopper_pearson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.domain.prompt_report import Adaptation

COVERAGE: Final = 0.95
HARDNESS: Final = (3.0, 2.0)
"""Beta distribution of the probability that an item is answered right; mean .6."""
TEMPLATE: Final = PromptTemplate(
    name="desk",
    system="You are a clerk of a help desk. You will be given notes and a question. Use only the notes to find the "
    "answer. Reply with the exact value and nothing else.",
    user="Context: {notes}\nQuestion: {question}\nAnswer:",
    slots=("notes", "question"),
)


class Size(NamedTuple):
    """Of one adaptation: open items, and calls that it may spend."""

    items: int
    calls: int


FULL: Final = Size(300, 2000)
QUICK: Final = Size(100, 500)


@dataclass
class EqualPrompts:
    """A target to which all prompts are alike, and the log of one workload's looks."""

    seed: int
    looks: list[tuple[str, frozenset[str], str]] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)

    def ask(self, requests: Sequence[CompletionRequest]) -> pl.DataFrame:
        """Answer each question; its id is a digest of all that is asked, and the item."""
        outputs = [self._answer(*request.item_id.split("/")) for request in requests]
        answers = {"item_id": [request.item_id for request in requests], "status": "answered", "output": outputs}
        return ANSWERS.conform(pl.DataFrame(answers).with_columns(input_tokens=pl.lit(60), output_tokens=pl.lit(2)))

    def _answer(self, asked: str, item: str) -> str:
        hard = np.random.default_rng(_number(f"{self.seed}/{item}")).beta(*HARDNESS)
        is_right = _number(f"{self.seed}/{asked}/{item}") / 2**64 < hard
        return item if is_right else "unknown"

    def searched(self) -> frozenset[str]:
        """Return what was shown."""
        return frozenset(self.shown)

    def show(self, items: Mapping[str, str]) -> None:
        """Remember what is shown."""
        self.shown |= {*items, *items.values()}

    def look(self, prompt: str, *, items: Mapping[str, str], measure: str) -> int:
        """Return how many other looks there were."""
        look = (prompt, frozenset(items), measure)
        self.looks += [look] * (look not in self.looks)
        return self.looks.index(look)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def golden(run: int, items: int) -> pl.DataFrame:
    """Return open items of a run, each a conversation of its own."""
    ids = [f"run-{run}-{at}" for at in range(items)]
    asked = [
        [
            {"role": "system", "content": TEMPLATE.system},
            {"role": "user", "content": f"Context: notes on {name}\nQuestion: what is {name}?\nAnswer:"},
        ]
        for name in ids
    ]
    same = {"model_config": "{}", "split": "open", "role": "traffic", "weight": 1.0}
    strata = dict.fromkeys(("application", "endpoint", "task", "length_band", "risk", "language"), "desk")
    prompts = [json.dumps(messages) for messages in asked]
    rows = {"id": ids, "cluster": ids, "ground_truth": ids, "source_output": ids, "source_prompt": prompts}
    return GOLDEN.conform(
        pl.DataFrame(rows).with_columns(**{name: pl.lit(each) for name, each in {**same, **strata}.items()})
    )


def adapted(run: int, size: Size, world: EqualPrompts) -> Adaptation:
    """Run one whole adaptation: racing and random search compete, and the better one is held against the items."""
    migration = Migration.model_validate(
        {
            "workload": "noise",
            "legacy": {"model": "legacy", "logs": "logs.jsonl"},
            "target": {"engine": "endpoint", "model": "target", "url": "http://localhost:1/v1"},
            "grading": [{"kind": "exact"}],
            "golden": {"size": "all", "holdout": 0.5},
            "sign_off": {"quality_margin": 0.03, "waive": ["ttft", "cost", "safety"]},
            "prompt": {
                "mode": "full",
                "strategies": ["racing", "random"],
                "budget": {"calls": size.calls},
                "seed": run,
            },
        }
    )
    return Search(
        migration=migration,
        target=migration.target,  # type: ignore[arg-type] # an endpoint
        split=split_items(golden(run, size.items), (TEMPLATE,), validation=migration.prompt.validation),
        strategies={"racing": Racing(), "random": RandomSearch()},
        rewrites={},
        profile=TargetProfile(),
        ask=world.ask,
        grade=partial(grade_rows, migration.grading, judged={}),
        looks=world,
        tell=lambda _: None,
        clock=time.monotonic,
    ).run()


def measured(runs: int, size: Size) -> dict[str, Any]:
    """Return how many of so many runs proposed another prompt, and how many claimed a gain.

    Returns:
        `runs`; `proposed`, those in which another prompt was held against the validation items; `claimed`, those in
        which a gain was called proven, whatever the guard said then; `share` of `claimed` in `runs` with its exact
        95 % interval; `calls` on average; `cpu_seconds` of this process.
    """
    begun = time.process_time()
    found = [adapted(run, size, EqualPrompts(run)) for run in range(runs)]
    claimed = sum(any(gain.proven for gain in each.gains) for each in found)
    interval = clopper_pearson_interval(claimed, runs, level=COVERAGE)
    return {
        "runs": runs,
        "size": size._asdict(),
        "proposed": sum(bool(each.gains) for each in found),
        "claimed": claimed,
        "share": [interval.estimate, interval.lower, interval.upper],
        "calls": float(np.mean([each.cost.calls for each in found])),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def told(figures: dict[str, Any]) -> str:
    """Write the figures of `measured` in words."""
    share, lower, upper = figures["share"]
    return (
        f"{figures['runs']} adaptations of equal prompts, {figures['calls']:,.0f} calls each: {figures['proposed']} "
        f"held another prompt for better, {figures['claimed']} claimed a gain: {share:.2%} "
        f"[{lower:.2%}, {upper:.2%}] (exact {COVERAGE:.0%} interval), {figures['cpu_seconds']:.0f} s of processor time"
    )
