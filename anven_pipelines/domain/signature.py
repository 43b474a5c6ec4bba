"""Who signed: spellings that people take for one name are one person.

A name is a claim of whoever typed it. What stands behind it is the account that the command ran under, which is written
down beside it; authentication is the terminal's, or Dagster's.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

import regex  # type: ignore[import-untyped] # properties of characters, which neither re nor unicodedata knows

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNSEEN: Final = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}]+")
"""What nobody sees: a zero-width space is of the category Cf; a variation selector or a Hangul filler is a mark or a
letter, and default ignorable."""


def person_of(name: str) -> str:
    """Return a person's name without what does not tell people apart: case, width, and space or signs nobody sees.

    Source:
        The Unicode Standard, section 3.13: toNFKC_Casefold for caseless matching of identifiers (D146).
    """
    seen = _UNSEEN.sub("", name)  # first, as one of these between a letter and its accent keeps them apart
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join(folded.split())


def shared_accounts(signed: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the accounts that several people signed from, with those people, both in order.

    Args:
        signed: Person and account of each signature.
    """
    people: dict[str, set[str]] = {}
    for person, account in signed:
        people.setdefault(account, set()).add(person)
    return {account: sorted(people[account]) for account in sorted(people) if len(people[account]) > 1}
