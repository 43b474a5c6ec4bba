"""Takes personal data and secrets out of a text: each place becomes the name of its kind, such as <EMAIL_ADDRESS>.

What has a form is found (`redactor_kinds`): addresses, numbers with a checksum, keys. A name has none; finding names
takes a model, and none is loaded. Patterns of the workload find what is its own, such as customer numbers.

A text that is JSON is walked value by value, so that a field which is called `password` counts and what stays is JSON
again. Everything is looked for in a plain form of the text: escapes resolved, digits and dashes of all scripts as those
of ASCII, invisible characters left out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import regex  # type: ignore[import-untyped]  # it ships no types

from anven_pipelines.domain.errors import RedactionFailed
from anven_pipelines.resources.redactor_kinds import SECRET_KEY, kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEXT_SECONDS: Final = 2.0
"""Longest time for one text; a pattern that takes longer has not found nothing: the text is not kept."""

MARGIN: Final = 1024
"""Characters beyond a limit that are looked at, so that nothing stands half before it and is missed."""

CUT: Final = "<TRUNCATED>"
"""Stands where a text was cut off."""

EXTRA: Final = "the extra `pii`: `./uvw sync --extra pii`, or anven-pipelines[pii]"

_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": " ", "f": " "}
_DEEPEST: Final = 20
_SEEMS_JSON: Final = regex.compile(r"\s*[\[{].*[\]}]\s*", regex.DOTALL)
_OTHERWISE: Final = regex.compile(
    r"\\u00[2-7][0-9a-fA-F]|\\[nrtbf\"'/]|%[2-7][0-9a-fA-F]|[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
)


class Redacted(NamedTuple):
    """A text without what was found in it.

    Attributes:
        text: With placeholders.
        found: How often each kind was found.
        is_cut: It was longer than the limit.
    """

    text: str
    found: Counter[str]
    is_cut: bool = False


def is_installed() -> bool:
    """Return whether a redactor can be made, without loading it."""
    return importlib.util.find_spec("presidio_analyzer") is not None


class Redactor:
    """Redacts texts; the same text always becomes the same."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Load what is looked for; takes seconds the first time.

        Args:
            more: Further regular expressions, whose matches become <REDACTED>.

        Raises:
            RedactionFailed: presidio-analyzer cannot be loaded.
        """
        logging.getLogger("presidio-analyzer").disabled = True  # it logs texts that it does not understand
        try:
            self._kinds = kinds(more)
        except ImportError as error:
            message = f"no redactor can be loaded ({error.name or 'presidio_analyzer'} is missing); install {EXTRA}"
            raise RedactionFailed(message) from error

    def redact(self, text: str, *, limit: int | None = None) -> Redacted:
        """Redact one text.

        Args:
            text: Any text; where it is JSON, its strings, whole numbers and keys.
            limit: Longest text that is kept, in characters of the given one; None keeps all. What is longer is cut
                after it was redacted, and may itself have been cut `MARGIN` behind the limit.

        Raises:
            RedactionFailed: it could not be looked through; nothing of it may be kept. The message has none of it.
        """
        try:
            return self._redact(text, time.monotonic() + TEXT_SECONDS, limit)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the text is not kept
            message = f"a text of {len(text):,} characters could not be redacted ({type(error).__name__})"
            raise RedactionFailed(message) from None  # the cause may quote the text

    def _redact(self, text: str, until: float, limit: int | None, depth: int = 0) -> Redacted:
        is_long = limit is not None and len(text) > limit
        if not is_long and depth < _DEEPEST and _SEEMS_JSON.fullmatch(text):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                pass
            else:
                return self._redact_json(text, value, until, depth)
        spans = _merged(self._spans(text, until))
        return _replaced(text, spans, limit if is_long and limit is not None else len(text))

    def _redact_json(self, text: str, value: object, until: float, depth: int) -> Redacted:
        found: Counter[str] = Counter()

        def leaf(part: str) -> str:
            inner = self._redact(part, until, None, depth + 1)
            found.update(inner.found)
            return inner.text

        walked = _walked(value, leaf, found)
        return Redacted(text if walked == value else json.dumps(walked, ensure_ascii=False), found)

    def _spans(self, text: str, until: float) -> list[tuple[int, int, str]]:
        plain, places = _plain(text)
        spans = [(*span, kind.entity) for kind in self._kinds for span in kind.find(plain, until)]
        return spans if places is None else [(places[start], places[end], entity) for start, end, entity in spans]


def _walked(value: object, leaf: Callable[[str], str], found: Counter[str]) -> object:
    if isinstance(value, str):
        return leaf(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if (text := leaf(str(value))) == str(value) else text
    if isinstance(value, list):
        return [_walked(each, leaf, found) for each in value]
    if not isinstance(value, dict):
        return value
    walked: dict[str, object] = {}
    for key, each in value.items():
        if not isinstance(each, bool | None) and each not in ("", [], {}) and SECRET_KEY.search(key):
            found["SECRET"] += 1
            walked[leaf(key)] = "<SECRET>"
        else:
            walked[leaf(key)] = _walked(each, leaf, found)
    return walked


def _plain(text: str) -> tuple[str, list[int] | None]:
    """Return the text as it is looked through, and where each of its characters stood; None where it is as it was.

    The second has one place more, for the end.
    """
    places: list[int] | None = None
    if _OTHERWISE.search(text):
        parts: list[str] = []
        places, done = [], 0
        for match in _OTHERWISE.finditer(text):
            written = _meant(match.group())
            parts += [text[done : match.start()], written]
            places += [*range(done, match.start()), *([match.start()] if written else [])]
            done = match.end()
        places += range(done, len(text) + 1)
        text = "".join([*parts, text[done:]])
    if not text.isascii():
        text = text.translate({ord(each): _as_ascii(each) for each in set(text) if not each.isascii()})
    return text, places


def _meant(escape: str) -> str:
    if escape.startswith(("\\u", "%")):
        return chr(int(escape[-2:], 16))
    return _ESCAPES.get(escape[1], escape[1]) if escape[0] == "\\" else ""


def _as_ascii(character: str) -> str:
    """Return what a character is for a pattern; always one character."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category in {"Pd", "Zs"}:
        return "-" if category == "Pd" else " "
    same = unicodedata.normalize("NFKC", character)
    return same if len(same) == 1 else character


def _merged(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Join what overlaps; the longest of them names it, the first kind where two are as long."""
    merged: list[tuple[int, int, str]] = []
    longest = 0
    for start, end, entity in sorted(spans, key=lambda each: each[0]):
        if start == end:
            continue
        if merged and start < merged[-1][1]:
            before = merged[-1]
            named = entity if end - start > longest else before[2]
            merged[-1] = (before[0], max(end, before[1]), named)
            longest = max(longest, end - start)
        else:
            merged.append((start, end, entity))
            longest = end - start
    return merged


def _replaced(text: str, spans: list[tuple[int, int, str]], limit: int) -> Redacted:
    parts: list[str] = []
    found: Counter[str] = Counter()
    done = 0
    for start, end, entity in spans:
        if start >= limit:
            break
        parts += [text[done:start], f"<{entity}>"]
        found[entity] += 1
        done = end
    is_cut = limit < len(text)
    return Redacted("".join([*parts, text[done:limit], CUT if is_cut else ""]), found, is_cut)
