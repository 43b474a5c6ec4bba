"""Which open items a search may learn from, and which prove what it found."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from anven_pipelines.domain.evaluation import TRAFFIC
from anven_pipelines.domain.golden import named_in
from anven_pipelines.domain.prompt_mining import fit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.domain.prompt_template import PromptTemplate


class Part(NamedTuple):
    """Items of one template: GOLDEN rows in their random order, and what each filled the slots with."""

    rows: pl.DataFrame
    filled: tuple[Mapping[str, str], ...]


class TemplateItems(NamedTuple):
    """The open items of one template.

    Attributes:
        template: The template.
        search: What searches learn from.
        validation: What proves what they found.
        lacking: Conversations that validation wants beside these, and that searches have had before or will have.
    """

    template: PromptTemplate
    search: Part
    validation: Part
    lacking: int = 0


class Split(NamedTuple):
    """The open items by template; `uncovered` fit none and are asked as they always were."""

    templates: tuple[TemplateItems, ...]
    uncovered: int


def split_items(
    golden: pl.DataFrame, templates: Sequence[PromptTemplate], *, validation: float, searched: Collection[str] = ()
) -> Split:
    """Split the open items that stand for traffic; a conversation is on one side, whichever templates ask in it.

    Conversations are ranked within their template by a SHA-256 of their name and nothing else, so neither the order
    of the rows nor a seed draws other items to prove a gain on. Those of which a search has had an item, in this
    version or an earlier one, are searched on for ever; the first of the others validate.

    Args:
        golden: GOLDEN rows.
        templates: Tried in this order; an item belongs to the first that it fits.
        validation: Share of each template's conversations that no search sees.
        searched: Ids of items that a search was shown before, and their conversations; logs of earlier versions hold
            ids alone.
    """
    items = golden.filter(asked_by_searches(golden))
    logged = items.select("source_prompt", "model_config").iter_rows()  # a loop: nested JSON
    fits = [_fit(json.loads(messages), json.loads(params or "null") or {}, templates) for messages, params in logged]
    ranks = [hashlib.sha256(f"validation:{cluster}".encode()).hexdigest() for cluster in items["cluster"]]
    placed = items.with_columns(
        pl.Series("template", [number for number, _ in fits], dtype=pl.Int64),
        pl.Series("rank", ranks, dtype=pl.String),
        pl.Series("place", range(items.height), dtype=pl.Int64),
    )
    filled = [slots for _, slots in fits]
    by_template = [placed.filter(pl.col("template") == number).sort("rank", "id") for number in range(len(templates))]
    had = set(placed.filter(named_in(searched))["rank"])
    kept, lacking = _validating([each["rank"].unique(maintain_order=True) for each in by_template], validation, had)
    found = []
    for template, mine, few in zip(templates, by_template, lacking, strict=True):
        unseen, seen = (mine.filter(pl.col("rank").is_in(kept) == side) for side in (True, False))
        found.append(TemplateItems(template, _part(seen, filled), _part(unseen, filled), lacking=few))
    return Split(tuple(found), uncovered=placed["template"].null_count())


def asked_by_searches(golden: pl.DataFrame) -> pl.Series:
    """Say of GOLDEN rows which a search or its proof may ask: open ones that stand for traffic."""
    return golden.select((pl.col("split") == "open") & (pl.col("role") == TRAFFIC)).to_series()


def _validating(
    conversations: Sequence[pl.Series], validation: float, had: Collection[str]
) -> tuple[list[str], list[int]]:
    """Choose which conversations validate, and count those that each template lacks.

    The template with the fewest chooses first: one with more finds others where a conversation is on the search side
    already.

    Args:
        conversations: Of each template, in their order.
        validation: Share of them that validates.
        had: Those that a search has had.
    """
    kept, searched = set[str](), set(had)
    lacking = [0] * len(conversations)
    for number in sorted(range(len(conversations)), key=lambda at: (conversations[at].len(), at)):
        mine = conversations[number].to_list()
        wanted, settled = round(len(mine) * validation), [each for each in mine if each in kept]
        free = [each for each in mine if each not in kept and each not in searched]
        kept |= set(free[: max(0, wanted - len(settled))])
        searched |= {each for each in mine if each not in kept}
        lacking[number] = max(0, wanted - sum(each in kept for each in mine))
    return sorted(kept), lacking


def _fit(
    messages: list[Mapping[str, object]], params: Mapping[str, object], templates: Sequence[PromptTemplate]
) -> tuple[int | None, dict[str, str]]:
    for number, template in enumerate(templates):
        if (fitted := fit(template, messages, params)) is not None:
            return number, fitted.slots
    return None, {}


def _part(rows: pl.DataFrame, filled: Sequence[Mapping[str, str]]) -> Part:
    return Part(rows.drop("template", "rank", "place"), tuple(filled[place] for place in rows["place"]))
