"""Reads a migration file's YAML into a `Migration`; whatever is wrong with it is told at once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from anven_pipelines.domain.errors import InvalidMigration
from anven_pipelines.section_file import read_section
from anven_pipelines.spec import Migration


@lru_cache(maxsize=1024)  # a sensor reads every file for every workload at each tick, and YAML takes milliseconds
def parse(text: str, *, file: str) -> Migration:
    """Read a migration file's text.

    Args:
        text: YAML.
        file: Name of the file, for the errors.

    Raises:
        InvalidMigration: with every problem found.
    """
    found = read_section(text, Migration, needed="a mapping with workload, legacy, target and grading is needed")
    if isinstance(found, tuple):
        raise InvalidMigration(file, found)
    return found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the migration file (draft 2020-12)."""
    schema = Migration.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
