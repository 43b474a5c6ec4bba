"""Bounds of a cluster-robust t interval, on whole arrays of samples at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from anven_pipelines.stats.distributions import t_quantile

FloatArray = npt.NDArray[np.float64]


def guarded_t_bound(sums: FloatArray, sizes: FloatArray, *, tail: float, side: Literal[-1, 1]) -> FloatArray:
    """Bound one side of a mean of values in [-1, 1], counting one imagined cluster at the far end of that side.

    The imagined cluster has the size in which an average item stands. For one sample use
    `anven_pipelines.stats.paired.difference_interval`.

    Args:
        sums: Summed values by cluster, shape (..., clusters).
        sizes: Number of items by cluster, the same shape.
        tail: Error rate of this bound, e.g. 0.025.
        side: -1 for the lower bound, 1 for the upper.

    Returns:
        Bounds in [-1, 1], shape (...).

    Source:
        Miller (2024), arXiv:2411.00640, section 2, with the factor G / (G - 1) and t with as many degrees of freedom
        as there are measured clusters, less one.
    """
    clusters = sums.shape[-1]
    typical = ((sizes**2).sum(-1) / sizes.sum(-1))[..., None]
    sums = np.concatenate([sums, side * typical], axis=-1)
    sizes = np.concatenate([sizes, typical], axis=-1)
    mean = sums.sum(-1) / sizes.sum(-1)
    squares = ((sums - mean[..., None] * sizes) ** 2).sum(-1)
    error = np.sqrt((clusters + 1) / clusters * squares) / sizes.sum(-1)
    return np.asarray(np.clip(mean + side * t_quantile(1 - tail, clusters - 1) * error, -1, 1))
