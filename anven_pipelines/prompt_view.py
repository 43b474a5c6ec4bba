"""The prompts that a workload's target is asked with now: what was gained, why, and how to change them by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from anven_pipelines.assets.materialization import MIGRATION, read_document
from anven_pipelines.domain.errors import InvalidInput, MissingInput
from anven_pipelines.domain.golden import opened
from anven_pipelines.domain.prompt_report import spent_in_words
from anven_pipelines.domain.prompt_rewrites import rewrites_of
from anven_pipelines.domain.prompts import AdaptedPrompt, Call, calls_of
from anven_pipelines.domain.workload import explain_stale
from anven_pipelines.migrate import of_kind, prepared
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import read_migration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.manifest import Manifest
    from anven_pipelines.domain.prompt_rewrites import Written
    from anven_pipelines.spec_prompt import PromptAdaptation


class CurrentPrompt(NamedTuple):
    """A workload's prompt as it was last materialised.

    Attributes:
        workload: Whose it is.
        prompt: What the target is asked with.
        report: What the search found and proved; empty where the prompt was declared.
        stale: What to do, where the migration file has changed since.
        logged: Open golden calls as logged.
        declared: The section `prompt` as it is declared now.
    """

    workload: str
    prompt: AdaptedPrompt
    report: Mapping[str, Any]
    stale: str | None
    logged: list[Call]
    declared: PromptAdaptation | None = None

    def written(self) -> Written:
        """Return it as a section of a migration file; see `rewrites_of`."""
        return rewrites_of(self.prompt, self.logged, declared=self.declared)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `rewrites` is null where the prompt cannot be written so."""
        try:
            written = self.written()
        except InvalidInput as reason:
            section, notes = None, [str(reason)]
        else:
            section, notes = written.section, list(written.notes)
        return {
            "workload": self.workload,
            "prompt": self.prompt.model_dump(mode="json"),
            "adaptation": self.report or None,
            "stale": self.stale,
            "rewrites": section,
            "notes": notes,
        }


def read_prompt(file: Path, *, home: Path) -> CurrentPrompt:
    """Read the prompt that a migration file's workload has now.

    Raises:
        InvalidMigration: the file is broken.
        MissingInput: the workload has no prompt yet.
    """
    migration = read_migration(file).migration
    workload = migration.workload
    with prepared(home) as definitions:
        artifacts = of_kind(definitions, "artifacts", ArtifactStore)
        if (manifest := artifacts.load_manifest("adapted_prompt", workload)) is None:
            message = f"workload {workload!r} has no adapted prompt yet; run `anven migrate {file}`"
            raise MissingInput(message)
        return CurrentPrompt(
            workload=workload,
            prompt=AdaptedPrompt.model_validate_json(read_document(artifacts, manifest)),
            report=manifest.facts.get("adaptation", {}),
            stale=explain_stale(migration, "adapted_prompt", manifest.inputs.get(MIGRATION)),
            logged=_open_calls(artifacts, manifest, workload),
            declared=migration.prompt,
        )


def _open_calls(artifacts: ArtifactStore, manifest: Manifest, workload: str) -> list[Call]:
    golden = artifacts.load_manifest("golden_dataset", workload, digest=manifest.inputs["golden_dataset"])
    if golden is None:
        message = f"the golden dataset that the prompt of {workload!r} was found on is gone; run `anven migrate` again"
        raise MissingInput(message)
    return calls_of(opened(artifacts.read(golden)))


def show_prompt(current: CurrentPrompt, console: Console) -> None:
    """Print the result, the gains, the reasons, each prompt's diff and the cost."""
    adapted = "the legacy prompts stand unchanged" if current.prompt.strategy == "identity" else "adapted"
    _say(console, f"{current.workload}: {adapted}; version {current.prompt.version[:12]}")
    _say(console, current.prompt.description)
    if current.stale:
        _say(console, f"not up to date: {current.stale}")
    if not current.report:
        _say(console, "\nno gain is claimed: nothing was searched (`prompt.mode` is declared)")
        return
    if current.report["gains"]:
        console.print()
        console.print(_gains(current.report["gains"]))
    _say(console, "\nwhy\n" + "\n".join(f"- {reason}" for reason in current.report["reasons"]))
    for name, text in current.report["diff"].items():
        _say(console, f"\n{name}")
        if steps := current.report["changes"].get(name):
            console.print(_steps(steps))
            console.print()
        console.print(Syntax(text, "diff", theme="ansi_dark", background_color="default", word_wrap=True))
    _say(console, "\n" + "\n".join(_guarded(current.report)))
    if current.prompt.strategy != "identity":
        _say(console, "\nto edit it by hand: --rewrites prints it as a section of the migration file")


