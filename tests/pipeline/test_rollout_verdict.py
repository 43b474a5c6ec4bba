"""A rollout goes by the verdict that it began with: its target, its upstream and its prompt."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompts import AdaptedPrompt, version_of
from anven_pipelines.domain.rollout import Advance, Hold, RollBack
from anven_pipelines.domain.sign_off import REFUSED, SIGNED_OFF, sign_off_stream
from anven_pipelines.domain.signed_target import PROMPT, TARGET, declared_target
from tests.running_rollout import NOW, ROLLOUT, START, begun, serve, share_in_force
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from anven_pipelines.resources.rollouts import Rollouts
    from anven_pipelines.spec import Migration
    from tests.pipeline.conftest import Place


@pytest.fixture
def rollouts(place: Place) -> Rollouts:
    """Give the rollouts of a place in which `support` is signed off and has begun its first stage."""
    return begun(place)


def sign_off_with_prompt(place: Place, rewritten: str) -> str:
    """Sign `support` off once more, for a prompt that a search found; return its version."""
    transformation = {"rewrites": [{"system": None, "user": "(?P<all>.*)", "messages": [{"content": rewritten}]}]}
    prompt = AdaptedPrompt(
        strategy="rewrite",
        transformation=transformation,
        description="found",
        version=version_of("rewrite", transformation),
    )
    migration = place.migrations.of("support").migration
    return sign_off(migration, place.state, place.artifacts, now=START, prompt=prompt)


def started_anew(place: Place, rollouts: Rollouts) -> str:
    """Begin attempt 2 with a verdict that names its prompt."""
    version = sign_off_with_prompt(place, "Answer: {all}")
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=START)
    rollouts.start("support", who="ada", now=START)
    return version


def test_the_ramp_goes_on_with_the_prompt_of_its_verdict_though_the_search_found_another_since(
    place: Place, rollouts: Rollouts
) -> None:
    version = started_anew(place, rollouts)
    sign_off_with_prompt(place, "Think, then answer: {all}")
    serve(place, attempt=2, generation=3, prompt_version=version)

    assert rollouts.status("support").prompt == version
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_the_ramp_stops_where_the_gateway_asks_with_another_prompt(place: Place, rollouts: Rollouts) -> None:
    version, newer = started_anew(place, rollouts), sign_off_with_prompt(place, "Think, then answer: {all}")
    serve(place, attempt=2, generation=3, prompt_version=newer)

    decision = rollouts.step("support", now=NOW).decision

    assert isinstance(decision, Hold)
    assert decision.reasons[0].startswith(
        f"the gateway asks the target with prompt {newer[:12]}, the verdict was given"
    )
    assert version[:12] in decision.reasons[0]
    assert share_in_force(rollouts) == 0.5


def test_harm_with_another_prompt_is_rolled_back(place: Place, rollouts: Rollouts) -> None:
    started_anew(place, rollouts)
    serve(place, attempt=2, generation=3, prompt_version="f" * 64, errors=0.3)

    assert isinstance(rollouts.step("support", now=NOW).decision, RollBack)


@pytest.mark.parametrize(
    ("section", "declares"),
    [
        ({"target": {"model": "another", "engine": "recorded", "answers": "../answers.jsonl"}}, r"another \(target"),
        (
            {"target": {"model": "target-model", "engine": "recorded", "answers": "../others.jsonl"}},
            r"target-model \(target",
        ),
    ],
)
def test_nothing_starts_with_a_target_that_no_verdict_was_given_for(
    place: Place, rollouts: Rollouts, section: dict[str, Any], declares: str
) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    place.declare(rollout=ROLLOUT, **section)

    words = rf"its verdict was given for target-model \(target \w+\), and the migration file declares {declares} "
    with pytest.raises(InvalidInput, match=words):
        rollouts.start("support", who="ada", now=NOW)
    assert share_in_force(rollouts) == 0.0
    place.declare(rollout=ROLLOUT)
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"


def test_nothing_starts_behind_another_upstream_than_was_signed_off(place: Place, rollouts: Rollouts) -> None:
    def declare(model: str) -> Migration:
        arms = {"legacy": {"model": "openai/gpt-4o"}, "target": {"model": model}}
        return place.declare(rollout=ROLLOUT, gateway=arms).migration

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    migration = declare("hosted_vllm/a")
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"  # declared after the verdict
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    sign_off(migration, place.state, place.artifacts, now=NOW)
    declare("hosted_vllm/b")

    with pytest.raises(InvalidInput, match=r"target-model behind hosted_vllm/a .* behind hosted_vllm/b "):
        rollouts.start("support", who="ada", now=NOW)


def test_nothing_starts_behind_an_upstream_that_took_the_place_of_the_targets_own_endpoint(
    place: Place, rollouts: Rollouts
) -> None:
    endpoint = {"model": "small", "engine": "endpoint", "url": "http://127.0.0.1:9/v1"}

    def declare(**arms: Any) -> Migration:
        gateway = {"legacy": {"model": "openai/gpt-4o"}, **arms}
        return place.declare(rollout=ROLLOUT, target=endpoint, gateway=gateway).migration

    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    sign_off(declare(), place.state, place.artifacts, now=NOW)
    declare(target={"model": "hosted_vllm/another"})

    with pytest.raises(InvalidInput, match=r"small behind openai/small .* behind hosted_vllm/another "):
        rollouts.start("support", who="ada", now=NOW)
    declare(target={"model": "openai/small"})  # the same one, in other words
    assert rollouts.start("support", who="ada", now=NOW).phase == "running"


def test_nothing_starts_on_a_verdict_that_does_not_say_what_it_was_given_for(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    stream, payload = sign_off_stream("support"), {"verdict": "GO"}
    place.state.append(stream=stream, kind=SIGNED_OFF, key="v2", payload=payload, now=NOW)

    with pytest.raises(InvalidInput, match="its verdict does not say which target and prompt it was given for"):
        rollouts.start("support", who="ada", now=NOW)


def test_nothing_starts_whose_prompt_is_gone(place: Place, rollouts: Rollouts) -> None:
    rollouts.act("support", "aborted", {"who": "ada", "reason": ""}, now=NOW)
    target = declared_target(place.migrations.of("support").migration)
    payload = {"adapted_prompt": "e" * 64, TARGET: target}
    place.state.append(stream=sign_off_stream("support"), kind=SIGNED_OFF, key="v2", payload=payload, now=NOW)

    with pytest.raises(InvalidInput, match="adapted_prompt eeeeeeeeeeee, is not in the artifact store"):
        rollouts.start("support", who="ada", now=NOW)


def test_a_newer_no_go_on_what_is_served_holds_the_ramp_until_a_newer_go(place: Place, rollouts: Rollouts) -> None:
    [began] = place.state.events(sign_off_stream("support"))
    refuse(place, **{**began.payload, "verdict": "INCONCLUSIVE"})
    serve(place)
    assert isinstance(rollouts.look("support", now=NOW).decision, Advance)
    # The same prompt, found by another search.
    refuse(place, **{**began.payload, "verdict": "NO-GO", "adapted_prompt": "e" * 64})
    refuse(place, **{**began.payload, "verdict": "INCONCLUSIVE"})

    found = rollouts.step("support", now=NOW).decision

    assert isinstance(found, Hold)
    assert "a newer verdict on this target and prompt, of " in found.reasons[0]
    override = {"generation": rollouts.status("support").generation, "until": (NOW + timedelta(hours=1)).isoformat()}
    for at, who in enumerate(("bo", "cy")):  # two people override what is not proven, and not what is disproven
        rollouts.act("support", "overridden", {"who": who, **override}, now=NOW + timedelta(seconds=at))
    assert isinstance(rollouts.step("support", now=NOW).decision, Hold)
    sign_off(place.migrations.of("support").migration, place.state, place.artifacts, now=NOW)
    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


@pytest.mark.parametrize(
    "other",
    [
        {PROMPT: "e" * 64},
        {PROMPT: None, "adapted_prompt": "e" * 64},  # of an older release
        {TARGET: {"model": "another", "digest": "e" * 64, "upstream": None}},
    ],
)
def test_a_no_go_on_another_target_or_prompt_holds_nothing(
    place: Place, rollouts: Rollouts, other: dict[str, Any]
) -> None:
    [began] = place.state.events(sign_off_stream("support"))
    refuse(place, **{**began.payload, "verdict": "NO-GO", **other})
    serve(place)

    assert isinstance(rollouts.step("support", now=NOW).decision, Advance)


def test_a_no_go_behind_a_gateway_that_was_declared_after_the_go_holds_the_ramp(
    place: Place, rollouts: Rollouts
) -> None:
    [began] = place.state.events(sign_off_stream("support"))
    assert began.payload[TARGET]["upstream"] is None
    refuse(place, **{**began.payload, "verdict": "NO-GO", TARGET: {**began.payload[TARGET], "upstream": "openai/a"}})
    serve(place)

    assert isinstance(rollouts.step("support", now=NOW).decision, Hold)


def test_harm_is_rolled_back_beside_a_newer_no_go(place: Place, rollouts: Rollouts) -> None:
    [began] = place.state.events(sign_off_stream("support"))
    refuse(place, **{**began.payload, "verdict": "NO-GO"})
    serve(place, errors=0.3)

    assert isinstance(rollouts.step("support", now=NOW).decision, RollBack)


def refuse(place: Place, **payload: Any) -> None:
    """Write a verdict that is not GO, as the asset `sign_off` does."""
    stream = sign_off_stream("support")
    key = f"refused-{len(place.state.events(stream))}"
    place.state.append(stream=stream, kind=REFUSED, key=key, payload=payload, now=NOW)
