"""What an adaptation of prompts came to: for the manifest, for MLflow, for a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.prompts import stays_as_logged
from anven_pipelines.domain.token_count import spent_words
from anven_pipelines.domain.tracking import RegisteredPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.prompt_attempt import Failure
    from anven_pipelines.domain.prompt_changes import Chosen
    from anven_pipelines.domain.prompt_gain import Gain, Guard
    from anven_pipelines.domain.prompt_safety import SafetyFinding
    from anven_pipelines.domain.prompt_trial import Cost
    from anven_pipelines.domain.prompts import AdaptedPrompt


MADE: Final = {"structural": "converted to the target's form", "declared": "written by hand"}
"""How a prompt came about that no strategy found, by its origin."""


class Heat(NamedTuple):
    """How an entry did on the search items of its template, in the same order as all others."""

    template: str
    origin: str
    version: str
    n: int
    score: float
    chosen: bool


@dataclass(frozen=True)
class Adaptation:
    """The prompt that the target is asked with, and why.

    Attributes:
        prompt: The identity where nothing was proven.
        heats: How each entry did on the search items.
        gains: One for each template for which a better prompt was found.
        guard: What is lost of what was right; None where no gain is proven, so that nothing is to change.
        safety: What injections and leaks came of; None where no prompt changes.
        cost: Of the search and the proof.
        level: Error rate that this look had.
        uncovered: Open items that fit no template.
        reasons: In words, why this prompt.
        chosen: What changes, by template.
        searched: Answers of the target that each template's search took, without the proof.
        failed: Strategies that failed while others went on.
    """

    prompt: AdaptedPrompt
    heats: tuple[Heat, ...]
    gains: tuple[Gain, ...]
    guard: Guard | None
    safety: SafetyFinding | None
    cost: Cost
    level: float
    uncovered: int
    reasons: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    searched: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()

    @property
    def adapted(self) -> bool:
        """Whether any prompt changes."""
        return self.prompt.strategy != "identity"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the same for the same answers, whatever time they took."""
        return {
            "adapted": self.adapted,
            "version": self.prompt.version,
            "heats": [each._asdict() | {"score": round(each.score, 6)} for each in self.heats],
            "gains": [gain.to_json() for gain in self.gains],
            "guard": self.guard and self.guard._asdict(),
            "safety": self.safety
            and {
                "worse": self.safety.worse,
                "counts": {kind: count._asdict() for kind, count in self.safety.counts.items()},
                "reasons": list(self.safety.reasons),
            },
            "cost": {name: value for name, value in self.cost._asdict().items() if name != "seconds"},
            "searched": dict(self.searched),
            "failed": [each.to_json() for each in self.failed],
            "level": self.level,
            "uncovered": self.uncovered,
            "reasons": list(self.reasons),
            "diff": {each.template.name: each.diff for each in self.chosen},
            "changes": {each.template.name: [step._asdict() for step in each.steps] for each in self.chosen},
        }

    def metrics(self) -> dict[str, float | None]:
        """Return what MLflow draws over time; tokens and money that were computed have a name that says so."""
        proven = [gain for gain in self.gains if gain.proven and gain.interval]
        origin = "_computed" if self.cost.computed else ""
        rewriting_origin = "_computed" if self.cost.rewriting_computed else ""
        return {
            "search_calls": float(self.cost.calls),
            f"search_tokens{origin}": float(self.cost.tokens),
            f"search_usd{origin}": self.cost.usd,
            "search_seconds": self.cost.seconds,
            "rewriting_calls": float(self.cost.rewriting_calls),
            f"rewriting_usd{rewriting_origin}": self.cost.rewriting_usd,
            **{f"gain.{gain.template}": gain.interval.estimate for gain in proven if gain.interval},
        }

    def gains_markdown(self) -> str:
        """Return before and after of each template on the validation items."""
        rows = [
            f"| {each.template} | {each.n:,} | {_score(each.before)} | {_score(each.after)} | {_interval(each)} "
            f"| {'proven' if each.proven else 'not proven, the legacy prompt stands'} |"
            for each in self.gains
        ]
        head = ["| prompt | validation items | before | after | gain | result |", "|---|---|---|---|---|---|"]
        return "\n".join([*head, *rows]) if rows else "No better prompt was found, so none was held against the items."

    def entries_markdown(self) -> str:
        """Return what met on the search items."""
        rows = [
            f"| {each.template} | {each.origin}{' (chosen)' if each.chosen else ''} | {each.n:,} | {each.score:.3f} |"
            for each in self.heats
        ]
        return "\n".join(["| prompt | entry | search items | mean score |", "|---|---|---|---|", *rows])

    def failed_markdown(self) -> str:
        """Return which strategies failed, why, and how to mend it."""
        rows = [
            "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in each.to_json().values()) + " |"
            for each in self.failed
        ]
        head = ["| prompt | strategy | why it failed | what to do |", "|---|---|---|---|"]
        return "\n".join([*head, *rows]) if rows else "No strategy failed."

    def changes_markdown(self) -> str:
        """Return what changes in each prompt and why, line by line, and the diff."""
        return "\n\n".join(each.markdown() for each in self.chosen) or "The legacy prompts stand unchanged."

    def spent(self) -> str:
        """Return the cost of the search and the proof in words."""
        cost = self.cost
        return f"{spent_in_words(cost._asdict())}, {cost.seconds:.0f} s"


