"""What a target takes of a request, and what was changed for it."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - dataclasses and named tuples keep their annotations
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class TargetProfile:
    """What the target's chat template and server take; the defaults are what vLLM serves for most open models.

    Attributes:
        has_system_role: Whether the chat template has a system tier; without one its text opens the first user turn.
        needs_alternation: Whether the template refuses two turns of one role in a row.
        max_context: Tokens of prompt and answer together; None is unknown.
        supports_tools: Whether the server parses the model's tool calls.
        supports_structured_output: Whether answers can be held to a JSON Schema.
        supports_stop: Whether stop sequences are taken.
        most_stops: So many at most; None is no limit.
        supports_n: Whether several answers to one call are.
        supports_penalties: Whether frequency and presence penalties are.
        same_tokenizer: Whether token ids of the legacy model mean the same to the target, as `logit_bias` needs.
        role_renames: Roles that the template does not know, and what stands for them.
        scaffolding: Text that the model needs in its system message, such as a switch of its reasoning.
        language: Language to answer in, in words for the model, where it is to be said.
    """

    has_system_role: bool = True
    needs_alternation: bool = False
    max_context: int | None = None
    supports_tools: bool = True
    supports_structured_output: bool = True
    supports_stop: bool = True
    most_stops: int | None = None
    supports_n: bool = True
    supports_penalties: bool = True
    same_tokenizer: bool = False
    role_renames: Mapping[str, str] = field(default_factory=lambda: {"developer": "system"})
    scaffolding: str = ""
    language: str = ""


class Change(NamedTuple):
    """One change of a request.

    Attributes:
        path: Where, such as `messages[1].role` or `params.stop`; messages are counted as logged.
        before: What was logged; None where nothing was.
        after: What stands there now; None where nothing does.
        reason: Why, in words.
    """

    path: str
    before: Any
    after: Any
    reason: str
