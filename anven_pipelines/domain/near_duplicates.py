"""Calls that ask nearly the same for the same right answer; each family of them becomes one golden item.

Two calls are near-duplicates where their stratum, marks, ground truth, context and parameters are equal and their
prompts are near-identical: equal after normalisation, or with a Jaccard similarity of at least the threshold over
what is left of their word triples without the application's template. Ground truth decides first, so prompts that
differ in one digit stay apart where that digit changes the answer. The template goes first, because prompts of one
application share most of their text, and a similarity of whole prompts would call every short question the same.

Every member is near-identical to the item that is kept, never only to another member, so that no chain of small
changes collapses prompts that are far apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

ALIKE: Final = ("stratum", "adversarial", "edge_case", "ground_truth", "context", "asked_with")
FAMILY: Final = ("application", "endpoint", "task")

# What differs between two sendings of one prompt: identifiers, and times of day to the second.
_VOLATILE: Final = (
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|\d{4}-\d\d-\d\d[t ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:z|[+-]\d\d:?\d\d)?"
)
_SPACE: Final = r"(?:\\[nrt]|\s)+"  # prompts are JSON, in which a line break is written \n
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD: Final = rf"[{_UNSPACED}]|[\w--[{_UNSPACED}]]+"
_ODD: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # multipliers that mix three hashes

TEMPLATE_SHARE: Final = 0.1
TEMPLATE_TEXTS: Final = 10
TEMPLATE_SAMPLE: Final = 1_000
BATCH_TEXTS: Final = 20_000  # bounds memory: words of so many prompts at once

# 32 bands of 8: a pair at 0.9 is missed once in 60 million, one at 0.8 once in 370; below 0.4 hardly one is looked at.
PERMUTATIONS: Final = 256
BANDS: Final = 32
SLACK: Final = 0.1  # five standard errors of the similarity that 256 permutations estimate


def families(pool: pl.DataFrame, *, threshold: float) -> pl.DataFrame:
    """Say of each call which call stands for it.

    Args:
        pool: Calls as `candidates.judged` describes them, ids distinct, in any order.
        threshold: Least Jaccard similarity of near-identical prompts, in (0, 1].

    Returns:
        The pool with `kept`: the id of the call that stands for it, its own where it stands for itself. Of a family
        the call that ranks first by the seed's key stays, so its logged answer is a random one of the family's.

    Source:
        Broder (1997), On the resemblance and containment of documents; MinHash and its LSH index from rensa. LSH only
        proposes: each pair's similarity is then computed, so the hash functions only change which pairs are missed.
    """
    texts = pool.sort("turn_key", "id").with_columns(text=_normalised(pl.col("messages")))
    same = texts.with_columns(pl.col("id").first().over(*ALIKE, "text").alias("first"))
    distinct = same.filter(pl.col("id") == pl.col("first"))
    repeated = dict(pair for family in distinct.partition_by(FAMILY) for pair in _repeats(family, threshold))
    kept = pl.col("first").replace(list(repeated), list(repeated.values())) if repeated else pl.col("first")
    return same.with_columns(kept.alias("kept")).drop("first", "text")


def _normalised(prompt: pl.Expr) -> pl.Expr:
    """Take away what changes no meaning: letter case, spacing, forms of one character, ids and times of sending."""
    plain = prompt.str.normalize("NFKC").str.to_lowercase()
    return plain.str.replace_all(_VOLATILE, "#").str.replace_all(_SPACE, " ").str.replace_all('" | "', '"')


def _repeats(family: pl.DataFrame, threshold: float) -> Iterator[tuple[str, str]]:
    """Pair each text of a family of prompts that repeats an earlier one with that one, by id."""
    rivals = family.filter(pl.len().over(ALIKE) > 1).sort(*ALIKE, maintain_order=True, nulls_last=True)
    if rivals.is_empty():
        return
    template = _template(family["text"])
    own = [
        each
        for batch in rivals.select("text").iter_slices(BATCH_TEXTS)
        for each in _without(template, _word_triples(batch["text"]))
    ]
    ids = rivals["id"].to_list()
    ends = rivals.select((pl.struct(ALIKE) != pl.struct(ALIKE).shift(-1)).fill_null(value=True).arg_true()).to_series()
    start = 0
    for end in ends + 1:
        leaders = _leaders(own[start:end], threshold)
        yield from ((ids[start + at], ids[start + of]) for at, of in enumerate(leaders) if of != at)
        start = end


def _template(texts: pl.Series) -> Hashes:
    """Return the word triples that many prompts of a family share: 10 % of a sample of them, and at least ten."""
    sample = _word_triples(texts.head(TEMPLATE_SAMPLE))
    triples, counts = np.unique(np.concatenate(sample), return_counts=True)
    return triples[counts >= max(TEMPLATE_TEXTS, TEMPLATE_SHARE * len(sample))]


def _word_triples(texts: pl.Series) -> list[Hashes]:
    """Hash every three words in a row, each distinct triple once, sorted.

    In scripts without spaces each character is a word. The ends of a text count as words, so each has triples.
    """
    words = ("^ ^ " + texts + " ^ ^").str.extract_all(rf"\^|{_WORD}")
    hashed = words.explode().hash().to_numpy()
    first, second, third = (np.uint64(odd) * hashed for odd in _ODD)
    triples = first[:-2] + second[1:-1] + third[2:]
    ends = np.cumsum(words.list.len().to_numpy())
    return [np.unique(triples[start : end - 2]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _without(template: Hashes, triples: Sequence[Hashes]) -> list[Hashes]:
    """Take the template's triples away from each text's."""
    flat = np.concatenate(triples)
    own = ~np.isin(flat, template)
    ends = np.cumsum([len(each) for each in triples])[:-1]
    return [each[mask] for each, mask in zip(np.split(flat, ends), np.split(own, ends), strict=True)]


def _leaders(triples: Sequence[Hashes], threshold: float) -> list[int]:
    """Return for each text the first kept text that it repeats, or itself.

    A text of nothing but template repeats none: what tells it apart was taken away.
    """
    from rensa import RMinHash, RMinHashLSH  # noqa: PLC0415 - only logs with similar prompts need it

    index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)
    # Eight bytes a token: the library takes no numbers.
    tokens = [each.view("S8").tolist() for each in triples]
    sketches: list[Any] = RMinHash.from_token_sets(tokens, num_perm=PERMUTATIONS, seed=1)
    leaders = []
    # A loop over texts: whether one is kept depends on those kept before it.
    for at, (own, sketch) in enumerate(zip(triples, sketches, strict=True)):
        near = (of for of in sorted(index.query(sketch)) if sketch.jaccard(sketches[of]) >= threshold - SLACK)
        leader = next((of for of in near if _jaccard(triples[of], own) >= threshold), at)
        if leader == at and len(own):
            index.insert(at, sketch)
        leaders.append(leader)
    return leaders


def _jaccard(one: Hashes, other: Hashes) -> float:
    """Share of the distinct values of either that are in both, each sorted and free of repeats."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
