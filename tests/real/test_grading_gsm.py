"""Our grader on the recorded answers of four models to GSM8K, against the published figures."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from benchmarks.gsm_accuracy import MODELS, PUBLISHED, Recording, flips, measure, read

pytestmark = pytest.mark.real


@cache
def recordings_of(model: str) -> list[Recording]:
    return read(model)


@cache
def measured(model: str) -> dict[str, Any]:
    return measure(recordings_of(model))


@pytest.mark.parametrize("model", MODELS)
def test_accuracy_agrees_with_the_published_one(model: str) -> None:
    found = measured(model)
    assert (found["items"], found["not_gradable"]) == (1319, 0)
    assert found["accuracy"] == pytest.approx(PUBLISHED[model], abs=0.5)


@pytest.mark.parametrize(
    ("legacy", "target", "lost", "gained"),
    [
        ("gpt-3.5-turbo-0125", "Meta-Llama-3.1-70B-Instruct", 26, 208),
        ("gpt-4o-2024-05-13", "Meta-Llama-3.1-70B-Instruct", 45, 29),
        ("gpt-4o-2024-05-13", "Meta-Llama-3.1-8B-Instruct", 165, 15),
    ],
)
def test_lost_and_gained_agree_with_the_known_ones(legacy: str, target: str, lost: int, gained: int) -> None:
    found = flips(recordings_of(legacy), recordings_of(target))
    assert found["lost"] == pytest.approx(lost, abs=6)
    assert found["gained"] == pytest.approx(gained, abs=6)


def test_the_items_that_explain_every_difference_from_the_published_figures() -> None:
    differing = {
        model: {key.split("#")[1]: score["score"] for key, score in measured(model)["differs_from_first"].items()}
        for model in MODELS
    }
    assert differing == {
        "gpt-4o-2024-05-13": {"1001": 0.0},
        "gpt-3.5-turbo-0125": {"610": 1.0, "1001": 0.0},
        "Meta-Llama-3.1-70B-Instruct": {"274": 1.0, "1001": 0.0},
        "Meta-Llama-3.1-8B-Instruct": {"1001": 0.0},
    }
    assert {model: measured(model)["first_accuracy"] for model in MODELS} == PUBLISHED


def test_the_contract_sees_the_format_drift() -> None:
    kept = {model: (measured(model)["contract_kept"], measured(model)["contract_kept_bare"]) for model in MODELS}
    assert kept["gpt-4o-2024-05-13"] == (1271, 0)  # it fences every answer
    assert kept["Meta-Llama-3.1-70B-Instruct"] == (1301, 1066)
    assert kept["Meta-Llama-3.1-8B-Instruct"] == (1030, 1005)
