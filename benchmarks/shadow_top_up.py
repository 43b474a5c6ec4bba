"""How soon errors are proven no worse at low traffic, with mirrored requests and without, and how often wrongly.

    python benchmarks/shadow_top_up.py [--quick] [--json] [--seed N]

Units come one by one; each twentieth is dealt to the target, and all others are mirrored. The limit is one point. A
stream is looked at after each 500 units, and ends with its first proof. "users" is the target's own users at the whole
level; "topped up" is they or the pairs, at half of it each, as `domain/rollout_top_up.py` has it; "z test" is the
textbook test of the same pairs at the whole level, asked at every look. The arms fail independently of each other,
which is the hardest for pairs.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.paired_sequence import PairedDifference
from anven_pipelines.stats.randomised_difference import RandomisedDifference

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LEVEL: Final = 0.05
LIMIT: Final = 0.01
SHARE: Final = 0.05
LOOK: Final = 500
METHODS: Final = ("users", "topped up", "z test")
AT_LIMIT: Final = ((0.0, 0.01), (0.01, 0.02), (0.05, 0.06))
"""Legacy's and the target's share of failed requests, where every proof is wrong."""
ALIKE: Final = ((0.001, 0.001), (0.003, 0.003), (0.01, 0.01))


class Stream(NamedTuple):
    """Units in the order of arrival: who was dealt to the target, and whether each arm fails it."""

    treated: BoolArray
    target: FloatArray
    legacy: FloatArray


def main() -> None:
    """Simulate and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument(
        "--quick", action="store_true", help="60 streams a row instead of 1,000, and 20 instead of 100"
    )
    options.add_argument("--seed", type=int, default=20250101)
    chosen = options.parse_args()
    rng = np.random.default_rng(chosen.seed)
    wrong, right = (60, 20) if chosen.quick else (1_000, 100)
    figures = {
        **{f"false_{name}": found for name, found in rows(rng, AT_LIMIT, streams=wrong, units=10_000).items()},
        **{f"alike_{name}": found for name, found in rows(rng, ALIKE, streams=right, units=60_000).items()},
    }
    if chosen.json:
        print(json.dumps(figures | {"seed": chosen.seed, "streams_false": wrong, "streams_alike": right}))
        return
    print(f"{'':<32}" + "".join(f"{method:>24}" for method in METHODS))
    for name, found in figures.items():
        told = (f"{share:.1%}, median {'-' if after is None else f'{after:,.0f}'}" for share, after in found.values())
        print(f"{name:<32}" + "".join(f"{each:>24}" for each in told))
    print(
        f"share of streams with a proof, and units until it; 3 Monte Carlo errors {3 * noise(wrong):.1%} at the level"
    )


def rows(
    rng: np.random.Generator, truths: tuple[tuple[float, float], ...], *, streams: int, units: int
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Give each method's share of streams with a proof, and the median units until it; None where most have none.

    Args:
        rng: Seeded by the caller.
        truths: Legacy's and the target's share of failed requests.
        streams: How many, of each truth.
        units: How many at most, in a stream.
    """
    found = {}
    for legacy, target in truths:
        proofs = np.array(
            [proven_after(draw(rng, units, legacy=legacy, target=target)) for _ in range(streams)], dtype=np.float64
        )
        shares, medians = np.isfinite(proofs).mean(axis=0), np.median(proofs, axis=0)
        finite = (float(median) if math.isfinite(median) else None for median in medians)
        found[f"{legacy:g}_{target:g}"] = dict(zip(METHODS, zip(shares.tolist(), finite, strict=True), strict=True))
    return found


def draw(rng: np.random.Generator, units: int, *, legacy: float, target: float) -> Stream:
    """Draw one stream."""
    return Stream(
        rng.random(units) < SHARE,
        (rng.random(units) < target).astype(np.float64),
        (rng.random(units) < legacy).astype(np.float64),
    )


def proven_after(stream: Stream) -> tuple[float, float, float]:
    """Return after how many units each method has a proof; infinite where it never has one."""
    found = dict.fromkeys(METHODS, math.inf)
    whole = RandomisedDifference(level=1 - 2 * LEVEL, smallest_share=SHARE)
    half, pairs = RandomisedDifference(level=1 - LEVEL, smallest_share=SHARE), PairedDifference(level=1 - LEVEL)
    differences = np.empty(0)
    for end in range(LOOK, stream.treated.size + 1, LOOK):
        seen = slice(end - LOOK, end)
        treated, target, legacy = stream.treated[seen], stream.target[seen], stream.legacy[seen]
        outcomes, mirrored = np.where(treated, target, legacy), (target - legacy)[~treated]
        whole = whole.update(outcomes, treated, share=SHARE)
        half = half.update(outcomes, treated, share=SHARE)
        pairs = pairs.update(mirrored)
        differences = np.concatenate([differences, mirrored])
        proofs = (
            whole.current().upper < LIMIT,
            min(half.current().upper, pairs.current().upper) < LIMIT,
            z_bound(differences) < LIMIT,
        )
        for method, is_proven in zip(METHODS, proofs, strict=True):
            if is_proven:
                found[method] = min(found[method], end)
        if all(math.isfinite(after) for after in found.values()):
            break
    return found["users"], found["topped up"], found["z test"]


def z_bound(differences: FloatArray) -> float:
    """Upper bound of one look; pairs that do not differ yet bound nothing."""
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    return float(differences.mean()) + float(stats.norm.isf(LEVEL)) * error if error else math.inf


def noise(streams: int) -> float:
    """Monte Carlo error of a share of streams that is at the level."""
    return math.sqrt(LEVEL * (1 - LEVEL) / streams)


if __name__ == "__main__":
    main()
