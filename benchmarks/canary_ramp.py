"""Simulated A/A ramps of a canary, looked at every 30 seconds; calibration.py and sequential_tick.py use them.

A ramp takes 72 h (5 %, 25 %, 50 % for 24 h each), in which nothing is different between the arms. An alarm is an
interval without zero, or a p-value below the error rate, at any of the 8,640 looks. Beside it, tests made for one look:
Welch's t, a binomial z for each arm's p95 and for the shares. For p95 an alarm counts as soon as one arm's bounds miss
the true value, which is more often than that two arms contradict each other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from anven_pipelines.stats.boundaries import beta_binomial_evidence, beta_binomial_weight, gamma_exponential_bound
from anven_pipelines.stats.confidence_sequence import N_OPT, TYPICAL_VARIANCE
from anven_pipelines.stats.randomised_difference import RandomisedDifference
from anven_pipelines.stats.sample_ratio import PRIOR_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Boundary = tuple[FloatArray, FloatArray]

LOOKS: Final = 72 * 60 * 2
A_LOOK: Final = 10  # events between two looks: 20 a minute
SHARES: Final = np.repeat([0.05, 0.25, 0.5], LOOKS // 3)
LEAST: Final = float(SHARES.min())
FEWEST: Final = 30  # events an arm before a test made for one look is asked


def difference_boundary(error_rate: float) -> Boundary:
    """Tabulate the boundary of `RandomisedDifference`: it is concave, so a line between two points lies below it."""
    v_opt = N_OPT * TYPICAL_VARIANCE / (LEAST * (1 - LEAST))
    times = np.concatenate([[0.0], np.geomspace(1, 1e8, 400)])
    alpha = error_rate / 2
    bounds = [gamma_exponential_bound(v, alpha=alpha, v_opt=v_opt, scale=1 / LEAST) for v in times.tolist()]
    return times, np.array(bounds)


def difference_ramp(rng: np.random.Generator, boundary: Boundary, *, error_rate: float) -> dict[str, bool]:
    """Run one A/A ramp; whether each test of a difference ever alarmed."""
    shares = np.repeat(SHARES, A_LOOK)
    treated = rng.random(shares.size) < shares
    day = np.sin(np.linspace(0, 6 * math.pi, shares.size))
    found: dict[str, bool] = {}
    for ending, rhythm in (("", 0 * day), ("_with_rhythm", day)):
        outcomes = {
            "errors": (rng.random(shares.size) < 0.05 + 0.02 * rhythm).astype(np.float64),
            "quality": rng.beta(9 + 3 * rhythm, 1),
        }
        for name, values in outcomes.items():
            found[f"{name}{ending}"] = difference_alarms(values, treated, boundary, error_rate=error_rate)
            found[f"{name}{ending}_naive"] = t_test_alarms(values, treated, error_rate=error_rate)
    return found


def difference_alarms(values: FloatArray, treated: BoolArray, boundary: Boundary, *, error_rate: float) -> bool:
    """Whether a look at `RandomisedDifference` would ever have left out 0."""
    state, parts = RandomisedDifference(smallest_share=LEAST, level=1 - error_rate), []
    for share, stage in stages():
        found = state.effects_of(values[stage], treated[stage], share=share, default=0.5)
        state = replace(state, **found.arms)
        parts.append(found)
    effects, predicted = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    totals, squares = np.cumsum(effects), np.cumsum((effects - predicted) ** 2)
    return bool((np.abs(at_looks(totals)) > np.interp(at_looks(squares), *boundary)).any())


def t_test_alarms(values: FloatArray, treated: BoolArray, *, error_rate: float) -> bool:
    """Whether Welch's t-test would ever have fallen below the error rate, from 30 events an arm on."""
    n, means, errors = [], [], []
    for arm in (treated, ~treated):
        count, total, square = (at_looks(np.cumsum(arm * values**power)) for power in (0, 1, 2))
        enough = np.maximum(count, 2)
        n.append(count)
        means.append(total / enough)
        errors.append(np.maximum(square / enough - means[-1] ** 2, 0) / (enough - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (means[0] - means[1]) / np.sqrt(errors[0] + errors[1])
    return bool((np.abs(t) > stats.t.isf(error_rate / 2, np.minimum(*n) - 1))[np.minimum(*n) >= FEWEST].any())


def count_alarms(rng: np.random.Generator, ramps: int, *, error_rate: float) -> dict[str, BoolArray]:
    """Whether each of some ramps ever alarmed, for what rests on counts alone."""
    treated = rng.binomial(A_LOOK, SHARES, size=(ramps, LOOKS))
    found = dict.fromkeys(("p95", "p95_naive"), np.zeros(ramps, dtype=np.bool_))
    alpha = error_rate / 2  # for each arm
    for arm in (treated, A_LOOK - treated):
        n, won = np.cumsum(arm, axis=1), np.cumsum(rng.binomial(arm, 0.95), axis=1)
        evidence = beta_binomial_evidence(won, n - won, share=0.95, weight=beta_binomial_weight(N_OPT, alpha))
        found["p95"] = found["p95"] | (evidence > -math.log(alpha)).any(axis=1)
        far = np.abs(won - 0.95 * n) > stats.norm.isf(alpha / 2) * np.sqrt(0.95 * 0.05 * n)
        found["p95_naive"] = found["p95_naive"] | (far & (n >= FEWEST)).any(axis=1)
    return found | sample_ratio_alarms(treated, error_rate=error_rate)


def sample_ratio_alarms(treated: npt.NDArray[np.int64], *, error_rate: float) -> dict[str, BoolArray]:
    """Whether the shares were ever found to differ from the assigned ones."""
    before, most = np.zeros(len(treated)), np.zeros(len(treated))
    for share in np.unique(SHARES).tolist():
        won = np.cumsum(treated[:, share == SHARES], axis=1)
        n = A_LOOK * np.arange(1, won.shape[1] + 1)
        # With two arms the Dirichlet-multinomial martingale is the beta-binomial one.
        evidence = before[:, None] + beta_binomial_evidence(won, n - won, share=share, weight=PRIOR_WEIGHT)
        before, most = evidence[:, -1], np.maximum(most, evidence.max(axis=1))
    far = np.abs(np.cumsum(treated - A_LOOK * SHARES, axis=1))
    allowed = stats.norm.isf(error_rate / 2) * np.sqrt(np.cumsum(A_LOOK * SHARES * (1 - SHARES)))
    naive = (far > allowed)[:, FEWEST // A_LOOK :].any(axis=1)
    return {"sample_ratio": most > -math.log(error_rate), "sample_ratio_naive": naive}


def stages() -> Iterator[tuple[float, slice]]:
    """Each share with its events."""
    for share in np.unique(SHARES).tolist():
        looks = np.flatnonzero(share == SHARES)
        yield share, slice(int(looks[0]) * A_LOOK, int(looks[-1] + 1) * A_LOOK)


def at_looks(running: npt.NDArray[Any]) -> FloatArray:
    """Pick what stood at each look."""
    return np.asarray(running[A_LOOK - 1 :: A_LOOK], dtype=np.float64)
