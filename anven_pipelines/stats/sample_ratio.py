"""Sequential test whether arms get the shares they were assigned (sample ratio mismatch)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.confidence_sequence import SequentialState
from anven_pipelines.stats.distributions import log_gamma

PRIOR_WEIGHT = 1_000.0  # assignments that the prior, centred on the shares, is worth; larger finds small mismatches


@dataclass(frozen=True, kw_only=True)
class SampleRatio(SequentialState):
    """Dirichlet-multinomial martingale against the assigned shares; valid at every look.

    When the shares change, the evidence so far is kept and multiplies that of the new stage: a product of martingales
    that follow each other is one.

    Source:
        Lindon and Malek (2022), Advances in Neural Information Processing Systems 35, arXiv:2011.03567, section 3.
    """

    shares: tuple[float, ...]
    counts: tuple[int, ...] = ()  # of this stage
    log_evidence_before: float = 0.0  # of the stages before
    log_evidence_most: float = 0.0  # at any look

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if len(self.shares) < 2 or not all(share > 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-9:  # noqa: PLR2004
            message = f"shares are {self.shares}; two or more above 0 that add up to 1 are needed"
            raise ValueError(message)
        if not self.counts:
            object.__setattr__(self, "counts", (0,) * len(self.shares))

    def update(self, counts: npt.ArrayLike) -> Self:
        """Return the state after one batch.

        Args:
            counts: New assignments to each arm, whole numbers from 0 up, shape (arms,). Count what was assigned (users
                or conversations), not the requests that follow from it.

        Raises:
            ValueError: the counts are no such numbers, or of another number of arms.
        """
        new = np.asarray(counts)
        if new.shape != (len(self.shares),) or not np.issubdtype(new.dtype, np.integer) or (new < 0).any():
            message = f"counts are {new.tolist()}; {len(self.shares)} whole numbers from 0 up are needed, one an arm"
            raise ValueError(message)
        state = replace(self, counts=tuple((np.array(self.counts, dtype=np.int64) + new).tolist()))
        return replace(state, log_evidence_most=max(state.log_evidence_most, state.log_evidence))

    def assigned(self, shares: tuple[float, ...]) -> Self:
        """Return the state from which assignments have other shares.

        Raises:
            ValueError: the shares are none, or of another number of arms.
        """
        if len(shares) != len(self.shares):
            message = f"{len(shares)} shares for {len(self.shares)} arms; one an arm is needed"
            raise ValueError(message)
        return replace(self, shares=tuple(shares), counts=(), log_evidence_before=self.log_evidence)

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the martingale at this look."""
        evidence = self.log_evidence_before + log_gamma(PRIOR_WEIGHT) - log_gamma(PRIOR_WEIGHT + sum(self.counts))
        for count, share in zip(self.counts, self.shares, strict=True):
            prior = PRIOR_WEIGHT * share
            evidence += log_gamma(prior + count) - log_gamma(prior) - count * math.log(share)
        return evidence

    @property
    def p_value(self) -> float:
        """p-value of all looks so far together: ever below alpha with a chance of alpha at most."""
        return math.exp(-self.log_evidence_most)
