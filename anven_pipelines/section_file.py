"""Reads YAML into a section of settings; whatever is wrong is told at once, by path, value found and what is needed."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from anven_pipelines.domain.errors import Problem
from anven_pipelines.spec_values import Section

_MERGE: Final = "tag:yaml.org,2002:merge"
_FLOAT: Final = "tag:yaml.org,2002:float"
_LONGEST_SHOWN: Final = 80
_USER: Final = re.compile(r"(?<=://)[^/\s'\"]*(?=@)")  # of a URL: it may hold a password ...
_QUERY: Final = re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]*")  # ... and this a signature
_SECRET: Final = re.compile(
    r"(?i)(?!.*_ms$).*(secret|token(?!s)|passw|pwd|credential|api_?key|access_key)"
)  # what a name says of its value

_NEEDED: Final = {
    "string_type": "text is needed",
    "string_pattern_mismatch": "text of the form {pattern} is needed",
    "string_too_short": "text of at least {min_length} characters is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "finite_number": "a number that is not infinite is needed",
    "greater_than": "more than {gt} is needed",
    "greater_than_equal": "at least {ge} is needed",
    "less_than": "less than {lt} is needed",
    "less_than_equal": "at most {le} is needed",
    "list_type": "a list is needed",
    "too_short": "at least {min_length} in the list is needed",
    "dict_type": "a mapping is needed",
    "model_type": "a mapping is needed",
    "model_attributes_type": "a mapping is needed",
    "literal_error": "one of {expected} is needed",
}
"""What pydantic misses, in the words of our own errors."""

Kind = TypeVar("Kind", bound=Section)


def read_section(text: str, model: type[Kind], *, needed: str) -> Kind | tuple[Problem, ...]:
    """Read a file's text; return every problem found where it is none of that kind.

    Args:
        text: YAML.
        model: What it holds.
        needed: What a file has to be, for one that holds no mapping.
    """
    try:
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        return (_yaml_problem(error),)
    if not isinstance(loaded, dict):
        found = "empty" if loaded is None else f"a {type(loaded).__name__}"
        return (Problem("the file", found, needed),)
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        return tuple(_problem(detail, model) for detail in error.errors())


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does, and refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # what `<<` brings in may be overridden
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no name; plain text is needed", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; once is needed", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# PyYAML knows the numbers of YAML 1.1 only, in which 1e9 is text: an exponent needs a point before it and a sign in it.
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
    return Problem(where, "not readable as YAML", str(getattr(error, "problem", None) or error))


def _problem(detail: Any, root: type[Section]) -> Problem:  # noqa: ANN401 - pydantic's error details differ by type
    """Say one of pydantic's findings in the words of the file."""
    steps, sections = _walk(detail["loc"], root)
    path, context = "".join(steps).removeprefix(".") or "the file", detail.get("ctx", {})
    shown = "***" if _SECRET.match(path.rpartition(".")[2]) else _shown(detail["input"])
    discriminator = str(context.get("discriminator", "")).strip("'")
    match detail["type"]:
        case "missing":
            return Problem(path, "missing", "a value is needed")
        case "extra_forbidden":
            return Problem(path, "unknown", f"known here: {', '.join(sections[0].model_fields)}")
        case "union_tag_not_found":
            tags = ", ".join(tag for section in sections for tag in _tags(section))
            return Problem(f"{path}.{discriminator}", "missing", f"one of {tags} is needed")
        case "union_tag_invalid":
            needed = f"one of {context.get('expected_tags')} is needed"
            return Problem(f"{path}.{discriminator}", repr(context.get("tag")), needed)
        case "value_error":
            return Problem(path, shown, str(context.get("error", detail["msg"])))
        case kind:
            words = _NEEDED[kind].format(**context) if kind in _NEEDED else None
            return Problem(path, shown, words or detail["msg"].replace("Input should be", "needed is"))


def _walk(loc: tuple[int | str, ...], root: type[Section]) -> tuple[list[str], list[type[Section]]]:
    """Follow pydantic's location into the models.

    Returns:
        The steps of the path into the YAML, of which union tags are no part; and the sections that may stand where
        it ends, or around it where it ends at a field.
    """
    steps: list[str] = []
    sections: list[type[Section]] = [root]
    for step in loc:
        if isinstance(step, int):
            steps.append(f"[{step}]")
        elif len(sections) > 1 and (tagged := [each for each in sections if step in _tags(each)]):
            sections = tagged
        else:
            steps.append(f".{step}")
            field = sections[0].model_fields.get(step)
            sections = (field and _sections(field.annotation)) or sections
    return steps, sections


def _sections(annotation: object) -> list[type[Section]]:
    """Return the sections in an annotation such as `list[Annotated[A | B, ...]]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _tags(section: type[Section]) -> tuple[str, ...]:
    """Return what a section of a union writes into the field that tells the members apart."""
    names = (field.annotation for field in section.model_fields.values() if get_origin(field.annotation) is Literal)
    return get_args(next(names, None))


def _shown(value: object) -> str:
    """Write a value without what may be secret in it; of a mapping only the names."""
    if isinstance(value, dict):
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    text = _QUERY.sub(r"\1***", _USER.sub("***", repr(value)))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
