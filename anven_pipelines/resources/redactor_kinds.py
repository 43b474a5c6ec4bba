"""What the redactor looks for: presidio-analyzer's patterns and checksums, and patterns of our own.

Of presidio its recognisers are taken, not its engine: the engine needs a language model for most of what it does, skips
a pattern that takes too long as if it had found nothing, and looks e-mail domains up in a list that it downloads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import regex  # type: ignore[import-untyped]  # it ships no types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Span = tuple[int, int]
    Find = Callable[[str, float], Iterator[Span]]

NAMED: Final = "REDACTED"
"""Placeholder of what a pattern of the migration file found."""

_FLAGS: Final = (
    regex.IGNORECASE | regex.ASCII
)  # ASCII: a word boundary stands between a digit and a Chinese letter, too

# At most 64 characters before the @, by RFC 5321: presidio's own pattern takes seconds for 16,000 of them.
_EMAIL: Final = (
    r"[\w.!#$%&*+\-/=?^`{|}~][\w.!#$%&'*+\-/=?^`{|}~]{0,63}@(?:\w[\w\-]{0,62}\.){1,8}(?=\w*[^\W\d])\w[\w\-]{1,62}",
)

# Presidio's takes any grouping; these add Mastercard's 2 series, neighbours that are letters, and other separators.
_CARDS: Final = (
    r"(?<!\d)[2-6]\d{3}([ .\-]{0,2})\d{4}\1\d{4}\1\d{4}(?!\d)",
    r"(?<!\d)3[47]\d{2}([ .\-]{0,2})\d{6}\1\d{5}(?!\d)",
    r"(?<!\d)3[0689]\d{2}([ .\-]{0,2})\d{6}\1\d{4}(?!\d)",
    r"(?<!\d)[2-6]\d{12,18}(?!\d)",
)

# Presidio takes any nine digits with a score of 0.05: they count where it is said what they are.
_SSN_SAID: Final = r"(?:\bssns?\b|social\W{1,3}security)[^\d\n]{0,40}(?P<it>\d{3}[ .\-]?\d{2}[ .\-]?\d{4})(?!\d)"

_MONTH: Final = (
    r"(?:jan|feb|m[aä]r|apr|may|mai|jun|jul|aug|sep|o[ck]t|nov|de[cz]"
    r"|janv|f[eé]vr|avr|juin|juil|ao[uû]t|ene|abr|ago|dic)"
)
_DATE: Final = (
    r"(?:\d{4}[\-/.]\d{1,2}[\-/.]\d{1,2}|\d{1,2}[\-/.] ?\d{1,2}[\-/.] ?\d{2,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)?[ \-](?:of )?{_MONTH}\w*\.?,?[ \-]\d{{2,4}}"
    rf"|{_MONTH}\w*\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})"
)
_BIRTH: Final = (
    r"(?:\bborn\b|\bbirth\s?-?(?:day|date)?\b|\bdate[ _]of[ _]birth\b|birth_?date|\bd\.?o\.?b\b"
    r"|\bgeb(?:oren|urtsdatum|\.)|\bn[ée]e? le\b|\bnacid[oa]|\bfecha de nacimiento)"
)
_BORN: Final = rf"{_BIRTH}[^\d\n]{{0,30}}?(?P<it>{_DATE})(?!\d)"

# Parts of the names of fields whose values are secrets: found anywhere in it, at its end, and all of it.
_IN_NAME: Final = r"pass(?:word|wd|phrase)|secret|(?:api|access|private)[_\- ]?key"
_ENDS_NAME: Final = "token"
_IS_NAME: Final = "pwd|authorization|cookie"

# A field of JSON that is not walked, as it is long or cut: its text, number, list or object, or what is left of it.
_FIELD: Final = (
    rf"""(?P<q>["'])(?:[^"'\n]{{0,64}}?(?:{_IN_NAME})[^"'\n]{{0,64}}|[^"'\n]{{0,64}}?{_ENDS_NAME}|{_IS_NAME})(?P=q)"""
    r"""\s{0,3}:\s{0,3}(?:"(?P<it>[^"]+)|'(?P<it>[^']+)|(?P<it>-?\d[\d.e+\-]*)"""
    r"""|(?P<it>(?P<box>[\[{](?:"[^"]*+"?|[^\[\]{}"]++|(?&box))*+[\]}]?)))"""
)

_SECRETS: Final = (
    r"\b(?:sk|pk|rk)[-_](?:proj-|ant-|live_|test_|or-v1-)?[A-Za-z0-9_\-]{12,}",  # OpenAI, Anthropic, Stripe, LiteLLM
    r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|npm_|pypi-|dop_v1_|shpat_|xapp-|ya29\.|SG\.|xox[abeoprs]-)[\w.\-]{10,}",
    r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{12,}|\bAIza[\w\-]{30,}",  # AWS, Google
    r"\beyJ[\w\-]{8,}(?:\.[\w\-]*){0,4}",  # a JSON Web Token
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
    r"\b(?:bearer|basic)\s{1,3}(?P<it>[\w.~+/\-]{12,}=*)",
    r"://[^\s/:@]{0,64}:(?P<it>[^\s/@]{1,256})@",  # a password in a URL
    (
        r"(?:pass(?:word|wd|phrase)|\bpwd|secret"
        r"|(?:api|access|private)[_\- ]?key|(?:auth|access|refresh|session)[_\- ]?token)"
        r"""["']?\s{0,3}[:=]\s{0,3}"""
        r"""(?:"(?P<it>[^"\n]{1,512})"|'(?P<it>[^'\n]{1,512})'|(?P<it>[^\s"',;&}\]]{4,512}))"""
    ),
    _FIELD,
    r"[?&](?:key|token|sig|signature|auth|code)=(?P<it>[^\s&#\"'<>]{4,2048})",
    r"\bpass(?:word|phrase)s? (?:is|was) [\"']?(?P<it>[^\s\"',;]{4,512})",
)