def found_lines(report: Mapping[str, Any]) -> list[str]:
    """Say in a line each what became of the prompts, what was lost, whether they are as safe, and what it cost."""
    calls = report["searched"]
    gained = {gain["template"]: f"{_gained(gain)}{_searched(calls.get(gain['template']))}" for gain in report["gains"]}
    met = {heat["template"] for heat in report["heats"]}
    nothing = {
        name: f"{'nothing looked better' if name in met else _uncompared(name, report['reasons'])}{_searched(spent)}"
        for name, spent in calls.items()
    }
    each = [f"{name}: {words}" for name, words in (nothing | gained).items()]
    refused = [reason for reason in report["reasons"] if reason.startswith("refused: ")]
    return [*(each if gained else report["reasons"]), *refused, *_guarded(report)]


def _uncompared(name: str, reasons: Sequence[str]) -> str:
    """Say why a prompt was held against no other: the last reason of its own."""
    *_, why = ["", *(each for each in reasons if each.startswith(f"{name}: "))]
    return why.replace(f"{name}: ", "nothing was compared: ", 1) or "nothing was compared"


def _searched(calls: int | None) -> str:
    return "" if calls is None else f"; searched with {calls:,} calls"


def show_rewrites(current: CurrentPrompt, console: Console) -> str:
    """Return the prompt as a section `prompt`; what a rewrite cannot say stands in comments before it.

    Raises:
        InvalidInput: it cannot be written as rewrites.
    """
    written = current.written()
    if current.stale:
        _say(console, f"not up to date: {current.stale}")
    text = yaml.dump({"prompt": written.section}, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(f"# {note}\n" for note in written.notes) + text


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as such, so that a person can edit them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _text)


def _gains(gains: list[dict[str, Any]]) -> Table:
    table = Table("prompt", "items", "before", "after", "gain", "result", box=None, padding=(0, 2, 0, 0))
    for gain in gains:
        before, after = (_score(gain[name]) for name in ("before", "after"))
        colour, result = ("green", "proven") if gain["proven"] else ("yellow", "not proven")
        table.add_row(
            escape(gain["template"]), f"{gain['n']:,}", before, after, escape(_gain(gain)), f"[{colour}]{result}[/]"
        )
    return table


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = Table("change", "now", "why", box=None, padding=(0, 2, 0, 0))
    for step in steps:
        table.add_row(escape(step["what"]), escape(step["now"]), escape(step["why"]))
    return table


def _gained(gain: Mapping[str, Any]) -> str:
    result = "proven" if gain["proven"] else "not proven, the legacy prompt stands"
    before, after = (_score(gain[name]) for name in ("before", "after"))
    # Reports of earlier versions do not tell what was not measured.
    missing = sum(gain.get("unmeasured", {}).values())
    told = f", {missing:,} answers that were not measured counted against it" if missing else ""
    return f"{before} → {after} on {gain['n']:,} items that no search saw{told}, gain {_gain(gain)}: {result}"


def _gain(gain: Mapping[str, Any]) -> str:
    if gain["gain"] is None:
        return "unknown"
    return f"{gain['after'] - gain['before']:+.3f} [{gain['gain']['lower']:+.3f}, {gain['gain']['upper']:+.3f}]"


def _score(mean: float | None) -> str:
    return "unknown" if mean is None else f"{mean:.3f}"


def _guarded(report: Mapping[str, Any]) -> list[str]:
    guard, safety = report["guard"], report["safety"]
    return [
        *([f"guard: {guard['reason']}"] if guard else []),
        *([f"safety: {'; '.join(safety['reasons'])}"] if safety else []),
        f"spent: {spent_in_words(report['cost'])}",
    ]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
