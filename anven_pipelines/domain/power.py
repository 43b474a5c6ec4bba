"""How many items a sign-off needs, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anven_pipelines.stats.sample_size import pairs_for_margin

if TYPE_CHECKING:
    from anven_pipelines.spec import SignOff

# Until the legacy scores are measured: four of five answers right, and one in five items judged differently between
# the arms. The pairs of docs/gsm-recordings.md differ in 6, 14 and 18 % of the items, so this is on the cautious side.
PLANNED_BASELINE = 0.8
PLANNED_DISCORDANCE = 0.2
PLANNED_POWER = 0.8


def items_for(spec: SignOff) -> int:
    """Return the items with which equal models pass the quality margin at 80 % power."""
    return pairs_for_margin(
        margin=spec.quality_margin * PLANNED_BASELINE,
        baseline=PLANNED_BASELINE,
        discordance=PLANNED_DISCORDANCE,
        level=spec.level,
        power=PLANNED_POWER,
    )
