"""Which target a verdict was given for, held against the one that a rollout would serve.

A verdict speaks of the answers of one target, and a migration file can be edited after it: another model, other weights
or other parameters have proven nothing. The verdict's event says what was judged in the words of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.workload import declared_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.events import Event
    from anven_pipelines.spec import Migration

TARGET: Final = "target"
"""Where a verdict's event holds what `declared_target` returns."""
PROMPT: Final = "prompt"
"""Where it holds the version of the prompt; events of older releases hold none."""
_SHOWN: Final = 12
"""Digits of a digest that tell it from others."""


def declared_target(migration: Migration) -> dict[str, str | None]:
    """Return which target a migration file declares.

    Returns:
        `model`, its name; `digest`, of all that decides its answers, as for the asset `target_answers`; `upstream`,
        the model that the gateway asks for, None where no gateway is declared.
    """
    upstream = migration.target_upstream
    return {
        "model": migration.target.model,
        "digest": declared_digest(migration, "target_answers"),
        "upstream": upstream.model if upstream else None,
    }


def other_target(verdict: Mapping[str, Any], declared: Mapping[str, str | None]) -> str | None:
    """Say that a verdict was not given for the declared target; None where it was.

    Args:
        verdict: Payload of the verdict's event.
        declared: What `declared_target` returns of the migration file as it is now.
    """
    signed = verdict.get(TARGET)
    if signed is None or "adapted_prompt" not in verdict:
        return (
            "its verdict does not say which target and prompt it was given for: `anven migrate` reaches one that does"
        )
    # A gateway that was declared after the verdict is what the verdict waited for; one that was edited is another.
    same_upstream = signed["upstream"] in {None, declared["upstream"]}
    if signed["digest"] == declared["digest"] and same_upstream:
        return None
    alike = all(signed[name] == declared[name] for name in ("model", "upstream"))
    edited = ", of which the engine, the URL, the weights or the parameters were edited" if alike else ""
    return (
        f"its verdict was given for {_words(signed)}, and the migration file declares {_words(declared)}{edited}: "
        "restore the file, or reach a verdict on that target with `anven migrate`"
    )


def refuted(verdicts: Sequence[Event], began: str | None) -> str | None:
    """Say that what a rollout began with was judged anew since, and is NO-GO; None where it was not.

    A verdict on another target or another prompt says nothing of the one that is served, and one that is INCONCLUSIVE
    neither disproves it nor takes back what did.

    Args:
        verdicts: The events of the workload's sign-offs, oldest first.
        began: Hash of the event with which the attempt began; None where the log does not hold it.
    """
    at = next((place for place, each in enumerate(verdicts) if each.hash == began), None)
    if at is None:
        return None
    first = verdicts[at].payload
    later = [each for each in verdicts[at + 1 :] if each.payload.get("verdict") in ("GO", "NO-GO")]
    newest = [each for each in later if _is_on_the_same(each.payload, first)][-1:]
    if not newest or newest[0].payload["verdict"] == "GO":
        return None
    return (
        f"a newer verdict on this target and prompt, of {newest[0].ts:%Y-%m-%d %H:%M} UTC, is NO-GO: "
        "`anven rollout abort` gives the traffic back; a GO, which `anven migrate` may reach, lets it go on"
    )


def _is_on_the_same(verdict: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two verdicts judged one target with one prompt."""
    one, two = verdict.get(TARGET), other.get(TARGET)
    if one is None or two is None or one["digest"] != two["digest"]:
        return False
    if None not in (one["upstream"], two["upstream"]) and one["upstream"] != two["upstream"]:
        return False
    # The digest of the asset is another one with every search, though the prompt that was found be the same.
    by = PROMPT if verdict.get(PROMPT) and other.get(PROMPT) else "adapted_prompt"
    return verdict.get(by) is not None and verdict.get(by) == other.get(by)


def _words(target: Mapping[str, str | None]) -> str:
    behind = f" behind {target['upstream']}" if target["upstream"] else ""
    return f"{target['model']}{behind} (target {str(target['digest'])[:_SHOWN]})"