SECRET_KEY: Final = regex.compile(rf"{_IN_NAME}|{_ENDS_NAME}$|^(?:{_IS_NAME})$", _FLAGS)
"""Name of a JSON field whose value is a secret, whatever it looks like."""

# Countries whose numbers are known without their country code; with it, those of all countries are.
_REGIONS: Final = (
    *("US", "GB", "DE", "FR", "IL", "IN", "BR", "ES", "IT", "NL", "BE", "AT", "CH", "PL", "SE", "AU", "JP", "MX"),
)
# Neither a date nor the rest of one.
_PHONE_LIKE: Final = regex.compile(
    r"(?<!\d)(?<!\d[.\-/])(?!\d{4}-\d\d-\d\d(?!\d))[+(]{0,2}\d(?:[ \t().\-/]{0,3}\d){6,24}(?!\d)", _FLAGS
)


class Kind(NamedTuple):
    """One kind of personal data.

    Attributes:
        entity: Stands in the text instead, in angle brackets.
        find: Takes a text and the monotonic time by which it must be done; yields the places, TimeoutError after it.
    """

    entity: str
    find: Find


def kinds(more: Sequence[str] = ()) -> tuple[Kind, ...]:
    """Return what is looked for; takes some seconds at first, which are spaCy's, imported by presidio and not used.

    Args:
        more: Regular expressions of the workload.

    Raises:
        ImportError: presidio-analyzer is not installed.
    """
    from presidio_analyzer import predefined_recognizers as known  # noqa: PLC0415 - takes seconds, and is an extra

    card: Any = known.CreditCardRecognizer()
    iban: Any = known.IbanRecognizer(exact_match=True)
    address, phones = known.IpRecognizer(), [known.PhoneRecognizer(supported_regions=(each,)) for each in _REGIONS]
    ssn = [each.regex for each in known.UsSsnRecognizer.PATTERNS if each.name == "SSN5 (medium)"]
    return (
        *([Kind(NAMED, _finder(more, flags=0))] if more else []),
        Kind("SECRET", _finder(_SECRETS)),
        Kind("CREDIT_CARD", _finder([*_patterns(card), *_CARDS], _whole(card.validate_result))),
        Kind("IBAN_CODE", _finder(_patterns(iban), lambda text: _iban_length(iban, text))),
        Kind("EMAIL_ADDRESS", _finder(_EMAIL, flags=regex.IGNORECASE)),
        Kind("IP_ADDRESS", _finder(_patterns(address), _whole(lambda text: not address.invalidate_result(text)))),
        Kind("US_SSN", _finder([*ssn, _SSN_SAID])),
        Kind("DATE_OF_BIRTH", _finder([_BORN])),
        Kind("PHONE_NUMBER", lambda text, until: _phones(phones, text, until)),
    )


def _patterns(recogniser: Any) -> list[str]:  # noqa: ANN401 - presidio's PatternRecognizer, imported late
    return [each.regex for each in recogniser.patterns if each.score >= 0.3]  # noqa: PLR2004 - below: `::` alone


def _whole(holds: Callable[[str], object]) -> Callable[[str], int]:
    return lambda text: len(text) if holds(text) else 0


def _finder(patterns: Sequence[str], length: Callable[[str], int] = len, *, flags: int = _FLAGS) -> Find:
    """Return what finds the group `it` of the patterns, else all that they match.

    Args:
        patterns: Regular expressions. A match may overlap the one before it, which may be none.
        length: Of a match how much is meant, from its start; 0 for none.
        flags: Of the patterns.
    """
    compiled = [regex.compile(each, flags) for each in patterns]

    def find(text: str, until: float) -> Iterator[Span]:
        for pattern in compiled:
            group: str | int = "it" if "it" in pattern.groupindex else 0
            is_checked = length is not len
            for match in pattern.finditer(text, overlapped=is_checked, timeout=_left(until)):
                start, end = match.span(group)
                if found := length(text[start:end]):
                    yield start, start + found

    return find


def _iban_length(recogniser: Any, text: str) -> int:  # noqa: ANN401 - presidio's IbanRecognizer, imported late
    """Return how much of a match is an IBAN: words that follow it look like its last groups."""
    upper = text.upper()
    lengths = (end for end in range(len(text), 14, -1) if text[end - 1].isalnum())
    return next((end for end in lengths if recogniser.validate_result(upper[:end])), 0)


def _phones(recognisers: Sequence[Any], text: str, until: float) -> Iterator[Span]:  # presidio's, one for each country
    for like in _PHONE_LIKE.finditer(text, timeout=_left(until)):
        for recogniser in recognisers:
            _left(until)
            found = recogniser.analyze(like.group(), ["PHONE_NUMBER"])  # of a whole text it takes 10 ms in 640 letters
            yield from ((like.start() + each.start, like.start() + each.end) for each in found)
            if any(each.end - each.start == len(like.group()) for each in found):
                break


def _left(until: float) -> float:
    """Return how many seconds are left.

    Raises:
        TimeoutError: none.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
