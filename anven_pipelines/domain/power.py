"""How many items a sign-off needs, before anything is spent."""

from __future__ import annotations

from anven_pipelines.stats.sample_size import pairs_for_margin

# Until the legacy scores are measured: four of five answers right, and one in five items judged differently between
# the arms. The pairs of docs/gsm-recordings.md differ in 6, 14 and 18 % of the items, so this is on the cautious side.
PLANNED_BASELINE = 0.8
PLANNED_DISCORDANCE = 0.2
PLANNED_POWER = 0.8


def items_for(*, margin: float, level: float) -> int:
    """Return the items with which equal models pass the quality margin at 80 % power.

    Args:
        margin: Acceptable loss, as a share of the legacy mean.
        level: One-sided error rate.
    """
    return pairs_for_margin(
        margin=margin * PLANNED_BASELINE,
        baseline=PLANNED_BASELINE,
        discordance=PLANNED_DISCORDANCE,
        level=level,
        power=PLANNED_POWER,
    )
