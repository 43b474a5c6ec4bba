"""The next stage's load beside what the load benchmark proved: nothing planned is not asked, nothing proven holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from anven_pipelines.domain.rollout_capacity import peak_rate_of, shortfall
from tests.load_rows import load_report

if TYPE_CHECKING:
    from anven_pipelines.domain.load_report import LoadReport


def test_a_share_that_the_target_is_proven_to_bear_is_no_shortfall() -> None:
    assert shortfall(0.5, 20.0, load_report(10.0)) is None
    assert shortfall(0.5, None, load_report(10.0, logged=20.0)) is None


def test_where_nothing_was_planned_nothing_is_asked() -> None:
    assert shortfall(1.0, 1e6, None) is None
    assert shortfall(1.0, 1e6, load_report(None).model_copy(update={"figures": []})) is None


@pytest.mark.parametrize(
    ("peak_rate", "plan", "words"),
    [
        (
            20.1,
            load_report(10.0),
            "50% of 20.1 requests a second in the busiest minute are 10.1/s, and the target is proven",
        ),
        (None, load_report(10.0, logged=21.0), "50% of 21 requests a second"),
        (30.0, load_report(10.0, logged=1.0), "50% of 30 requests a second"),
        (1.0, load_report(None), "the load benchmark proves no rate that the target bears: no rate was within"),
        (None, load_report(10.0), "how many requests come in the busiest minute is unknown"),
    ],
)
def test_more_than_is_proven_is_a_shortfall(peak_rate: float | None, plan: LoadReport, words: str) -> None:
    found = shortfall(0.5, peak_rate, plan)

    assert found is not None
    assert found.startswith(words)


def test_the_busiest_minute_is_found_in_any_order_of_the_requests() -> None:
    seconds = np.concatenate([np.arange(0, 600, 10.0), np.full(54, 300.0)])

    assert peak_rate_of(seconds[::-1]) == pytest.approx(1.0)  # six and 54 in a minute
    assert peak_rate_of(np.arange(30.0)) is None