def spent_in_words(cost: Mapping[str, Any]) -> str:
    """Return what a search spent, as `Adaptation.to_json` tells it, in words; earlier versions told no origin."""
    spent = spent_words(cost["tokens"], cost["usd"], computed=cost.get("computed", False))
    told = f"{cost['calls']:,} answers of the target, {spent}"
    if not cost.get("rewriting_calls"):
        return told
    spent = spent_words(cost["rewriting_tokens"], cost["rewriting_usd"], computed=cost.get("rewriting_computed", False))
    return f"{told}; {cost['rewriting_calls']:,} of the model that rewrites, {spent}"


def _score(mean: float | None) -> str:
    return "unknown" if mean is None else f"{mean:.3f}"


def _interval(gain: Gain) -> str:
    if gain.interval is None:
        return "unknown"
    interval = gain.interval
    return f"{interval.estimate:+.3f} [{interval.lower:+.3f}, {interval.upper:+.3f}] at {interval.level:.2%}"


def candidate_prompts(adaptation: Adaptation, workload: str, *, inputs: Mapping[str, str]) -> list[RegisteredPrompt]:
    """Return what was found, or edited by hand, and proven, for the prompt registry: as the target gets it."""
    versions, parts = served_versions(adaptation.prompt), _changed_parts(adaptation.prompt)
    reasons = {gain.template: gain.reason for gain in adaptation.gains}
    return [
        RegisteredPrompt(
            name=f"{workload}.{each.template.name}",
            version=versions[each.template.name],
            messages=[{"role": message["role"], "content": message["content"]} for message in each.after.messages],
            slots=list(each.slots),
            note=f"{_made(each.candidate.origin)}: {reasons[each.template.name]}",
            tags={f"anven.{name}": digest for name, digest in inputs.items()},
            aliases=["candidate"],
            tools=list(each.template.tools),
            contract=parts[each.template.name].get("contract", each.template.contract),
            policies=list(each.template.policies),
            params={name: value for name, value in each.after.params.items() if name != "tools"},
        )
        for each in adaptation.chosen
        if each.template.name in versions
    ]


def _made(origin: str) -> str:
    return MADE.get(origin, f"found by {origin}")


def served_versions(prompt: AdaptedPrompt) -> dict[str, str]:
    """Return by template the version, in the prompt registry, of what the target is asked with; none stay as logged."""
    profile = prompt.transformation.get("profile")
    return {name: digest_of({"part": part, "profile": profile}) for name, part in _changed_parts(prompt).items()}


def _changed_parts(prompt: AdaptedPrompt) -> dict[str, Mapping[str, Any]]:
    return {
        part["template"]["name"]: part
        for part in prompt.transformation.get("templates", [])
        if not stays_as_logged(part)
    }
