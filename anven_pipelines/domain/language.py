"""Which language a prompt is written in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN: Final = "unknown"
LEAST_LETTERS: Final = 20  # below it, the detector guesses: "ok thanks" is Danish to it
LEAST_PROBABILITY: Final = 0.9


def languages(texts: pl.Series) -> pl.Series:
    """Detect the language of each text.

    Args:
        texts: Strings; NULL where there is nothing to look at.

    Returns:
        ISO 639-1 codes; NULL for a text of fewer than 20 letters, and where the detector is less than 90 % sure.

    Source:
        langid.py (Lui and Baldwin 2012, ACL demos, 25-30), as kept up in py3langid: multinomial naive Bayes over
        byte n-grams, 97 languages, a model of 4 MB within the package, no random number.
    """
    worth = texts.unique().drop_nulls()
    worth = worth.filter(worth.str.count_matches(r"\p{L}") >= LEAST_LETTERS).sort()
    if worth.is_empty():
        return pl.Series(texts.name, [None] * len(texts), dtype=pl.String)
    identifier = _identifier()
    # A loop over distinct texts: the detector takes one at a time.
    found = [_sure(*identifier.classify(text)) for text in worth]
    return texts.replace_strict(worth, pl.Series(found, dtype=pl.String), default=None, return_dtype=pl.String)


def _sure(code: str, probability: float) -> str | None:
    return code if probability >= LEAST_PROBABILITY else None


def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - loads its model, about 1 s

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
