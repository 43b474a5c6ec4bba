"""Request logs on the S3 protocol, spoken by moto's server at the address that AWS_ENDPOINT_URL names."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.ingest.lines import read_lines
from anven_pipelines.ingest.log_source import file_version
from anven_pipelines.ingest.sources import list_files
from tests.s3_server import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bucket(NamedTuple):
    """A bucket of logs, and the file system of the process that writes them: it shares no cache with the reader."""

    files: Any
    name: str

    def write(self, day: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.name}/calls-{day}.jsonl", data)

    def url(self, name: str = "*.jsonl") -> str:
        return f"s3://{self.name}/{name}"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with s3_server() as server:
        bucket = Bucket(server.files, f"logs-{uuid.uuid4().hex}")  # moto's servers of one process share their buckets
        server.files.mkdir(bucket.name)
        bucket.write("2026-10-05", b'{"n": 1}\n{"n": 2}\n')
        yield bucket


def test_logs_are_read_from_the_endpoint_of_the_environment(bucket: Bucket) -> None:
    (file,) = list_files([bucket.url()], base="/nowhere")
    assert (file.name, file.day) == (bucket.url("calls-2026-10-05.jsonl"), "2026-10-05")
    assert [line.raw for line in read_lines(file)] == [b'{"n": 1}', b'{"n": 2}']


def test_what_another_process_writes_is_noticed(bucket: Bucket) -> None:
    (first,) = list_files([bucket.url()], base="/nowhere")
    version = file_version(first)

    bucket.write("2026-10-06", b'{"n": 3}\n')
    bucket.write("2026-10-05", b'{"n": 9}\n')

    changed, new = list_files([bucket.url()], base="/nowhere")
    assert new.day == "2026-10-06"
    assert file_version(changed) != version
    assert [line.raw for line in read_lines(changed)] == [b'{"n": 9}']


@pytest.mark.parametrize("name", ["*.jsonl", "calls-2026-10-05.jsonl"])
def test_an_endpoint_that_does_not_answer_is_one_clear_error(
    name: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()

    with pytest.raises(UnreadableSource, match=r"cannot be read \(EndpointConnectionError: .*check the address"):
        list_files([bucket.url(name)], base="/nowhere")
