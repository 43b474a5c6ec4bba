"""Who signed: spellings that people take for one name are one person.

A name is a claim of whoever typed it. What stands behind it is the account that the command ran under, which is written
down beside it; authentication is the terminal's, or Dagster's.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORMAT = "Cf"  # Unicode's category of characters that nobody sees, such as the zero-width space


def person_of(name: str) -> str:
    """Return a person's name without what does not tell people apart: case, width, and space or signs nobody sees.

    Source:
        The Unicode Standard, section 3.13: toNFKC_Casefold for caseless matching of identifiers (D146).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = "".join(each for each in folded if unicodedata.category(each) != _FORMAT)
    return " ".join(seen.split())


def shared_accounts(signed: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the accounts that several people signed from, with those people, both in order.

    Args:
        signed: Person and account of each signature.
    """
    people: dict[str, set[str]] = {}
    for person, account in signed:
        people.setdefault(account, set()).add(person)
    return {account: sorted(people[account]) for account in sorted(people) if len(people[account]) > 1}
