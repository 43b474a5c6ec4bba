"""What changes when a template is asked in another way, and why, line by line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.prompt_conversion import convert
from anven_pipelines.domain.prompt_diff import Prompt, diff, folded
from anven_pipelines.domain.prompt_template import unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_target import Change, TargetProfile
    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate

VARIES: Final = "(differs by call)"
_LONGEST: Final = 60
_SEARCHED: Final = "the mixture with it did best on the search items"


class Step(NamedTuple):
    """One change in words.

    Attributes:
        what: Dimension of the search, or place in the request.
        now: What stands there now.
        why: The reason.
    """

    what: str
    now: str
    why: str


@dataclass(frozen=True)
class Chosen:
    """A template that is asked in another way.

    Attributes:
        template: As logged.
        candidate: Who replaces it.
        before: A call as logged, with slots.
        after: The same as the target is asked.
        changes: Of the conversion to the target's form.
        slots: Names that a call fills in `after`.
    """

    template: PromptTemplate
    candidate: Candidate
    before: Prompt
    after: Prompt
    changes: tuple[Change, ...] = ()
    slots: tuple[str, ...] = ()

    @property
    def diff(self) -> str:
        """The calls line by line, with the reasons of the conversion as comments beside the lines."""
        return "\n".join(hunk.text for hunk in diff(self.before, self.after, self.changes))

    @property
    def steps(self) -> list[Step]:
        """Every move of the search and every change of the conversion."""
        moves, reasons = self.candidate.moves, self.candidate.reasons
        return [
            *(Step(name, now, reasons.get(name, _SEARCHED)) for name, now in moves.items()),
            *(Step(each.path, f"{_shown(each.before)} → {_shown(each.after)}", each.reason) for each in self.changes),
        ]

    def markdown(self) -> str:
        """Return the steps as a table and the diff."""
        rows = [f"| {' | '.join(_cell(text) for text in step)} |" for step in self.steps]
        table = ["| change | now | why |", "|---|---|---|", *rows] if rows else ["Declared in the migration file."]
        return f"**{self.template.name}**\n\n" + "\n".join(table) + f"\n\n```diff\n{folded(self.diff, hang=1)}\n```"


def chosen_of(
    template: PromptTemplate,
    candidate: Candidate,
    *,
    configs: Sequence[str | None],
    profile: TargetProfile,
    contract: Mapping[str, Any] | None = None,
    prompt_tokens: Sequence[int | None] = (),
) -> Chosen:
    """Return what a candidate changes, with everything that the conversion of some call changes.

    Args:
        template: As logged.
        candidate: Who replaces it.
        configs: Parameters of the calls, JSON; what is not the same in all of them is not told.
        profile: The form that the target takes.
        contract: JSON Schema of the answers, where JSON mode is to become structured output.
        prompt_tokens: A bound on the prompt of each call, in their order; none where the context knows no limit.
    """
    known = dict.fromkeys(zip(configs, prompt_tokens or [None] * len(configs), strict=True))
    calls = [(json.loads(each or "null") or {}, tokens) for each, tokens in known] or [({}, None)]
    logged = [params for params, _ in calls]
    messages = [each.model_dump() for each in candidate.messages]
    converted = [
        convert(messages, params | candidate.params, profile, contract=contract, prompt_tokens=tokens)
        for params, tokens in calls
    ]
    first: dict[tuple[str, str], Change] = {}
    for conversion in converted:
        for change in conversion.changes:
            first.setdefault((change.path, change.reason), change)
    before, after = _common(logged), _common([each.params for each in converted])
    told = [
        change._replace(before=_told(change.before, path, before), after=_told(change.after, path, after))
        for (path, _), change in first.items()
    ]
    return Chosen(
        template,
        candidate,
        Prompt([each.model_dump() for each in unchanged(template).messages], before),
        Prompt(converted[0].messages, after),
        tuple(told),
        slots=template.slots,
    )


def _told(value: Any, path: str, common: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a JSON value
    """Return what a change tells of a parameter: nothing of one call's alone."""
    return VARIES if value is not None and common.get(path.removeprefix("params.")) == VARIES else value


def _common(params: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters of several calls; a value that is not the same in all of them may tell of one."""
    names = dict.fromkeys(name for each in params for name in each)
    return {name: _same([each.get(name) for each in params]) for name in names}


def _same(values: Sequence[Any]) -> Any:  # noqa: ANN401 - a JSON value
    return values[0] if all(each == values[0] for each in values) else VARIES


def _shown(value: Any) -> str:  # noqa: ANN401 - a JSON value
    text = "nothing" if value is None else value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _cell(text: str) -> str:
    """Write a text into a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
