r"""Numbers as language models write them.

English notation is read: digits with an optional sign, currency sign, thousands separators (comma, apostrophe or
no-break space, in groups of three), decimal point and exponent (`1.5e6`, `1.5 x 10^6`); simple and mixed fractions
(`3/4`, `1 1/2`, `1½`, LaTeX's `\frac{3}{4}`). What follows a number is its unit and is ignored, the percent sign
included: `25%` is 25, and `5k` is 5. Accounting brackets are not a sign. Not numbers: digits after a letter (`H2O`,
`m2`) and digits with several points (`1.234.567`, `13.05.2024`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# A number as exact as it was written costs memory in proportion to its digits: 1e999999999 would need a gigabyte.
MAX_DIGITS: Final = 400

_TYPOGRAPHY: Final = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{FULLWIDTH HYPHEN-MINUS}": "-",
        "\N{FULLWIDTH PLUS SIGN}": "+",
        "\N{FULLWIDTH FULL STOP}": ".",
        "\N{FULLWIDTH COMMA}": ",",
        "\N{FRACTION SLASH}": "/",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{NO-BREAK SPACE}": "\N{NARROW NO-BREAK SPACE}",
        "\N{THIN SPACE}": "\N{NARROW NO-BREAK SPACE}",
        "\N{VULGAR FRACTION ONE HALF}": " 1/2",
        "\N{VULGAR FRACTION ONE QUARTER}": " 1/4",
        "\N{VULGAR FRACTION THREE QUARTERS}": " 3/4",
        "\N{VULGAR FRACTION ONE THIRD}": " 1/3",
        "\N{VULGAR FRACTION TWO THIRDS}": " 2/3",
    }
)
_LATEX_FRACTION: Final = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_LATEX_POWER: Final = re.compile(r"\s*\\(?:times|cdot)\s*")
_NUMBER: Final = re.compile(
    r"""
    (?=[-+$€£¥₹.\d])                                          # fails fast elsewhere
    (?P<sign>(?<![\w)\]}%])[-+])?                             # after an operand, a minus subtracts
    (?:[$€£¥₹]\ ?(?P<inner_sign>[-+])?)?                       # $5 and $-5
    (?:(?<!\w)|(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=Rs))(?<!\d\.)   # the first digit of its run, and not after a letter
    (?>                                                       # no giving back: 1.234.567 must not become 1.23
        (?:(?P<whole>\d+)\ )?(?<!\d/)(?P<over>\d+)/(?P<under>\d+)(?![\d/.]*\d)
      | (?P<digits>(?:\d{1,3}(?:[,'\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
        (?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\ ?[x×*·]\ ?10\ ?\^\ ?[{(]?(?P<power>[-+]?\d+))?
    )
    (?!\.\d)
    """,  # noqa: RUF001 - the multiplication sign is meant
    re.VERBOSE,
)
_SEPARATORS: Final = str.maketrans("", "", ",'\N{NARROW NO-BREAK SPACE}")


def numbers_in(text: str) -> list[Fraction | None]:
    """Return every number of the text, exactly, in their order; None for one beyond `MAX_DIGITS` digits."""
    return [_value(match) for match in _matches(text)]


def last_number(text: str) -> Fraction | None:
    """Return the last number of the text; None where there is none, or it is beyond `MAX_DIGITS` digits."""
    for line in reversed(text.splitlines()):  # no number spans lines, and the last one mostly stands in the last
        if matches := deque(_matches(line), maxlen=1):
            return _value(matches[0])
    return None


def number_of(value: object) -> Fraction | None:
    """Return a JSON value as a number: itself, or the last number in a string; None where there is none.

    A boolean, a NaN, an infinity and a number beyond `MAX_DIGITS` digits are not numbers.
    """
    match value:
        case bool():
            return None
        case int():
            return Fraction(value) if value.bit_length() <= MAX_DIGITS * 3 else None
        case float():
            return Fraction(repr(value)) if math.isfinite(value) else None
        case str():
            return last_number(value)
        case _:
            return None


def only_number(text: str) -> Fraction | None:
    """Return the one number of a text; None where there is none, or more than one to choose from."""
    found = numbers_in(text)
    return found[0] if len(found) == 1 else None


def is_close(found: Fraction, needed: Fraction, tolerance: float) -> bool:
    """Tell whether two numbers differ by the tolerance at most, without binary rounding: 0.11 is 0.01 from 0.10."""
    return abs(found - needed) <= Fraction(repr(tolerance))


def _matches(text: str) -> Iterator[re.Match[str]]:
    plain = text.translate(_TYPOGRAPHY)
    return _NUMBER.finditer(_without_latex(plain) if "\\" in plain or "{" in plain else plain)


def _without_latex(text: str) -> str:
    r"""Turn `\$1{,}200`, `1\,200` and `\frac{3}{4}` into plain notation."""
    text = text.replace("\\$", "$").replace("{,}", ",").replace("\\,", "\N{NARROW NO-BREAK SPACE}")
    return _LATEX_FRACTION.sub(r"\1/\2", _LATEX_POWER.sub(" x ", text))


def _value(match: re.Match[str]) -> Fraction | None:
    """Return a match's exact value; None beyond the bound, or for a division by zero."""
    exponent = match["exponent"] or match["power"] or "0"
    if len(match[0]) > MAX_DIGITS or len(exponent) > len(str(MAX_DIGITS)) + 1 or abs(int(exponent)) > MAX_DIGITS:
        return None
    if match["over"]:
        if int(match["under"]) == 0:
            return None
        size = int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"]))
    else:
        size = Fraction(match["digits"].translate(_SEPARATORS))
        if exponent != "0":
            size *= Fraction(10) ** int(exponent)
    return -size if "-" in (match["sign"], match["inner_sign"]) else size
