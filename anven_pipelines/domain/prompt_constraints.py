"""What must hold of whatever replaces a prompt; a candidate that breaks it is never asked."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import regex  # type: ignore[import-untyped] # as the slots' pattern

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.prompt_template import SLOT, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, TemplateMessage

LEAST_CHARACTERS: Final = 2_000
"""Length that any prompt may have: a short legacy prompt is no reason against an example."""

_SHOWN: Final = 120
_INSTRUCTIONS: Final = "the system or the last user message"


def broken(candidate: Candidate, template: PromptTemplate, *, most_characters: int | None = None) -> str | None:
    """Say which constraint a candidate breaks first: what was found and what is needed; None where none.

    Args:
        candidate: What is to be asked.
        template: What it replaces.
        most_characters: Budget of the candidate's own text, few-shot examples included, slots not; None is no budget.
    """
    checks = (
        _other_template(candidate, template),
        _roles(candidate),
        _slots(candidate, template),
        _tools(candidate, template),
        _contract(candidate, template),
        _policies(candidate, template),
        _length(candidate, most_characters),
    )
    return next((reason for reason in checks if reason is not None), None)


def most_characters(template: PromptTemplate, *, longest: float) -> int:
    """Return the budget of what replaces a template: so many times its own length, or LEAST_CHARACTERS."""
    return max(LEAST_CHARACTERS, int(own_characters(unchanged(template)) * longest))


def own_characters(candidate: Candidate) -> int:
    """Count the characters of a candidate's messages without its slots."""
    return sum(len(SLOT.sub("", message.content)) for message in candidate.messages)


def _other_template(candidate: Candidate, template: PromptTemplate) -> str | None:
    if candidate.template == template.name:
        return None
    return f"the candidate stands for {candidate.template!r}; one for {template.name!r} is needed"


def _roles(candidate: Candidate) -> str | None:
    roles = [message.role for message in candidate.messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = list(itertools.islice(itertools.cycle(("user", "assistant")), len(turns)))
    if turns == expected and turns[-1:] == ["user"]:
        return None
    needed = "at most one system message first, then user and assistant in turn, the user last"
    return f"the roles are {', '.join(roles)}; {needed} are needed"


def _instructions(candidate: Candidate) -> Iterator[TemplateMessage]:
    """Yield the messages that are no example: system, and the last one of the user."""
    if candidate.messages[0].role == "system":
        yield candidate.messages[0]
    yield candidate.messages[-1]


def _slots(candidate: Candidate, template: PromptTemplate) -> str | None:
    """Find a slot that is lost or unknown.

    A slot may stand more than once: a question repeated behind a long context loses nothing of the call. An example's
    text may hold braces of its own, and names in braces that the template holds as text may stay.
    """
    found = {name for message in _instructions(candidate) for name in SLOT.findall(message.content)}
    if missing := [name for name in template.slots if name not in found]:
        return f"the slots {_braced(missing)} are missing; each must stand in {_INSTRUCTIONS}"
    known = {*template.slots, *SLOT.findall(f"{template.system or ''}\n{template.user}")}
    if unknown := sorted(found - known):
        return f"the slots {_braced(unknown)} are unknown; a call fills {_braced(template.slots) or 'none'} only"
    turns = [message for message in candidate.messages[:-1] if message.role != "system"]
    if filled := sorted({name for turn in turns for name in SLOT.findall(turn.content)} & set(template.slots)):
        return (
            f"the slots {_braced(filled)} stand in an example, where each call would fill them; an example must be text"
        )
    return None


def _braced(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _tools(candidate: Candidate, template: PromptTemplate) -> str | None:
    """Find tools that are changed; left out of the parameters, the request's own stay."""
    params = candidate.params
    if "functions" in params:
        return "params.functions is set; tools must stay as they are, in params.tools"
    if template.tools and params.get("tool_choice") == "none":
        return "params.tool_choice is 'none'; the template's tools must stay open to the model"
    if "tools" not in params:
        return None
    tools = params["tools"] or []
    if canonical_json(tools) == canonical_json(list(template.tools)):
        return None
    needed = _names(list(template.tools))
    return f"params.tools has {_names(tools)}; the template's tools {needed} with their schemas unchanged are needed"


def _names(tools: Any) -> str:  # noqa: ANN401 - JSON of a candidate
    names = [str((each.get("function") or {}).get("name")) for each in tools if isinstance(each, dict)]
    return ", ".join(names) or "none"


def _contract(candidate: Candidate, template: PromptTemplate) -> str | None:
    """Find an output contract that is weakened; where the template has none, any may be added."""
    if template.contract is None or "response_format" not in candidate.params:
        return None
    asked: Any = candidate.params["response_format"]
    kind = asked.get("type") if isinstance(asked, dict) else None
    schema = (asked.get("json_schema") or {}).get("schema") if kind == "json_schema" else None
    if schema == template.contract or (kind == "json_object" and template.contract == {"type": "object"}):
        return None
    found, needed = (canonical_json(each)[:_SHOWN] for each in (asked, template.contract))
    return f"params.response_format is {found}; a json_schema with the template's contract {needed} is needed"


def _policies(candidate: Candidate, template: PromptTemplate) -> str | None:
    """Find a policy sentence that does not stand in the instructions word for word; spaces and line breaks are free."""
    texts = [_spaced(message.content) for message in _instructions(candidate)]
    for policy in template.policies:
        wanted = regex.compile(rf"(?<!\w){regex.escape(_spaced(policy), special_only=True)}(?!\w)")
        if not any(wanted.search(text) for text in texts):
            return f"the policy {policy[:_SHOWN]!r} is missing; it must stand word for word in {_INSTRUCTIONS}"
    return None


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _length(candidate: Candidate, most: int | None) -> str | None:
    found = own_characters(candidate)
    if most is None or found <= most:
        return None
    return f"the candidate's own text has {found} characters; at most {most} are allowed"
