"""Real nano servers for tests: processes on loopback that never outlive the test that started them.

with nano_server("--fault-errors", "0.5") as server:
    server.http.get(server.health)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from anven_pipelines.nano.models import model_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class NanoServer:
    """A running server.

    Attributes:
        model: Name of the model that it serves.
        url: Base of the API, `http://127.0.0.1:PORT/v1`.
        health: Address of its health.
        process: The server; its standard error is piped.
        http: A client that keeps its connections; making one takes 50 ms.
    """

    model: str
    url: str
    health: str
    process: subprocess.Popen[str]
    http: httpx.Client

    def state(self) -> dict[str, Any]:
        """Return what the health says."""
        return dict(self.http.get(self.health).json())


@contextmanager
def nano_server(
    *options: str, model: str = "anven-nano", environment: Mapping[str, str] | None = None
) -> Iterator[NanoServer]:
    """Start a server on a free port, and stop it."""
    command = [sys.executable, "-m", "anven_pipelines.nano.server", "--model", model, "--until-stdin-closes"]
    folder = ["--model-folder", str(model_folder(model))]
    with subprocess.Popen(
        [*command, *folder, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            ready = json.loads(line)
            with httpx.Client(timeout=PATIENCE_S) as http:
                yield NanoServer(model, ready["url"], ready["health"], process, http)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def eventually(is_so: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> bool:
    """Ask again until it is so or patience ends."""
    deadline = time.monotonic() + patience_s
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return so
