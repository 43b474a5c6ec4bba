"""What is written down of a workload's searches, so that nothing is proven twice over or on what was searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.inference import work_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_target import AskedTarget


class Looks(Protocol):
    """An append-only log of the items that searches were shown, and of the looks at validation items."""

    def searched(self) -> frozenset[str]:
        """Return the ids of items that any search of the workload was shown, and their conversations."""

    def show(self, items: Mapping[str, str]) -> None:
        """Write down that a search is about to be shown items, as `conversations` returns them; before it is."""

    def look(self, prompt: str, *, items: Mapping[str, str], measure: str) -> int:
        """Write down that validation items are about to be looked at; return how many other looks there were before.

        The same prompt on the same items of the same golden dataset, measured in the same way, is the same look.

        Args:
            prompt: Version of what is held against the legacy prompts.
            items: The validation items, as `conversations` returns them.
            measure: As `measure_of` returns it.

        Raises:
            StaleInput: a search was shown some of the items, or of their conversations.
        """


def conversations(*rows: pl.DataFrame) -> dict[str, str]:
    """Return the conversation of each item of GOLDEN rows, by the item's id.

    A later version of the dataset may hold another question of a conversation, so what was searched is known again by
    either name.
    """
    return {item: cluster for each in rows for item, cluster in each.select("id", "cluster").iter_rows()}


def measure_of(migration: Migration, target: AskedTarget, *, epoch: str = "") -> str:
    """Return a digest of what decides a score beside prompt and item: who is asked, and who grades.

    Another model, URL, parameter or epoch draws answers anew, and another grader may find in the same ones what was
    not proven before: each would be one more try on the same items.
    """
    grading = [each.model_dump(mode="json") for each in migration.grading]
    return digest_of([work_key(golden_digest="", prompt_digest="", target=target, epoch=epoch), grading])
