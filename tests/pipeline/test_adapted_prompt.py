"""A prompt is looked for through Dagster, against a live server: found, refused, killed amid the search, resumed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from anven_pipelines.assets.materialization import read_document
from anven_pipelines.assets.prompt_looks import PromptLooks
from anven_pipelines.chain import CHAIN_ASSETS, LOAD_ASSETS, LOG_ASSETS, Chain
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import InvalidMigration, StaleInput, StepFailed
from anven_pipelines.domain.prompt_baseline import Baseline
from tests.pipeline.conftest import Place, logged_call
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anven_pipelines.resources.migrations import Declared

ITEMS = 200
AS_LOGGED = re.compile(r"What is the number of ticket \d+\?")
GOLDEN = {"size": "all", "holdout": 0.25}
BUDGET = {"calls": 700}
ALIASES = ("legacy", "candidate", "production")


def number_of(ask: Ask) -> str:
    return str(re.findall(r"\d+", ask.prompt.partition("?")[0])[-1])


def answer(ask: Ask, *, right: bool) -> Reply:
    return Reply(json.dumps({"answer": number_of(ask) if right else "none"}))


def wants_another_form(ask: Ask) -> Reply:
    """Answer half of the questions as they were logged, and all that are put in any other way."""
    as_logged = len(ask.body["messages"]) == 1 and AS_LOGGED.fullmatch(ask.prompt)
    return answer(ask, right=not as_logged or int(number_of(ask)) % 2 == 0)


def tosses_a_coin(ask: Ask) -> Reply:
    asked = canonical_json(ask.body["messages"]).encode()
    return answer(ask, right=hashlib.sha256(asked).digest()[0] < 128)


@dataclass
class Dying:
    """Answers as another script does, until it has answered so many; then it is down."""

    script: Callable[[Ask], Reply]
    dies_after: int
    answered: Counter[str] = field(default_factory=Counter)

    def __call__(self, ask: Ask) -> Reply:
        if self.answered.total() >= self.dies_after:
            return Reply("the server is starting", status=503)
        self.answered[canonical_json([ask.body["messages"], ask.body.get("temperature")])] += 1
        return self.script(ask)


def declare(
    place: Place,
    endpoint: ScriptedEndpoint,
    *,
    calls: list[dict[str, Any]] | None = None,
    contract: dict[str, Any] | None = None,
    risk: str | None = None,
    **prompt: Any,
) -> Declared:
    place.write_log([logged_call(at) for at in range(ITEMS)] if calls is None else calls)
    target = {"engine": "endpoint", "model": "target-model", "url": endpoint.url, "concurrency": 8, "max_attempts": 1}
    # No loss among 30 right answers of 60 validation items proves that less than a tenth is lost; a fifth is safe.
    declared = {"mode": "full", "budget": BUDGET, "guard_margin": 0.2} | prompt
    sign_off = {"quality_margin": 0.1, "waive": ["ttft", "cost", "safety"]}
    return place.declare(
        target=target,
        golden=GOLDEN,
        prompt=declared,
        sign_off=sign_off,
        contract=contract or {"json_object": False},
        risk=risk,
    )


def materialize(place: Place, declared: Declared, *, epoch: str = "") -> dg.ExecuteInProcessResult:
    """Run the chain up to the adapted prompt."""
    config = {"ops": {"adapted_prompt": {"config": {"epoch": epoch}}}}
    workload = declared.migration.workload
    place.instance.add_dynamic_partitions("workload", [workload])
    place.instance.add_dynamic_partitions("log_day", ["2026-10-05"])
    job = place.definitions.resolve_implicit_global_asset_job_def()
    for assets, partition in ((LOG_ASSETS, "2026-10-05"), (CHAIN_ASSETS[:4], workload)):
        result = job.execute_in_process(
            instance=place.instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            raise_on_error=False,
            run_config=config if epoch and partition == workload else None,
        )
    return result


def report(place: Place) -> dict[str, Any]:
    manifest = place.artifacts.load_manifest("adapted_prompt", "support")
    assert manifest is not None
    return dict(manifest.facts["adaptation"])


def check(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    [found] = [each for each in result.get_asset_check_evaluations() if each.check_name == name]
    return found


def test_a_full_search_finds_a_prompt_proves_it_and_the_chain_asks_with_it(place: Place) -> None:
    with ScriptedEndpoint(wants_another_form) as endpoint:
        verdict = place.migrate(declare(place, endpoint))
        searched = report(place)
        assert searched["adapted"], searched["reasons"]
        assert verdict.verdict == "GO", verdict.reasons
        [gain] = searched["gains"]
        assert gain["proven"]
        assert gain["after"] == 1.0
        assert searched["cost"]["calls"] <= BUDGET["calls"]
        sealed_and_open = len(endpoint.asks) - searched["cost"]["calls"]
        assert sealed_and_open == ITEMS, "the search paid for each answer once, and so did the chain"
        assert not AS_LOGGED.fullmatch(endpoint.asks[-1].prompt) or len(endpoint.asks[-1].body["messages"]) > 1
    assert len(place.state.events("prompt/support", "validated")) == 1


def test_noise_is_refused_and_the_check_warns(place: Place) -> None:
    with ScriptedEndpoint(tosses_a_coin) as endpoint:
        result = materialize(place, declare(place, endpoint))
    assert result.success
    warned = check(result, "gain_proven")
    assert (warned.passed, warned.severity, warned.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
    assert not report(place)["adapted"]
    assert check(result, "every_call_covered").passed
    prompt = place.instance.get_latest_materialization_event(dg.AssetKey("adapted_prompt"))
    assert prompt is not None
    assert prompt.asset_materialization is not None
    assert prompt.asset_materialization.metadata["strategy"].value == "identity"


def test_a_search_whose_endpoint_dies_goes_on_and_asks_nothing_twice(place: Place) -> None:
    dying = Dying(wants_another_form, 0)
    with ScriptedEndpoint(dying) as endpoint:
        declared = declare(place, endpoint)
        for dies_after in (40, 200):  # in the first rounds, and once more amid the race
            dying.dies_after = dies_after
            assert not materialize(place, declared).success
            assert dying.answered.total() == dies_after
        dying.dies_after = 10**9
        assert materialize(place, declared).success
        assert max(dying.answered.values()) == 1
        resumed = report(place)
        assert resumed["adapted"]
        assert dying.answered.total() == resumed["cost"]["calls"]
        before = len(endpoint.asks)
        assert materialize(place, declared).success
        assert len(endpoint.asks) == before
        assert report(place) == resumed
    assert len(place.state.events("prompt/support", "validated")) == 1, "the same look, again"


def test_the_form_of_the_target_is_declared_and_its_reasons_stand_in_the_report(place: Place) -> None:
    def wants_no_system_tier_and_is_told_its_language(ask: Ask) -> Reply:
        told = "Answer in German." in ask.prompt and ask.body["messages"][0]["role"] == "user"
        number = re.findall(r"ticket (\d+)", ask.prompt)[-1]
        return Reply(json.dumps({"answer": number if told or int(number) % 3 == 0 else "none"}))

    with ScriptedEndpoint(wants_no_system_tier_and_is_told_its_language) as endpoint:
        form = {"has_system_role": False, "language": "German"}
        assert materialize(place, declare(place, endpoint, mode="structural", form=form)).success
        searched = report(place)
    assert searched["adapted"], searched["reasons"]
    assert [heat["origin"] for heat in searched["heats"]] == ["unchanged", "structural"]
    assert [(step["now"], step["why"]) for step in searched["changes"]["helpdesk"]] == [
        ("nothing → Answer in German.", "the target may answer in another language unless it is told")
    ]
    assert "# the target may answer in another language unless it is told\n" in searched["diff"]["helpdesk"]
    client = MlflowClient(f"sqlite:///{place.folder / 'home' / 'mlflow' / 'mlflow.db'}")
    registered = {alias: client.get_prompt_version_by_alias("support.helpdesk", alias) for alias in ALIASES}
    assert (registered["production"].version, registered["legacy"].version) == (1, 1)
    assert registered["candidate"].version == 2, "with nothing but its form changed it is another prompt"
    [asked] = registered["candidate"].template
    assert (asked["role"], "Answer in German." in asked["content"], "{{slot_1}}" in asked["content"]) == (
        "user",
        True,
        True,
    )
    assert registered["candidate"].model_config == {"temperature": 0}


def test_calls_of_a_declared_template_are_searched_under_its_name_and_the_others_are_found(place: Place) -> None:
    """The log holds two prompts; mined, both would be named after their application."""
    with ScriptedEndpoint(wants_another_form) as endpoint:
        declared = declare(
            place, endpoint, templates=[{"name": "ticket", "user": "What is the number of ticket {ticket}?"}]
        )
        other = [logged_call(at, messages=[{"role": "user", "content": f"Count {at}."}]) for at in range(ITEMS, 220)]
        place.write_log([*(logged_call(at) for at in range(ITEMS)), *other])
        assert materialize(place, declared).success
        searched = report(place)
    manifest = place.artifacts.load_manifest("prompt_baseline", "support")
    assert manifest is not None
    baseline = Baseline.from_json(read_document(place.artifacts, manifest))
    assert [(each.name, each.slots) for each in baseline.templates] == [
        ("ticket", ("ticket",)),
        ("helpdesk", ("slot_1",)),
    ]
    assert baseline.calls == {"ticket": ITEMS, "helpdesk": 20}
    assert [gain["template"] for gain in searched["gains"]] == ["ticket"]


SYSTEM = [{"role": "system", "content": "Answer as a clerk."}]


@pytest.mark.parametrize("mode", ["structural", "full"])
def test_a_target_that_refuses_the_legacy_form_is_asked_in_its_own(place: Place, mode: str) -> None:
    """As a server does whose chat template has no system tier; its answers take longer than its refusals."""

    def has_no_system_tier(ask: Ask) -> Reply:
        if ask.body["messages"][0]["role"] == "system":
            return Reply("System role not supported", status=400)
        return replace(answer(ask, right=True), delay_s=0.01)

    calls = [{**logged_call(at), "messages": SYSTEM + logged_call(at)["messages"]} for at in range(ITEMS)]
    with ScriptedEndpoint(has_no_system_tier) as endpoint:
        declared = declare(place, endpoint, calls=calls, mode=mode, form={"has_system_role": False})
        assert materialize(place, declared).success
        searched = report(place)
    assert min(heat["n"] for heat in searched["heats"]) > 40, "more refusals than one would wait for"
    assert [(gain["before"], gain["after"], gain["proven"]) for gain in searched["gains"]] == [(0.0, 1.0, True)]
    assert searched["adapted"], searched["reasons"]


def test_a_refusal_does_not_outlive_its_cause_where_the_target_is_asked_afresh(place: Place) -> None:
    """The server's chat template is mended: its old refusals, held against new answers, would prove what is no gain."""
    refuses = [True]

    def mended(ask: Ask) -> Reply:
        if refuses[0] and ask.body["messages"][0]["role"] == "system":
            return Reply("System role not supported", status=400)
        return replace(answer(ask, right=True), delay_s=0.01)

    calls = [{**logged_call(at), "messages": SYSTEM + logged_call(at)["messages"]} for at in range(ITEMS)]
    with ScriptedEndpoint(mended) as endpoint:
        declared = declare(place, endpoint, calls=calls, mode="structural", form={"has_system_role": False})
        assert materialize(place, declared).success
        assert report(place)["adapted"], report(place)["reasons"]
        refuses.clear()
        refuses.append(False)
        assert materialize(place, declared).success
        assert report(place)["adapted"], "what was answered is kept"
        asked = len(endpoint.asks)
        assert materialize(place, declared, epoch="again").success
        assert len(endpoint.asks) > asked
    assert not report(place)["adapted"], "both forms are right"
    assert {heat["score"] for heat in report(place)["heats"]} == {1.0}


