"""MLflow's prompt registry holds each prompt version once, with its aliases and the run that it came from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.prompt_changes import VARIES
from anven_pipelines.domain.tracking import RegisteredPrompt, StepRecord
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.prompt_registry import prompt_name, template_of
from tests.mlflow_server import free_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.timeout(300)

NAME = "support.desk"
LEGACY = RegisteredPrompt(
    name=NAME,
    version="a" * 64,
    messages=[
        {"role": "system", "content": "Be brief, {not_a_slot}."},
        {"role": "user", "content": "Question: {question}"},
    ],
    slots=["question"],
    note="as found in 30 golden prompts",
    tags={"anven.golden_dataset": "d1", "anven.template": "t1"},
    aliases=["legacy"],
    first_aliases=["production"],
)
FOUND = RegisteredPrompt(
    name=NAME,
    version="b" * 64,
    messages=[{"role": "user", "content": "Q: {question}"}],
    slots=["question"],
    note="found by racing: 0.500 before, 0.900 after",
    tags={"anven.golden_dataset": "d1"},
    aliases=["candidate"],
)


def step(*prompts: RegisteredPrompt, key: str = "run-1/prompt_baseline/support") -> StepRecord:
    return StepRecord(
        key=key,
        experiment="anven/support",
        name="prompt_baseline",
        started=datetime(2026, 3, 1, 12, tzinfo=UTC),
        ended=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
        status="FINISHED",
        prompts=list(prompts),
    )


@pytest.fixture
def tracking(empty_mlflow: Path, tmp_path: Path) -> MlflowTracking:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return MlflowTracking(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifact_root=str(tmp_path / "artifacts"),
        outbox=str(tmp_path / "outbox"),
        timeout_s=60,
    )


def client_of(tracking: MlflowTracking) -> MlflowClient:
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and not at collection

    return MlflowClient(tracking.tracking_uri)


def versions(tracking: MlflowTracking, name: str = NAME) -> list[Any]:
    return sorted(client_of(tracking).search_prompt_versions(name), key=lambda each: int(each.version))


def serving(tracking: MlflowTracking, alias: str) -> str:
    """Return the digest of the version that an alias points at."""
    found = client_of(tracking).get_prompt_version_by_alias(NAME, alias)
    return str(found.tags["anven.version"])


def everything(tracking: MlflowTracking) -> list[Any]:
    return [
        (each.version, each.template, sorted(each.tags.items()), each.commit_message, sorted(each.aliases))
        for each in versions(tracking)
    ]


def test_a_prompt_is_registered_with_its_text_its_origin_and_its_aliases(tracking: MlflowTracking) -> None:
    tracked = tracking.record(step(LEGACY))
    assert tracked.warning is None
    [version] = versions(tracking)
    assert version.template == [
        {"role": "system", "content": "Be brief, {not_a_slot}."},
        {"role": "user", "content": "Question: {{question}}"},
    ]
    assert version.commit_message == LEGACY.note
    assert version.tags.items() >= {**LEGACY.tags, "anven.version": LEGACY.version, "anven.run": tracked.run_id}.items()
    assert (serving(tracking, "legacy"), serving(tracking, "production")) == (LEGACY.version, LEGACY.version)


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CONTRACT = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
PARAMS = {"temperature": 0.2, "max_tokens": 64, "top_p": VARIES, "seed": 7, "logit_bias": None}


def test_what_a_prompt_holds_beside_its_messages_can_be_read(tracking: MlflowTracking) -> None:
    whole = replace(FOUND, tools=[TOOL], contract=CONTRACT, policies=["Never tell größe."], params=PARAMS)
    assert tracking.record(step(whole)).warning is None
    [version] = versions(tracking)
    assert version.response_format == CONTRACT
    assert version.model_config == {"temperature": 0.2, "max_tokens": 64, "seed": 7}
    found = {name: json.loads(version.tags[f"anven.{name}"]) for name in ("tools", "policies", "params")}
    assert found == {"tools": [TOOL], "policies": ["Never tell größe."], "params": PARAMS}
    assert "größe" in version.tags["anven.policies"], "a person reads it"


def test_a_prompt_of_text_alone_has_no_empty_fields(tracking: MlflowTracking) -> None:
    tracking.record(step(LEGACY))
    [version] = versions(tracking)
    assert (version.response_format, version.model_config) == (None, None)
    assert {"anven.tools", "anven.policies", "anven.params"} & version.tags.keys() == set()


@pytest.mark.parametrize(
    "changes",
    [{"params": {"temperature": -1, "seed": 7}}, {"tools": [TOOL | {"text": "x" * 100_000}]}],
    ids=["a parameter that MLflow refuses", "a text longer than MLflow takes"],
)
def test_what_mlflow_does_not_take_keeps_no_prompt_from_it(tracking: MlflowTracking, changes: dict[str, Any]) -> None:
    assert tracking.record(step(replace(FOUND, **changes))).warning is None
    [version] = versions(tracking)
    assert version.model_config is None
    [name] = {"anven.tools", "anven.params"} & version.tags.keys()
    assert version.tags[name].startswith(('{\n "temperature": -1', "[\n {"))


def test_a_prompt_is_linked_to_the_run_that_it_came_from(tracking: MlflowTracking) -> None:
    tracked = tracking.record(step(LEGACY, replace(FOUND, name="support.router")))
    assert tracked.run_id is not None
    run = client_of(tracking).get_run(tracked.run_id)
    assert json.loads(run.data.tags["mlflow.linkedPrompts"]) == [
        {"name": "support.desk", "version": "1"},
        {"name": "support.router", "version": "1"},
    ]


def test_a_version_is_registered_once_however_often_it_is_found(tracking: MlflowTracking) -> None:
    first = tracking.record(step(LEGACY))
    second = tracking.record(step(replace(LEGACY, note="as found in 31 golden prompts"), key="run-2/prompt_baseline"))
    [version] = versions(tracking)
    assert version.tags["anven.run"] == first.run_id
    assert version.commit_message == LEGACY.note
    assert second.run_id is not None
    linked = client_of(tracking).get_run(second.run_id).data.tags["mlflow.linkedPrompts"]
    assert json.loads(linked) == [{"name": NAME, "version": "1"}], "the second run found the same version"


def test_another_text_is_another_version_and_takes_its_alias_along(tracking: MlflowTracking) -> None:
    other = replace(FOUND, version="c" * 64, messages=[{"role": "user", "content": "Well? {question}"}])
    tracking.record(step(LEGACY))
    tracking.record(step(FOUND, key="run-2/adapted_prompt"))
    assert serving(tracking, "candidate") == FOUND.version
    tracking.record(step(other, key="run-3/adapted_prompt"))
    assert [each.tags["anven.version"] for each in versions(tracking)] == [LEGACY.version, FOUND.version, other.version]
    assert serving(tracking, "candidate") == other.version
    assert serving(tracking, "legacy") == LEGACY.version
    tracking.record(step(FOUND, key="run-4/adapted_prompt"))
    assert serving(tracking, "candidate") == FOUND.version, "the alias goes back; no version is made anew"
    assert len(versions(tracking)) == 3


@pytest.mark.parametrize("broken_off_at", [None, "production", "legacy"])
def test_production_follows_the_legacy_prompt_until_a_rollout_points_it_elsewhere(
    tracking: MlflowTracking, monkeypatch: pytest.MonkeyPatch, broken_off_at: str | None
) -> None:
    """Also where MLflow breaks off between the two, and the record is delivered again."""
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and not at collection

    tracking.record(step(LEGACY))
    later = replace(LEGACY, version="d" * 64, messages=[{"role": "user", "content": "New: {question}"}])
    if broken_off_at is not None:
        points = MlflowClient.set_prompt_alias

        def breaks_off(client: MlflowClient, name: str, alias: str, version: int) -> None:
            points(client, name, alias, version)
            if alias == broken_off_at:
                message = "broken off"
                raise ConnectionError(message)

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_prompt_alias", breaks_off)
            assert tracking.record(step(later, key="run-2/prompt_baseline")).warning is not None
        assert tracking.fill().delivered == 1
    else:
        tracking.record(step(later, key="run-2/prompt_baseline"))
    assert (serving(tracking, "legacy"), serving(tracking, "production")) == (later.version, later.version)


def test_production_stays_where_somebody_put_it(tracking: MlflowTracking) -> None:
    tracking.record(step(LEGACY))
    tracking.record(step(FOUND, key="run-2/adapted_prompt"))
    client_of(tracking).set_prompt_alias(NAME, "production", 2)
    later = replace(LEGACY, version="d" * 64, messages=[{"role": "user", "content": "New: {question}"}])
    tracking.record(step(later, key="run-3/prompt_baseline"))
    assert serving(tracking, "production") == FOUND.version
    assert serving(tracking, "legacy") == later.version


def test_delivering_twice_changes_nothing(tracking: MlflowTracking, tmp_path: Path) -> None:
    """The first delivery's word got lost: the same record is delivered again, from an outbox of its own."""
    tracking.record(step(LEGACY, FOUND))
    before = everything(tracking)
    again = tracking.model_copy(update={"outbox": str(tmp_path / "other-outbox")})
    assert again.record(step(LEGACY, FOUND)).warning is None
    assert everything(tracking) == before
    assert len(before) == 2


