"""Exact match of the nano models, on each split and task, with Wilson's 95 % intervals.

    python benchmarks/nano_accuracy.py [--json] [--quick] [--data FOLDER]

`legacy` is legacy-nano on its own prompts, `unchanged` is anven-nano on the same prompts as they are, `adapted` is
anven-nano on prompts in its own style. Items are the same for all three, and no model was trained on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.nano.accuracy import Score, measure
from anven_pipelines.nano.models import model_folder
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.tasks import Item, Split, generate
from anven_pipelines.stats.proportions import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED: Final = 2026
ITEMS: Final = 3000
QUICK_ITEMS: Final = 300
SPLITS: Final[tuple[Split, ...]] = ("golden", "adversarial")


class Arm(NamedTuple):
    """A model and how it is asked."""

    name: str
    model: str
    style: Callable[[Item], list[dict[str, str]]]


ARMS: Final = (
    Arm("legacy", "legacy-nano", legacy_messages),
    Arm("unchanged", "anven-nano", legacy_messages),
    Arm("adapted", "anven-nano", anven_messages),
)


def rows(count: int, data: Path) -> Iterator[tuple[Split, Arm, list[Score]]]:
    """Yield the scores of each split and arm."""
    for split in SPLITS:
        items = generate(split, count, seed=SEED)
        for arm in ARMS:
            yield split, arm, measure(arm.model, items, arm.style, folder=data / arm.model)


def figures(scores: list[Score]) -> dict[str, Any]:
    """Return the exact match of each task with its interval, and the mean over tasks."""
    intervals = {score.task: wilson_interval(score.right, score.items, level=0.95) for score in scores}
    named: dict[str, Any] = {
        task: {"estimate": found.estimate, "lower": found.lower, "upper": found.upper}
        for task, found in intervals.items()
    }
    return named | {"mean": sum(found.estimate for found in intervals.values()) / len(intervals)}


def main() -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS} instead of {ITEMS} items a split")
    parser.add_argument("--data", type=Path, help="folder of both models in place of the shipped ones")
    options = parser.parse_args()
    count = QUICK_ITEMS if options.quick else ITEMS
    found: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    if not options.json:
        print(f"{count} items a split, seed {SEED}; exact match and 95 % interval")
    for split, arm, scores in rows(count, options.data or model_folder("legacy-nano").parent):
        found[split][arm.name] = figures(scores)
        if not options.json:
            print(line(split, arm.name, found[split][arm.name]))
    if options.json:
        print(json.dumps({"items": count, "seed": SEED, **found}))


def line(split: Split, arm: str, named: dict[str, Any]) -> str:
    """Write one row of the table."""
    tasks = "  ".join(
        f"{task} {rate['estimate']:.3f} [{rate['lower']:.3f}, {rate['upper']:.3f}]"
        for task, rate in named.items()
        if task != "mean"
    )
    return f"{split:12} {arm:10} {tasks}  mean {named['mean']:.3f}"


if __name__ == "__main__":
    main()
