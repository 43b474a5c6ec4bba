"""What every confidence sequence shares: a small state that takes batches, its bounds, its JSON."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.interval import Interval

FloatArray = npt.NDArray[np.float64]

N_OPT = 1_000  # observations at which mixtures are tightest where the caller names no number
TYPICAL_VARIANCE = 0.1  # of a score in [0, 1], for the same purpose: a wrong one costs width, never coverage


class Bounds(NamedTuple):
    """Both ends of an interval; infinite where a side is open."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class SequentialState:
    """Numbers that stand for all data so far, so that a look costs what the new data cost."""

    def to_json(self) -> str:
        """Write the state as one strict JSON object; `from_json` gives back an equal state."""
        return json.dumps({"kind": type(self).__name__} | asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a state.

        Raises:
            ValueError: the text is not JSON, or holds another kind of state or other fields.
        """
        found = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or found.get("kind") != cls.__name__ or set(found) != names | {"kind"}:
            message = f"{text[:80]!r} is no state of {cls.__name__}; read it with the class and version that wrote it"
            raise ValueError(message)
        return cls(**{name: tuple(found[name]) if isinstance(found[name], list) else found[name] for name in names})


@dataclass(frozen=True, kw_only=True)
class ConfidenceSequence(SequentialState, ABC):
    """Bounds that hold at all looks at once with a chance of `level`.

    `running_lower` and `running_upper` are the highest lower and the lowest upper bound of all looks, None while a
    side is open.
    """

    level: float = 0.95
    n: int = 0
    running_lower: float | None = None
    running_upper: float | None = None

    def __post_init__(self) -> None:
        """Refuse a level that is no coverage."""
        if not 0 < self.level < 1:
            message = f"level is {self.level}; a two-sided coverage between 0 and 1 is needed, e.g. 0.95"
            raise ValueError(message)

    @property
    @abstractmethod
    def estimate(self) -> float:
        """The point estimate; needs at least one observation."""

    @abstractmethod
    def bounds(self) -> Bounds:
        """Bounds from the state alone, without the looks before.

        Raises:
            TooFewPairs: too little was observed for any.
        """

    @property
    @abstractmethod
    def method(self) -> str:
        """The method, for a report."""

    def current(self) -> Interval:
        """Interval at this look; each class says what it covers where the quantity moves.

        Raises:
            TooFewPairs: too little was observed.
        """
        lower, upper = self._bounds_of_some()
        return Interval(self.estimate, lower, upper, self.level, self.method)

    def running(self) -> Interval | None:
        """Intersection of the intervals of all looks; None once they contradict each other.

        It is never wider than `current`, and holds where the quantity itself does not move. None says that it moved
        (or that the chance of 1 - level came true), and is proof of nothing else.

        Raises:
            TooFewPairs: too little was observed.
        """
        self._bounds_of_some()
        lower = -math.inf if self.running_lower is None else self.running_lower
        upper = math.inf if self.running_upper is None else self.running_upper
        return Interval(self.estimate, lower, upper, self.level, self.method) if lower <= upper else None

    def looked(self) -> Self:
        """Return the state with the bounds of this look taken into the running ones."""
        try:
            lower, upper = self.bounds()
        except TooFewPairs:
            return self
        # An open side bounds nothing, and strict JSON has no infinity.
        lowest = [bound for bound in (self.running_lower, lower) if bound is not None and bound > -math.inf]
        highest = [bound for bound in (self.running_upper, upper) if bound is not None and bound < math.inf]
        return replace(self, running_lower=max(lowest, default=None), running_upper=min(highest, default=None))

    def _bounds_of_some(self) -> Bounds:
        if not self.n:
            message = "0 observations; at least one is needed: wait for traffic"
            raise TooFewPairs(message)
        return self.bounds()


def difference_of(first: Interval, second: Interval) -> Interval:
    """Interval for first - second from one interval each, by the union bound.

    It holds whenever both do, however the two depend on each other, at all looks at once if theirs do. For a
    difference at 0.95 give both 0.975.

    Args:
        first: Interval of one arm.
        second: Interval of the other, in the same unit.

    Returns:
        Interval in that unit, with level = first.level + second.level - 1.

    Raises:
        ValueError: the levels leave none for the difference.
    """
    level = first.level + second.level - 1
    if level <= 0:
        message = f"levels {first.level} and {second.level} leave {level:g} for the difference; give each 0.5 or more"
        raise ValueError(message)
    method = first.method if first.method == second.method else f"{first.method}; {second.method}"
    bounds = first.lower - second.upper, first.upper - second.lower
    return Interval(first.estimate - second.estimate, *bounds, level, f"difference by union bound: {method}")


def checked_values(values: npt.ArrayLike, *, low: float = -math.inf, high: float = math.inf) -> FloatArray:
    """Return one batch as an array, in the order of arrival.

    Raises:
        ValueError: the shape is not (k,), or a value is NaN, infinite or outside [low, high].
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        message = f"a batch has shape {array.shape}; one list of observations, shape (k,), is needed"
        raise ValueError(message)
    wrong = ~(np.isfinite(array) & (array >= low) & (array <= high))
    if wrong.any():
        within = f" from {low:g} to {high:g}" if max(abs(low), abs(high)) < math.inf else ""
        message = (
            f"{int(wrong.sum())} of {array.size} observations, first {array[wrong][0]}, are unusable; finite numbers"
            f"{within} are needed: decide first what an unmeasured one counts as"
        )
        raise ValueError(message)
    return array