@dataclass(frozen=True)
class RecordedChain(Chain):
    """A chain that runs nothing and notes under which configuration it would."""

    configs: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def _read_logs(self, declared: Declared) -> None:
        """The logs are read."""

    def _materialize(
        self, assets: Sequence[str], partition: str | None, *, workload: str, config: dict[str, Any] | None = None
    ) -> None:
        assert partition in {None, workload}
        self.configs[tuple(assets)] = config


def test_the_load_is_measured_with_the_prompt_of_the_verdict(place: Place) -> None:
    """Answers of an earlier epoch than that of the search might find another one."""
    chain = RecordedChain(place.definitions, place.instance, place.artifacts, "test", place.told.append)
    with ScriptedEndpoint(wants_another_form) as endpoint:
        declared = declare(place, endpoint, mode="structural")
        for epoch, config in (("", {}), ("again", {"ops": {"adapted_prompt": {"config": {"epoch": "again"}}}})):
            assert materialize(place, declared, epoch=epoch).success
            with pytest.raises(StepFailed, match="load_benchmark"):
                chain.measure_load(declared)
            assert chain.configs == {LOAD_ASSETS: config}


def test_a_target_that_refuses_every_form_ends_the_search(place: Place) -> None:
    with ScriptedEndpoint(lambda _: Reply("no such model", status=400)) as endpoint:
        result = materialize(place, declare(place, endpoint, mode="structural", form={"language": "German"}))
    assert not result.success


