"""The scorecard shows the open items and keeps the sealed ones closed."""

from __future__ import annotations

import polars as pl

from anven_pipelines.domain.scorecard import draw_up
from tests.builders import a_migration, paired_scores, scores_of


def half_open() -> pl.DataFrame:
    sealed = paired_scores(both=0, lost=400, gained=0)
    opened = paired_scores(both=380, lost=5, gained=15).with_columns(
        split=pl.lit("open"), item_id="open-" + pl.col("item_id"), cluster="open-" + pl.col("item_id")
    )
    return pl.concat([sealed, opened])


def test_only_open_items_are_compared() -> None:
    card = draw_up(half_open(), a_migration())
    assert (card.open_items, card.sealed_items) == (400, 400)
    assert card.quality is not None
    assert card.quality.estimate == 0.025
    assert len(card.lost_items) == 5
    assert all(item.startswith("open-") for item in card.lost_items)


def test_the_table_names_every_segment_with_its_outcome() -> None:
    text = draw_up(half_open(), a_migration(golden={"strata": ["task"]})).markdown()
    assert "| open items | 400 | 96.25% | 98.75% | +2.50 |" in text
    assert "| task = qa | 400 |" in text
    assert text.count("not worse") == 2


def test_a_fully_sealed_dataset_shows_nothing_but_counts() -> None:
    card = draw_up(paired_scores(both=0, lost=50, gained=0), a_migration())
    assert card.quality is None
    assert card.segments == []
    assert card.lost_items == []
    assert card.markdown() == "All 50 items are sealed; `sign_off` opens them."


def test_missingness_is_told_of_open_items() -> None:
    card = draw_up(scores_of([1.0] * 40, [None] * 40, split=["open"] * 40), a_migration())
    assert card.missingness.differs
    assert card.missingness.target_unmeasured == 40
    assert draw_up(scores_of([1.0] * 40, [None] * 40), a_migration()).missingness.target_unmeasured == 0


def test_an_empty_dataset_is_no_error() -> None:
    assert draw_up(scores_of([], []), a_migration()).open_items == 0
