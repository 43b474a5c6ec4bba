r"""JSON objects in a model's answer: read strictly for the contract, leniently for the score.

The score asks whether the model knew the answer, the contract whether a program can read it; so the score forgives
what the contract counts. `find_field` takes, in this order:

1. The last JSON object in the text that has the field, wherever it stands: bare, in a code fence or within prose.
   Raw line breaks inside strings, NaN and repeated keys (the last one counts) are forgiven.
2. Where some object does not parse, the same after two repairs that do not change what a well-formed answer means:
   backslashes that JSON does not know (LaTeX, `\$`) stand for themselves, and trailing commas go.
3. Where that finds nothing either, the last complete `"field": value` in the text, which survives unescaped quotes
   in another field and an answer cut off after the field. Dotted paths are left out: the last name alone would be a
   guess. A value that is itself cut off is not taken: `"answer": "18` may have been going to be 180.

An answer whose JSON is well-formed but lacks the field has missed it; nothing is searched for then.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each failed start is read to its defect, so without a bound `{"a":{"a":{...` would cost its length squared.
MAX_FAILED_STARTS: Final = 256

_LENIENT: Final = json.JSONDecoder(strict=False)
_OBJECT_START: Final = re.compile(r'\{(?=\s*["}])')
_FENCE: Final = re.compile(r"^[ \t]*```[^\n`]*\n(?P<body>.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_BACKSLASH: Final = re.compile(r'\\(?P<known>["\\/bfnrt]|u[0-9a-fA-F]{4})?')
_TRAILING_COMMA: Final = re.compile(r",(?=\s*[}\]])")


class Field(NamedTuple):
    """A field's value, or the reason why there is none."""

    value: object
    reason: str | None


class StrictObject(NamedTuple):
    """A JSON object that follows RFC 8259 to the letter, or the reason why there is none."""

    value: dict[str, Any] | None
    reason: str | None


class _Scan(NamedTuple):
    objects: list[dict[str, Any]]
    broken: bool


def find_field(text: str, path: str) -> Field:
    """Find a field in the JSON object of an answer, leniently.

    Args:
        text: The answer.
        path: Field name; dots step into nested objects.
    """
    scan = _scan(text)
    attempts = [scan] if not scan.broken else [scan, _scan(_repaired(text))]
    for attempt in attempts:
        for candidate in reversed(attempt.objects):
            if value_at(candidate, path) is not _ABSENT:
                return Field(value_at(candidate, path), None)
    if scan.broken and "." not in path and (match := _last_match(text, path)):
        return Field(_written_value(match), None)
    if any(attempt.objects for attempt in attempts):
        return Field(None, f"the JSON object has no field {path}")
    return Field(None, "the JSON object is malformed" if scan.broken else "no JSON object")


def missing_fields(found: dict[str, Any], paths: list[str]) -> list[str]:
    """Return those of the dotted paths that an object lacks; a field that is null is there."""
    return [path for path in paths if value_at(found, path) is _ABSENT]


def strict_object(text: str) -> StrictObject:
    """Read a text that must be one JSON object, following RFC 8259 and with every key once."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return StrictObject(None, f"not valid JSON: {error.msg}")
    except RecursionError:
        return StrictObject(None, "not valid JSON: nested too deeply")
    except ValueError as error:  # a repeated key, a NaN, or an integer beyond Python's limit
        return StrictObject(None, f"not valid JSON: {str(error).split(';')[0]}")
    if not isinstance(value, dict):
        return StrictObject(None, "valid JSON, but not an object")
    return StrictObject(value, None)


def fenced_blocks(text: str) -> list[str]:
    """Return the contents of the text's code fences."""
    return [match["body"] for match in _FENCE.finditer(text)]


_ABSENT: Final = object()


def value_at(found: dict[str, Any], path: str) -> object:
    """Return the value at a dotted path; a key that itself holds the dots wins."""
    if path in found:
        return found[path]
    value: object = found
    for step in path.split("."):
        if not isinstance(value, dict) or step not in value:
            return _ABSENT
        value = value[step]
    return value


def _scan(text: str) -> _Scan:
    """Decode every object that stands at the top of the text, and note whether one was defective."""
    objects: list[dict[str, Any]] = []
    end = failed = 0
    for start in _starts(text):
        if start < end:
            continue
        try:
            found, end = _LENIENT.raw_decode(text, start)
        except (ValueError, RecursionError):
            failed += 1
            if failed == MAX_FAILED_STARTS:
                break
        else:
            objects.append(found)
    return _Scan(objects, broken=failed > 0)


def _starts(text: str) -> Iterator[int]:
    return (match.start() for match in _OBJECT_START.finditer(text))


def _repaired(text: str) -> str:
    """Double the backslashes that JSON does not know and drop trailing commas."""
    doubled = _BACKSLASH.sub(lambda match: match[0] if match["known"] else "\\\\", text)
    return _TRAILING_COMMA.sub("", doubled)


def _last_match(text: str, name: str) -> re.Match[str] | None:
    """Find the last complete `"name": value`."""
    pattern = re.compile(
        rf'"{re.escape(name)}"\s*:\s*'
        r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\s*(?:[,}\]]|\n|$))'
        r'|(?P<bare>[^"\[{\s][^"\n{}]*?)(?=\s*,\s*"|\s*,?\s*[\n}]))'
    )
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last match is wanted, without a list of all
        pass
    return last


def _written_value(match: re.Match[str]) -> object:
    """Read a value as JSON where it is JSON, else as the text it is."""
    quoted, bare = match["quoted"], match["bare"]
    try:
        return _LENIENT.decode(bare if quoted is None else f'"{quoted}"')
    except (ValueError, RecursionError):
        return bare if quoted is None else quoted


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "a key stands twice"
        raise ValueError(message)
    return found


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is no JSON number"
    raise ValueError(message)
