"""What an adaptation of prompts came to: for the manifest, for MLflow, for a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.domain.prompt_diff import Prompt, diff
from anven_pipelines.domain.prompt_template import unchanged
from anven_pipelines.domain.tracking import RegisteredPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.prompt_gain import Gain, Guard
    from anven_pipelines.domain.prompt_safety import SafetyFinding
    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate
    from anven_pipelines.domain.prompt_trial import Cost
    from anven_pipelines.domain.prompts import AdaptedPrompt


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
        guard: What is lost of what was right; None where there is nothing to guard.
        safety: What injections and leaks came of; None where no prompt changes.
        cost: Of the search and the proof.
        level: Error rate that this look had.
        uncovered: Open items that fit no template.
        reasons: In words, why this prompt.
        chosen: Candidates of the prompt, by template.
        searched: Answers of the target that each template's search took, without the proof.
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
    chosen: tuple[tuple[PromptTemplate, Candidate | None], ...]
    searched: Mapping[str, int] = field(default_factory=dict)

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
            "level": self.level,
            "uncovered": self.uncovered,
            "reasons": list(self.reasons),
            "diff": {template.name: diff_of(template, candidate) for template, candidate in self.chosen if candidate},
            "moves": {template.name: candidate.moves for template, candidate in self.chosen if candidate},
        }

    def metrics(self) -> dict[str, float | None]:
        """Return what MLflow draws over time."""
        proven = [gain for gain in self.gains if gain.proven and gain.interval]
        return {
            "search_calls": float(self.cost.calls),
            "search_tokens": float(self.cost.tokens),
            "search_usd": self.cost.usd,
            "search_seconds": self.cost.seconds,
            **{f"gain.{gain.template}": gain.interval.estimate for gain in proven if gain.interval},
        }

    def markdown(self) -> str:
        """Return the result for a person: what met, what was gained, and how the prompts changed."""
        heats = [
            f"| {each.template} | {each.origin}{' (chosen)' if each.chosen else ''} | {each.n} | {each.score:.3f} |"
            for each in self.heats
        ]
        diffs = [
            f"**{template.name}** ({', '.join(f'{name}: {move}' for name, move in candidate.moves.items())})"
            f"\n\n```diff\n{diff_of(template, candidate)}\n```"
            for template, candidate in self.chosen
            if candidate is not None
        ]
        usd = "" if self.cost.usd is None else f", {self.cost.usd:.4f} USD"
        spent = f"{self.cost.calls:,} answers, {self.cost.tokens:,} tokens{usd}, {self.cost.seconds:.0f} s"
        table = ["| prompt | entry | search items | mean score |", "|---|---|---|---|", *heats]
        return "\n\n".join(["\n".join(table), *diffs, f"Spent: {spent}"])


def diff_of(template: PromptTemplate, candidate: Candidate) -> str:
    """Return how the prompts differ, line by line."""
    before, after = (
        Prompt([each.model_dump() for each in way.messages], way.params) for way in (unchanged(template), candidate)
    )
    return "\n".join(hunk.text for hunk in diff(before, after))


def candidate_prompts(adaptation: Adaptation, workload: str, *, inputs: Mapping[str, str]) -> list[RegisteredPrompt]:
    """Return the found prompts for the prompt registry."""
    return [
        RegisteredPrompt(
            name=f"{workload}.{template.name}",
            version=candidate.version,
            messages=[each.model_dump() for each in candidate.messages],
            slots=list(template.slots),
            note=f"found by {candidate.origin}: {gain.reason}",
            tags={f"anven.{name}": digest for name, digest in inputs.items()},
            aliases=["candidate"],
        )
        for template, candidate in adaptation.chosen
        for gain in adaptation.gains
        if candidate is not None and gain.template == template.name
    ]
