"""The demo's migration file: valid as it stands, and its rewrites turn legacy prompts into those of anven-nano."""

from __future__ import annotations

from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.prompts import Call, apply, declared_prompt, preview
from anven_pipelines.migration_file import parse
from anven_pipelines.nano.demo_world import Breakage, later_fault, migration, rewrites, server_faults
from anven_pipelines.nano.faults import Faults
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.spec import SignOff
from anven_pipelines.spec_prompt import PromptAdaptation

QUALITY_MARGIN = 0.05  # the demo judges no more leniently than what it recommends
URL = "http://127.0.0.1:8000/v1"


@given(st.integers(min_value=0, max_value=2**16), st.sampled_from(["golden", "adversarial"]))
def test_every_legacy_prompt_becomes_the_prompt_that_the_target_was_trained_on(seed: int, split: str) -> None:
    prompt = declared_prompt(PromptAdaptation.model_validate({"rewrites": rewrites()}))
    items = generate(split, 12, seed=seed)  # type: ignore[arg-type] # hypothesis draws plain strings
    assert [apply(prompt, legacy_messages(item)).messages for item in items] == [anven_messages(item) for item in items]


def test_each_task_has_a_rewrite_of_its_own() -> None:
    prompt = declared_prompt(PromptAdaptation.model_validate({"rewrites": rewrites()}))
    calls = [Call(legacy_messages(item), {}) for item in generate("golden", 60, seed=1)]
    shown = preview(prompt, calls, may_be_shown=[True] * 60)
    assert shown.unfit == 0
    assert len(shown.examples) == 3


@pytest.mark.parametrize("breakage", [None, *get_args(Breakage)])
@pytest.mark.parametrize("adapted", [True, False])
def test_its_migration_file_is_valid(*, adapted: bool, breakage: Breakage | None) -> None:
    text = yaml.safe_dump(migration(url=URL, adapted=adapted, breakage=breakage))
    declared = parse(text, file="demo.yaml")
    assert bool(declared.prompt.rewrites) is (adapted and breakage is not None)
    assert (declared.prompt.mode == "full") is (adapted and breakage is None)
    assert declared.sign_off.quality_margin == QUALITY_MARGIN
    assert declared.sign_off.waive == ["safety"]


@pytest.mark.parametrize("breakage", get_args(Breakage))
def test_a_target_turns_bad_either_at_once_or_once_it_has_users(breakage: Breakage) -> None:
    is_bad_at_once = bool(server_faults(breakage, legacy_ttft_p95_ms=None)) or breakage == "cost"
    fault = later_fault(breakage)
    assert is_bad_at_once is not bool(fault)
    assert Faults.read(dict(fault)).shown() == fault


def test_the_file_that_serves_users_has_a_gateway_and_a_short_rollout_and_judges_the_same() -> None:
    served = migration(url=URL, adapted=True, legacy_url="http://127.0.0.1:8001/v1")
    declared = parse(yaml.safe_dump(served), file="demo.yaml")
    assert declared.gateway is not None
    assert declared.rollout.steps[-1].share == 1
    assert set(declared.rollout.waive) == {"drill", "safety", "cost"}
    assert {name: served[name] for name in migration(url=URL, adapted=True)} == migration(url=URL, adapted=True)


def test_only_the_price_breaks_the_cost() -> None:
    dear, usual = (migration(url=URL, adapted=True, breakage=each)["target"]["price"] for each in ("cost", "slow"))
    legacy = migration(url=URL, adapted=True)["legacy"]["price"]
    assert usual["output_usd_per_million"] < legacy["output_usd_per_million"] < dear["output_usd_per_million"]


@pytest.mark.parametrize("legacy_p95_ms", [None, 40.0, 5_000.0])
def test_a_slow_target_is_slower_than_any_allowance(legacy_p95_ms: float | None) -> None:
    option, delay_ms = server_faults("slow", legacy_ttft_p95_ms=legacy_p95_ms)
    allowance = SignOff()
    legacy = legacy_p95_ms or 0.0
    assert option == "--fault-delay-ms"
    assert float(delay_ms) > 2 * max(allowance.ttft_increase_ms, allowance.ttft_increase * legacy)
