"""Two prompts line by line, with the reasons of what changed beside the lines."""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.domain.canonical import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_target import Change

CONTEXT_LINES = 3
PAGE = 90


class Prompt(NamedTuple):
    """What is sent, or is to be: messages and parameters."""

    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]


class Hunk(NamedTuple):
    """Lines that stand together: ` ` stayed, `-` went, `+` came; and why, each reason once."""

    lines: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The reasons, then the lines."""
        return "\n".join([*(f"# {reason}" for reason in self.reasons), *self.lines])


def diff(before: Prompt, after: Prompt, changes: Sequence[Change] = ()) -> list[Hunk]:
    """Compare two prompts as they are shown; none changed, no hunk.

    A change's reason stands at the first hunk that touches what its path names, and one that names nothing shown at
    the first hunk: none is lost where any line differs.
    """
    old, new = _rendered(before), _rendered(after)
    matcher = difflib.SequenceMatcher(None, [line for line, _ in old], [line for line, _ in new], autojunk=False)
    groups = list(matcher.get_grouped_opcodes(CONTEXT_LINES))
    touched = [_touched(group, old, new) for group in groups]
    reasons: list[list[str]] = [[] for _ in groups]
    for change in changes:
        place = _place(change.path)
        at = next((number for number, places in enumerate(touched) if place in places), 0)
        if reasons and change.reason not in reasons[at]:
            reasons[at].append(change.reason)
    return [Hunk(_lines(group, old, new), tuple(why)) for group, why in zip(groups, reasons, strict=True)]


def folded(text: str, *, hang: int = 0) -> str:
    """Fold lines that are too long for a page; what follows is indented.

    Args:
        text: Lines.
        hang: Characters at the beginning of a line that stand at each of its pieces too, such as the sign of a diff.
    """
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, hang))


def _pieces(line: str, hang: int) -> list[str]:
    first, rest = line[:hang], line[hang:]
    if len(rest) <= PAGE:
        return [line]
    wrapped = textwrap.wrap(rest, PAGE, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [first + piece for piece in wrapped]


_Line = tuple[str, str]  # what is shown, and the path of the message or parameter that it belongs to
_Opcode = tuple[str, int, int, int, int]


def _rendered(prompt: Prompt) -> list[_Line]:
    lines: list[_Line] = []
    for at, message in enumerate(prompt.messages):
        place, content = f"messages[{at}]", message.get("content")
        text = content if isinstance(content, str) else "" if content is None else canonical_json(content)
        lines += [(f"[{message.get('role')}]", place), *((line, place) for line in text.split("\n") if text)]
        others = {key: value for key, value in message.items() if key not in {"role", "content"}}
        lines += [(f"{key}: {canonical_json(value)}", place) for key, value in sorted(others.items())]
    # The head keeps what changed at the end of the messages apart from what changed in the parameters.
    head = [("[parameters]", "params")] if prompt.params else []
    return [
        *lines,
        *head,
        *((f"{key} = {canonical_json(prompt.params[key])}", f"params.{key}") for key in sorted(prompt.params)),
    ]


def _place(path: str) -> str:
    """Return the message or the parameter that a path leads into."""
    return ".".join(path.split(".")[:2]) if path.startswith("params.") else path.split(".", 1)[0]


def _touched(group: Sequence[_Opcode], old: Sequence[_Line], new: Sequence[_Line]) -> set[str]:
    """Return what a hunk's changed lines belong to; text that came belongs to what it stands in, too."""
    places: set[str] = set()
    for tag, start, end, new_start, new_end in group:
        if tag != "equal":
            places |= {place for _, place in old[max(0, start - 1) : end + (start == end)]}
            places |= {place for _, place in new[new_start:new_end] if place.startswith("params.")}
    return places


def _lines(group: Sequence[_Opcode], old: Sequence[_Line], new: Sequence[_Line]) -> tuple[str, ...]:
    lines: list[str] = []
    for tag, start, end, new_start, new_end in group:
        if tag == "equal":
            lines += [f" {line}" for line, _ in old[start:end]]
        else:
            lines += [f"-{line}" for line, _ in old[start:end]] + [f"+{line}" for line, _ in new[new_start:new_end]]
    return tuple(lines)
