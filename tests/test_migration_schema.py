"""The published JSON Schema is that of the migration file's models, and it says what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from anven_pipelines.migration_file import json_schema

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = REPOSITORY / "docs" / "migration.schema.json"
MIGRATIONS = sorted((REPOSITORY / "migrations").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """Return a validator as an editor has one."""
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_up_to_date() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == json_schema()


def test_the_script_finds_it_up_to_date() -> None:
    script = REPOSITORY / "docs" / "migration_schema.py"

    assert subprocess.run([sys.executable, script, "--check"], check=False, timeout=60).returncode == 0


def test_every_default_is_what_its_own_schema_allows(validator: jsonschema.Draft202012Validator) -> None:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [field for section in sections for field in section.get("properties", {}).values() if "default" in field]
    assert len(fields) > 30
    for field in fields:
        validator.evolve(schema={**field, "$defs": schema["$defs"]}).validate(field["default"])


@pytest.mark.parametrize("file", MIGRATIONS, ids=lambda file: file.stem)
def test_a_shipped_migration_satisfies_it(file: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "Not A Name"},
        {"surprise": 1},
        {"grading": []},
        {"grading": [{"kind": "guess"}]},
        {"sign_off": {"quality_margin": 3}},
        {"sign_off": {"waive": ["quality"]}},
        {"rollout": {"stages": [{"share": 0.1, "soak": "a while"}]}},
        {"target": {"engine": "recorded", "model": "m"}},
    ],
    ids=str,
)
def test_it_refuses_what_the_models_refuse(change: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    migration = yaml.safe_load(MIGRATIONS[0].read_text(encoding="utf-8"))

    assert not validator.is_valid(migration | change)
