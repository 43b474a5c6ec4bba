"""The migration file: what is read, and what each mistake is answered with."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidMigration
from anven_pipelines.migration_file import json_schema, parse
from anven_pipelines.spec_grading import JsonFieldGrader
from anven_pipelines.spec_prompt import PromptAdaptation
from anven_pipelines.spec_target import EndpointTarget, JobTarget, RecordedTarget

if TYPE_CHECKING:
    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_prompt import Risk

DOCS = Path(__file__).resolve().parents[1] / "docs"
SMALLEST: dict[str, Any] = {
    "workload": "support",
    "legacy": {"model": "gpt-4o-2024-08-06", "logs": "logs/*.jsonl"},
    "target": {"model": "ANVEN-3b-instruct", "engine": "recorded", "answers": "answers.jsonl"},
    "grading": [{"kind": "json_field", "field": "answer", "compare": "number"}],
}
JUDGE = {"model": "judge", "url": "http://127.0.0.1:9/v1", "rubric": "It is right."}
GATEWAY = {"legacy": {"model": "openai/a"}, "target": {"model": "openai/b"}}
SLO: dict[str, Any] = {"slo": {"ttft_ms": 500}}
ASKED: dict[str, Any] = {"engine": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1"}


def weights(place: str, revision: str | None = None) -> dict[str, Any]:
    """Return a target whose weights lie there."""
    target = {"engine": "vllm-job", "model": "m", "weights": place, "digest": "0" * 64, "licence": "MIT"}
    return {"target": target | ({"revision": revision} if revision else {})}


def test_the_smallest_file_gets_safe_defaults() -> None:
    migration = read(SMALLEST)
    assert isinstance(migration.target, RecordedTarget)
    assert migration.grading == [JsonFieldGrader(kind="json_field", field="answer", compare="number")]
    assert migration.legacy.logs == ["logs/*.jsonl"]
    assert migration.sign_off.quality_margin == 0.03
    assert migration.sign_off.level == 0.05
    assert migration.sign_off.waive == []
    assert migration.golden.holdout == 0.25
    assert [stage.share for stage in migration.rollout.steps] == [0.05, 0.25, 0.5, 1.0]


def test_the_example_of_the_documentation_is_read() -> None:
    migration = read(
        SMALLEST
        | {
            "owner": "support-platform",
            "target": {"model": "ANVEN-3b-instruct", "engine": "endpoint", "url": "http://127.0.0.1:8000/v1"},
            "golden": {"size": "auto", "strata": ["application", "task", "length_band"], "holdout": 0.25},
            "sign_off": {"quality_margin": 0.03, "ttft_increase": 0.2, "payback_days": 30, "safety": "none_worse"},
            "rollout": {"stages": [{"share": 0.05, "soak": "24h"}, {"share": 1.0, "soak": "3d"}]},
        }
    )
    assert isinstance(migration.target, EndpointTarget)
    assert migration.rollout.steps[1].soak == timedelta(days=3)


PAGES = ("prompt-adaptation.md", "prompt-rewriting.md")
SHOWN = [
    block
    for page in PAGES
    for block in re.findall(
        r"^```yaml\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    if "..." not in block
]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: "-".join(re.findall(r"\w+", block)[:4]))
def test_a_section_that_a_page_on_prompts_shows_is_read(block: str) -> None:
    read({**SMALLEST, "target": ASKED, "golden": {"holdout": 0.5}, **yaml.safe_load(block)})


def test_the_page_on_rewriting_shows_both_strategies_with_all_limits() -> None:
    asked = {**SMALLEST, "target": ASKED}
    shown = [read({**asked, **yaml.safe_load(block)}).prompt for block in SHOWN if "reflection:" in block]
    assert [each.strategies for each in shown] == [["racing", "gepa"], ["prompt_ops"]]
    for prompt in shown:
        assert prompt.reflection is not None
        assert {"calls", "tokens", "usd", "price", "api_key_env", "timeout"} <= prompt.reflection.model_fields_set
    assert shown[1].prompt_ops.settings["num_threads"] == 8


def test_a_declared_template_of_the_documentation_has_the_slots_that_it_lists() -> None:
    [block] = [block for block in SHOWN if "templates:" in block]
    [template] = read({**SMALLEST, **yaml.safe_load(block)}).prompt.templates
    assert template.found_slots == ("shop", "notes", "question") == tuple(template.slots or ())
    assert not template.user.endswith("\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": "Support Answers"}, "workload is 'Support Answers'"),
        ({"legacy": {"model": "m"}}, "legacy.logs is missing"),
        ({"legacy": {"model": "m", "logs": []}}, "legacy.logs is []; a path or URL, or a list of them, is needed"),
        ({"legacy": {"model": "m", "logs": ""}}, "legacy.logs is ''; a path or URL"),
        ({"legacy": {"model": "m", "logs": 5}}, "legacy.logs is 5; a path or URL"),
        ({"grading": [{"kind": "text", "field": "x"}]}, "grading[0].field is unknown; known here: kind"),
        (
            {"rollout": {"stages": [{"share": 1.0, "soak": "1h", "x": 1}]}},
            "rollout.stages[0].x is unknown; known here: share, soak, widened, approvals",
        ),
        (
            {"legacy": {"model": "m", "logs": "x", "format": "csv"}},
            "'canonical', 'litellm', 'openai', 'openai-batch' or 'zeroeval'",
        ),
        (
            {"legacy": {"model": "m", "logs": "x", "frmat": "openai"}},
            "legacy.frmat is unknown; known here: model, logs, format",
        ),
        ({"legacy": 3}, "legacy is 3"),
        (
            {"target": {"model": "m", "engine": "magic"}},
            "target.engine is 'magic'; one of 'recorded', 'endpoint', 'nano', 'vllm-job' is needed",
        ),
        ({"target": {"model": "m"}}, "target.engine is missing"),
        ({"target": {"model": "m", "engine": "endpoint"}}, "target.url is missing"),
        ({"target": {"model": "m", "engine": "endpoint", "url": "ftp://x"}}, "target.url is 'ftp://x'"),
        ({"target": {"model": "m", "engine": "endpoint", "url": "http://x", "timeout": 5}}, "a duration with its unit"),
        (
            {"target": {"model": "m", "engine": "endpoint", "url": "http://x", "api_key_env": "sk-1"}},
            "target.api_key_env",
        ),
        (weights("models/x"), "target.weights is 'models/x'; an absolute path on the worker's machine is needed"),
        (weights("hf://ANVEN-3b"), "target.weights is 'hf://ANVEN-3b'; hf://ORG/NAME is needed"),
        (
            weights("hf://anven/ANVEN-3b"),
            "target.revision is None; the 40 hex digits of a commit are needed with hf://",
        ),
        (weights("hf://anven/ANVEN-3b", "main"), "target.revision is 'main'; the 40 hex digits of a commit"),
        (weights("oci://registry.example/m:1"), "a registry is not asked"),
        (weights("oci:///models/m", "v1"), "target.revision is 'v1'; with oci:// it is the digest of the manifest"),
        (weights("s3://"), "target.weights is 's3://'; the URL of one folder is needed"),
        (weights("simplecache::s3://bucket/m"), "the URL of one folder is needed"),
        (weights("s3://user:hidden@bucket/m"), "target.weights is 's3://***@bucket/m'; a URL without user, password"),
        (weights("s3://hidden@bucket/m"), "target.weights is 's3://***@bucket/m'; a URL without user"),
        (weights("abfs://box:hidden@host/m"), "target.weights is 'abfs://***@host/m'; a URL without user"),
        (weights("https://host/m?sig=hidden"), "target.weights is 'https://host/m?***'; a URL without user"),
        ({"grading": []}, "grading is []"),
        ({"grading": [{"kind": "vibes"}]}, "grading[0].kind is 'vibes'"),
        ({"grading": [{"kind": "regex", "pattern": "("}]}, "grading[0].pattern is '('; a regular expression is needed"),
        ({"contract": {"required": ["answer"]}}, "contract.json_object: true is needed"),
        ({"golden": {"size": "big"}}, "golden.size is 'big'; needed is 'auto', 'all' or a whole number of at least 1"),
        ({"golden": {"size": 0}}, "golden.size is 0; needed is 'auto', 'all' or a whole number of at least 1"),
        ({"golden": {"holdout": 0}}, "golden.holdout is 0"),
        ({"golden": {"holdout": 1.5}}, "golden.holdout is 1.5"),
        (
            {"target": ASKED, "golden": {"holdout": 0.5}, "prompt": {"mode": "full", "budget": {"usd": 5}}},
            "prompt.budget.usd is 5 and target.price is not declared, so the limit could not be held",
        ),
        ({"prompt": {"templates": [{"name": "a"}]}}, "prompt.templates[0].user is missing"),
        (
            {"prompt": {"templates": [{"name": "a b", "user": "x"}]}},
            "prompt.templates[0].name is 'a b'; text of the form",
        ),
        (
            {"prompt": {"templates": [{"name": "a", "user": "Q: {q}", "slots": ["q", "r"]}]}},
            "prompt.templates[0] is a mapping of name, slots, user; the slots r must stand in system or user, as {r}",
        ),
        (
            {"prompt": {"templates": [{"name": "a", "system": "{q}", "user": "{q}"}]}},
            "the slot {q} stands 2 times; a name of its own is needed at each place",
        ),
        (
            {"prompt": {"templates": [{"name": "a", "user": "Q", "examples": [{"role": "user", "content": "Q"}]}]}},
            "examples of a question (user) and its answer (assistant) each are needed, found ['user']",
        ),
        (
            {"prompt": {"templates": [{"name": "a", "user": "Q"}, {"name": "a", "user": "R"}]}},
            "prompt.templates: a name of its own is needed for each, found a 2 times",
        ),
        (
            {"prompt": {"reflection": {"model": "m", "url": "http://x", "usd": 2}}},
            "prompt.reflection is a mapping of model, url, usd; usd is 2 and no price is declared, so it could not",
        ),
        (
            {"prompt": {"prompt_ops": {"strategy": "llama", "settings": {"num_trials": 3}}}},
            "settings are taken by `strategy: basic` only, found llama with num_trials",
        ),
        ({"golden": {"strata": ["colour"]}}, "golden.strata[0] is 'colour'"),
        (
            {"sign_off": {"quality_margin": 3}},
            "sign_off.quality_margin is 3; a share between 0 and 1 is needed (3 % is 0.03)",
        ),
        ({"sign_off": {"quality_margin": 0}}, "sign_off.quality_margin is 0; a share between 0 and 1 is needed"),
        ({"sign_off": {"level": float("nan")}}, "sign_off.level is nan"),
        ({"sign_off": {"level": 0.5}}, "sign_off.level is 0.5; an error rate above 0 and below 0.5 is needed"),
        ({"sign_off": {"waive": ["quality"]}}, "sign_off.waive[0] is 'quality'"),
        (
            {"rollout": {"stages": [{"share": 0.5, "soak": "1h"}, {"share": 0.1, "soak": "1h"}]}},
            "rising shares are needed",
        ),
        (
            {"rollout": {"waive": ["cost", "drills"]}},
            "rollout.waive[1] is 'drills'; one of 'quality', 'errors', 'safety', 'contract', 'ttft', 'latency', 'cost'",
        ),
        (
            {"rollout": {"notify": [{"kind": "webhook", "url_env": "http://x y"}]}},
            "rollout.notify[0].url_env is 'http://x y'; text of the form",
        ),
        (
            {"rollout": {"judge": JUDGE}},
            "the redacted texts that the gateway keeps: gateway.store_text: true is needed, found no section",
        ),
        ({"rollout": {"judge": JUDGE}, "gateway": GATEWAY}, "gateway.store_text: true is needed, found false"),
        (
            {
                "rollout": {"judge": JUDGE, "metrics": {"source": "prometheus", "url": "http://p:9090"}},
                "gateway": GATEWAY | {"store_text": True},
            },
            "a `judge` needs `metrics.source: event_log`, found prometheus",
        ),
        ({"rollout": {"stages": [{"share": 0.5, "soak": "1h"}]}}, "a last stage of share 1.0 is needed, found 0.5"),
        ({"rollout": {"stages": [{"share": 0.5, "soak": "2 days"}]}}, "such as 500ms, 30s, 15m, 24h or 2d"),
        ({"load": {}}, "load.slo is missing"),
        ({"load": {"slo": {"share": 0.9}}}, "at least one of ttft_ms, inter_token_ms and latency_ms is needed"),
        ({"load": {"slo": {"ttft_ms": 500, "share": 99}}}, "load.slo.share is 99; a share between 0 and 1 is needed"),
        ({"load": SLO | {"rates": [4, 2]}}, "needed is 'auto', or a list of rising numbers above 0"),
        ({"load": SLO | {"rates": [0, 2]}}, "needed is 'auto', or a list of rising numbers above 0"),
        ({"load": SLO | {"rates": "fast"}}, "load.rates is 'fast'; needed is 'auto'"),
        ({"load": SLO | {"rates": []}}, "load.rates is []; needed is 'auto'"),
        ({"load": SLO | {"duration": "2h"}}, "load.duration is '2h'; a duration above 0 and up to 1h is needed"),
        ({"load": SLO | {"timeout": "0s"}}, "load.timeout is '0s'; a duration above 0 and up to 1h is needed"),
        ({"load": SLO | {"rates": [5000]}}, "up to 200,000 are needed"),
        ({"load": SLO | {"rates": "auto", "max_rate": 9999}}, "up to 200,000 are needed"),
        ({"target": ASKED | {"concurrency": 0}}, "target.concurrency is 0; at least 1 is needed"),
        ({"target": ASKED | {"concurrency": "many"}}, "target.concurrency is 'many'; a whole number is needed"),
        ({"target": ASKED | {"api_key_env": "hidden!"}}, "target.api_key_env is ***; text of the form"),
        ({"load": {"slo": {"inter_token_ms": -1}}}, "load.slo.inter_token_ms is -1; more than 0.0 is needed"),
        ({"load": 5}, "load is 5; a mapping is needed"),
        ({"load": SLO | {"rates": [500], "duration": "1h"}}, "up to 200,000 are needed"),
        ({"load": SLO | {"arrivals": "uniform"}}, "load.arrivals is 'uniform'"),
        ({"load": SLO | {"max_in_flight": 1000}}, "load.max_in_flight is 1000"),
        ({"surprise": 1}, "surprise is unknown; known here: workload, owner, risk, legacy"),
    ],
)
def test_one_mistake_gets_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidMigration) as caught:
        read(SMALLEST | change)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("migrations/support.yaml: ")
    assert message in lines[0]
    assert "hidden" not in lines[0]


@pytest.mark.parametrize(
    ("place", "revision"),
    [
        ("/models/m", None),
        ("file:///models/m", None),
        ("s3://bucket/models/a@b", "2026-11"),
        ("abfs://container@account.example/m", None),
        ("hf://anven/ANVEN-3b", "0" * 40),
        ("oci:///models/m", None),
        ("oci:///models/m", f"sha256:{'0' * 64}"),
    ],
)
def test_weights_may_lie_in_many_places(place: str, revision: str | None) -> None:
    target = read(SMALLEST | weights(place, revision)).target
    assert isinstance(target, JobTarget)
    assert (target.weights, target.revision) == (place, revision)


def test_a_merge_key_brings_in_what_is_then_overridden() -> None:
    merged = f"{yaml.safe_dump(SMALLEST)}golden:\n  <<: {{size: all, holdout: 0.5}}\n  holdout: 1.0\n"
    assert parse(merged, file="m.yaml").golden.holdout == 1.0


def test_several_mistakes_are_all_told_at_once() -> None:
    with pytest.raises(InvalidMigration) as caught:
        read(SMALLEST | {"workload": "A B", "grading": [], "sign_off": {"quality_margin": 3}})
    assert [problem.path for problem in caught.value.problems] == ["workload", "grading", "sign_off.quality_margin"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "the file is a list"),
        ("workload: [", "line 1, column 12 is not readable as YAML"),
        ("workload: a\nworkload: b\n", "line 2, column 1 is not readable as YAML; the key 'workload' stands twice"),
        ("? [a, b]\n: 1\n", "not readable as YAML"),
        ("workload: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_what_is_not_a_mapping_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidMigration, match=r"migrations/support.yaml") as caught:
        parse(text, file="migrations/support.yaml")
    assert message in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SMALLEST, "golden", "x"]), inner),
        max_leaves=12,
    )
)
def test_any_yaml_is_read_or_refused_with_its_problems(value: object) -> None:
    text = yaml.safe_dump(value)
    try:
        parse(text, file="m.yaml")
    except InvalidMigration as error:
        assert error.problems  # noqa: PT017 - the file may also be fine


def test_the_mistakes_of_a_load_section_do_not_hide_each_other() -> None:
    load = {"slo": {"share": 0.9}, "rates": [500], "duration": "1h", "timeout": "2h", "seed": -1}
    with pytest.raises(InvalidMigration) as caught:
        read(SMALLEST | {"load": load})
    assert [each.path for each in caught.value.problems] == ["load.slo", "load.duration", "load.timeout", "load.seed"]


@pytest.mark.parametrize("written", ["1e1", "1.0e1", "1E+1", "100e-1", "+.1e2"])
def test_a_number_with_an_exponent_is_a_number(written: str) -> None:
    text = f"{yaml.safe_dump(SMALLEST)}load: {{slo: {{ttft_ms: {written}}}, rates: [1, {written}]}}\n"
    load = parse(text, file="m.yaml").load
    assert load is not None
    assert (load.slo.ttft_ms, load.rates) == (10.0, [1.0, 10.0])


@pytest.mark.parametrize("written", ["1e", "e5", "1e5x", "'1e5'"])
def test_what_only_looks_like_a_number_stays_text(written: str) -> None:
    text = yaml.safe_dump(SMALLEST | {"owner": "OWNER"}).replace("OWNER", written)
    assert parse(text, file="m.yaml").owner == written.strip("'")


REWRITING = {"reflection": {"model": "large", "url": "http://127.0.0.1:1/v1"}, "strategies": ["racing", "gepa"]}


@pytest.mark.parametrize(
    ("mode", "risk", "minimal"),
    [
        ("minimal", "low", "prompt.mode is minimal, and prompt.strategies names gepa, which write the prompt anew"),
        ("auto", "medium", "prompt.mode is auto, which is minimal for risk: medium, and prompt.strategies names gepa"),
        ("auto", None, "prompt.mode is auto, which is minimal where no risk is declared"),
        ("auto", "low", None),
        ("auto", "high", None),
        ("full", "high", None),
        ("structural", "medium", None),
        ("declared", "medium", None),
    ],
)
def test_a_strategy_that_rewrites_is_refused_where_the_wording_stays(
    mode: str, risk: str | None, minimal: str | None
) -> None:
    """Where nobody searches there is nothing to refuse: a high risk converts only, whatever strategies are named."""
    asked = {"target": ASKED, "golden": {"holdout": 0.5}, "risk": risk}
    file = SMALLEST | asked | {"prompt": REWRITING | {"mode": mode}}
    if minimal is None:
        assert read(file).prompt.strategies == ["racing", "gepa"]
        return
    with pytest.raises(InvalidMigration) as refused:
        read(file)
    assert len(refused.value.problems) == 1
    assert minimal in str(refused.value)
    assert read(file | {"prompt": {"mode": mode}}).prompt.strategies == ["racing"]


@pytest.mark.parametrize(
    ("risk", "mode"), [("high", "structural"), ("medium", "minimal"), (None, "minimal"), ("low", "full")]
)
def test_the_risk_settles_the_mode_and_a_mode_that_is_declared_stands(risk: Risk | None, mode: str) -> None:
    assert PromptAdaptation(mode="auto").mode_for(risk) == mode
    assert PromptAdaptation(mode="full").mode_for(risk) == "full"


def test_the_schema_of_the_documentation_is_current_and_valid() -> None:
    schema = json_schema()
    assert schema["required"] == ["workload", "legacy", "target", "grading"]
    assert schema["$defs"]["SignOff"]["properties"]["quality_margin"]["description"]


def read(value: dict[str, Any]) -> Migration:
    return parse(yaml.safe_dump(value), file="migrations/support.yaml")
