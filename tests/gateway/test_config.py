"""What a gateway is started with, made from migration files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput, InvalidMigration
from anven_pipelines.domain.prompts import carry_over, version_of
from anven_pipelines.gateway.config import PLUGIN, prepare
from anven_pipelines.gateway.settings import GatewaySettings, assignment_key, read_settings

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://127.0.0.1:1/v1"
PRICE = {"input_usd_per_million": 1, "output_usd_per_million": 2, "source": "test"}
FILE: dict[str, Any] = {
    "workload": "support",
    "legacy": {"model": "gpt", "logs": "none.jsonl"},
    "target": {"engine": "endpoint", "model": "anven", "url": URL, "api_key_env": "TARGET_KEY", "params": {"top_p": 1}},
    "grading": [{"kind": "exact"}],
    "gateway": {"legacy": {"model": "openai/gpt", "api_key_env": "LEGACY_KEY"}},
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / f"{changes.get('workload', 'support')}.yaml"
    file.write_text(json.dumps({**FILE, **changes}))
    return file


def prepared(folder: Path, *files: Path, prompts: Path | None = None) -> tuple[dict[str, Any], GatewaySettings]:
    made = prepare(files, folder / "run", traffic=folder / "traffic.json", events=folder / "events", prompts=prompts)
    settings = read_settings({"ANVEN_GATEWAY_SETTINGS": str(made.settings)})
    return json.loads(made.config.read_text()), settings


def test_each_workload_has_four_groups_and_its_own_name_is_legacys(tmp_path: Path) -> None:
    config, settings = prepared(tmp_path, written(tmp_path))
    groups = {each["model_name"]: each["litellm_params"] for each in config["model_list"]}
    ends = ("", "--legacy", "--target", "--shadow")
    assert set(groups) == {f"{name}{end}" for name in ("support", "support--drill") for end in ends}
    assert [groups[f"support--drill{arm}"] for arm in ("", "--target")] == [
        groups["support"],
        groups["support--target"],
    ]
    assert groups["support"] == groups["support--legacy"]
    assert groups["support--shadow"] == groups["support--target"]
    assert len({each["model_info"]["id"] for each in config["model_list"]}) == len(groups)  # limits are counted by it
    assert groups["support--legacy"]["api_key"] == "os.environ/LEGACY_KEY"
    assert groups["support--target"] == {
        "model": "openai/anven",
        "api_base": URL,
        "api_key": "os.environ/TARGET_KEY",
        "timeout": 120.0,
    }
    assert config["litellm_settings"]["callbacks"] == [PLUGIN]
    assert settings.workloads["support"].target.params == {"top_p": 1}
    assert settings.workloads["support"].target.prompt == carry_over()


def test_no_key_stands_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEGACY_KEY", "TARGET_KEY", "ANVEN_GATEWAY_KEY"):
        monkeypatch.setenv(name, "sk-not-to-be-found")
    prepared(tmp_path, written(tmp_path))
    assert all("not-to-be-found" not in path.read_text() for path in (tmp_path / "run").iterdir())


def test_the_target_may_be_served_elsewhere_than_it_was_evaluated(tmp_path: Path) -> None:
    gateway = {**FILE["gateway"], "target": {"model": "hosted_vllm/anven", "url": URL, "timeout": "10s"}}
    target = {"engine": "nano", "model": "anven-nano"}
    config, _ = prepared(tmp_path, written(tmp_path, gateway=gateway, target=target))
    groups = {each["model_name"]: each["litellm_params"] for each in config["model_list"]}
    assert groups["support--target"]["model"] == "hosted_vllm/anven"
    assert groups["support--target"]["timeout"] == 10.0
    assert groups["support--target"]["api_key"] == "none"


def test_litellm_counts_spend_by_the_declared_prices(tmp_path: Path) -> None:
    price = {"input_usd_per_million": 2.5, "output_usd_per_million": 10, "source": "price page, 2026-11-01"}
    legacy = {**FILE["legacy"], "price": {**price, "cached_usd_per_million": 1.25}}
    target = {**FILE["target"], "price": price}
    config, _ = prepared(tmp_path, written(tmp_path, legacy=legacy, target=target))
    groups = {each["model_name"]: each["litellm_params"] for each in config["model_list"]}
    rates = {"input_cost_per_token": 2.5e-6, "output_cost_per_token": 1e-5}
    assert groups["support--target"].items() >= rates.items()
    assert "cache_read_input_token_cost" not in groups["support--target"]
    rates |= {"cache_read_input_token_cost": 1.25e-6}
    assert all(groups[each].items() >= rates.items() for each in ("support", "support--legacy"))


def test_a_workload_without_the_section_is_left_out(tmp_path: Path) -> None:
    _, settings = prepared(tmp_path, written(tmp_path), written(tmp_path, workload="batch", gateway=None))
    assert list(settings.workloads) == ["support", "support--drill"]


def test_a_drill_asks_in_its_own_words_and_no_workload_may_have_its_name(tmp_path: Path) -> None:
    rewrites = [{"user": "(?s)(?P<all>.*)", "messages": [{"role": "user", "content": "adapted {all}"}]}]
    _, settings = prepared(tmp_path, written(tmp_path, prompt={"rewrites": rewrites}))
    drill = settings.workloads["support--drill"]
    assert (drill.target.prompt, drill.target.params) == (carry_over(), {})
    assert settings.workloads["support"].target.prompt != carry_over()
    with pytest.raises(InvalidInput, match="names that end in '--drill' are the drills' own"):
        prepared(tmp_path, written(tmp_path, workload="support--drill"))


def test_a_found_prompt_takes_the_place_of_the_files_rewrites(tmp_path: Path) -> None:
    transformation = {"rewrites": [{"system": None, "user": "x", "messages": [{"role": "user", "content": "y"}]}]}
    found = {
        "strategy": "rewrite",
        "transformation": transformation,
        "description": "found",
        "version": version_of("rewrite", transformation),
    }
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "support.json").write_text(json.dumps(found))
    _, settings = prepared(tmp_path, written(tmp_path), prompts=prompts)
    assert settings.workloads["support"].target.prompt.version == found["version"]
    (prompts / "support.json").write_text(json.dumps({**found, "version": "another"}))
    with pytest.raises(InvalidInput, match=r"(?s)is no adapted prompt.*adapted_prompt"):
        prepared(tmp_path, written(tmp_path), prompts=prompts)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gateway": None}, "none of .*support.yaml has a section `gateway`"),
        ({"gateway": {**FILE["gateway"], "shadow": {"usd_per_day": 5}}}, "usd_per_day needs target.price"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        prepared(tmp_path, written(tmp_path, **changes))


def test_text_is_kept_where_a_redactor_is_installed_and_never_a_drills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, gateway={**FILE["gateway"], "store_text": True, "redact": [r"K-\d+"]})
    monkeypatch.setattr("anven_pipelines.gateway.config.is_installed", lambda: True)
    _, settings = prepared(tmp_path, file)
    assert settings.workloads["support"].gateway.store_text
    assert settings.workloads["support"].gateway.redact == [r"K-\d+"]
    assert not settings.workloads["support--drill"].gateway.store_text
    monkeypatch.setattr("anven_pipelines.gateway.config.is_installed", lambda: False)
    with pytest.raises(InvalidInput, match=r"store_text is true, but no redactor .*install the extra `pii`"):
        prepared(tmp_path, file)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"gateway": {**FILE["gateway"], "redact": ["K-("]}}, r"gateway.redact\[0\]"),
        ({"gateway": {**FILE["gateway"], "redact": ["ok", "x*"]}}, r"gateway.redact\[1\].*matches nothing at all"),
        ({"target": {"engine": "nano", "model": "anven-nano"}}, "gateway.target is needed"),
        ({"gateway": {"legacy": {"model": "gpt"}}}, "gateway.legacy.model"),
        ({"gateway": {"legacy": {"model": "openai/gpt"}, "unit": "session"}}, "gateway.unit"),
        (
            {"gateway": {"legacy": {"model": "openai/gpt"}, "breaker": {"error_burst": 30}}},
            "gateway.breaker.error_burst",
        ),
    ],
)
def test_a_section_that_breaks_the_schema_names_the_field(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidMigration, match=path):
        prepared(tmp_path, written(tmp_path, **changes))


def test_a_spending_cap_is_kept_where_the_price_is_known(tmp_path: Path) -> None:
    gateway = {**FILE["gateway"], "shadow": {"usd_per_day": 5}}
    _, settings = prepared(tmp_path, written(tmp_path, gateway=gateway, target={**FILE["target"], "price": PRICE}))
    assert settings.workloads["support"].gateway.shadow.usd_per_day == 5


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "neither ANVEN_ASSIGNMENT_KEY nor ANVEN_GATEWAY_KEY is set"),
        ({"ANVEN_ASSIGNMENT_KEY": "short"}, "shorter than 16 bytes"),
    ],
)
def test_without_a_secret_nobody_is_dealt(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        assignment_key(environ)


def test_the_assignment_keeps_its_own_secret_when_the_gateways_key_changes() -> None:
    own = {"ANVEN_ASSIGNMENT_KEY": "a secret that is long enough"}
    assert assignment_key(own) == assignment_key({**own, "ANVEN_GATEWAY_KEY": "sk-new"})
    assert assignment_key({"ANVEN_GATEWAY_KEY": "sk-old"}) != assignment_key({"ANVEN_GATEWAY_KEY": "sk-new"})


def test_settings_that_are_missing_say_how_to_start(tmp_path: Path) -> None:
    for environ in ({}, {"ANVEN_GATEWAY_SETTINGS": str(tmp_path / "none.json")}):
        with pytest.raises(InvalidInput, match="anven gateway"):
            read_settings(environ)


def test_limits_are_enforced_where_an_arm_has_some_and_cost_nothing_else(tmp_path: Path) -> None:
    config, _ = prepared(tmp_path, written(tmp_path))
    assert "optional_pre_call_checks" not in config["router_settings"]
    arms = {"legacy": {"model": "openai/gpt", "tpm": 9000}, "target": {"model": "openai/anven", "url": URL, "rpm": 60}}
    config, _ = prepared(tmp_path, written(tmp_path, gateway=arms))
    groups = {each["model_name"]: each["litellm_params"] for each in config["model_list"]}
    assert (groups["support--legacy"]["tpm"], groups["support--target"]["rpm"]) == (9000, 60)
    assert "rpm" not in groups["support"]
    assert config["router_settings"]["optional_pre_call_checks"] == ["enforce_model_rate_limits"]


def test_further_settings_of_litellm_are_added_and_ours_stay(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(
        "litellm_settings: {cache: true, callbacks: [prometheus]}\ngeneral_settings: {max_parallel_requests: 9}\n"
    )
    made = prepare([written(tmp_path)], tmp_path, traffic=tmp_path / "t", events=tmp_path / "e", litellm=more)
    config = json.loads(made.config.read_text())
    assert config["litellm_settings"]["callbacks"] == [PLUGIN, "prometheus"]
    assert config["litellm_settings"]["cache"] is True
    assert config["general_settings"] == {"master_key": "os.environ/ANVEN_GATEWAY_KEY", "max_parallel_requests": 9}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model_list: {}", "model_list is the gateway's own"),
        ("general_settings: {master_key: sk-x}", "general_settings.master_key is the gateway's own"),
        ("router_settings: {num_retries: 3}", "router_settings.num_retries is the gateway's own"),
        ("litellm_settings: {callbacks: [otel]}", "callbacks: otel would get the text"),
        ("litellm_settings: {success_callback: langfuse}", "success_callback: langfuse would get the text"),
        ("litellm_settings: {callbacks: [prometheus, my.module.logger]}", "callbacks: my.module.logger would get"),
        ("litellm_settings: {set_verbose: true}", "litellm_settings.set_verbose would get the text"),
        ("general_settings: {alerting: [slack]}", "general_settings.alerting would get the text"),
        ("[1]", "must hold sections"),
        ("a: {", "cannot be read"),
    ],
)
def test_settings_that_the_gateway_rests_on_are_not_replaced(tmp_path: Path, text: str, reason: str) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(text)
    with pytest.raises(InvalidInput, match=reason):
        prepare([written(tmp_path)], tmp_path, traffic=tmp_path / "t", events=tmp_path / "e", litellm=more)
