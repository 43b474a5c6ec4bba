"""When calls arrive: bursty and with a day's ups and downs, as published LLM traces show, or as a given trace says.

Sources: Wang et al. (2024), BurstGPT, arXiv:2401.17644: the gaps between calls of LLM services vary far more than
those of a Poisson process, and a Gamma distribution describes them. Patel et al. (2023), Splitwise, arXiv:2311.18677,
with the Azure LLM inference traces, whose week-long successor shows the rhythm of the day.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import InvalidInput

FloatArray = npt.NDArray[np.float64]

_GRID: Final = 4097  # points of the cumulative rate; between them it is as good as straight


class Rhythm(NamedTuple):
    """How uneven arrivals are; the defaults are round numbers in the spirit of the published traces, not fitted to one.

    Attributes:
        gap_cv: Coefficient of variation of the gaps, their standard deviation over their mean; 1 is a Poisson process,
            more is bursty.
        daily_amplitude: How far the rate moves from its mean over a day, 0 to 1. The duration stands for one day, which
            begins with the lowest rate.
    """

    gap_cv: float = 2.0
    daily_amplitude: float = 0.6


def arrival_times(count: int, *, seconds: float, rhythm: Rhythm, rng: np.random.Generator) -> FloatArray:
    """Draw the times of `count` calls: Gamma gaps, laid along the cumulative rate of the day.

    Args:
        count: Number of calls.
        seconds: Duration, which fixes the mean rate at `count / seconds`.
        rhythm: How uneven the arrivals are.
        rng: Seeded by the caller.

    Returns:
        Seconds from the start, ascending, within (0, seconds), shape (count,).

    Raises:
        InvalidInput: count, seconds or the rhythm is outside its range.
    """
    wrong = {
        "the number of calls": (count, "1 or more", count >= 1),
        "the gaps' variation": (rhythm.gap_cv, "a finite number above 0", 0 < rhythm.gap_cv < math.inf),
        "the daily amplitude": (rhythm.daily_amplitude, "0 to 1", 0 <= rhythm.daily_amplitude <= 1),
    }
    if faults := [
        f"{name} is {given:g}; {needed} is needed" for name, (given, needed, fine) in wrong.items() if not fine
    ]:
        raise InvalidInput("; ".join(faults))
    _require_duration(seconds)
    gaps = rng.gamma(shape=rhythm.gap_cv**-2, size=count + 1)
    return _along_the_day(np.cumsum(gaps[:-1]) / gaps.sum(), rhythm) * seconds


def _require_duration(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        message = f"the duration is {seconds:g}; a finite number of seconds above 0 is needed"
        raise InvalidInput(message)


def _along_the_day(shares: FloatArray, rhythm: Rhythm) -> FloatArray:
    """Move shares of all calls to the shares of the duration at which that many have arrived."""
    elapsed = np.linspace(0.0, 1.0, _GRID)
    turns = 2 * np.pi * elapsed
    arrived = turns - rhythm.daily_amplitude * np.sin(turns)
    return np.interp(shares, arrived / arrived[-1], elapsed)


def fit(trace: FloatArray, *, count: int | None, seconds: float) -> FloatArray:
    """Replay the first `count` arrivals of a trace (None: all) within a duration; their gaps keep their proportions.

    Raises:
        InvalidInput: The trace is shorter, its arrivals all come at once, or the duration is none.
    """
    _require_duration(seconds)
    if count is not None and not 1 <= count <= len(trace):
        message = f"the trace holds {len(trace)} arrivals and {count} are asked for; ask for 1 to {len(trace)}"
        raise InvalidInput(message)
    times: FloatArray = trace[:count] - trace[0]
    if times[-1] == 0 and len(times) > 1:
        message = f"the trace's first {len(times)} arrivals come at once; arrivals at different times are needed"
        raise InvalidInput(message)
    scaled: FloatArray = times * (seconds / times[-1] if times[-1] else 1.0)
    return scaled
