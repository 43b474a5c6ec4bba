"""How what production showed is told to people: which way, how much, and how sure, in numbers that can be read."""

from __future__ import annotations

from math import inf

import pytest

from anven_pipelines.domain.rollout_evidence import Comparison
from anven_pipelines.domain.rollout_reading import NEVER_MS
from anven_pipelines.stats.interval import Interval


def compared(unit: str, estimate: float, lower: float, upper: float, limit: float) -> Comparison:
    bounds = Interval(estimate, lower, upper, 0.95, "for a test")
    return Comparison(metric="ttft", unit=unit, harm=bounds, harm_limit=limit, proof=bounds, proof_limit=limit)


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        (
            compared("points", -0.00884, -0.111, 0.0938, 0.1),
            "ttft 0.884 points better (between 11.1 better and 9.38 worse), 10 worse allowed",
        ),
        (
            compared("ms", 117.6, -225.7, 1234.5, 1000.0),
            "ttft 118 ms worse (between 226 better and 1,234 worse), 1,000 worse allowed",
        ),
        (
            compared("ms", -3.71, -698.0, inf, 1000.0),
            "ttft 3.71 ms better (at most 698 better, how much worse is not bounded yet), 1,000 worse allowed",
        ),
        (compared("ms", 0.0, -inf, inf, 1500.0), "ttft 0 ms worse (nothing bounds it yet), 1,500 worse allowed"),
        (compared("ms", 5.0, -NEVER_MS, 9.0, 200.0), "ttft 5 ms worse (at most 9 worse), 200 worse allowed"),
        (
            compared("ms", NEVER_MS, -5.0, NEVER_MS, 200.0),
            "ttft endlessly worse (at most 5 better, how much worse is not bounded yet), 200 worse allowed",
        ),
        (
            compared("ms", NEVER_MS, NEVER_MS, NEVER_MS, 200.0),
            "ttft endlessly worse (at least endlessly worse, as requests that failed count), 200 worse allowed",
        ),
        (
            compared("ms", inf, NEVER_MS, inf, 200.0),
            "ttft endlessly worse (at least endlessly worse, as requests that failed count), 200 worse allowed",
        ),
        (
            compared("ms", -NEVER_MS, -NEVER_MS, -NEVER_MS, 200.0),
            "ttft endlessly better (at least endlessly better, as requests that failed count), 200 worse allowed",
        ),
        (
            compared("USD", -0.0005124, -0.00056, 0.00000002, 0.0),
            "ttft 0.000512 USD better (between 0.00056 better and 0.00000002 worse), 0 worse allowed",
        ),
    ],
)
def test_a_finding_is_told_in_numbers_that_can_be_read(comparison: Comparison, words: str) -> None:
    assert comparison.words == words


def test_proven_harm_is_told_in_the_points_of_the_limit() -> None:
    harmed = compared("points", 0.3, 0.205, 0.41, 0.1)

    assert harmed.is_harm
    assert harmed.harm_words == "ttft is proven to be more than 10 points worse: at least 20.5"


def test_harm_by_requests_that_were_never_answered_is_told_as_such() -> None:
    harmed = compared("ms", NEVER_MS, NEVER_MS, inf, 200.0)

    assert harmed.harm_words == (
        "ttft is proven to be more than 200 ms worse: endlessly, as requests that failed count"
    )
