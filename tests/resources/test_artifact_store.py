from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.durable_folder import STRAY_AFTER_SECONDS, path_name
from tests.resources.artifact_cases import CALLS, ArtifactCases, calls

if TYPE_CHECKING:
    from pathlib import Path


class TestLocalFolder(ArtifactCases):
    @pytest.fixture
    def artifacts(self, tmp_path: Path) -> ArtifactStore:
        return ArtifactStore(url=str(tmp_path / "artifacts [of] *one* machine"))

    def test_only_whole_files_are_left_behind(self, artifacts: ArtifactStore, tmp_path: Path) -> None:
        artifacts.save_manifest("calls", None, artifacts.publish(CALLS, [calls("a")]))

        assert [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")] == []

    def test_what_stands_is_not_written_again(self, artifacts: ArtifactStore, tmp_path: Path) -> None:
        artifacts.publish(CALLS, [calls("a")])
        (part,) = tmp_path.rglob("*.parquet")
        before = part.stat()
        artifacts.publish(CALLS, [calls("a")])

        assert (part.stat().st_ino, part.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_others_may_read_what_is_published(self, artifacts: ArtifactStore, tmp_path: Path) -> None:
        umask = os.umask(0o022)
        try:
            artifacts.publish(CALLS, [calls("a")])
        finally:
            os.umask(umask)

        (part,) = tmp_path.rglob("*.parquet")
        assert part.stat().st_mode & 0o777 == 0o644

    def test_only_old_strays_are_swept(self, artifacts: ArtifactStore) -> None:
        folder = artifacts.folder.local_path("parts/calls")
        assert folder is not None
        folder.mkdir(parents=True)
        old, young = folder / ".old.tmp", folder / ".young.tmp"
        for stray in (old, young):
            stray.write_bytes(b"half a part")
        long_ago = time.time() - STRAY_AFTER_SECONDS - 1
        os.utime(old, (long_ago, long_ago))

        manifest = artifacts.publish(CALLS, [calls("a")])

        assert (old.exists(), young.exists()) == (False, True)
        assert artifacts.folder.names("parts/calls") == [f"{manifest.parts[0].sha256}.parquet"]

    def test_processes_publish_the_same_content_at_once(self, artifacts: ArtifactStore) -> None:
        command = [sys.executable, "-c", THREE_PROCESSES, artifacts.url]
        digests = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

        assert digests == [digests[0]] * 3
        assert artifacts.read(artifacts.publish(CALLS, [calls(str(n)) for n in range(100)])).height == 100
        assert len(artifacts.folder.names("parts/calls")) == 100


class TestMemory(ArtifactCases):
    @pytest.fixture
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(url=f"memory://{uuid.uuid4().hex}")


# Forks after the one import, so that they start in the same millisecond; only the children use Polars.
THREE_PROCESSES = """
import os, sys
from anven_pipelines.resources.artifact_store import ArtifactStore
from tests.resources.artifact_cases import CALLS, calls

def work():
    manifest = ArtifactStore(url=sys.argv[1]).publish(CALLS, [calls(str(n)) for n in range(100)])
    os.write(1, f"{manifest.digest}\\n".encode())

for _ in range(3):
    if not os.fork():
        work()
        os._exit(0)
for _ in range(3):
    os.wait()
"""

# The kernel refuses to let a file grow past the limit, as it does on a full disk.
FULL_DISK = """
import random, resource, sys
import polars as pl
from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.resources.artifact_store import ArtifactStore
from tests.resources.artifact_cases import CALLS, calls

artifacts = ArtifactStore(url=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = [random.Random(n).randbytes(20).hex() for n in range(5_000)]
try:
    artifacts.publish(CALLS, [calls("small"), pl.DataFrame({"id": noise})])
except UnavailableService as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_partial_and_one_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.startswith("cannot write ")
    assert f"bytes at {tmp_path}/parts/calls/" in done.stdout
    assert "File too large; check that the artifact store is reachable" in done.stdout
    assert "Traceback" not in done.stderr
    (part,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert pl.read_parquet(part)["id"].to_list() == ["small"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(UnavailableService, match=r"cannot look up at .*file/artifacts/.*: Not a directory; check"):
        ArtifactStore(url=str(tmp_path / "file" / "artifacts")).publish(CALLS, [calls("a")])


@pytest.mark.parametrize(
    ("url", "storage_options", "message"),
    [
        ("s3://bucket", {"key": "AKIA", "secret": "x"}, "storage_options holds key, secret; credentials are taken"),
        ("nosuch://bucket", {}, "'nosuch://bucket' is not usable"),
    ],
)
def test_a_store_that_cannot_be_opened_says_why(url: str, storage_options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        ArtifactStore(url=url, storage_options=storage_options).load_manifest("calls", None)
    assert "AKIA" not in str(caught.value)


@given(st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_path_names_are_safe_and_distinct(names: list[str]) -> None:
    first, second = (path_name(name.encode(errors="replace").decode()) for name in names)

    assert first.encode().isascii()
    assert "/" not in first
    assert first[0] != "."
    assert 0 < len(first) <= 120
    assert (first == second) == (names[0].encode(errors="replace") == names[1].encode(errors="replace"))
