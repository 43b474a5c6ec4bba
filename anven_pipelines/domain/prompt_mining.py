"""Which prompt templates an application asks with, found in its logged calls or declared.

Calls are told apart by application, system text, tools, output format and few-shot turns; what their user texts share
is the template, what differs fills its slots. Each call is covered by one template or counted with the reason why not.
Earlier turns of a conversation are no part of a template: they stand, call by call, between it and the user's message.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.prompt_anchors import ROBUST_SHARE, shared_text, slot_values
from anven_pipelines.domain.prompt_slots import feature_to_split, near_equal, policy_sentences, written
from anven_pipelines.domain.prompt_template import SLOT, PromptTemplate, TemplateMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LEAST_CALLS: Final = 5
MOST_TEMPLATES: Final = 8  # of one system text and one set of tools; what is left then shares too little to be adapted
EXAMPLES_SHARE: Final = 0.2  # of a group's calls that begin with the same turn, which is then no conversation's
CALLS: Final = pl.Schema(
    {"id": pl.String, "template": pl.String, "slots": pl.String, "earlier": pl.String, "reason": pl.String}
)


class Length(NamedTuple):
    """Characters of whole prompts: of the template alone, and of its calls."""

    shared: int
    median: int
    p95: int
    longest: int


class Fitted(NamedTuple):
    """What a call adds to its template: values of the slots, and turns that stand before the user's message."""

    slots: dict[str, str]
    earlier: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Inventory:
    """The templates of logged calls.

    Attributes:
        templates: Declared ones first, then mined ones by application, the one with the most calls first.
        calls: One row per call in the order of their ids: id, template, slots (JSON), earlier (JSON list of turns),
            reason. Either template or reason is set.
        proposed: By template, sentences of its system text that look like policy; nothing binds them yet.
        lengths: By template that covers a call.
    """

    templates: tuple[PromptTemplate, ...]
    calls: pl.DataFrame
    proposed: Mapping[str, tuple[str, ...]]
    lengths: Mapping[str, Length]

    def __post_init__(self) -> None:
        """Refuse an inventory in which a call is covered and not covered, or neither."""
        wrong = self.calls.filter(pl.col("template").is_null() == pl.col("reason").is_null()).height
        if wrong:
            message = f"{wrong} of {self.calls.height} calls do not have either a template or a reason; each needs one"
            raise ValueError(message)

    @property
    def covered(self) -> int:
        """Number of calls that have a template."""
        return self.calls.height - self.calls["template"].null_count()

    @property
    def uncovered(self) -> dict[str, int]:
        """Reason to the number of calls without a template."""
        return dict(self.calls.drop_nulls("reason").group_by("reason").len().sort("reason").rows())


class _Call(NamedTuple):
    """One logged prompt, taken apart; `trouble` says why it cannot be."""

    id: str
    application: str
    system: str | None
    turns: list[dict[str, Any]]
    user: str
    tools: tuple[dict[str, Any], ...]
    contract: dict[str, Any] | None
    trouble: str | None


class _Found(NamedTuple):
    template: PromptTemplate
    calls: list[_Call]


def mine(calls: pl.DataFrame, *, declared: Sequence[PromptTemplate] = (), least_calls: int = LEAST_CALLS) -> Inventory:
    """Find the templates of logged prompts; the order of the calls changes nothing.

    Args:
        calls: Columns id, application, source_prompt (JSON list of messages) and model_config (JSON object), as
            GOLDEN has them.
        declared: Taken as they are and tried first, in their order; names must be their own.
        least_calls: So many calls tell shared text from slots; fewer are not covered.
    """
    # Prompts are taken apart one by one: Polars has no words for what is in their JSON.
    columns = ("id", "application", "source_prompt", "model_config")
    every = sorted((_read(*row) for row in calls.select(columns).iter_rows()), key=lambda call: (call.id, call.user))
    reasons = {id(call): call.trouble for call in every if call.trouble}
    open_calls = [call for call in every if call.trouble is None]
    found = []
    for template in declared:
        taken = [call for call in open_calls if _fit_call(template, call) is not None]
        found.append(_Found(template, taken))
        gone = set(map(id, taken))
        open_calls = [call for call in open_calls if id(call) not in gone]
    mined = []
    for group in _groups(open_calls):
        templates, left = _mine_group(group, least_calls)
        mined += templates
        reasons |= {id(call): why for call, why in left}
    found += _named(mined, {template.name for template in declared})
    return _inventory(every, found, reasons)


def fit(template: PromptTemplate, messages: Sequence[Mapping[str, Any]]) -> Fitted | None:
    """Take a logged prompt apart by a template; None where it is none of its prompts.

    System, examples, the earlier turns and the filled user text, one behind the other, are the prompt again.
    """
    call = _read("", None, canonical_json(list(messages)), None)
    return None if call.trouble else _fit_texts(template, call)


