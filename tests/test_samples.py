"""The sample data is what its generator writes and what its README says."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anven_pipelines.domain.request_log import LineCount
from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.migration_file import parse
from anven_pipelines.spec_target import RecordedTarget

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "data" / "samples"
SHIPPED = sorted(path.name for path in SAMPLES.glob("*.gz"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the generator as a user does."""
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run([sys.executable, SAMPLES / "generate.py", folder], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return folder


def test_the_generator_writes_the_shipped_files_and_no_others(generated: Path) -> None:
    assert sorted(path.name for path in generated.iterdir()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_generator_writes_the_shipped_lines(name: str, generated: Path) -> None:
    assert gzip.decompress((generated / name).read_bytes()) == gzip.decompress((SAMPLES / name).read_bytes())


def test_the_readme_names_every_shipped_file_with_its_digest() -> None:
    readme = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")

    digests = dict(re.findall(r"^\| `([^`]+\.gz)` .*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))

    assert digests == {name: hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() for name in SHIPPED}


def test_the_logs_hold_what_the_readme_counts() -> None:
    files = list_files(["support-*.jsonl.gz"], base=str(SAMPLES))

    counts = [batch.count for batch in read_logs(files, log_format="canonical")]

    assert sum(counts, start=LineCount()) == LineCount(read=1_222, accepted=1_201, rejected=9, duplicates=12)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "migrations").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_migration_is_valid_and_finds_its_files(file: Path) -> None:
    migration = parse(file.read_text(encoding="utf-8"), file=file.name)

    assert migration.workload == file.stem
    assert isinstance(migration.target, RecordedTarget)
    for pattern in (*migration.legacy.logs, *migration.target.answers):
        assert list(file.parent.glob(pattern)), pattern
