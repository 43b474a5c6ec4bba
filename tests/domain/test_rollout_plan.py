"""A rollout's plan: what of the migration file it holds, and when an edit of the file is one."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.rollout_plan import edit_of, plan_in, plan_of
from tests.builders import a_migration

GATEWAY = {"legacy": {"model": "openai/old"}, "target": {"model": "hosted_vllm/new"}}
TARGET = {"engine": "endpoint", "model": "m", "url": "http://localhost:1/v1"}


@pytest.mark.parametrize(
    "written_out",
    [
        {"prompt": {"mode": "declared", "seed": 2026}},
        {"target": {**TARGET, "concurrency": 8}},
        {"gateway": {**GATEWAY, "breaker": {"slow_at_ms": 30_000.0}}},
    ],
)
def test_a_default_that_is_written_out_is_no_edit(written_out: dict[str, Any]) -> None:
    bare = plan_of(a_migration(target=TARGET, gateway=GATEWAY))
    spelled = plan_of(a_migration(**{"target": TARGET, "gateway": GATEWAY} | written_out))
    assert spelled.digest == bare.digest
    assert edit_of(plan_in("support", bare.written()), spelled) is None


def test_only_what_is_not_a_default_is_in_the_digest_so_that_a_later_release_may_have_more_fields() -> None:
    serving = dict(plan_of(a_migration(target=TARGET, prompt={"seed": 1})).serving)
    assert serving["prompt"] == digest_of({"seed": 1})
    assert serving["gateway"] == digest_of(None)


@pytest.mark.parametrize(
    ("edited", "section"),
    [
        ({"prompt": {"seed": 1}}, "prompt"),
        ({"target": {**TARGET, "model": "other"}}, "target"),
        ({"target": {"engine": "nano", "model": "anven-nano"}}, "target"),
        ({"gateway": {**GATEWAY, "breaker": {"slow_at_ms": 20_000.0}}}, "gateway"),
    ],
)
def test_anything_else_is_one_and_names_its_section(edited: dict[str, Any], section: str) -> None:
    begun, declared = (plan_of(a_migration(**{"target": TARGET, "gateway": GATEWAY} | each)) for each in ({}, edited))
    assert declared.digest != begun.digest
    assert edit_of(begun, declared) == f"the migration file's {section} changed"
