from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from anven_pipelines.stats.items_needed import items_needed
from anven_pipelines.stats.score import evidence_of_counts
from tests.stats.paired_samples import GSM, table


class TestItemsNeeded:
    def test_an_estimate_on_the_margin_needs_more_than_any_number(self) -> None:
        target, legacy = table(both=80, gained=0, lost=20, n=120)
        assert items_needed(target, legacy, margin=0.2, level=0.05) is None

    def test_an_estimate_a_hair_from_the_margin_is_no_plan(self) -> None:
        target, legacy = table(both=80, gained=0, lost=20, n=120)
        assert items_needed(target, legacy, margin=0.2001, level=0.05) is None

    @pytest.mark.parametrize(
        ("cells", "margin", "direction"),
        [((0.78, 0.05, 0.05), 0.05, "noninferior"), ((0.72, 0.04, 0.12), 0.03, "inferior")],
    )
    def test_that_many_items_decide_with_the_promised_power(
        self, cells: tuple[float, float, float], margin: float, direction: str
    ) -> None:
        seen = table(both=int(200 * cells[0]), gained=int(200 * cells[1]), lost=int(200 * cells[2]), n=200)
        needed = items_needed(*seen, margin=margin, level=0.05)
        assert needed
        assert needed.direction == direction
        rng = np.random.default_rng(11)
        both, gained, lost, _ = rng.multinomial(needed.total, [*cells, 1 - sum(cells)], size=20_000).T
        evidence = evidence_of_counts(both, gained, lost, ratio=1 - margin)
        score = evidence.noninferior.score if direction == "noninferior" else evidence.inferior.score
        decided = float((stats.norm.sf(score) < 0.05).mean())
        assert decided == pytest.approx(0.8, abs=0.03)

    def test_more_power_needs_more_items(self) -> None:
        plans = [items_needed(*GSM, margin=0.02, level=0.05, power=power) for power in (0.5, 0.8, 0.95)]
        totals = [plan.total for plan in plans if plan]
        assert len(totals) == 3
        assert totals == sorted(totals)
        assert totals[0] > 1319

    @pytest.mark.parametrize("power", [0.05, 1.0])
    def test_a_power_out_of_range_is_refused(self, power: float) -> None:
        with pytest.raises(ValueError, match=f"power is {power}"):
            items_needed(*GSM, margin=0.03, level=0.05, power=power)
