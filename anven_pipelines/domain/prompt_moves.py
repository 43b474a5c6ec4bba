"""The moves that a prompt can be changed by, one by one and in any combination.

A template is taken apart into sentences, sections and an answer cue. Each dimension changes one of them and begins with
the option that leaves it as logged, so that the first option of every dimension renders the template itself, character
for character. The rules that tell an instruction from other sentences read English; where they recognise nothing the
dimension is not offered. Policies stay word for word under every option.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from anven_pipelines.domain.prompt_calls import ANY_OBJECT
from anven_pipelines.domain.prompt_parts import AS_LOGGED, Parts, Section, Sentence, parts_of, shortened
from anven_pipelines.domain.prompt_template import SLOT, Candidate, PromptTemplate, TemplateMessage, fill

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from pydantic import JsonValue

Mode = Literal["full", "minimal", "structural"]
Genome = dict[str, str]

GENERIC: Final = {
    "value only": "Answer with the value only.",
    "result only": "Reply with the result in the format asked for and nothing else.",
}
REMINDER: Final = "Keep exactly to the format asked for."
LAYOUTS: Final = {
    "heading": "### {label}\n{slot}",
    "tag": "<{tag}>\n{slot}\n</{tag}>",
    "colon": "{label}: {slot}",
    "bare": "{slot}",
}
# What a section may be called that holds the material, and one that holds what is asked of it: plain English words.
MATERIAL_LABELS: Final = ("Notes", "Input", "Text")
ASK_LABELS: Final = ("Ask", "Message", "Request", "Task", "Input")
MINIMAL: Final = ("directive place", "layout", "order", "cue", "examples", "reminder")
SHOTS: Final = (1, 3)
DRAWS: Final = 2


class Example(NamedTuple):
    """An item that may stand in a prompt as a question with its answer."""

    slots: Mapping[str, str]
    answer: str


@dataclass(frozen=True)
class Space:
    """All prompts that the moves can make of one template.

    Attributes:
        template: What is changed.
        dimensions: The options of each; the first leaves the template as it is.
        examples: What each option of the dimension `examples` puts before the question.
    """

    template: PromptTemplate
    dimensions: Mapping[str, tuple[str, ...]]
    examples: Mapping[str, tuple[Example, ...]]

    @property
    def size(self) -> int:
        """Number of genomes; some of them render the same prompt."""
        return math.prod(len(options) for options in self.dimensions.values())

    @property
    def start(self) -> Genome:
        """The genome that renders the template as logged."""
        return {name: options[0] for name, options in self.dimensions.items()}

    def draw(self, rng: np.random.Generator) -> Genome:
        """Draw a genome, each option of a dimension as likely as another."""
        return {name: options[int(rng.integers(len(options)))] for name, options in self.dimensions.items()}

    def grid(self) -> Iterator[Genome]:
        """Yield every genome, those that change the first dimensions last."""
        for options in itertools.product(*self.dimensions.values()):
            yield dict(zip(self.dimensions, options, strict=True))

    def candidate(self, genome: Mapping[str, str], *, origin: str) -> Candidate:
        """Render a genome; equal genomes give equal candidates.

        Raises:
            ValueError: a dimension or an option is not one of the space.
        """
        self._check(genome)
        chosen = {**self.start, **genome}
        system = self._system(chosen)
        user = self._user(chosen)
        head = () if system is None else (TemplateMessage(role="system", content=system),)
        return Candidate(
            template=self.template.name,
            messages=(*head, *self._turns(chosen, user), TemplateMessage(role="user", content=user)),
            params=self._params(chosen),
            moves={name: chosen[name] for name, options in self.dimensions.items() if chosen[name] != options[0]},
            origin=origin,
        )

    def _check(self, genome: Mapping[str, str]) -> None:
        for name, option in genome.items():
            if option not in self.dimensions.get(name, ()):
                message = f"{name} is {option!r}; one of {list(self.dimensions.get(name, ()))} is needed"
                raise ValueError(message)

    @cached_property
    def _parts(self) -> Parts:
        return parts_of(self.template)

    def _directive(self, chosen: Genome) -> tuple[str, str]:
        """Return the instruction how to answer and its place; no place where it stays as logged."""
        place, wording = chosen.get("directive place", AS_LOGGED), chosen.get("directive", AS_LOGGED)
        if place == wording == AS_LOGGED:
            return "", ""
        texts = [each.text for each in self._parts.of_kind("directive")]
        text = {AS_LOGGED: " ".join(texts), "short": shortened(texts[0]) if texts else "", "none": "", **GENERIC}
        return text[wording], self._parts.directive_place if place == AS_LOGGED else place

    def _kept(self, sentences: Sequence[Sentence], chosen: Genome) -> str:
        """Return the sentences that stand where they stood; white space between them stays too."""
        dropped = {
            AS_LOGGED: set[str](),
            "no filler": {"other"},
            "directive and policies": {"other", "instruction"},
        }[chosen.get("concision", AS_LOGGED)]
        if self._directive(chosen)[1]:
            dropped |= {"directive"}
        kept = [each for each in sentences if each.kind not in dropped]
        text = "".join(each.text + each.gap for each in kept)
        return text if len(kept) == len(sentences) else text.strip()

    def _system(self, chosen: Genome) -> str | None:
        kept = self._kept(self._parts.system, chosen)
        text, place = self._directive(chosen)
        added = text if place == "system" else ""
        if not kept and not added:
            return self.template.system if kept == self.template.system else None
        return f"{kept} {added}" if kept and added else kept or added

    def _user(self, chosen: Genome) -> str:
        text, place = self._directive(chosen)
        parts = self._parts
        pieces = [
            (text if place == "first in user" else "", "\n"),
            (self._kept(parts.preface, chosen), parts.gaps[0]),
            (self._body(chosen), parts.gaps[1]),
            (self._kept(parts.tail, chosen), parts.gaps[2]),
            (text if place == "last in user" else "", "\n"),
            (REMINDER if chosen.get("reminder") == "on" else "", "\n"),
            (parts.cue if chosen.get("cue", AS_LOGGED) == AS_LOGGED else "", ""),
        ]
        written = [(piece, gap or "\n") for piece, gap in pieces if piece]
        gaps = ["" if after[:1].isspace() else gap for (_, gap), (after, _) in itertools.pairwise(written)]
        return "".join(piece + gap for (piece, _), gap in zip(written, [*gaps, ""], strict=True))

    def _body(self, chosen: Genome) -> str:
        names = ("layout", "material label", "ask label", "order")
        layout, material, ask, order = (chosen.get(name, AS_LOGGED) for name in names)
        if layout == material == ask == order == AS_LOGGED:
            return self._parts.body
        sections = list(self._parts.sections)
        last = len(sections) - 1
        texts = [
            self._section(each, layout, ask if at == last else material, number=at + 1 if last > 1 else None)
            for at, each in enumerate(sections)
        ]
        if order == "reversed":
            texts.reverse()
        return "\n".join(texts)

    def _section(self, section: Section, layout: str, label: str, *, number: int | None) -> str:
        slot = f"{{{section.slot}}}"
        if layout == label == AS_LOGGED:
            return f"{section.before}{slot}{section.after}"
        name = _label(section, label, number)
        form = section.form if layout == AS_LOGGED else LAYOUTS[layout]
        # No `format` over text that may hold braces of its own.
        filled = form.replace("{label}", name).replace("{tag}", name.lower().replace(" ", "_"))
        return filled.replace("{slot}", slot)

    def _turns(self, chosen: Genome, user: str) -> tuple[TemplateMessage, ...]:
        option = chosen.get("examples", AS_LOGGED)
        if option == AS_LOGGED:
            return self.template.examples
        return tuple(
            turn
            for example in self.examples[option]
            for turn in (
                TemplateMessage(role="user", content=fill(user, example.slots)),
                TemplateMessage(role="assistant", content=example.answer),
            )
        )

    def _params(self, chosen: Genome) -> dict[str, JsonValue]:
        params: dict[str, JsonValue] = {}
        if (thinks := chosen.get("reasoning", AS_LOGGED)) != AS_LOGGED:
            params["chat_template_kwargs"] = {"enable_thinking": thinks == "on"}
        if chosen.get("structured output") == "schema":
            named: dict[str, JsonValue] = {"name": "answer", "schema": self.template.contract, "strict": True}
            params["response_format"] = {"type": "json_schema", "json_schema": named}
        return params


def space_of(
    template: PromptTemplate,
    *,
    mode: Mode = "full",
    pool: Sequence[Example] = (),
    reasons: bool = False,
    rng: np.random.Generator,
) -> Space:
    """Return what the moves can make of a template.

    Args:
        template: What is changed.
        mode: `full` for every move; `minimal` for those that keep the legacy wording; `structural` for none.
        pool: Items that may stand as few-shot examples; none of them may be scored by the search.
        reasons: Whether the target's chat template can switch reasoning on and off.
        rng: Draws the examples.
    """
    parts = parts_of(template)
    examples = _choices([each for each in pool if _may_stand(each, template)], rng)
    if template.examples:
        examples = {"none": (), **examples}
    offered = {
        "concision": _concisions(parts),
        "directive": _directives(parts),
        "directive place": _places(parts),
        "layout": tuple(LAYOUTS) if parts.sections else (),
        "material label": _labels(MATERIAL_LABELS, parts.sections[:-1]),
        "ask label": _labels(ASK_LABELS, parts.sections[-1:]),
        "order": ("reversed",) if len(parts.sections) > 1 else (),
        "cue": ("none",) if parts.cue.strip() else (),
        "examples": tuple(examples),
        "reminder": ("on",),
        "reasoning": ("off", "on") if reasons else (),
        "structured output": ("schema",) if template.contract not in (None, ANY_OBJECT) else (),
    }
    names = {"full": tuple(offered), "minimal": MINIMAL, "structural": ()}[mode]
    dimensions = {name: (AS_LOGGED, *offered[name]) for name in names if offered[name]}
    return Space(template, dimensions, examples if "examples" in dimensions else {})


def _concisions(parts: Parts) -> tuple[str, ...]:
    kinds = {each.kind for each in parts.sentences}
    filler = ("no filler",) if "other" in kinds else ()
    return (*filler, "directive and policies") if "instruction" in kinds else filler


def _directives(parts: Parts) -> tuple[str, ...]:
    found = parts.of_kind("directive")
    short = ("short",) if found and shortened(found[0].text) != " ".join(each.text for each in found) else ()
    return (*short, *GENERIC, *(("none",) if found else ()))


def _places(parts: Parts) -> tuple[str, ...]:
    if not parts.of_kind("directive"):
        return ("first in user", "last in user")
    return tuple(place for place in ("system", "first in user", "last in user") if place != parts.directive_place)


def _labels(words: Sequence[str], sections: Sequence[Section]) -> tuple[str, ...]:
    """Offer the slot's name, and words that differ from what is logged."""
    if not sections:
        return ()
    logged = {section.label for section in sections}
    return ("slot name", *(word for word in words if {word} != logged))


