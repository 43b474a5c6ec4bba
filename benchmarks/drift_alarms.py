"""How often unchanged traffic is called drift, and a real shift is found, next to a plain chi-squared test."""

from __future__ import annotations

import argparse
import json
from typing import Final

import numpy as np
import polars as pl
from scipy import stats

from anven_pipelines.domain.candidates import calls_per_independent
from anven_pipelines.domain.drift import FrozenTraffic, find_drift
from anven_pipelines.spec import Drift as Limits

SHARES: Final = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
SHIFTED: Final = np.array([0.25, 0.45, 0.2, 0.07, 0.03])  # a distance of 0.15
NAMES: Final = [f"stratum-{at}" for at in range(SHARES.size)]
CALLS: Final = (100, 1_000, 10_000)
TURNS: Final = ((1, 1), (4, 4), (20, 1))  # calls a conversation, at the freeze and since
LEVEL: Final = 0.01


def traffic(rng: np.random.Generator, shares: np.ndarray, calls: int, turns: int) -> pl.DataFrame:
    """Draw calls in conversations of `turns`, each in one stratum."""
    conversations = rng.choice(shares.size, size=calls // turns, p=shares)
    return pl.DataFrame(
        {
            "stratum": np.array(NAMES)[np.repeat(conversations, turns)],
            "cluster": np.repeat(np.arange(calls // turns), turns),
        }
    )


def rates(shares: np.ndarray, calls: int, turns: tuple[int, int], runs: int) -> dict[str, float]:
    """Return the share of runs that ended each way, for ours and for the plain test."""
    rng = np.random.default_rng(2026)
    said = {"drifted": 0, "represents": 0, "too few calls to tell": 0, "plain": 0}
    for _ in range(runs):
        before, live = traffic(rng, SHARES, calls, turns[0]), traffic(rng, shares, calls, turns[1])
        frozen = before["stratum"].value_counts().rename({"count": "calls"})
        seen = FrozenTraffic(frozen, calls_per_independent(before), before.select("stratum"))
        said[find_drift(seen, live, ["stratum"], Limits(level=LEVEL)).status] += 1
        both = frozen.join(live["stratum"].value_counts(), on="stratum", how="full", coalesce=True).fill_null(0)
        said["plain"] += int(stats.chi2_contingency(both.select("calls", "count").to_numpy()).pvalue < LEVEL)
    return {name: count / runs for name, count in said.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = 200 if arguments.quick else 2_000
    found: dict[str, float] = {}
    for world, shares in (("same", SHARES), ("shifted", SHIFTED)):
        for calls in CALLS:
            for turns in TURNS:
                row = rates(shares, calls, turns, runs)
                found |= {
                    f"{world}/{calls} calls/{turns[0]} and {turns[1]} turns/{name}": rate for name, rate in row.items()
                }
                if not arguments.json:
                    shown = ", ".join(f"{name} {rate:.1%}" for name, rate in row.items())
                    print(f"{world:8} {calls:>6} calls, {turns[0]} and {turns[1]} a conversation: {shown}")
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
