"""`vllm serve` as an endpoint: streamed answers with times of their own, structured output, the embedded's answers."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
import polars as pl
import pytest

from anven_pipelines.domain.inference import ANSWERS, CompletionRequest
from anven_pipelines.resources.checkpoint import checkpoint
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec_target import EndpointTarget
from tests.vllm.test_vllm_worker import ENVIRONMENT, FOLDER, answers_of
from tests.worker_jobs import questions, worked, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

READY_S: Final = 300.0
QUESTIONS: Final = 60
SCHEMA: Final = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


def test_a_served_model_is_asked_as_any_endpoint(vllm_python: str, tmp_path: Path) -> None:
    structured = [
        CompletionRequest(
            f"structured-{at}",
            [{"role": "user", "content": f"Which colour has number {at}?"}],
            {
                "temperature": 0,
                "max_tokens": 60,
                "response_format": {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA}},
            },
        )
        for at in range(4)
    ]
    asked = questions(QUESTIONS)
    with served(vllm_python, tmp_path) as url:
        found = LlmClient().answer(
            EndpointTarget(engine="endpoint", model="anven-nano", url=url, concurrency=4),
            [*asked, *structured],
            checkpoint=checkpoint(DurableFolder(str(tmp_path / "served"), {}), "key", ANSWERS),
            progress=lambda _: None,
        )
    assert set(found["status"]) == {"answered"}, found["reason"].drop_nulls().to_list()
    assert found["ttft_ms"].null_count() == 0
    several = found.filter(pl.col("output_tokens") > 1)
    assert several.height > QUESTIONS / 2
    assert several.select(
        (pl.col("ttft_ms") < pl.col("latency_ms")).all()
    ).item()  # the first token came before the last

    for output in found[QUESTIONS:]["output"]:
        given = json.loads(output)
        assert set(given) == {"colour", "sure"}
        assert given["colour"] in {"red", "blue"}
        assert isinstance(given["sure"], bool)

    assert worked(tmp_path / "embedded", written(tmp_path / "embedded", asked)).returncode == 0
    compared = ("item_id", "output", "finish_reason", "input_tokens")
    assert found[:QUESTIONS].select(compared).equals(answers_of(tmp_path / "embedded", asked).select(compared))


@contextmanager
def served(python: str, scratch: Path) -> Iterator[str]:
    """Yield the URL of the shipped anven-nano behind `vllm serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        *(python, "-m", "vllm.entrypoints.cli.main", "serve", str(FOLDER), "--served-model-name", "anven-nano"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "512", "--max-num-seqs", "16"),
        # Else so small a model fills an object with white space to the end.
        *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
    ]
    environment: dict[str, Any] = {**ENVIRONMENT, "PYTHONPATH": str(named_vllm(scratch / "named"))}
    log = scratch / "serve.log"
    with (
        log.open("w") as output,
        subprocess.Popen(words, env=environment, cwd=scratch, stdout=output, stderr=output) as server,
    ):
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def named_vllm(folder: Path) -> Path:
    """Return a folder with metadata of a distribution named `vllm`.

    The `vllm` command looks for its own version under that name; the build for the CPU has another.
    """
    metadata = folder / "vllm-0.32.0+cpu.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    return folder


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    with httpx.Client(trust_env=False) as client:
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
