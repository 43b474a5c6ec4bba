"""The attacks on an entry that is to serve: on each rewrite of it, with values of calls that it serves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.prompt_safety import probes
from anven_pipelines.domain.prompt_template import unchanged
from anven_pipelines.domain.prompts import fitting_rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anven_pipelines.domain.prompt_entry import Entry
    from anven_pipelines.domain.prompt_safety import Probe
    from anven_pipelines.domain.prompt_split import TemplateItems
    from anven_pipelines.domain.prompt_template import Candidate


def attacks_on(items: TemplateItems, entry: Entry, *, seed: int) -> list[Probe]:
    """Return the probes of an entry: each attack once for each rewrite that it reaches, else once and not reached.

    A first rewrite with a pattern of its own would else never be attacked, as one behind it takes every attack.

    Args:
        items: Of the template, which has slots. Their values are attacked: those of the search, or of the validation
            where a rewrite serves none of the search.
        entry: What is to serve.
        seed: The same items give the same probes.
    """
    legacy = unchanged(items.template)
    if "rewrites" not in entry.part:
        return probes(legacy, items.search.filled, seed=seed)

    def served_by(number: int, messages: Sequence[dict[str, Any]]) -> bool:
        return fitting_rewrite(entry.part, messages) == number

    made = []
    for number in range(len(entry.part["rewrites"])):
        serves = partial(served_by, number)
        samples = _samples(items, legacy, serves)
        if samples:
            made.append(probes(legacy, samples, seed=seed, reaches=serves))
    by_attack = zip(*made, strict=True)
    return [each for same in by_attack for each in ([probe for probe in same if probe.reached] or same[:1])]


def _samples(
    items: TemplateItems, legacy: Candidate, serves: Callable[[list[dict[str, Any]]], bool]
) -> list[Mapping[str, str]]:
    parts = ([each for each in part.filled if serves(legacy.asked(each))] for part in (items.search, items.validation))
    return next((found for found in parts if found), [])


def not_attacked(entry: Entry, tried: Sequence[Probe]) -> list[str]:
    """Say which attacks and which rewrites nothing is measured of.

    Args:
        entry: What was attacked.
        tried: As `attacks_on` returns them.
    """
    if "rewrites" not in entry.part:
        return []
    reached = {fitting_rewrite(entry.part, probe.messages) for probe in tried if probe.reached}
    rewrites = enumerate(entry.part["rewrites"])
    spared = [
        f"no attack fits the rewrite with the `user` {rewrite['user']!r} in any form, so it was not attacked"
        for number, rewrite in rewrites
        if number not in reached
    ]
    missed = sum(not probe.reached for probe in tried)
    if missed:
        spared.append(
            f"{missed} of {len(tried)} attacks fit no rewrite in any form, and what was not measured never passes; let "
            "`user` take any text where calls fill one in"
        )
    return spared
