"""The credible interval is that of the Dirichlet posterior, and covers small samples that the CLT does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.bayesian import credible_difference, interval_of_table, posterior_below

TABLES = [(0, 0, 10), (3, 1, 10), (10, 0, 10), (9, 30, 100), (60, 100, 2000)]


@pytest.mark.parametrize(("gained", "lost", "n"), TABLES)
@pytest.mark.parametrize("difference", [-0.3, -0.01, 0.0, 0.04, 0.35])
def test_the_posterior_agrees_with_quadrature_the_other_way_round(
    gained: int, lost: int, n: int, difference: float
) -> None:
    # Ours integrates over the share of discordant pairs; here it is the part of them that is gained.
    share, part = stats.beta(gained + lost + 2, n - gained - lost + 2), stats.beta(gained + 1, lost + 1)

    def above(angle: float) -> float:
        """Density of the part times the chance that share x (2 part - 1) exceeds |difference| on its side."""
        v = np.sin(angle) ** 2
        reach = (2 * v - 1) if difference >= 0 else (1 - 2 * v)
        chance = share.sf(abs(difference) / reach) if reach > 0 else 0.0
        return float(part.pdf(v) * np.sin(2 * angle) * chance)

    middle = [np.pi / 4, np.arcsin(np.sqrt(part.mean()))]
    mass = integrate.quad(above, 0, np.pi / 2, points=middle, limit=400, epsabs=1e-11)[0]
    assert posterior_below(difference, gained, lost, n) == pytest.approx(
        1 - mass if difference >= 0 else mass, abs=1e-6
    )


def test_it_agrees_with_dirichlet_draws() -> None:
    shares = np.random.default_rng(1).dirichlet([10, 31, 63], size=400_000)
    drawn = np.quantile(shares[:, 0] - shares[:, 1], [0.025, 0.975])
    found = interval_of_table(9, 30, 100, level=0.95)
    assert (found.lower, found.upper) == pytest.approx(tuple(drawn), abs=1e-3)


def test_equal_arms_that_never_differ_are_not_certain() -> None:
    found = credible_difference(np.ones(30), np.ones(30), level=0.95)
    assert found.lower == pytest.approx(-found.upper)
    assert found.upper > 0.03


@settings(max_examples=10, deadline=None)
@given(st.integers(10, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_swapping_the_arms_negates_the_interval(table: tuple[int, int, int]) -> None:
    gained, lost, n = min(table[0], table[2] - table[1]), table[1], table[2]
    there, back = interval_of_table(gained, lost, n, level=0.9), interval_of_table(lost, gained, n, level=0.9)
    assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower), abs=1e-9)


def test_twelve_pairs_are_covered_where_the_clt_is_not() -> None:
    n, rows = 12, []
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            found = interval_of_table(gained, lost, n, level=0.95)
            mean = (gained - lost) / n
            reach = 1.96 * np.sqrt(((gained + lost) / n - mean**2) / (n - 1))
            rows.append((gained, lost, found.lower, found.upper, mean - reach, mean + reach))
    table = np.array(rows)
    cover: list[tuple[float, float]] = []
    for up, down in ((0.02, 0.02), (0.05, 0.05), (0.02, 0.1), (0.1, 0.2), (0.25, 0.25)):
        counts = np.c_[table[:, :2], n - table[:, 0] - table[:, 1]]
        chance = np.asarray(stats.multinomial.pmf(counts, n, [up, down, 1 - up - down]))
        inside = [chance[(table[:, k] <= up - down) & (up - down <= table[:, k + 1])].sum() for k in (2, 4)]
        cover.append((float(inside[0]), float(inside[1])))
    ours, clt = np.array(cover).T
    assert ours.min() > 0.93
    assert clt.min() < 0.91


def test_graded_scores_few_pairs_and_no_level_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1, are needed"):
        credible_difference(np.full(20, 0.5), np.ones(20), level=0.95)
    with pytest.raises(ValueError, match="level is 1"):
        credible_difference(np.ones(20), np.ones(20), level=1)
    with pytest.raises(TooFewPairs, match="9 pairs"):
        credible_difference(np.ones(9), np.ones(9), level=0.95)
