"""A prompt as a versioned object: its shared text, its slots, and what must stay whatever is changed about it.

An application fills the same text with other values at each call. A template is that text, once; what stands between
is a slot, written `{name}`. Braces around anything else are text.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import regex  # type: ignore[import-untyped] # in place of re for its timeout
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from anven_pipelines import spec_prompt
from anven_pipelines.domain.canonical import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Role = Literal["system", "user", "assistant"]

SLOT: Final = spec_prompt.SLOT
PATTERN_SECONDS: Final = 1.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __copy__(self) -> Self:
        """Leave out what was computed and kept: a copy with other text has another version."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


class TemplateMessage(_Frozen):
    """One message of a template; its content holds slots as `{name}`."""

    role: Role
    content: str


class PromptTemplate(_Frozen):
    """What the calls of one application have in common.

    Attributes:
        name: Names it among the templates of a workload, such as `helpdesk` or `helpdesk-2`.
        system: Text of the system message, with slots where it varies by call; None where the calls have none.
        user: Text of the user message, with its slots.
        slots: Names of the slots, in the order in which they stand in `system` and then in `user`.
        examples: Question and answer turns that stand before the user message in every call.
        tools: Tools that the calls offer, in the chat completions form.
        contract: JSON Schema that answers must keep, where the calls demand one.
        policies: Sentences that must stand in whatever replaces the template, word for word.
    """

    name: str = Field(min_length=1)
    system: str | None = None
    user: str
    slots: tuple[str, ...]
    examples: tuple[TemplateMessage, ...] = ()
    tools: tuple[dict[str, JsonValue], ...] = ()
    contract: dict[str, JsonValue] | None = None
    policies: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _every_slot_stands_once(self) -> PromptTemplate:
        found = [name for name in SLOT.findall(f"{self.system or ''}\n{self.user}") if name in self.slots]
        if sorted(found) != sorted(set(self.slots)) or len(self.slots) != len(set(self.slots)):
            message = f"each slot must stand once in system and user; declared {list(self.slots)}, found {found}"
            raise ValueError(message)
        return self

    @cached_property
    def version(self) -> str:
        """SHA-256, in hex, over everything but the name: equal prompts have equal versions."""
        return digest_of(self.model_dump(mode="json", exclude={"name"}))

    @cached_property
    def pattern(self) -> str:
        """Regular expression that a user message of this template matches as a whole; its groups are the slots."""
        return pattern_of(self.user, self.slots)


def pattern_of(user: str, slots: Sequence[str]) -> str:
    """Return the regular expression of a user text with slots: text as it stands, slots as named groups.

    Every slot but the last is reluctant, so that a text between two slots ends the first where it first stands.
    """
    parts, at = [], 0
    places = [found for found in SLOT.finditer(user) if found[1] in slots]
    for number, found in enumerate(places):
        greed = "" if number == len(places) - 1 else "?"
        parts += [regex.escape(user[at : found.start()], special_only=True), f"(?P<{found[1]}>.*{greed})"]
        at = found.end()
    return "(?s)" + "".join([*parts, regex.escape(user[at:], special_only=True)])


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Return a text with its slots filled in one pass: a slot's name inside a value stays text."""
    return str(SLOT.sub(lambda found: slots.get(found[1], found[0]), text))


class Candidate(_Frozen):
    """A way to ask what a template asks.

    Attributes:
        template: Name of the template that it stands for.
        messages: What is sent, with the template's slots.
        params: Laid over the request's parameters; null takes one away.
        moves: What was chosen, by dimension, in words for the report; no part of the version.
        reasons: Why, by dimension; no part of the version.
        origin: Strategy that made it; no part of the version.
    """

    template: str
    messages: tuple[TemplateMessage, ...] = Field(min_length=1)
    params: dict[str, JsonValue] = Field(default_factory=dict)
    moves: dict[str, str] = Field(default_factory=dict)
    reasons: dict[str, str] = Field(default_factory=dict)
    origin: str = ""

    @cached_property
    def version(self) -> str:
        """SHA-256, in hex, over what decides the answer: messages and parameters."""
        return digest_of(self.model_dump(mode="json", include={"messages", "params"}))

    def asked(self, slots: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the messages of one call."""
        return [{"role": each.role, "content": fill(each.content, slots)} for each in self.messages]


def unchanged(template: PromptTemplate) -> Candidate:
    """Return the template itself as a candidate: what the legacy model is asked today."""
    system = [TemplateMessage(role="system", content=template.system)] if template.system is not None else []
    return Candidate(
        template=template.name,
        messages=(*system, *template.examples, TemplateMessage(role="user", content=template.user)),
        origin="unchanged",
    )
