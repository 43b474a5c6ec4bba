"""Weights on the S3 protocol, spoken by moto's server: looked at without being read, fetched, killed, fetched again."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Final

import fsspec
import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.resources.batch_inference import settings_of, weights_of
from anven_pipelines.spec_target import JobTarget
from anven_pipelines.worker.job import VllmSettings
from anven_pipelines.worker.model_cache import local_folder
from anven_pipelines.worker.weight_sources import source_of
from anven_pipelines.worker.weights import Weights
from tests.model_places import digest_of_parts, put_model
from tests.s3_server import S3Server, s3_server
from tests.worker_jobs import REPOSITORY, command, questions, worked, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUCKET: Final = "models"
# Eight parts: all but the last are here when the worker is killed.
PARTS: Final = {f"model-{at}-of-8.safetensors": bytes([at]) * (12 << 20) for at in range(1, 9)}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        running.files.mkdir(BUCKET)
        yield running


@pytest.fixture(scope="module")
def model(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a model on the store."""
    folder = put_model(tmp_path_factory.mktemp("m") / "model", PARTS)
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    server.files.put([str(file) for file in folder.iterdir() if file.is_file()], root + "/")
    return f"s3://{root}"


def target(weights: str, **changes: object) -> JobTarget:
    declared = {
        "engine": "vllm-job",
        "model": "m",
        "weights": weights,
        "digest": digest_of_parts(PARTS),
        "licence": "Apache-2.0",
    }
    return JobTarget.model_validate(declared | changes)


def fetched(weights: str, cache: Path, said: list[str]) -> Path:
    source = source_of(weights, None, hub=cache)
    return local_folder(source, digest=digest_of_parts(PARTS), cache=cache, say=said.append)


def test_its_shape_is_known_without_reading_the_weights(server: S3Server, model: str) -> None:
    root = model.removeprefix("s3://")
    assert weights_of(target(model)).shape().weight_bytes == 96 << 20
    part = f"{root}/model-1-of-8.safetensors"
    server.files.pipe_file(part, b"?" * (12 << 20))  # of the same size: nobody looks inside
    try:
        assert weights_of(target(model)).shape().weight_bytes == 96 << 20
    finally:
        server.files.pipe_file(part, PARTS["model-1-of-8.safetensors"])


def test_what_cannot_fit_or_is_not_there_is_refused_before_launch(model: str) -> None:
    settings_of(target(model, gpu_memory_gib=1), elsewhere=False, environment={})
    with pytest.raises(InvalidInput, match=r"m does not fit: its weights take 96\.00 MiB"):
        settings_of(target(model, gpu_memory_gib=0.1), elsewhere=False, environment={})
    with pytest.raises(InvalidInput, match="s3://models/none does not exist; name the folder"):
        settings_of(target("s3://models/none", gpu_memory_gib=1), elsewhere=False, environment={})
    with pytest.raises(InvalidInput, match=r"config\.json: it is missing"):
        settings_of(target(f"{model}/config.json", gpu_memory_gib=1), elsewhere=False, environment={})


@pytest.mark.usefixtures("server")
def test_a_store_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        with pytest.raises(
            UnavailableService, match=r"s3://models/x cannot be listed: .*credentials in the environment"
        ):
            weights_of(target("s3://models/x"))
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def ended(server: S3Server, held: str, store: Path, job: str, *, at: Callable[[], bool], number: int) -> int:
    """Send a worker the signal when the store holds an object back and all else is there; return its exit status."""
    with subprocess.Popen(command(store, job), cwd=REPOSITORY, stderr=subprocess.DEVNULL) as worker:
        try:
            with server.holding(held):
                deadline = time.monotonic() + 120
                while not at():
                    assert worker.poll() is None, "the fetch was over before the signal"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                worker.send_signal(number)
            return worker.wait(60)
        finally:
            worker.kill()


def test_a_worker_killed_while_it_fetches_leaves_nothing_that_counts(
    server: S3Server, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("ANVEN_MODEL_CACHE", str(cache))
    job = written(tmp_path, questions(1), settings=VllmSettings(target=target(model)))
    last = "model-8-of-8.safetensors"

    def all_but_the_last() -> bool:
        return {each.name for each in cache.glob("*.partial/model-*.safetensors")} == PARTS.keys() - {last}

    assert ended(server, last, tmp_path, job, at=all_but_the_last, number=signal.SIGKILL) == -signal.SIGKILL
    assert [each.suffix for each in cache.iterdir() if each.is_dir()] == [".partial"]

    said: list[str] = []
    folder = fetched(model, cache, said)
    assert Weights.in_folder(folder).digest() == digest_of_parts(PARTS)
    assert [each.name for each in cache.iterdir() if each.is_dir()] == [folder.name]
    assert said[0].startswith("fetching 12.00 MiB in ")  # what was whole was kept
    assert {each.name for each in folder.iterdir() if each.name.startswith(".")} == set()
    said.clear()
    assert fetched(model, cache, said) == folder
    assert said == []


def test_a_worker_told_to_stop_while_it_fetches_stops(
    server: S3Server, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("ANVEN_MODEL_CACHE", str(cache))
    job = written(tmp_path, questions(1), settings=VllmSettings(target=target(model)))

    def has_begun() -> bool:
        return any(cache.glob("*.partial/.*.tmp"))

    assert ended(server, "-of-8", tmp_path, job, at=has_begun, number=signal.SIGTERM) == -signal.SIGTERM


def test_a_worker_refuses_other_weights_before_an_engine_loads_them(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANVEN_MODEL_CACHE", str(tmp_path / "cache"))
    other = VllmSettings(target=target(model, digest="0" * 64))
    done = worked(tmp_path, written(tmp_path, questions(1), settings=other))
    assert done.returncode == 2
    assert f"{model} holds weights with the digest" in done.stderr.splitlines()[-1]
    assert re.search(r"fetching 96\.\d\d MiB in 12 files", done.stderr)
    assert not [each for each in (tmp_path / "cache").iterdir() if each.is_dir()]
