"""p-values adjusted for the number of tests that were made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust p-values so that one false claim among all of them is as rare as the level.

    Args:
        p_values: Shape (k,), in any order, however dependent; k may be 0.

    Returns:
        Adjusted p-values in the same order, to be compared with the level; never below the given ones.

    Raises:
        ValueError: a p-value is NaN or outside [0, 1], or the shape is not (k,).

    Source:
        Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    values = _checked(p_values)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)), 1)
    return adjusted


def benjamini_hochberg(p_values: npt.ArrayLike) -> FloatArray:
    """Adjust p-values so that false claims are at most that share of all claims, on average.

    Args:
        p_values: Shape (k,), in any order, independent or positively dependent; k may be 0.

    Returns:
        Adjusted p-values in the same order, to be compared with the accepted share.

    Raises:
        ValueError: a p-value is NaN or outside [0, 1], or the shape is not (k,).

    Source:
        Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57:289.
    """
    values = _checked(p_values)
    from scipy import stats  # noqa: PLC0415 - takes 0.5 s to import

    return np.asarray(stats.false_discovery_control(values), dtype=np.float64) if values.size else values


def _checked(p_values: npt.ArrayLike) -> FloatArray:
    values = np.array(p_values, dtype=np.float64)
    if values.ndim != 1:
        message = f"p-values have shape {values.shape}; one list, shape (k,), is needed"
        raise ValueError(message)
    if not ((values >= 0) & (values <= 1)).all():
        message = (
            f"p-values {values.tolist()} hold one that is NaN or outside [0, 1]; decide first what no test counts as"
        )
        raise ValueError(message)
    return values
