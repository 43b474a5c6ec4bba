"""How long the golden draw takes on a large log, and its search for near-duplicates alone.

    python benchmarks/golden_draw.py [--quick] [--json]

100,000 calls (--quick: 10,000) of one application with one long template and four right answers, the hardest case:
every call is compared with every other of its answer. A sixth of the prompts differs from another in one word, a
sixth repeats one. The floor is the same draw with `near_duplicates: keep`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import time
from typing import Any, Final

import polars as pl

from anven_pipelines.domain.golden import freeze
from anven_pipelines.domain.request_log import REQUEST_LOG
from anven_pipelines.spec import Migration

TEMPLATE: Final = "Decide which department should handle the message. Reply with one word and nothing else. " * 4
WORDS: Final = ["".join(parts) for parts in itertools.product("bkmt", "aeio", ("la", "le", "ra", "re"))]


def main() -> None:
    """Time the draws and print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="10,000 calls instead of 100,000")
    chosen = options.parse_args()
    calls = a_log(10_000 if chosen.quick else 100_000)
    figures: dict[str, float] = {"calls": calls.height}
    for handling in ("keep", "collapse"):
        begun = time.perf_counter()
        frozen = freeze(calls, a_migration(handling), needed=1_000)
        figures[f"{handling}_s"] = round(time.perf_counter() - begun, 2)
        figures[f"{handling}_items"] = frozen.facts["available"]
    figures["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if chosen.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:<16} {figure:>10,}")


def a_log(calls: int) -> pl.DataFrame:
    """Make a log of prompts, a third of which repeat another exactly or but for one word."""
    rng = random.Random(2026)  # noqa: S311 - seeded pseudo-random data is wanted
    texts = [rng.choices(WORDS, k=rng.randint(8, 90)) for _ in range(2 * calls // 3)]
    for at in range(calls - len(texts)):
        words = list(texts[rng.randrange(len(texts))])
        if at % 2:
            words[rng.randrange(len(words))] = f"other{at}"
        texts.append(words)
    rows: list[dict[str, Any]] = [
        {
            "request_id": f"r{at}",
            "model": "legacy",
            "messages": json.dumps([{"content": TEMPLATE + " ".join(words), "role": "user"}]),
            "output": "a",
            "ground_truth": "abcd"[len(words) % 4],
            "status": "ok",
        }
        for at, words in enumerate(texts)
    ]
    return REQUEST_LOG.conform(pl.DataFrame(rows))


def a_migration(near_duplicates: str) -> Migration:
    """Declare a migration over that log."""
    return Migration.model_validate(
        {
            "workload": "benchmark",
            "legacy": {"model": "legacy", "logs": "calls.jsonl"},
            "target": {"engine": "recorded", "model": "target", "answers": "answers.jsonl"},
            "grading": [{"kind": "exact"}],
            "golden": {"near_duplicates": near_duplicates},
        }
    )


if __name__ == "__main__":
    main()