def test_json_mode_becomes_the_declared_contract_and_the_limit_leaves_room_for_the_prompt(place: Place) -> None:
    """On a server that checks the sum of prompt and answer, and whose model forgets what no schema demands."""
    schema = {
        "type": "object",
        "properties": {"answer": {}, "of": {"type": "object", "properties": {"id": {}}, "required": ["id"]}},
        "required": ["answer", "of"],
    }

    def checks_the_sum(ask: Ask) -> Reply:
        if len(ask.prompt.split()) + ask.body["max_tokens"] > 1024:
            return Reply("max_tokens is too large", status=400)
        asked = ask.body["response_format"]
        return answer(ask, right=asked["type"] == "json_schema" and asked["json_schema"]["schema"] == schema)

    params = {"response_format": {"type": "json_object"}, "max_tokens": 5000}
    calls = [logged_call(at, params=params, input_tokens=20 + at % 3) for at in range(ITEMS)]
    with ScriptedEndpoint(checks_the_sum) as endpoint:
        contract = {"json_object": True, "required": ["answer", "of.id"]}
        declared = declare(
            place, endpoint, calls=calls, contract=contract, mode="structural", form={"max_context": 1024}
        )
        assert materialize(place, declared).success
        searched = report(place)
        limits = {ask.body["max_tokens"] for ask in endpoint.asks} - {5000}
    assert searched["adapted"], searched["reasons"]
    assert 900 < min(limits) <= max(limits) < 1024 - 20, (
        "room for the prompt as the log counted it, and not for its bytes"
    )
    told = {step["what"]: (step["now"], step["why"]) for step in searched["changes"]["helpdesk"]}
    assert told.keys() == {"params.max_tokens", "params.response_format"}
    assert "those of the prompt among them" in told["params.max_tokens"][1]
    assert "+max_tokens = " in searched["diff"]["helpdesk"]