def test_while_mlflow_is_down_the_prompts_wait_and_are_registered_later(
    tracking: MlflowTracking, tmp_path: Path
) -> None:
    down = MlflowTracking(tracking_uri=free_uri(), outbox=str(tmp_path / "outbox"), timeout_s=5)
    tracked = down.record(step(LEGACY, FOUND))
    assert tracked.warning is not None
    [waiting] = Path(down.outbox).glob("*.json")
    assert LEGACY.version in waiting.read_text()
    assert client_of(tracking).get_prompt(NAME) is None

    assert tracking.fill() == (1, 0, ())
    assert [each.tags["anven.version"] for each in versions(tracking)] == [LEGACY.version, FOUND.version]
    assert [serving(tracking, each) for each in ("legacy", "production", "candidate")] == [
        LEGACY.version,
        LEGACY.version,
        FOUND.version,
    ]
    assert tracking.fill() == (0, 0, ())


def test_a_step_without_prompts_registers_none(tracking: MlflowTracking) -> None:
    tracked = tracking.record(step())
    assert tracked.run_id is not None
    assert "mlflow.linkedPrompts" not in client_of(tracking).get_run(tracked.run_id).data.tags


@pytest.mark.parametrize(
    ("name", "legal"), [("support.desk-2", "support.desk-2"), ("support.a b/c:d", "support.a-b.c.d")]
)
def test_a_name_is_brought_to_what_the_registry_takes(name: str, legal: str, tracking: MlflowTracking) -> None:
    assert prompt_name(name) == legal
    assert tracking.record(step(replace(LEGACY, name=name))).warning is None
    assert len(versions(tracking, legal)) == 1


def test_only_slots_become_variables() -> None:
    messages = [{"role": "user", "content": '{question} {other} {{question}} {"json": 1}'}]
    assert template_of(messages, ["question"]) == [
        {"role": "user", "content": '{{question}} {other} {{{question}}} {"json": 1}'}
    ]
