"""A template taken apart: sentences with what they are for, sections with a slot each, and the cue for the answer.

Put together again in the same order the parts are the template, character for character. The rules read English; what
they do not recognise counts as `other`, and a user text whose slots do not stand in sections of their own has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import regex  # type: ignore[import-untyped] # as everywhere in the domain

from anven_pipelines.domain.prompt_template import SLOT, PromptTemplate

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["policy", "directive", "instruction", "other"]

AS_LOGGED: Final = "as logged"

_NAME: Final = r"\p{L}[^\n:*<>{}]{0,39}?"
_LABEL: Final = regex.compile(
    rf"(?:<(?P<tag>\p{{L}}[\w-]*)>[ \t]*\n?|\#{{1,6}}[ \t]*(?P<heading>{_NAME}):?[ \t]*(?:\n|$)"
    rf"|\*{{0,2}}(?P<colon>{_NAME})\*{{0,2}}:\*{{0,2}}[ \t]*\n?)"
)
_CLOSING: Final = regex.compile(r"\n?</[\w-]+>")
_END: Final = regex.compile(r"(?<=[.!?][\"')\]]?)\s+|\n+")
_DIRECTIVE: Final = regex.compile(
    r"(?i)^(?:(?:please|only|just|always|then|now|finally)[, ]+)*"
    r"(?:reply|respond|answer|return|output|print|write|give|produce|provide|state|format)\b"
    r"|\b(?:your|the) (?:answer|reply|response|output) (?:must|should|has to|is to|may)\b"
    r"|^(?:do not|don't) (?:explain|add|include|write|repeat|output)\b"
)
_INSTRUCTION: Final = regex.compile(
    r"(?i)^(?:(?:please|only|just|always|then|now|first|next)[, ]+)*"
    r"(?:use|decide|classify|find|extract|read|translate|summari[sz]e|determine|choose|pick|select|identify|compute"
    r"|calculate|convert|turn|sort|label|compare|look|check|rewrite|complete|list|tag|detect|solve|think|name|assign)\b"
    r"|\byou (?:will be|are) given\b|\byour task\b"
)
_SHORTER: Final = (
    (regex.compile(r"(?i)^please,? "), ""),
    (regex.compile(r"(?i)\b(?:exactly|always|strictly) "), ""),
    (regex.compile(r"(?i),? and nothing else\b|,? without any(?:thing| other)\b.*|,? only(?=\.?$)"), ""),
    (regex.compile(r",.*"), ""),
)
_WORD_LIST: Final = regex.compile(r"[^,:;]*:\s*[\w-]+(?:,\s*(?:or |and )?[\w-]+)+\.?")


class Sentence(NamedTuple):
    """One sentence or line.

    Attributes:
        text: Its words.
        gap: The white space after it.
        kind: What it is for.
    """

    text: str
    gap: str
    kind: Kind


class Section(NamedTuple):
    """A slot with what stands around it.

    Attributes:
        slot: Name of the slot.
        label: The section's name as logged; empty where it has none.
        before: Text from the label to the slot.
        after: Closing mark, where there is one.
    """

    slot: str
    label: str
    before: str
    after: str

    @property
    def form(self) -> str:
        """The section with `{label}` or `{tag}` where its name stands, and `{slot}`."""
        if not self.label:
            return "{label}: {slot}"
        mark = "{tag}" if self.before.lstrip().startswith("<") else "{label}"
        return f"{self.before.replace(self.label, mark)}{{slot}}{self.after.replace(self.label, mark)}"


class Parts(NamedTuple):
    """What a template consists of.

    Attributes:
        system: Sentences of the system message.
        preface: Sentences of the user message before the first section.
        body: The sections as logged; all of the user message where the slots do not stand in sections.
        sections: The sections one by one; empty where the slots do not stand in sections.
        tail: Sentences after the last section.
        cue: What the answer is to follow, such as `Answer:`, and the white space that ends the message.
        gaps: White space after preface, body and tail.
    """

    system: tuple[Sentence, ...]
    preface: tuple[Sentence, ...]
    body: str
    sections: tuple[Section, ...]
    tail: tuple[Sentence, ...]
    cue: str
    gaps: tuple[str, str, str]

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """All sentences in their order."""
        return (*self.system, *self.preface, *self.tail)

    def of_kind(self, kind: Kind) -> list[Sentence]:
        """Return the sentences of one kind."""
        return [each for each in self.sentences if each.kind == kind]

    @property
    def directive_place(self) -> str:
        """Where the instruction how to answer stands; the system message where there is none."""
        for place, sentences in (("last in user", self.tail), ("first in user", self.preface)):
            if any(each.kind == "directive" for each in sentences):
                return place
        return "system"


def parts_of(template: PromptTemplate) -> Parts:
    """Take a template apart."""
    system = tuple(_sentences(template.system or "", template))
    split = _sections(template)
    if split is None:
        return Parts(system, (), template.user, (), (), "", ("", "", ""))
    start, end, sections = split
    preface, body, rest = template.user[:start], template.user[start:end], template.user[end:]
    tail, cue = _cue(rest)
    # A preface's own white space stands before the body, the tail's before the cue.
    before, after = preface.rstrip(), tail.strip()
    lead = tail[: len(tail) - len(tail.lstrip())]
    return Parts(
        system,
        tuple(_sentences(before, template)),
        body,
        sections,
        tuple(_sentences(after, template)),
        cue,
        (preface[len(before) :], lead, tail[len(lead) + len(after) :]),
    )


def shortened(sentence: str) -> str:
    """Return an instruction without what explains it: up to the first colon or comma, a list of words left whole."""
    text = sentence if _WORD_LIST.fullmatch(sentence) else regex.split("[:;]", sentence)[0]
    rules = _SHORTER[:-1] if text == sentence and _WORD_LIST.fullmatch(sentence) else _SHORTER
    for pattern, by in rules:
        text = pattern.sub(by, text)
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _sentences(text: str, template: PromptTemplate) -> Iterator[Sentence]:
    """Cut a text into policies, which stay whole, and the sentences between them."""
    policies = sorted({each for each in template.policies if each}, key=len, reverse=True)
    places = "|".join(regex.escape(each) for each in policies)
    at = 0
    for found in regex.finditer(places, text) if places else ():
        yield from _plain(text[at : found.start()], template)
        gap = regex.match(r"\s*", text, pos=found.end())[0]
        yield Sentence(found[0], gap, "policy")
        at = found.end() + len(gap)
    yield from _plain(text[at:], template)


def _plain(text: str, template: PromptTemplate) -> Iterator[Sentence]:
    at = 0
    for found in _END.finditer(text):
        if found.start() > at:
            yield Sentence(text[at : found.start()], found[0], _kind(text[at : found.start()], template))
        elif found[0]:
            yield Sentence("", found[0], "other")
        at = found.end()
    if text[at:]:
        yield Sentence(text[at:], "", _kind(text[at:], template))


def _kind(sentence: str, template: PromptTemplate) -> Kind:
    """Say what a sentence is for; one that names a slot speaks of the task."""
    text = sentence.lstrip(" \t-*0123456789.)#")
    if _DIRECTIVE.search(text):
        return "directive"
    names = "|".join(regex.escape(name.replace("_", " ")) for name in template.slots)
    names_slot = bool(names) and regex.search(rf"(?i)\b(?:{names})\b", text)
    return "instruction" if names_slot or _INSTRUCTION.search(text) else "other"


def _sections(template: PromptTemplate) -> tuple[int, int, tuple[Section, ...]] | None:
    """Find the sections: where the first begins, where the last ends, and each of them; None where there are none."""
    user = template.user
    slots = [found for found in SLOT.finditer(user) if found[1] in template.slots]
    if not slots:
        return None
    ends = [each.start() for each in slots[1:]] + [len(user)]
    begin = _first_label(user[: slots[0].start()])
    if begin is None:
        return None
    sections, at = [], begin
    for number, (slot, end) in enumerate(zip(slots, ends, strict=True)):
        label = _label_before(user[at : slot.start()], first=number == 0)
        closing = _CLOSING.match(user, slot.end())
        after = closing[0] if closing else ""
        at = slot.end() + len(after)
        if label is None or not (at == end or user[at] == "\n"):
            return None
        sections.append(Section(slot[1], *label, after))
    return begin, at, tuple(sections)


def _first_label(text: str) -> int | None:
    """Return where the lines begin that only label: the section's own, and those of sections that stand empty."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n") and not _LABEL.fullmatch(lines[-1]):
        return None
    count = 0
    while count < len(lines) and _LABEL.fullmatch(lines[-1 - count]):
        count += 1
    return len("".join(lines[: len(lines) - count]))


def _label_before(text: str, *, first: bool) -> tuple[str, str] | None:
    """Return a section's name and the text of its label; None where something else stands before the slot."""
    lines = text.splitlines(keepends=True)
    if not first and lines and not lines[0].strip():
        lines = lines[1:]
    while lines and not lines[0].strip():
        lines = lines[1:]
    if not lines:
        return ("", "") if first or text else None
    if not all(_LABEL.fullmatch(line) for line in lines):
        return None
    found = _LABEL.fullmatch(lines[-1])
    return next(name for name in found.groups() if name is not None), lines[-1]


def _cue(text: str) -> tuple[str, str]:
    """Cut the last line off where it only labels the answer, and in any case the white space at the end."""
    written = text.rstrip()
    head, line_break, last = written.rpartition("\n")
    at = len(head + line_break) if line_break and _LABEL.fullmatch(last) else len(written)
    return text[:at], text[at:]