def by_hand(question: str, *, user: str = r"What is the number of ticket (?P<ticket>.*)") -> dict[str, Any]:
    return {"user": user, "messages": [{"role": "user", "content": question}]}


def test_an_edit_by_hand_is_tested_in_the_targets_form_and_is_a_new_version_in_the_registry(place: Place) -> None:
    client = MlflowClient(f"sqlite:///{place.folder / 'home' / 'mlflow' / 'mlflow.db'}")
    form = {"language": "German", "has_system_role": False}
    versions = []
    with ScriptedEndpoint(wants_another_form) as endpoint:
        for question in ("Number of ticket {ticket}", "Which number has ticket {ticket}"):
            edited = declare(place, endpoint, mode="tested", rewrites=[by_hand(question)], form=form)
            result = materialize(place, edited)
            assert result.success
            assert report(place)["adapted"], report(place)["reasons"]
            assert check(result, "constraints_kept").passed
            candidate = client.get_prompt_version_by_alias("support.helpdesk", "candidate")
            asked = question.replace("{ticket}", "{{slot_1}}")
            assert candidate.template == [{"role": "user", "content": f"Answer in German.\n\n{asked}"}]
            assert str(candidate.commit_message).startswith("written by hand: ")
            versions.append(int(candidate.version))
    assert versions == [2, 3], "after the legacy prompt"
    assert len(place.state.events("prompt/support", "validated")) == len(versions), "each of them is a look"


