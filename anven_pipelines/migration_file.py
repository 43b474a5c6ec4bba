"""Reads a migration file's YAML; whatever is wrong with it is told at once, by path, value found and what is needed."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError

from anven_pipelines.domain.errors import InvalidMigration, Problem
from anven_pipelines.spec import Migration
from anven_pipelines.spec_values import Section

_MERGE: Final = "tag:yaml.org,2002:merge"
_LONGEST_SHOWN: Final = 80
_USER: Final = re.compile(r"(?<=://)[^/\s'\"]*(?=@)")  # of a URL: it may hold a password ...
_QUERY: Final = re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]*")  # ... and this a signature


def parse(text: str, *, file: str) -> Migration:
    """Read a migration file's text.

    Args:
        text: YAML.
        file: Name of the file, for the errors.

    Raises:
        InvalidMigration: with every problem found.
    """
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise InvalidMigration(file, (_yaml_problem(error),)) from error
    if not isinstance(loaded, dict):
        found = "empty" if loaded is None else f"a {type(loaded).__name__}"
        raise InvalidMigration(
            file, (Problem("the file", found, "a mapping with workload, legacy, target and grading is needed"),)
        )
    try:
        return Migration.model_validate(loaded)
    except ValidationError as error:
        raise InvalidMigration(file, tuple(_problem(detail) for detail in error.errors())) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the migration file (draft 2020-12)."""
    schema = Migration.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML would silently keep the last."""

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


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
    return Problem(where, "not readable as YAML", str(getattr(error, "problem", None) or error))


def _problem(detail: Any) -> Problem:  # noqa: ANN401 - pydantic's error details differ by type
    """Say one of pydantic's findings in the words of the migration file."""
    steps, sections = _walk(detail["loc"])
    path, context = "".join(steps).removeprefix(".") or "the file", detail.get("ctx", {})
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
            return Problem(path, _shown(detail["input"]), str(context.get("error", detail["msg"])))
        case _:
            return Problem(path, _shown(detail["input"]), detail["msg"].replace("Input should be", "needed is"))


def _walk(loc: tuple[int | str, ...]) -> tuple[list[str], list[type[Section]]]:
    """Follow pydantic's location into the models.

    Returns:
        The steps of the path into the YAML, of which union tags are no part; and the sections that may stand where
        it ends, or around it where it ends at a field.
    """
    steps: list[str] = []
    sections: list[type[Section]] = [Migration]
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
    first = next(iter(section.model_fields.values())).annotation
    return get_args(first) if get_origin(first) is Literal else ()


def _shown(value: object) -> str:
    text = _QUERY.sub(r"\1***", _USER.sub("***", repr(value)))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
