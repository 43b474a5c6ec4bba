"""What the README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anven_pipelines.domain.request_log import LineCount
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.migration_file import parse
from anven_pipelines.spec_target import RecordedTarget

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Write the files of the README's own migration, each named in the line before its block."""
    for name, content in re.findall(r"^`([\w.]+)`: [^\n]*\n\n```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_the_example_is_a_valid_migration_whose_files_are_read_whole(example: Path) -> None:
    migration = parse((example / "desk.yaml").read_text(encoding="utf-8"), file="desk.yaml")

    assert isinstance(migration.target, RecordedTarget)
    for patterns in (migration.legacy.logs, migration.target.answers):
        (batch,) = read_logs(list_files(patterns, base=str(example)), log_format="canonical")
        assert batch.count == LineCount(read=2, accepted=2)
        assert batch.rows["status"].to_list() == ["ok", "ok"]


def test_the_two_commands_stand_in_the_readme_once_each() -> None:
    commands = re.findall(r"^\./uvw run .*(?:anven demo|pytest).*$", README, re.MULTILINE)

    assert commands == [
        "./uvw run --extra gateway anven demo",
        "./uvw run --all-extras --group test pytest",
    ]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "data/README.md"])
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    file = REPOSITORY / document

    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", file.read_text(encoding="utf-8"))

    assert [link for link in links if not (file.parent / link).exists()] == []