@pytest.mark.parametrize("mode", ["tested", "declared"])
def test_an_edit_by_hand_that_loses_a_slot_is_told_and_never_tested(place: Place, mode: str) -> None:
    lossy = by_hand("Which number has the ticket?", user=r"What is the number of ticket \d+\?")
    with ScriptedEndpoint(wants_another_form) as endpoint:
        result = materialize(place, declare(place, endpoint, mode=mode, rewrites=[lossy]))
        assert not any("Which number" in ask.prompt for ask in endpoint.asks)
    assert result.success
    kept = check(result, "constraints_kept")
    assert (kept.passed, kept.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(kept.description).startswith("helpdesk: prompt.rewrites[0]: the slots {slot_1} are missing")
    if mode == "tested":
        assert not report(place)["adapted"]


def test_edits_by_hand_that_fit_nothing_are_an_error_and_nothing_is_asked(place: Place) -> None:
    slip = by_hand("Number of ticket {ticket}", user=r"Whats is the number of ticket (?P<ticket>.*)")
    with ScriptedEndpoint(wants_another_form) as endpoint:
        result = materialize(place, declare(place, endpoint, mode="tested", rewrites=[slip]))
        assert not endpoint.asks
    assert not result.success
    [failure] = [str(each.event_specific_data) for each in result.all_events if each.is_step_failure]
    assert (
        f"`mode: tested` has nothing to test, as no rewrite fits a prompt that has a template: 0 of {ITEMS}" in failure
    )
    assert "the first without one: [('user', 'What is the number of ticket" in failure


def test_reasoning_is_switched_where_the_target_can(place: Place) -> None:
    def thinks(ask: Ask) -> Reply:
        switch = ask.body.get("chat_template_kwargs") or {}
        return answer(ask, right=switch.get("enable_thinking") is True or int(number_of(ask)) % 3 == 0)

    with ScriptedEndpoint(thinks) as endpoint:
        declared = declare(place, endpoint, form={"switches_reasoning": True}, budget={"calls": 1000})
        assert materialize(place, declared).success
        searched = report(place)
    assert searched["adapted"], searched["reasons"]
    [step] = [step for step in searched["changes"]["helpdesk"] if step["what"] == "reasoning"]
    assert (step["now"], "lower is expected" in step["why"]) == ("on", True)


def test_every_other_prompt_that_is_held_against_the_items_is_a_look_of_its_own(place: Place) -> None:
    with ScriptedEndpoint(tosses_a_coin) as endpoint:
        levels = []
        for seed in (3, 4):  # their searches hold two other prompts for better
            assert materialize(place, declare(place, endpoint, seed=seed, level=0.06)).success
            if report(place)["gains"]:
                levels.append(report(place)["level"])
    looks = place.state.events("prompt/support", "validated")
    assert len({event.payload["prompt"] for event in looks}) == len(looks) == len(levels)
    assert levels == [pytest.approx(0.06 / 2), pytest.approx(0.06 / 6)]


@pytest.mark.parametrize(
    ("risk", "tried", "rewords", "moves"),
    [
        ("high", ["unchanged", "structural"], False, False),
        ("medium", ["unchanged", "structural", "racing"], False, True),
        (None, ["unchanged", "structural", "racing"], False, True),
        ("low", ["unchanged", "structural", "racing"], True, True),
    ],
)
def test_the_risk_says_what_is_tried(
    place: Place, risk: str | None, tried: list[str], rewords: bool, moves: bool
) -> None:
    with ScriptedEndpoint(wants_another_form) as endpoint:
        assert materialize(place, declare(place, endpoint, mode="auto", risk=risk)).success
        assert [heat["origin"] for heat in report(place)["heats"]] == tried
        asked = ["\n".join(message["content"] for message in ask.body["messages"]) for ask in endpoint.asks]
    assert any("Answer with the value only." in each for each in asked) == rewords
    assert any(len(ask.body["messages"]) > 1 for ask in endpoint.asks) == moves


ASKED_OTHERWISE = [{"user": "(?P<asked>.*)", "messages": [{"role": "user", "content": "Tell me. {asked}"}]}]


def test_no_share_and_no_seed_gives_a_rewrite_another_look_for_nothing(place: Place) -> None:
    with ScriptedEndpoint(wants_another_form) as endpoint:
        assert materialize(place, declare(place, endpoint, seed=1)).success
        levels = [report(place)["level"]]
        [searched] = place.state.events("prompt/support", "searched")
        for again in ({"seed": 1}, {"seed": 2}, {"validation": 0.2}, {"validation": 0.4}, {"validation": 0.6}):
            declared = declare(place, endpoint, mode="tested", rewrites=ASKED_OTHERWISE, **again)
            assert materialize(place, declared).success
            levels.append(report(place)["level"])
        more = place.state.events("prompt/support", "searched")[1:]
    assert levels == [pytest.approx(0.05 / share) for share in (2, 6, 6, 12, 12, 12)]
    first, second = (set(event.payload["items"]) for event in (searched, *more))
    assert (len(first), len(second)) == (90, 30), "a smaller share gives the search what it does not validate on"
    assert not first & second
    assert report(place)["gains"][0]["n"] == 30, "what was searched on once validates no more"


def test_a_run_beside_another_proves_nothing_on_what_the_other_searches_on(place: Place) -> None:
    one, other = (PromptLooks(place.state, "support", golden) for golden in ("g1", "g2"))
    one.show({"a": "talk-1", "b": "talk-1"})
    assert other.searched() == {"a", "b", "talk-1"}
    proving = {"c": "talk-2", "d": "talk-3"}
    assert other.look("p", items=proving, measure="m") == 0
    one.show({"a": "talk-1", "c": "talk-2"})
    assert [event.payload["items"] for event in place.state.events("prompt/support", "searched")] == [["a", "b"], ["c"]]
    with pytest.raises(StaleInput, match="another run searches on 1 of the 2 items that were to prove a gain"):
        other.look("p", items=proving, measure="m")
    with pytest.raises(StaleInput, match="another run searches on 1 of the 2 items that were to prove a gain"):
        other.look("p", items={"another of them": "talk-1", "d": "talk-3"}, measure="m")
    assert len(place.state.events("prompt/support", "validated")) == 1


def test_a_log_of_ids_alone_is_read_and_gets_the_conversations_of_what_is_searched_again(place: Place) -> None:
    """As earlier versions wrote it."""
    place.state.append(
        stream="prompt/support",
        kind="searched",
        key="searched/of-an-earlier-version",
        payload={"golden_dataset": "g0", "items": ["a", "b"]},
        now=datetime.now(UTC),
    )
    looks = PromptLooks(place.state, "support", "g1")
    assert looks.searched() == {"a", "b"}
    looks.show({"a": "talk-1"})
    assert looks.searched() == {"a", "b", "talk-1"}
    with pytest.raises(StaleInput, match="another run searches on 1 of the 1 items"):
        looks.look("p", items={"b": "talk-9"}, measure="m")


@pytest.mark.parametrize("mode", ["tested", "structural", "minimal", "full", "auto"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "a target that can be asked is needed, not recorded answers"),
        (
            {"target": {"engine": "endpoint", "model": "m", "url": "http://localhost:1/v1"}},
            "golden.holdout is 1; open items are needed",
        ),
    ],
    ids=["recorded answers", "all sealed"],
)
def test_a_search_that_cannot_be_done_is_refused_when_it_is_declared(
    place: Place, mode: str, changes: dict[str, Any], said: str
) -> None:
    rewrites = [{"user": "(?P<all>.*)", "messages": [{"role": "user", "content": "{all}"}]}]
    with pytest.raises(InvalidMigration, match=said):
        place.declare(prompt={"mode": mode, "rewrites": rewrites}, **changes)
