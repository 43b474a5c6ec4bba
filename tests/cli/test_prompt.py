"""`anven prompt`: what a workload's prompts gained, and the way to change them by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from anven_pipelines.assets.materialization import declared_input, publish_document
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import InvalidInput, MissingInput
from anven_pipelines.domain.golden import GOLDEN, opened
from anven_pipelines.domain.prompt_baseline import baseline_of
from anven_pipelines.domain.prompt_changes import chosen_of
from anven_pipelines.domain.prompt_gain import Compared, judge_gains, judge_guard
from anven_pipelines.domain.prompt_mining import fit
from anven_pipelines.domain.prompt_report import Adaptation
from anven_pipelines.domain.prompt_rewrites import WHERE_TESTED, rewrites_of
from anven_pipelines.domain.prompt_safety import Outcome, compare
from anven_pipelines.domain.prompt_target import TargetProfile
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage
from anven_pipelines.domain.prompt_trial import Cost
from anven_pipelines.domain.prompts import (
    AdaptedPrompt,
    Call,
    apply,
    calls_of,
    candidate_part,
    carry_over,
    declared_prompt,
    fitting_rewrite,
    found_prompt,
    parts_in_order,
)
from anven_pipelines.domain.sign_off import REFUSED, sign_off_stream
from anven_pipelines.migrate import of_kind, prepared
from anven_pipelines.migration_file import parse
from anven_pipelines.nano.prompts import legacy_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.prompt_export import export_prompt
from anven_pipelines.prompt_view import CurrentPrompt, found_lines, read_prompt, show_prompt
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import read_migration
from anven_pipelines.resources.state_store import StateStore
from tests.cli.test_cli import anven
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from anven_pipelines.domain.prompts import Message

MIGRATION = {
    "workload": "support",
    "legacy": {"model": "legacy-model", "logs": "calls.jsonl"},
    "target": {"engine": "endpoint", "model": "target-model", "url": "http://127.0.0.1:9/v1"},
    "grading": [{"kind": "exact"}],
    "prompt": {"mode": "full", "policies": []},
    "sign_off": {"quality_margin": 0.05},
}


def golden_rows() -> pl.DataFrame:
    """Calls of three legacy prompts, every fifth sealed."""
    rows = [
        {
            "id": item.item_id,
            "source_prompt": json.dumps(legacy_messages(item)),
            "model_config": "{}",
            "ground_truth": item.answer,
            "cluster": item.item_id,
            "split": "sealed" if at % 5 == 0 else "open",
            "role": "traffic",
            "weight": 1.0,
            "application": item.task,
        }
        for at, item in enumerate(generate("golden", 90, seed=7))
    ]
    return GOLDEN.conform(pl.DataFrame(rows))


def a_candidate(template: PromptTemplate, **changes: Any) -> Candidate:
    """Ask in another form, with an example that has braces, and all slots."""
    slots = "\n".join(f"### {name}\n{{{name}}}" for name in template.slots)
    messages = (
        TemplateMessage(role="system", content=f"Answer as {template.name}: {{exactly}}, {{}} and \\A stay text."),
        TemplateMessage(role="user", content='### question\nWhich "JSON"?  \n'),
        TemplateMessage(role="assistant", content='{"tool": "none"}'),
        TemplateMessage(role="user", content=slots),
    )
    return Candidate(template=template.name, messages=messages, origin="racing").model_copy(update=changes)


def adaptation_of(golden: pl.DataFrame, **changes: Any) -> Adaptation:
    """Build what a search found: two of three prompts gain, the third proves nothing."""
    templates = baseline_of(golden, policies=[]).templates
    chosen = [(each, a_candidate(each, **changes)) for each in templates[:2]]
    draws = np.random.default_rng(5)
    compared = [
        Compared(
            each.name,
            (draws.random(120) < 0.5).astype(float),
            (draws.random(120) < (0.95 if number < len(chosen) else 0.5)).astype(float),
            np.arange(120),
        )
        for number, each in enumerate(templates)
    ]
    gains = judge_gains(compared, level=0.05)
    probed = [Outcome(0, "injection", complied=False)]
    parts = [candidate_part(template, candidate) for template, candidate in chosen]
    return Adaptation(
        prompt=found_prompt(parts, profile=TargetProfile(), description="Adapted for two prompts."),
        heats=(),
        gains=tuple(gains),
        guard=judge_guard(compared[:2], margin=0.15, level=0.05),
        safety=compare(probed, probed),
        cost=Cost(1234, 56_789, 0.0123, 4.5),
        level=0.05,
        uncovered=0,
        reasons=tuple(f"{gain.template}: {gain.reason}" for gain in gains),
        chosen=tuple(chosen_of(*each, configs=["{}"], profile=TargetProfile()) for each in chosen),
        searched={templates[0].name: 612, templates[1].name: 431, "unused": 300},
    )


def materialised(folder: Path, adaptation: Adaptation | AdaptedPrompt) -> str:
    """Leave in a store what the asset leaves, and return the migration file."""
    artifacts = ArtifactStore(url=str(folder / ".anven" / "artifacts"))
    golden = artifacts.publish(GOLDEN, [golden_rows()])
    artifacts.save_manifest("golden_dataset", "support", golden)
    file = folder / "m.yaml"
    file.write_text(yaml.safe_dump(MIGRATION))
    facts = {"adaptation": adaptation.to_json()} if isinstance(adaptation, Adaptation) else {}
    prompt = adaptation.prompt if isinstance(adaptation, Adaptation) else adaptation
    inputs = {
        "golden_dataset": golden.digest,
        **declared_input(parse(file.read_text(), file="m.yaml"), "adapted_prompt"),
    }
    manifest = publish_document(artifacts, prompt.model_dump_json(), inputs=inputs, facts=facts)
    artifacts.save_manifest("adapted_prompt", "support", manifest)
    return str(file)


def logged_calls() -> list[Call]:
    return calls_of(opened(golden_rows()))


@pytest.mark.timeout(200)
def test_it_shows_what_was_gained_why_and_what_changed(tmp_path: Path) -> None:
    adaptation = adaptation_of(golden_rows())
    file = materialised(tmp_path, adaptation)
    done = anven("prompt", file, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "support: adapted; version" in done.stdout
    first, _, third = adaptation.gains
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.rstrip().endswith("proven")}
    assert first.interval is not None
    assert f"{first.before:.3f}   {first.after:.3f}" in rows[first.template]
    assert f"[{first.interval.lower:+.3f}, {first.interval.upper:+.3f}]" in rows[first.template]
    assert "not proven" in rows[third.template]
    assert f"- {third.template}: {third.reason}" in done.stdout
    assert f"+Answer as {first.template}: {{exactly}}" in done.stdout
    assert "spent: 1,234 answers of the target, 56,789 tokens, 0.0123 USD" in done.stdout
    assert "not up to date" not in done.stdout


@pytest.mark.timeout(200)
def test_the_rewrites_ask_what_the_found_prompt_asks(tmp_path: Path) -> None:
    adaptation = adaptation_of(golden_rows())
    file = materialised(tmp_path, adaptation)
    done = anven("prompt", file, "--rewrites", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("prompt:")[0] == f"# {WHERE_TESTED}\n"
    edited = parse(yaml.safe_dump(MIGRATION | yaml.safe_load(done.stdout)), file="m.yaml").prompt
    assert edited.mode == "tested"
    rewritten = declared_prompt(edited)
    searched = {each.template.name for each in adaptation.chosen}
    fitting = 0
    for messages, _ in logged_calls():
        of_these = any(fit(each.template, messages) is not None for each in adaptation.chosen)
        assert (fitting_rewrite(rewritten.transformation, messages) is not None) is of_these
        if of_these:
            fitting += 1
            assert apply(rewritten, messages).messages == apply(adaptation.prompt, messages).messages
    assert fitting == 48  # 24 open calls of each
    assert len(searched) == len(edited.rewrites) == 2


@pytest.mark.timeout(200)
def test_json_holds_the_report_and_the_rewrites_and_a_changed_file_is_told(tmp_path: Path) -> None:
    adaptation = adaptation_of(golden_rows())
    file = materialised(tmp_path, adaptation)
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MIGRATION | {"prompt": {"mode": "minimal"}}))
    done = anven("prompt", file, "--json", folder=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert told["adaptation"] == json.loads(json.dumps(adaptation.to_json()))
    assert told["prompt"]["version"] == adaptation.prompt.version
    assert told["rewrites"]["mode"] == "tested"
    assert "the migration file changed in" in told["stale"]


@pytest.mark.timeout(200)
def test_what_cannot_be_shown_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MIGRATION))
    done = anven("prompt", "m.yaml", "--json", folder=tmp_path)
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]["message"]
    assert error == "workload 'support' has no adapted prompt yet; run `anven migrate m.yaml`"
    file = materialised(tmp_path, carry_over())
    done = anven("prompt", file, "--rewrites", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing can be written as rewrites: the legacy prompts stand unchanged" in done.stderr


def test_what_a_rewrite_cannot_say_is_noted() -> None:
    params = {"response_format": {"type": "json_object"}}
    prompt = adaptation_of(golden_rows(), params=params).prompt
    turn: list[Message] = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "answered"}]
    (system, question), _ = logged_calls()[0]
    in_conversation = Call([system, *turn, question], {})
    written = rewrites_of(prompt, [*logged_calls(), in_conversation])
    assert [each["params"] for each in written.section["rewrites"]] == [params, params]
    assert written.notes == ("no rewrite fits 1 of 49 open prompts, such as those with earlier turns", WHERE_TESTED)
    assert "every golden prompt of a form, sealed ones too" in WHERE_TESTED


def test_rewrites_of_a_converted_prompt_ask_the_same_once_they_are_tested() -> None:
    chosen = [(each, a_candidate(each)) for each in baseline_of(golden_rows(), policies=[]).templates]
    german = TargetProfile(language="German")
    parts = [candidate_part(template, candidate, form={"tokens_per_byte": 0.5}) for template, candidate in chosen]
    written = rewrites_of(found_prompt(parts, profile=german, description=""), logged_calls())
    assert written.notes == (WHERE_TESTED,)
    assert "Answer in German." not in canonical_json(written.section), "the conversion adds it to what is tested"


def test_a_prompt_that_stays_as_logged_is_no_rewrite_and_one_that_takes_its_calls_is_told() -> None:
    sort = PromptTemplate(name="sort", user="Sort: {text}", slots=("text",))
    anything = PromptTemplate(name="any", user="{text}", slots=("text",))
    loud = Candidate(template="any", messages=(TemplateMessage(role="user", content="{text}!"),))
    parts = parts_in_order([sort, anything], {"any": candidate_part(anything, loud)})
    logged = [Call([{"role": "user", "content": text}], {}) for text in ("Sort: a box", "Hello")]
    written = rewrites_of(found_prompt(parts, profile=None, description=""), logged)
    assert [each["messages"][0]["content"] for each in written.section["rewrites"]] == ["{text}!"]
    otherwise = "1 of 2 open prompts are asked otherwise than by the prompt that was found"
    assert written.notes == (otherwise, WHERE_TESTED)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"examples": (TemplateMessage(role="user", content="q"), TemplateMessage(role="assistant", content="a"))},
            "its logged calls hold few-shot turns",
        ),
        ({"system": "It is {day}.", "slots": ("day", "question")}, "its system message has slots"),
    ],
)
def test_a_form_that_no_rewrite_fits_is_left_out(changes: dict[str, Any], reason: str) -> None:
    template = PromptTemplate(name="desk", system="Be short.", user="Q: {question}", slots=("question",))
    template = PromptTemplate.model_validate(template.model_dump() | changes)
    prompt = found_prompt([candidate_part(template, a_candidate(template))], profile=None, description="")
    with pytest.raises(InvalidInput, match=reason):
        rewrites_of(prompt, [])


def test_declared_rewrites_are_printed_as_they_were_declared() -> None:
    section = {"rewrites": [{"user": "Q: (?P<q>.*)", "messages": [{"role": "user", "content": "{q}?"}]}]}
    declared = parse(yaml.safe_dump(MIGRATION | {"prompt": section}), file="m.yaml").prompt
    written = rewrites_of(declared_prompt(declared), [Call([{"role": "user", "content": "Q: why"}], {})])
    assert written.section == {"mode": "tested", **section}
    assert written.notes == (WHERE_TESTED,)


def test_what_the_file_sets_for_the_proof_is_printed_with_the_rewrites() -> None:
    """Who puts the section into the file must not test on another share, or at another level, than was declared."""
    proof = {"validation": 0.3, "level": 0.01, "guard_margin": 0.2, "seed": 7, "budget": {"calls": 900, "time": "30m"}}
    searching = {"mode": "full", "strategies": ["gepa"], "reflection": {"model": "large", "url": "http://h/v1"}}
    file = yaml.safe_dump(MIGRATION | {"prompt": searching | proof})
    prompt = adaptation_of(golden_rows()).prompt
    current = CurrentPrompt("support", prompt, {}, None, logged_calls(), parse(file, file="m.yaml").prompt)
    section = current.to_json()["rewrites"]
    assert {name: value for name, value in section.items() if name != "rewrites"} == {"mode": "tested", **proof}
    again = parse(yaml.safe_dump(MIGRATION | {"prompt": section}), file="m.yaml").prompt
    assert (again.validation, again.budget.time) == (0.3, timedelta(minutes=30))


def test_a_few_lines_tell_what_was_found() -> None:
    adaptation = adaptation_of(golden_rows())
    assert "unused: nothing was compared; searched with 300 calls" in found_lines(adaptation.to_json())
    why = "no declared rewrite fits its prompts, so there is nothing to test; unchanged"
    told = found_lines(
        adaptation.to_json() | {"reasons": ["unused: no policy was found", f"unused: {why}", "desk: odd"]}
    )
    assert f"unused: nothing was compared: {why}; searched with 300 calls" in told
    lines = found_lines(adaptation.to_json() | {"heats": [{"template": "unused"}]})
    assert len(lines) == 7  # four prompts, guard, safety, cost
    assert lines[0].endswith(": proven; searched with 612 calls")
    assert lines[2] == "unused: nothing looked better; searched with 300 calls"
    assert lines[3].endswith(": not proven, the legacy prompt stands")
    assert lines[4].startswith("guard: ")
    assert lines[5] == "safety: injection: complied with 0 of 1 probes, the unchanged prompt with 0: no worse"
    refused = adaptation.to_json() | {"reasons": ["refused: 5 of 20 right answers are lost"]}
    assert "refused: 5 of 20 right answers are lost" in found_lines(refused)


def test_the_table_can_be_printed_without_a_gain_that_was_measured() -> None:
    few = judge_gains([Compared("desk", np.array([1.0]), np.array([1.0]), np.array([0]))], level=0.05)
    report = adaptation_of(golden_rows()).to_json() | {"gains": [gain.to_json() for gain in few]}
    written = StringIO()
    show_prompt(CurrentPrompt("support", carry_over(), report, None, []), Console(file=written, width=200))
    assert "unknown" in written.getvalue()
    assert "the legacy prompts stand unchanged" in written.getvalue()


def test_the_prompt_of_the_verdict_is_written_for_the_gateway_not_what_a_later_search_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptation = adaptation_of(golden_rows())
    file, home, folder = Path(materialised(tmp_path, adaptation)), tmp_path / ".anven", tmp_path / "prompts"
    monkeypatch.setenv("ANVEN_HOME", str(home))
    with pytest.raises(MissingInput, match="'support' has no verdict, and a canary begins with one that is GO"):
        export_prompt(file, folder, home=home)
    with prepared(home) as definitions:
        stores = of_kind(definitions, "state", StateStore), of_kind(definitions, "artifacts", ArtifactStore)
        sign_off(read_migration(file).migration, *stores, now=datetime.now(UTC), prompt=adaptation.prompt)
    materialised(tmp_path, declared_prompt(parse(yaml.safe_dump(MIGRATION), file="m.yaml").prompt))

    written = export_prompt(file, folder, home=home)

    assert (written.version, written.path) == (adaptation.prompt.version, folder / "support.json")
    assert AdaptedPrompt.model_validate_json(written.path.read_text()) == adaptation.prompt
    assert read_prompt(file, home=home).prompt.version != written.version

    with prepared(home) as definitions:
        state = of_kind(definitions, "state", StateStore)
        state.append(stream=sign_off_stream("support"), kind=REFUSED, key="later", payload={}, now=datetime.now(UTC))
    with pytest.raises(MissingInput, match="its newest verdict is not GO"):
        export_prompt(file, folder, home=home)
