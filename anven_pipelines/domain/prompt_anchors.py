"""What texts of one origin share, and where they differ.

Texts are compared word by word. A run of three tokens that tells something (two words, a label, a line's start) and
stands once in nearly every text is an anchor; anchors that follow one another in the same order everywhere grow until
the texts differ. What stands between two of them is a slot. Every step is linear in the length of the texts.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import regex  # type: ignore[import-untyped] # for the scripts that write no spaces

if TYPE_CHECKING:
    from collections.abc import Sequence

ROBUST_SHARE: Final = 0.95  # of the texts that what is called shared stands in
SAMPLE_TEXTS: Final = 200
SAMPLE_CHARACTERS: Final = 400_000  # it bounds the time whatever the length of the texts
LEAST_SAMPLE: Final = 20
SHORT_WORDS: Final = 3

_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN: Final = regex.compile(rf"(?V1)[{_UNSPACED}]|[\w--[{_UNSPACED}]]+|\n|[^\S\n]+|[^\w\s]")
_WORD: Final = regex.compile(r"\w+")
_START, _END, _RUN = "<start>", "<end>", 3  # no token is longer than one sign unless it is a word or space
# Escaped are the full-width colon, question and exclamation mark of Chinese and Japanese.
_MARKS: Final = frozenset(":\uff1a<>#*|[]=`\n")
_ENDERS: Final = ".?!…,;。\uff1f\uff01"
_LABELLED: Final = regex.compile(r"^(.*[:\uff1a>][^\S\n]*)(.*)$")

Tokens = list[str]
Run = tuple[str, ...]


def shared_text(texts: Sequence[str], *, share: float = ROBUST_SHARE) -> tuple[str, ...]:
    """Return what the texts share, cut where their slots are.

    Args:
        texts: At least one, in any order; equal ones count once.
        share: Least share of the texts in which an anchor must stand; those without it may not fit what is returned.

    Returns:
        For k slots the k + 1 texts around them; the first and last may be empty, the others are not. One text is a
        constant; two empty ones say that nothing is shared.
    """
    sample = _sample(sorted(set(texts)))
    if len(sample) == 1:
        return (sample[0],)
    rows = [[_START, *_TOKEN.findall(text), _END] for text in sample]
    chains = _chained(rows, math.ceil(share * len(rows)))
    literals = _grown([rows[at] for at in chains], list(chains.values())) if chains else ["", ""]
    return tuple(_cleaned(literals))


def slot_values(text: str, literals: Sequence[str]) -> list[str] | None:
    """Return what stands between shared texts, each ended by the first place of the next; None where they do not fit.

    This is what the pattern of a template finds, in linear time.
    """
    if len(literals) == 1:
        return [] if text == literals[0] else None
    first, last = literals[0], literals[-1]
    if not text.startswith(first):
        return None
    at, values = len(first), []
    for literal in literals[1:-1]:
        found = text.find(literal, at)
        if found < 0:
            return None
        values.append(text[at:found])
        at = found + len(literal)
    end = len(text) - len(last)
    return [*values, text[at:end]] if text.endswith(last) and at <= end else None


def _sample(texts: list[str]) -> list[str]:
    """Pick texts by their hashes: the same ones whatever the order, as many as can be looked at in time."""
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    picked: list[str] = []
    characters = 0
    for text in ranked[:SAMPLE_TEXTS]:
        if len(picked) >= LEAST_SAMPLE and characters + len(text) > SAMPLE_CHARACTERS:
            break
        picked.append(text)
        characters += len(text)
    return picked


def _places(row: Tokens) -> dict[Run, int]:
    """Return where each run stands that stands once and tells something."""
    places: dict[Run, int] = {}
    repeated = set()
    for at in range(len(row) - _RUN + 1):
        run = tuple(row[at : at + _RUN])
        if run in places:
            repeated.add(run)
        places[run] = at
    return {run: at for run, at in places.items() if run not in repeated and _tells(run)}


def _tells(run: Run) -> bool:
    """Say whether a run is more than a word with spaces, which any two texts have in common."""
    words = sum(_WORD.match(token) is not None for token in run)
    edge = run[0] == _START or run[-1] == _END
    return words >= 2 or (edge and words > 0) or any(token in _MARKS for token in run)  # noqa: PLR2004 - a word alone tells nothing


def _chained(rows: list[Tokens], needed: int) -> dict[int, list[int]]:
    """Find runs that follow one another in nearly every row.

    Returns:
        For each row that has them all, by its number, the places of the runs in their order; empty where none is
        shared. A run that overlaps the one before it does so in every row.
    """
    places = [_places(row) for row in rows]
    counts = Counter(run for each in places for run in each)
    common = {run for run, count in counts.items() if count >= needed}
    # The row with most of them leads; of several the first.
    leader = max(range(len(rows)), key=lambda at: (sum(run in common for run in places[at]), -at))
    alive: dict[int, list[int]] = {at: [] for at in range(len(rows))}
    for run, place in sorted(places[leader].items(), key=lambda item: item[1]):
        if run not in common:
            continue
        before = alive[leader][-1] if alive[leader] else None
        overlap = place - before if before is not None and place - before < _RUN else None
        fitting = {
            at: [*chain, places[at][run]]
            for at, chain in alive.items()
            if run in places[at] and _follows(chain, places[at][run], overlap)
        }
        if len(fitting) >= needed and leader in fitting:
            alive = fitting
    return alive if alive[leader] else {}


def _follows(chain: list[int], place: int, overlap: int | None) -> bool:
    if not chain:
        return True
    return place - chain[-1] == overlap if overlap is not None else place - chain[-1] >= _RUN


def _grown(rows: list[Tokens], chains: list[list[int]]) -> list[str]:
    """Grow the runs as far as the rows agree, and return the shared texts; what is between them differs.

    Between two runs, rows agree first from the left and then, in what is left, from the right.
    """
    literals = [""]
    starts = [0] * len(rows)
    for number in range(len(chains[0]) + 1):
        ends = [chain[number] if number < len(chain) else len(row) for row, chain in zip(rows, chains, strict=True)]
        gaps = [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]
        head = _agreeing(gaps)
        tail = _agreeing([gap[head:][::-1] for gap in gaps])
        literals[-1] += _joined(gaps[0][:head])
        if any(len(gap) > head + tail for gap in gaps):
            literals.append("")
        literals[-1] += _joined(gaps[0][len(gaps[0]) - tail :])
        if number < len(chains[0]):
            # An overlapping run adds what stands behind the one before it.
            ahead = max(0, starts[0] - ends[0])
            literals[-1] += _joined(rows[0][ends[0] + ahead : ends[0] + _RUN])
            starts = [end + _RUN for end in ends]
    return literals


def _joined(tokens: Tokens) -> str:
    return "".join(token for token in tokens if token not in (_START, _END))


def _agreeing(gaps: list[Tokens]) -> int:
    """Count the tokens with which all rows begin."""
    for at, column in enumerate(zip(*gaps, strict=False)):
        if any(token != column[0] for token in column):
            return at
    return min(map(len, gaps))


def _cleaned(literals: list[str]) -> list[str]:
    """Give back to the slots what only happens to be shared: the first words of an answer, the end of a sentence.

    `Question: What is` ends at its label, `EUR.` before a line's end belongs to the line. A text between two slots
    that holds nothing but a word makes one slot of them.
    """
    if len(literals) == 1:
        return literals
    ended = [*map(_up_to_label, literals[:-1]), literals[-1]]
    begun = [_from_line(text, own_line=_opens_line(left)) for left, text in itertools.pairwise(ended)]
    return [ended[0], *filter(_separates, begun[:-1]), begun[-1]]


def _opens_line(text: str) -> bool:
    """Say whether what follows has its own line, behind a label or none."""
    last = text.rpartition("\n")[2].rstrip()
    return not last or last[-1] in ":\uff1a>"


def _up_to_label(text: str) -> str:
    *lines, last = text.split("\n")
    found = _LABELLED.match(last)
    if found and 0 < len(_WORD.findall(found[2])) <= SHORT_WORDS and not set(found[2]) & set(_ENDERS[:3]):
        last = found[1]
    return "\n".join([*lines, last])


def _from_line(text: str, *, own_line: bool) -> str:
    """Cut what ends the line of the slot before: sentence signs, and a few words where the slot has its own line."""
    first, line, rest = text.partition("\n")
    signs = len(first) - len(first.lstrip(_ENDERS))
    if not first[signs:].strip():
        first = first[signs:]
    if own_line and first.strip() and len(_WORD.findall(first)) <= SHORT_WORDS and line and not set(first) & _MARKS:
        first = ""
    return first + line + rest


def _separates(text: str) -> bool:
    return len(_WORD.findall(text)) >= 2 or bool(set(text) & _MARKS)  # noqa: PLR2004 - as for a run of tokens