def _label(section: Section, label: str, number: int | None) -> str:
    named = section.slot.replace("_", " ").capitalize()
    if label == AS_LOGGED:
        return section.label or named
    return named if label == "slot name" else label if number is None else f"{label} {number}"


def _may_stand(example: Example, template: PromptTemplate) -> bool:
    """Say whether an example's text survives the filling of the prompt around it."""
    texts = [*example.slots.values(), example.answer]
    return not any(name in template.slots for text in texts for name in SLOT.findall(text))


def _choices(pool: Sequence[Example], rng: np.random.Generator) -> dict[str, tuple[Example, ...]]:
    """Choose examples: a few draws of each count, and those that differ most from each other."""
    chosen: dict[str, tuple[Example, ...]] = {}
    for count in (each for each in SHOTS if each <= len(pool)):
        for draw in range(1, DRAWS + 1):
            places = rng.choice(len(pool), size=count, replace=False)
            chosen[f"{count} of draw {draw}"] = tuple(pool[int(at)] for at in places)
        if count > 1:
            chosen[f"{count} diverse"] = _diverse(pool, count)
    return chosen


def _diverse(pool: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Choose, one after the other, a new answer first and then the example least like those chosen."""
    chosen = [pool[0]]
    while len(chosen) < count:
        rest = [each for each in pool if each not in chosen]
        if not rest:
            break
        answers = {each.answer for each in chosen}
        chosen.append(
            max(rest, key=lambda each: (each.answer not in answers, -max(_likeness(each, other) for other in chosen)))
        )
    return tuple(chosen)


def _likeness(one: Example, other: Example) -> float:
    """Share of common words, by Jaccard's index."""
    first, second = _words(one), _words(other)
    return len(first & second) / max(len(first | second), 1)


def _words(example: Example) -> set[str]:
    return set(" ".join(example.slots.values()).lower().split())
