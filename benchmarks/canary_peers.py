"""The judges that ours stands beside in canary.py and canary_recorded.py, each for one metric.

They do not see what is NaN, as their queries do not: errors are a metric of their own to them. Each is the rule alone
with its usual settings; what else such a tool has (Kayenta asks that the interval of the shift also clears a quarter
of it, and adds metrics up to a score) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from benchmarks.canary_controllers import FloatArray, IntArray

if TYPE_CHECKING:
    from benchmarks.canary_controllers import Units

FAILURES: Final = 5
FEWEST: Final = 30
FEWEST_MINUTES: Final = 10
RANKED: Final = 0.02
ROUNDING: Final = 1e-6
"""Of a minute, that a time computed from hours may fall short of a whole one."""

Stretch = Callable[[FloatArray], float]


@dataclass
class Threshold:
    """As Argo Rollouts and Flagger do: each hour the target may be so much worse; the fifth failure rolls back."""

    of: Stretch
    is_worse: Callable[[float, float], bool]
    failures: int = 0

    def __call__(self, units: Units, bad: FloatArray) -> int | None:
        """Return the unit at which the fifth hour has failed, counted over the stages."""
        known = ~np.isnan(bad)
        for inside in units.stretches(1):
            target, legacy = (
                bad[inside][arm & known[inside]] for arm in (units.treated[inside], ~units.treated[inside])
            )
            if target.size and legacy.size and self.is_worse(self.of(target), self.of(legacy)):
                self.failures += 1
                if self.failures >= FAILURES:
                    return int(inside.stop)
        return None


@dataclass(frozen=True)
class MannWhitney:
    """As Kayenta's judge does: each hour the target's minutes are ranked with those of a baseline of the same size."""

    quantile: float | None = None  # that a minute stands for; its mean where there is none

    def __call__(self, units: Units, bad: FloatArray) -> int | None:
        """Return the unit at the end of the first hour whose minutes rank significantly worse."""
        minutes = np.floor(units.at * 60 + ROUNDING).astype(np.int64) % 60
        known = ~np.isnan(bad)
        for inside in units.stretches(1):
            minute = minutes[inside]
            target, legacy = (
                self._minutes(minute[arm], bad[inside][arm])
                for arm in (units.treated[inside] & known[inside], units.baseline[inside] & known[inside])
            )
            if min(len(target), len(legacy)) < FEWEST_MINUTES or target.mean() <= legacy.mean():
                continue
            if stats.mannwhitneyu(target, legacy, alternative="two-sided").pvalue < RANKED:
                return int(inside.stop)
        return None

    def _minutes(self, minute: IntArray, bad: FloatArray) -> FloatArray:
        """Return the mean or the quantile of each minute in which a unit came."""
        counts: IntArray = np.bincount(minute, minlength=60)
        some = counts > 0
        if self.quantile is None:
            return np.asarray((np.bincount(minute, bad, minlength=60)[some]) / counts[some])
        rank = np.ceil(counts[some] * self.quantile).astype(np.int64)
        return np.asarray(bad[np.lexsort((bad, minute))][(np.cumsum(counts) - counts)[some] + rank - 1])


def t_test(units: Units, bad: FloatArray) -> int | None:
    """Return the unit at whose look Welch's t-test of the means finds the target worse, one-sided at 5 %."""
    known = ~np.isnan(bad)
    values = np.where(known, bad, 0.0)
    n: list[FloatArray] = []
    mean: list[FloatArray] = []
    error: list[FloatArray] = []
    for arm in (units.treated & known, ~units.treated & known):
        count, total, squares = (np.cumsum(arm * values**power)[units.looks - 1] for power in (0, 1, 2))
        enough = np.maximum(count, 2)
        n.append(count)
        mean.append(total / enough)
        error.append(np.maximum(squares / enough - mean[-1] ** 2, 1e-12) / (enough - 1))
    t = (mean[0] - mean[1]) / np.sqrt(error[0] + error[1])
    looks = np.flatnonzero((t > stats.norm.isf(0.05)) & (np.minimum(*n) >= FEWEST))
    return int(units.looks[looks[0]]) if looks.size else None
