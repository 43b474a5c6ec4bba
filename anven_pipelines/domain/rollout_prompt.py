"""Which prompt the target is asked with in production, held against the one that its verdict was given for.

The plan does not hold it: a search finds it, and the gateway is told of it apart from the migration file. Another
prompt is another target, of which the verdict says nothing, and the evidence of two prompts is evidence of neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anven_pipelines.domain.rollout_evidence import Evidence
    from anven_pipelines.domain.rollout_status import RolloutStatus

_SHOWN: Final = 12
"""Digits of a version that tell it from others."""


def other_prompt(status: RolloutStatus, evidence: Evidence) -> str | None:
    """Say that the target was last asked with another prompt than its verdict's; None where it was not, or unknown."""
    if _unknown(status, evidence) or evidence.prompt in (None, status.prompt):
        return None
    return (
        f"the gateway asks the target with prompt {_short(evidence.prompt)}, the verdict was given for "
        f"{_short(status.prompt)}: start the gateway with that one (`anven prompt FILE --to FOLDER` "
        "writes it, `anven gateway --prompts FOLDER` serves it), or abort, migrate and start anew"
    )


def mixed_prompts(status: RolloutStatus, evidence: Evidence) -> str | None:
    """Say how much of the evidence is of other prompts than the verdict's; None where nothing is known to be."""
    if _unknown(status, evidence):
        return None
    others = sum(answers for version, answers in evidence.prompts.items() if version != status.prompt)
    if not others:
        return None
    return (
        f"{others:,} of {sum(evidence.prompts.values()):,} answers of the target in this stage were to another prompt "
        f"than {_short(status.prompt)}, which the verdict was given for: abort it and start anew"
    )


def _unknown(status: RolloutStatus, evidence: Evidence) -> bool:
    return status.prompt is None or evidence.generation != status.generation


def _short(version: str | None) -> str:
    return str(version)[:_SHOWN]
