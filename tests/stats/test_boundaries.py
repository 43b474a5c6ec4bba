from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anven_pipelines.stats.boundaries import (
    beta_binomial_evidence,
    beta_binomial_weight,
    gamma_exponential_bound,
    normal_mixture_bound,
    plausible_counts,
)

# The numbers named `confseq` are what the C++ header of confseq 0.0.11 (PyPI) gives, compiled with Boost 1.81: the
# package has no wheels and needs Boost's headers to build, so it is no dependency of these tests.


def test_the_normal_mixture_published_with_confseq() -> None:
    assert normal_mixture_bound(100, alpha=0.05, v_opt=100) == pytest.approx(30.35209, abs=1e-5)


def test_the_gamma_exponential_mixture_published_with_confseq() -> None:
    assert gamma_exponential_bound(100, alpha=0.05, v_opt=100, scale=2) == pytest.approx(33.02017, abs=1e-5)


@pytest.mark.parametrize(
    ("v", "alpha", "confseq"),
    [
        (1, 0.05, 19.6081215558),
        (1, 0.01, 20.2361032338),
        (100, 0.05, 33.6388772578),
        (100, 0.01, 38.6232446698),
        (12345, 0.05, 374.022146856),
        (12345, 0.01, 429.137847308),
    ],
)
def test_the_normal_mixture_agrees_with_confseq(v: float, alpha: float, confseq: float) -> None:
    assert normal_mixture_bound(v, alpha=alpha, v_opt=500) == pytest.approx(confseq, rel=1e-10)


@pytest.mark.parametrize(
    ("v", "scale", "confseq"),
    [
        (0.5, 1, 21.7213773558),
        (0.5, 20, 79.4611810593),
        (100, 1, 36.1985666145),
        (100, 20, 103.825000549),
        (12345, 1, 378.960645225),
        (12345, 20, 491.214186187),
        (1e6, 1, 3971.7922379),
        (1e6, 20, 4279.89537493),
    ],
)
def test_the_gamma_exponential_mixture_agrees_with_confseq(v: float, scale: float, confseq: float) -> None:
    assert gamma_exponential_bound(v, alpha=0.025, v_opt=500, scale=scale) == pytest.approx(confseq, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "n", "below", "above"),
    [
        (0.5, 100, 19.1504589083, 19.1504589083),
        (0.95, 100, 9.75723510439, 5),
        (0.95, 5000, 50.5500292591, 46.7281049155),
        (0.05, 5000, 46.7281049156, 50.5500292591),
        (0.99, 1_000_000, 389.736121727, 383.820152295),
    ],
)
def test_plausible_counts_agree_with_confseq(share: float, n: int, below: float, above: float) -> None:
    found = plausible_counts(n, share=share, alpha=0.05, weight=beta_binomial_weight(1000, 0.05))
    assert found == (math.ceil(n * share - below), math.floor(n * share + above))


def test_evidence_is_a_martingale() -> None:
    # One more trial: the mean over its two outcomes is what was there before.
    share, weight = 0.3, 17.0
    for won, lost in [(0, 0), (3, 4), (100, 2)]:
        after = beta_binomial_evidence([won + 1, won], [lost, lost + 1], share=share, weight=weight)
        before = beta_binomial_evidence(won, lost, share=share, weight=weight)
        assert np.exp(after) @ [share, 1 - share] == pytest.approx(float(np.exp(before)), rel=1e-10)


def test_evidence_begins_at_nothing_and_no_trial_contradicts_anything() -> None:
    assert float(beta_binomial_evidence(0, 0, share=0.2, weight=5)) == 0
    assert plausible_counts(0, share=0.2, alpha=0.05, weight=5) == (0, 0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.001, 0.4), st.floats(0.1, 100))
def test_boundaries_rise_with_time(v: float, more: float, alpha: float, scale: float) -> None:
    normal = [normal_mixture_bound(time, alpha=alpha, v_opt=100) for time in (v, v + more)]
    gamma = [gamma_exponential_bound(time, alpha=alpha, v_opt=100, scale=scale) for time in (v, v + more)]
    for here, later in (normal, gamma):
        assert 0 < here <= later * (1 + 1e-9)


def test_a_smaller_scale_tightens_towards_the_one_sided_normal() -> None:
    bounds = [gamma_exponential_bound(1000, alpha=0.05, v_opt=1000, scale=scale) for scale in (20, 5, 1, 0.1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(27.66071 * math.sqrt(10), rel=0.01)  # confseq, v = v_opt = 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"v": -1.0}, "intrinsic time is -1.0"),
        ({"v": math.nan}, "intrinsic time is nan"),
        ({"v_opt": 0.0}, "tuned for 0.0"),
    ],
)
def test_what_no_boundary_is_made_of_is_refused(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"v": 1.0, "alpha": 0.05, "v_opt": 1.0} | change
    v = arguments.pop("v")
    with pytest.raises(ValueError, match=words):
        normal_mixture_bound(v, **arguments)
    with pytest.raises(ValueError, match=words):
        gamma_exponential_bound(v, scale=1, **arguments)


@pytest.mark.parametrize(("scale", "alpha"), [(0.0, 0.05), (math.inf, 0.05), (1.0, 0.5)])
def test_a_gamma_boundary_needs_a_scale_and_one_side(scale: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="below one half"):
        gamma_exponential_bound(1, alpha=alpha, v_opt=1, scale=scale)
