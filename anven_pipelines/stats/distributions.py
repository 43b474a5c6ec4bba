"""Quantiles and tails of the reference distributions, from SciPy.

SciPy takes half a second to import and every step of a run is a process of its own: it is imported with the first use.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

FloatArray = npt.NDArray[np.float64]


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1)."""
    return float(_special().ndtri(probability))


def normal_tail(z: FloatArray) -> FloatArray:
    """Return P(Z > z) of the standard normal, elementwise."""
    return np.asarray(_special().ndtr(-z), dtype=np.float64)


def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t with `df` degrees of freedom."""
    return float(_special().stdtrit(df, probability))


def t_tail(t: FloatArray, df: float) -> FloatArray:
    """Return P(T > t) of Student's t with `df` degrees of freedom, elementwise."""
    return np.asarray(_special().stdtr(df, -t), dtype=np.float64)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile of a beta distribution with parameters above 0."""
    return float(_special().betaincinv(a, b, probability))


def beta_cdf(x: FloatArray, a: float, b: float) -> FloatArray:
    """Return P(X <= x) of a beta distribution with parameters above 0, elementwise, for x in [0, 1]."""
    return np.asarray(_special().betainc(a, b, x), dtype=np.float64)


def beta_density(x: FloatArray, a: float, b: float) -> FloatArray:
    """Return the density of a beta distribution with parameters above 0, elementwise, for x in (0, 1)."""
    special = _special()
    return np.asarray(np.exp(special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b)))


def log_binomial(n: int, k: int) -> float:
    """Return the logarithm of the number of ways to choose k of n, for 0 <= k <= n."""
    special = _special()
    return float(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def fair_coin_cdf(heads: int, tosses: int) -> float:
    """Return the probability of at most `heads` heads in `tosses` tosses of a fair coin; 0 below none."""
    return float(_special().bdtr(heads, tosses, 0.5)) if heads >= 0 else 0.0


def log_beta(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the logarithm of the beta function, elementwise."""
    return np.asarray(_special().betaln(a, b), dtype=np.float64)


def log_gamma(a: float) -> float:
    """Return the logarithm of the gamma function."""
    return float(_special().gammaln(a))


def lower_gamma_share(a: float, x: float) -> float:
    """Return P(X <= x) of the gamma distribution with shape `a` and scale 1."""
    return float(_special().gammainc(a, x))


def root_between(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that changes its sign between `low` and `high` is zero (Brent 1973)."""
    from scipy import optimize  # noqa: PLC0415 - see the module docstring

    return float(optimize.brentq(function, low, high, xtol=1e-14))


@functools.cache
def _special() -> Any:  # noqa: ANN401 - a module
    from scipy import special  # noqa: PLC0415 - see the module docstring

    return special
