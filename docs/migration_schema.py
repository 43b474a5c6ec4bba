"""Writes docs/migration.schema.json from the models in `anven_pipelines.spec`; with --check only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from anven_pipelines.migration_file import json_schema

FILE: Final = Path(__file__).with_name("migration.schema.json")


def text() -> str:
    """Return the schema as it stands in the file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write or compare; return the exit status."""
    if "--check" not in arguments:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text():
        return 0
    print(f"{FILE.name} is not what anven_pipelines/spec.py says; run `./uvw run python docs/migration_schema.py`")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
