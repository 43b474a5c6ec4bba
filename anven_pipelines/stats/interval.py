"""The interval type that every estimator returns."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval.

    `lower` or `upper` may be infinite where a side cannot be bounded; NaN is refused, because every
    comparison with NaN is False and would slip through a gate.
    """

    estimate: float
    lower: float
    upper: float
    level: float
    method: str

    def __post_init__(self) -> None:
        """Refuse NaN and a reversed interval."""
        if any(math.isnan(value) for value in (self.estimate, self.lower, self.upper)):
            message = f"interval [{self.lower}, {self.upper}] around {self.estimate} holds NaN; numbers are needed"
            raise ValueError(message)
        if not self.lower <= self.upper:
            message = f"interval [{self.lower}, {self.upper}] is reversed; lower <= upper is needed"
            raise ValueError(message)


def tail_of(level: float) -> float:
    """Return the share that a two-sided coverage leaves on either side.

    Raises:
        ValueError: `level` is no coverage.
    """
    if not 0 < level < 1:
        message = f"level is {level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
        raise ValueError(message)
    return (1 - level) / 2
