"""A whole adaptation claims nothing among equal prompts, and what counts the claims sees one that is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scipy.stats import binom

from benchmarks.prompt_noise import QUICK, EqualPrompts, adapted, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from anven_pipelines.domain.inference import CompletionRequest

RUNS = 40


class BetterWithoutCue(EqualPrompts):
    """Answers every question right that does not end as the logged ones do."""

    def ask(self, requests: Sequence[CompletionRequest]) -> pl.DataFrame:
        answers = super().ask(requests)
        right = [
            each.item_id.split("/")[1] if "Answer:" not in each.messages[-1]["content"] else output
            for each, output in zip(requests, answers["output"], strict=True)
        ]
        return answers.with_columns(output=type(answers["output"])("output", right))


def test_adaptations_of_equal_prompts_claim_a_gain_no_more_often_than_declared() -> None:
    figures = measured(RUNS, QUICK)
    assert figures["proposed"] > RUNS / 4, "a search that never proposes anything proves nothing about the test"
    assert figures["claimed"] <= 0.05 * RUNS
    share, lower, upper = figures["share"]
    assert share == figures["claimed"] / RUNS
    at_most, at_least = (binom.cdf(figures["claimed"], RUNS, upper), binom.sf(figures["claimed"] - 1, RUNS, lower))
    assert (at_most, at_least) == (pytest.approx(0.025), pytest.approx(0.025 if figures["claimed"] else 1))


def test_a_gain_that_is_there_is_claimed() -> None:
    for run in range(3):
        [gain] = adapted(run, QUICK._replace(calls=800), BetterWithoutCue(run)).gains
        assert gain.proven, gain.reason