def _fit_call(template: PromptTemplate, call: _Call) -> Fitted | None:
    same_tools = not template.tools or canonical_json(template.tools) == canonical_json(call.tools)
    same_contract = template.contract is None or template.contract == call.contract
    return _fit_texts(template, call) if same_tools and same_contract else None


def _fit_texts(template: PromptTemplate, call: _Call) -> Fitted | None:
    examples = [each.model_dump() for each in template.examples]
    if (template.system is None) != (call.system is None) or call.turns[: len(examples)] != examples:
        return None
    slots: dict[str, str] = {}
    for pattern, text in ((template.system or "", call.system or ""), (template.user, call.user)):
        names, literals = _parts(pattern, template.slots)
        values = slot_values(text, literals)
        if values is None:
            return None
        slots |= dict(zip(names, values, strict=True))
    return Fitted(slots, call.turns[len(examples) :])


def _parts(pattern: str, slots: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of a text's slots and the texts around them."""
    names, literals, at = [], [], 0
    for place in SLOT.finditer(pattern):
        if place[1] in slots:
            names.append(place[1])
            literals.append(pattern[at : place.start()])
            at = place.end()
    return names, [*literals, pattern[at:]]


def _read(call_id: str | None, application: str | None, prompt: str | None, params: str | None) -> _Call:
    """Take a prompt apart: system texts at its front are one, texts in parts are joined by line breaks."""
    call = _Call(call_id or "", application or "unknown", None, [], "", (), None, None)
    try:
        messages, asked = json.loads(prompt or ""), json.loads(params or "{}") or {}
        roles = [each["role"] for each in messages]
    except (ValueError, TypeError, KeyError):
        return call._replace(trouble="the prompt is no JSON list of messages with roles")
    front = next((at for at, role in enumerate(roles) if role not in {"system", "developer"}), len(roles))
    if not roles or roles[-1] != "user":
        last = roles[-1] if roles else "no"
        return call._replace(trouble=f"the prompt ends with {last} message; one of the user is needed")
    if {"system", "developer"} & set(roles[front:]):
        return call._replace(trouble="a system message stands behind other messages; convert the prompts first")
    texts = [_text(each) for each in (*messages[:front], messages[-1])]
    if None in texts:
        return call._replace(trouble="a system or user message holds more than text and a role")
    *systems, user = [text for text in texts if text is not None]
    return call._replace(
        system="\n\n".join(systems) if systems else None,
        turns=messages[front:-1],
        user=user,
        tools=_tools(asked),
        contract=_contract(asked.get("response_format")),
    )


def _text(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(each, dict) and each.get("type") == "text" for each in content):
        content = "\n".join(str(each.get("text", "")) for each in content)
    return content if isinstance(content, str) and set(message) <= {"role", "content"} else None


def _tools(asked: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the tools of a request; functions of the legacy form are tools, too."""
    functions = [{"type": "function", "function": each} for each in asked.get("functions") or ()]
    return tuple(asked.get("tools") or functions)


def _contract(response_format: object) -> dict[str, Any] | None:
    """Return the JSON Schema that a request demands; JSON mode demands an object."""
    if not isinstance(response_format, dict) or response_format.get("type") in {None, "text"}:
        return None
    schema = (response_format.get("json_schema") or {}).get("schema")
    return schema if isinstance(schema, dict) else {"type": "object"}


def _groups(calls: Iterable[_Call]) -> list[list[_Call]]:
    """Part the calls by what their templates cannot share; systems that differ in a few words are one."""
    asked: dict[tuple[str, str, bool], list[_Call]] = defaultdict(list)
    for call in calls:
        asked[call.application, canonical_json([call.tools, call.contract]), call.system is None].append(call)
    groups = []
    for _, alike in sorted(asked.items()):
        family = near_equal({call.system or "" for call in alike})
        by_system: dict[str, list[_Call]] = defaultdict(list)
        for call in alike:
            by_system[family[call.system or ""]].append(call)
        groups += [part for _, group in sorted(by_system.items()) for part in _by_examples(group)]
    return groups


def _by_examples(group: list[_Call]) -> list[list[_Call]]:
    """Part calls that begin with the same question and answer, which are examples, from the others."""
    begins = Counter(canonical_json(call.turns[:2]) for call in group if _is_example(call.turns[:2]))
    often = {begin for begin, count in begins.items() if count >= max(2, EXAMPLES_SHARE * len(group))}
    parts: dict[str, list[_Call]] = defaultdict(list)
    for call in group:
        begin = canonical_json(call.turns[:2])
        parts[begin if begin in often else ""].append(call)
    return [part for _, part in sorted(parts.items())]


def _is_example(turns: Sequence[Mapping[str, Any]]) -> bool:
    texts = all(set(each) == {"role", "content"} and isinstance(each["content"], str) for each in turns)
    return [each.get("role") for each in turns] == ["user", "assistant"] and texts


def _examples(group: Sequence[_Call]) -> tuple[TemplateMessage, ...]:
    """Return the turns with which every call of a group begins; of a conversation seen once there are none."""
    count = 0
    first = group[0].turns
    while _is_example(first[count : count + 2]) and all(
        call.turns[count : count + 2] == first[count : count + 2] for call in group
    ):
        count += 2
    return tuple(TemplateMessage(**each) for each in first[:count]) if len(group) > 1 else ()


def _mine_group(group: list[_Call], least: int) -> tuple[list[_Found], list[tuple[_Call, str]]]:
    """Find the templates of calls that share all but their user texts."""
    found: list[_Found] = []
    waiting = [group]
    left: list[tuple[_Call, str]] = []
    while waiting:
        part = waiting.pop()
        if len(part) < least or len(found) >= MOST_TEMPLATES:
            why = f"fewer than {least} calls" if len(part) < least else f"more than {MOST_TEMPLATES} templates"
            left += [(call, f"{why} share their system text, tools and what is around the slots") for call in part]
            continue
        literals = shared_text([call.user for call in part])
        feature = feature_to_split([call.user for call in part], literals)
        if feature is not None:
            waiting += [[call for call in part if feature not in call.user], [c for c in part if feature in c.user]]
            continue
        if found and not any(literals):
            left += [(call, "shares no text with other prompts of its kind") for call in part]
            continue
        template = _template(part, literals)
        fitting = [call for call in part if _fit_texts(template, call) is not None]
        if not fitting or (len(literals) > 1 and len(fitting) < ROBUST_SHARE / 2 * len(part)):
            left += [(call, "what is shared fits too few prompts") for call in part]
            continue
        found.append(_Found(template, fitting))
        fits = set(map(id, fitting))
        if rest := [call for call in part if id(call) not in fits]:
            waiting.append(rest)
    return found, left


def _template(group: Sequence[_Call], literals: Sequence[str]) -> PromptTemplate:
    first, examples = group[0], _examples(group)
    system = None if first.system is None else shared_text([call.system or "" for call in group], share=1.0)
    taken = set(SLOT.findall("\n".join([*(system or ()), *literals, *(each.content for each in examples)])))
    system_text, system_slots = (None, ()) if system is None else written(system, taken)
    user, slots = written(literals, taken | set(system_slots))
    return PromptTemplate(
        name=first.application,
        system=system_text,
        user=user,
        slots=(*system_slots, *slots),
        examples=examples,
        tools=first.tools,
        contract=first.contract,
    )


def _named(mined: list[_Found], taken: set[str]) -> list[_Found]:
    """Name templates by application and number, the one with the most calls first."""
    ranked = sorted(mined, key=lambda each: (each.template.name, -len(each.calls), each.template.version))
    named = []
    for each in ranked:
        base, number = each.template.name, 1
        name = base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        named.append(_Found(each.template.model_copy(update={"name": name}), each.calls))
    return named


def _inventory(every: list[_Call], found: Sequence[_Found], reasons: Mapping[int, str]) -> Inventory:
    rows = {id(call): (call.id, None, None, None, reasons.get(id(call))) for call in every}
    for template, calls in found:
        for call in calls:
            fitted = _fit_texts(template, call)
            if fitted is not None:
                rows[id(call)] = (
                    call.id,
                    template.name,
                    canonical_json(fitted.slots),
                    canonical_json(fitted.earlier),
                    None,
                )
    return Inventory(
        templates=tuple(template for template, _ in found),
        calls=pl.DataFrame(list(rows.values()), schema=CALLS, orient="row"),
        proposed={template.name: policy_sentences(template.system or "") for template, _ in found},
        lengths={template.name: _length(template, calls) for template, calls in found if calls},
    )


def _length(template: PromptTemplate, calls: Sequence[_Call]) -> Length:
    sizes = sorted(
        len(call.system or "") + sum(len(_text(each) or "") for each in call.turns) + len(call.user) for call in calls
    )
    shared = sum(sum(map(len, _parts(text, template.slots)[1])) for text in (template.system or "", template.user))
    at = lambda share: sizes[math.ceil(share * len(sizes)) - 1]  # noqa: E731 - two ranks of one list
    return Length(shared + sum(len(each.content) for each in template.examples), at(0.5), at(0.95), sizes[-1])
