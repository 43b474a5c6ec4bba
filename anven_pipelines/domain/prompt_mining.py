"""Which prompt templates an application asks with, found in its logged calls or declared.

Calls are told apart by application, system text, tools, output format and few-shot turns; what their user texts share
is the template, what differs fills its slots. Each call is covered by one template or counted with the reason why not.
Earlier turns of a conversation are no part of a template: they stand, call by call, between it and the user's message.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping  # noqa: TC003 - a dataclass keeps its annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.prompt_anchors import ROBUST_SHARE, shared_text, slot_values
from anven_pipelines.domain.prompt_calls import LoggedCall, is_example, read_call, text_of
from anven_pipelines.domain.prompt_slots import feature_to_split, near_equal, proposed_policies, written
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
        proposed: By template, sentences of its fixed text that look like policy; nothing binds them yet.
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


class _Found(NamedTuple):
    template: PromptTemplate
    calls: list[LoggedCall]


def mine(calls: pl.DataFrame, *, declared: Sequence[PromptTemplate] = (), least_calls: int = LEAST_CALLS) -> Inventory:
    """Find the templates of logged prompts; the order of the calls changes nothing.

    Args:
        calls: Columns id, application, source_prompt (JSON list of messages) and model_config (JSON object), as
            GOLDEN has them.
        declared: Tried first, in their order; names must be their own. Taken as they are, each once for every tools and
            output format that its calls ask with; see `_by_form`.
        least_calls: So many calls tell shared text from slots; fewer are not covered.
    """
    # Prompts are taken apart one by one: Polars has no words for what is in their JSON.
    columns = ("id", "application", "source_prompt", "model_config")
    every = sorted(
        (read_call(*row) for row in calls.select(columns).iter_rows()), key=lambda call: (call.id, call.user)
    )
    reasons = {id(call): call.trouble for call in every if call.trouble}
    open_calls = [call for call in every if call.trouble is None]
    found: list[_Found] = []
    names = {template.name for template in declared}
    for template in declared:
        taken = [call for call in open_calls if _fit_call(template, call) is not None]
        forms = _by_form(template, taken, least_calls, names)
        found += forms
        gone = {id(call) for form in forms for call in form.calls}
        open_calls = [call for call in open_calls if id(call) not in gone]
    mined = []
    for group in _groups(open_calls, least_calls):
        templates, left = _mine_group(group, least_calls)
        mined += templates
        reasons |= {id(call): why for call, why in left}
    found += _named(mined, names)
    return _inventory(every, _with_left(found, [call for call in open_calls if id(call) in reasons]), reasons)


def _by_form(template: PromptTemplate, calls: Sequence[LoggedCall], least: int, taken: set[str]) -> list[_Found]:
    """Part the calls of a declared template by tools and output format: what is proven of one form is of no other.

    The form with the most calls has the template's name, the others a number behind it. A further form needs so many
    calls as one that is mined; those of a rarer one are left to the templates that come after.
    """
    by_form: dict[str, list[LoggedCall]] = defaultdict(list)
    for call in calls:
        by_form[_form(call)].append(call)
    ranked = sorted(by_form.items(), key=lambda each: (-len(each[1]), each[0]))
    forms = [group for at, (_, group) in enumerate(ranked) if at == 0 or len(group) >= least][:MOST_TEMPLATES]
    if not forms:
        return [_Found(template, [])]
    first, *others = (
        _Found(template.model_copy(update={"tools": group[0].tools, "contract": group[0].contract}), group)
        for group in forms
    )
    return [first, *_named(others, taken)]


def _with_left(found: Sequence[_Found], left: Sequence[LoggedCall]) -> list[_Found]:
    """Add the calls that were left to the first template that fits them: it takes them where it is served, too."""
    more: dict[int, list[LoggedCall]] = defaultdict(list)
    forms = [_form(each.template) for each in found]
    for call in left:
        form = _form(call)
        fits = (at for at, each in enumerate(found) if forms[at] == form and _fit_texts(each.template, call))
        if (first := next(fits, None)) is not None:
            more[first].append(call)
    return [each._replace(calls=[*each.calls, *more[at]]) for at, each in enumerate(found)]


def fit(
    template: PromptTemplate, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any] | None = None
) -> Fitted | None:
    """Take a logged call apart by a template; None where it is none of its calls.

    System, examples, the earlier turns and the filled user text, one behind the other, are the prompt again.

    Args:
        template: By which.
        messages: As logged.
        params: As logged. What is proven of one set of tools and one output format is proven of no other, so both must
            be the template's; without parameters the text alone is looked at.
    """
    call = read_call("", None, canonical_json(list(messages)), None if params is None else canonical_json(params))
    if call.trouble or (params is not None and _form(template) != _form(call)):
        return None
    return _fit_texts(template, call)


def _form(of: PromptTemplate | LoggedCall) -> str:
    return canonical_json([of.tools, of.contract])


def _fit_call(template: PromptTemplate, call: LoggedCall) -> Fitted | None:
    same_tools = not template.tools or canonical_json(template.tools) == canonical_json(call.tools)
    same_contract = template.contract is None or template.contract == call.contract
    return _fit_texts(template, call) if same_tools and same_contract else None


def _fit_texts(template: PromptTemplate, call: LoggedCall) -> Fitted | None:
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


def _groups(calls: Iterable[LoggedCall], least: int) -> list[list[LoggedCall]]:
    """Part the calls by what their templates cannot share; systems that differ in a few words are one."""
    asked: dict[tuple[str, str, bool], list[LoggedCall]] = defaultdict(list)
    for call in calls:
        asked[call.application, _form(call), call.system is None].append(call)
    groups = []
    for _, alike in sorted(asked.items()):
        family = near_equal(Counter(call.system or "" for call in alike), least_calls=least)
        by_system: dict[str, list[LoggedCall]] = defaultdict(list)
        for call in alike:
            by_system[family[call.system or ""]].append(call)
        groups += [part for _, group in sorted(by_system.items()) for part in _by_examples(group)]
    return groups


def _by_examples(group: list[LoggedCall]) -> list[list[LoggedCall]]:
    """Part calls that begin with the same question and answer, which are examples, from the others."""
    begins = Counter(canonical_json(call.turns[:2]) for call in group if is_example(call.turns[:2]))
    often = {begin for begin, count in begins.items() if count >= max(2, EXAMPLES_SHARE * len(group))}
    parts: dict[str, list[LoggedCall]] = defaultdict(list)
    for call in group:
        begin = canonical_json(call.turns[:2])
        parts[begin if begin in often else ""].append(call)
    return [part for _, part in sorted(parts.items())]


def _examples(group: Sequence[LoggedCall]) -> tuple[TemplateMessage, ...]:
    """Return the turns with which every call of a group begins; of a conversation seen once there are none."""
    count = 0
    first = group[0].turns
    while is_example(first[count : count + 2]) and all(
        call.turns[count : count + 2] == first[count : count + 2] for call in group
    ):
        count += 2
    return tuple(TemplateMessage(**each) for each in first[:count]) if len(group) > 1 else ()


def _mine_group(group: list[LoggedCall], least: int) -> tuple[list[_Found], list[tuple[LoggedCall, str]]]:
    """Find the templates of calls that share all but their user texts."""
    found: list[_Found] = []
    waiting = [group]
    left: list[tuple[LoggedCall, str]] = []
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
        if template is None:
            left += [(call, "the system texts share too little") for call in part]
            continue
        fitting = [call for call in part if _fit_texts(template, call) is not None]
        if not fitting or (len(literals) > 1 and len(fitting) < ROBUST_SHARE / 2 * len(part)):
            left += [(call, "what is shared fits too few prompts") for call in part]
            continue
        found.append(_Found(template, fitting))
        fits = set(map(id, fitting))
        if rest := [call for call in part if id(call) not in fits]:
            waiting.append(rest)
    return found, left


def _template(group: Sequence[LoggedCall], literals: Sequence[str]) -> PromptTemplate | None:
    """Write a template from what its calls share; None where their system texts share nothing."""
    first, examples = group[0], _examples(group)
    system = None if first.system is None else shared_text([call.system or "" for call in group])
    if system is not None and len(system) > 1 and not any(system):
        return None
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


def _inventory(every: list[LoggedCall], found: Sequence[_Found], reasons: Mapping[int, str]) -> Inventory:
    rows: dict[int, tuple[str | None, ...]] = {
        id(call): (call.id, None, None, None, reasons.get(id(call))) for call in every
    }
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
        proposed={template.name: proposed_policies(template) for template, _ in found},
        lengths={template.name: _length(template, calls) for template, calls in found if calls},
    )


def _length(template: PromptTemplate, calls: Sequence[LoggedCall]) -> Length:
    sizes = sorted(
        len(call.system or "") + sum(len(text_of(each) or "") for each in call.turns) + len(call.user) for call in calls
    )
    shared = sum(sum(map(len, _parts(text, template.slots)[1])) for text in (template.system or "", template.user))
    median, p95 = (sizes[math.ceil(share * len(sizes)) - 1] for share in (0.5, 0.95))
    return Length(shared + sum(len(each.content) for each in template.examples), median, p95, sizes[-1])
