"""The client through a real LiteLLM proxy, as production reaches a target, with the scripted endpoint behind it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.inference import CompletionRequest
from anven_pipelines.resources.endpoint import ask_endpoint
from anven_pipelines.resources.pace import Pace
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

KEY: Final = "sk-scripted-proxy-master-9f2c"  # the proxy refuses well-known ones
UP_WITHIN_S: Final = 200.0  # 10 s on an idle machine
SETTINGS: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "PYTHONFAULTHANDLER": "1",
    # Before Python 3.12 a garbage collection inside `ContextVar.set` can free what it reads (cpython#148891), and the
    # coroutines that LiteLLM 1.106 leaves to the collector reset such a variable: about one proxy in 23 crashed among
    # its first requests. Without collections it cannot happen.
    "PYTHON_GC_THRESHOLD": "0,0,0",
}


def script(ask: Ask) -> Reply:
    match ask.prompt:
        case "busy once" if ask.nth == 1:
            return Reply("slow down", status=429, headers={"Retry-After": "11"})
        case "always busy":
            return Reply("slow down", status=429)
        case "slow":
            return Reply("two pieces", delay_s=0.5, chunk_delay_s=0.4)
        case "breaks":
            return Reply("a b c d", breaks="midway")
        case _:
            return Reply(f"echo: {ask.prompt}", cached_tokens=1)


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(script) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def proxy_url(backend: ScriptedEndpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("proxy")
    config = folder / "config.yaml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "target",
                        "litellm_params": {"model": "openai/open-3b", "api_base": backend.url, "api_key": "none"},
                    }
                ],
                "router_settings": {"num_retries": 0, "disable_cooldowns": True},
                "litellm_settings": {"num_retries": 0},
                "general_settings": {"master_key": KEY},
            }
        ),
        encoding="utf-8",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **SETTINGS},
        )
    try:
        wait_until_live(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_live(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
            if b'"target"' in connection.getresponse().read():  # it, and not another server on its port
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    pytest.fail(f"the LiteLLM proxy did not come up within {UP_WITHIN_S:g} s:\n{log.read_text()[-3000:]}")


def ask(
    url: str, folder: Path, *prompts: str, key: str = KEY, waits: list[float] | None = None, **target: Any
) -> pl.DataFrame:
    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    return ask_endpoint(
        EndpointTarget(engine="endpoint", url=url, api_key_env="PROXY_KEY", **{"model": "target", **target}),
        [CompletionRequest(prompt, [{"role": "user", "content": prompt}], {"temperature": 0.0}) for prompt in prompts],
        checkpoint=FolderCheckpoint(folder),
        progress=lambda _: None,
        environ={"PROXY_KEY": key},
        pace=Pace(sleep=sleep, now=lambda: datetime(2026, 11, 20, tzinfo=UTC), jitter=lambda: 0.0),
    )


@pytest.mark.timeout(400)
def test_answers_come_through_with_what_the_server_counted(proxy_url: str, tmp_path: Path) -> None:
    answers = ask(proxy_url, tmp_path, *(f"item {number}" for number in range(12)))
    assert answers["status"].to_list() == ["answered"] * 12
    assert answers["output"].to_list() == [f"echo: item {number}" for number in range(12)]
    counted = answers.select("finish_reason", "input_tokens", "output_tokens", "cached_tokens", "tokens_computed")
    assert counted.unique().rows() == [("stop", 2, 3, 1, False)]
    assert (answers["ttft_ms"] <= answers["latency_ms"]).all()


@pytest.mark.timeout(400)
def test_time_to_first_token_is_measured_through_the_proxy(proxy_url: str, tmp_path: Path) -> None:
    ask(proxy_url, tmp_path / "warm", "warm up")  # the proxy's first request is 0.7 s slower
    [(ttft, latency)] = ask(proxy_url, tmp_path, "slow").select("ttft_ms", "latency_ms").rows()
    assert 500 <= ttft <= 1500
    assert latency - ttft >= 300


@pytest.mark.timeout(400)
def test_a_429_passes_through_and_is_retried(proxy_url: str, backend: ScriptedEndpoint, tmp_path: Path) -> None:
    waits: list[float] = []
    answers = ask(proxy_url, tmp_path, "busy once", waits=waits)
    assert answers.select("status", "attempts").rows() == [("answered", 2)]
    assert backend.asked["busy once"] == 2
    assert waits == [11.0]


@pytest.mark.timeout(400)
def test_failures_behind_the_proxy_keep_their_reason(proxy_url: str, tmp_path: Path) -> None:
    answers = ask(proxy_url, tmp_path, "fine", "always busy", "breaks", max_attempts=2, concurrency=1)
    assert answers["status"].to_list() == ["answered", "failed", "failed"]
    assert answers["reason"][1].startswith("busy: HTTP 429: ")
    assert "slow down" in answers["reason"][1]
    assert answers["reason"][2].startswith("server_error: HTTP 500: ")  # nothing of the half answer came through
    assert answers["attempts"].to_list() == [1, 2, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"key": "sk-wrong-key-0000"}, "No connected db"), ({"model": "unheard-of"}, "model=unheard-of")],
    ids=["key", "model"],
)
@pytest.mark.timeout(400)
def test_a_wrong_key_or_model_is_one_clear_error(
    proxy_url: str, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    # A proxy without a database says 400 to both.
    with pytest.raises(
        InvalidInput, match=rf"refused 4 requests in a row.*HTTP 400: .*{reason}.*check the key"
    ) as caught:
        ask(proxy_url, tmp_path, "a", "b", "c", "d", **change)
    assert "sk-wrong-key-0000" not in str(caught.value)
    assert FolderCheckpoint(tmp_path).load().is_empty()
