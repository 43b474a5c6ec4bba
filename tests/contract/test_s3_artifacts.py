"""The artifact store on the S3 protocol, spoken by moto's server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.resources.artifact_store import ArtifactStore
from tests.resources.artifact_cases import CALLS, ArtifactCases, calls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "anven"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "invented")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "invented")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        url = f"http://{host}:{port}"
        fsspec.filesystem("s3", endpoint_url=url).mkdir(BUCKET)
        yield url
    server.stop()


class TestS3(ArtifactCases):
    @pytest.fixture
    def artifacts(self, endpoint: str) -> ArtifactStore:
        return ArtifactStore(url=f"s3://{BUCKET}/{uuid.uuid4().hex}", storage_options={"endpoint_url": endpoint})

    def test_people_are_shown_the_full_url(self, artifacts: ArtifactStore) -> None:
        assert artifacts.write_json("verdict", {}) == f"{artifacts.url}/documents/verdict.json"

    def test_what_another_process_wrote_is_seen(self, artifacts: ArtifactStore) -> None:
        mine = artifacts.checkpoint(CALLS, "d1")
        assert mine.load().is_empty()
        other = fsspec.filesystem(
            "s3", endpoint_url=artifacts.storage_options["endpoint_url"], skip_instance_cache=True
        )
        artifacts.checkpoint(CALLS, "d2").append(calls("a"))
        root = artifacts.url.removeprefix("s3://")
        (part,) = other.ls(f"{root}/checkpoints/d2")
        other.cp_file(part, f"{root}/checkpoints/d1/{part.rsplit('/', 1)[-1]}")

        assert mine.load()["id"].to_list() == ["a"]

    def test_a_bucket_that_does_not_exist_is_one_clear_error(self, endpoint: str) -> None:
        store = ArtifactStore(url="s3://no-such-bucket/x", storage_options={"endpoint_url": endpoint})

        with pytest.raises(
            UnavailableService, match=r"cannot write .*s3://no-such-bucket/x/documents/a\.json: .*bucket"
        ):
            store.write_json("a", {})

    @pytest.mark.usefixtures("endpoint")
    def test_an_endpoint_that_does_not_answer_is_one_clear_error(self) -> None:
        store = ArtifactStore(url="s3://anven/x", storage_options={"endpoint_url": "http://127.0.0.1:1"})

        with pytest.raises(UnavailableService, match=r"cannot read at s3://anven/x/documents/a\.json"):
            store.read_json("a")


def test_a_query_leaves_no_copy_behind(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ArtifactStore(url=f"s3://{BUCKET}/{uuid.uuid4().hex}", storage_options={"endpoint_url": endpoint})
    manifest = store.publish(CALLS, [calls("a"), calls("b")])

    assert store.query("SELECT count(*) AS n FROM t", t=manifest)["n"].to_list() == [2]
    assert list(tmp_path.iterdir()) == []
