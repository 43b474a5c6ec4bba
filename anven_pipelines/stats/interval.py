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
