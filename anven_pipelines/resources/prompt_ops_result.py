"""What llama-prompt-ops found, and the candidate that it becomes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.domain.prompt_template import SLOT, Candidate, TemplateMessage

if TYPE_CHECKING:
    from pathlib import Path

    from anven_pipelines.domain.prompt_template import PromptTemplate


class Shot(NamedTuple):
    """An example that it chose."""

    question: str
    answer: str


class Optimised(NamedTuple):
    """What it found: the text of the system message, and examples."""

    system: str
    shots: tuple[Shot, ...]


def candidate_of(template: PromptTemplate, found: Optimised, *, origin: str) -> Candidate:
    """Return the candidate for a result: its system text and examples before the template's own user message.

    An example that holds what looks like a slot is left out: it would be filled in with every call.
    """
    shots = [shot for shot in found.shots if not _holds_slot(template, shot)]
    turns = [
        TemplateMessage(role=role, content=text)
        for shot in shots
        for role, text in (("user", shot.question), ("assistant", shot.answer))
    ]
    system = [TemplateMessage(role="system", content=found.system)] if found.system.strip() else []
    return Candidate(
        template=template.name,
        messages=(*system, *(turns or template.examples), TemplateMessage(role="user", content=template.user)),
        moves={"rewritten": "the system message", "examples": str(len(shots))},
        origin=origin,
    )


def read_result(folder: Path) -> Optimised:
    """Read what llama-prompt-ops has written: `results/<prefix>_<time>.json` below its working folder.

    Raises:
        UnavailableService: there is no result, or it is not of the form that version 0.0.8 writes.
    """
    written = sorted((folder / "results").glob("*.json"))
    if not written:
        message = "llama-prompt-ops ended well and wrote no result; version 0.0.8 writes one below `results`"
        raise UnavailableService(message)
    try:
        found = json.loads(written[-1].read_text(encoding="utf-8"))
        shots = [Shot(str(shot["question"]), str(shot["answer"])) for shot in found["few_shots"]]
        return Optimised(str(found["prompt"]), tuple(shots))
    except (ValueError, KeyError, TypeError) as error:
        message = (
            f"the result of llama-prompt-ops cannot be read ({error!r}); version 0.0.8 writes `prompt` and `few_shots`"
        )
        raise UnavailableService(message) from error


def _holds_slot(template: PromptTemplate, shot: Shot) -> bool:
    return any(name in template.slots for text in shot for name in SLOT.findall(text))
