"""The Dagster UI and MLflow on this machine, started together and stopped together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.resources.deployments import deployment_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

_START_S: Final = 120.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.3


def serve(
    home: Path, *, port: int, mlflow_port: int, announce: Callable[[dict[str, str]], None], console: Console
) -> None:
    """Start both, announce their URLs, and stay until interrupted or until one of them ends.

    Args:
        home: Folder of local state; the servers' output is kept in its `logs`.
        port: Wanted port of the Dagster UI.
        mlflow_port: Wanted port of MLflow.
        announce: Called once with name and URL of each when both answer.
        console: Gets what goes on.

    Raises:
        UnavailableService: one of them did not come up, or ended by itself.
    """
    port, mlflow_port = free_port(port), free_port(mlflow_port)
    urls = {"Dagster": f"http://127.0.0.1:{port}", "MLflow": f"http://127.0.0.1:{mlflow_port}"}
    # MLflow's runner of evaluation jobs, which nothing here uses, would hold seven processes and 1.5 GB.
    environment = {**os.environ, "ANVEN_MLFLOW_UI": urls["MLflow"], "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with _termination_interrupts(), ExitStack() as stack:
        console.print("starting; the first start takes up to a minute")
        servers = {"Dagster": stack.enter_context(_server("Dagster", dagster_command(port), environment, logs))}
        if deployment_name() == "local":
            servers["MLflow"] = stack.enter_context(
                _server("MLflow", mlflow_command(home, mlflow_port), environment, logs)
            )
        else:
            urls["MLflow"] = environment.get("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI is not set")
        for name, server in servers.items():
            _wait_until_up(name, urls[name], server, logs)
        announce(urls)
        while True:
            for name, server in servers.items():
                _require_alive(name, server, logs)
            time.sleep(_POLL_S)


def dagster_command(port: int) -> list[str]:
    """Return the command of Dagster's webserver and daemon."""
    return [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        "anven_pipelines.definitions",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]


def mlflow_command(home: Path, port: int) -> list[str]:
    """Return the command of an MLflow server over the local tracking database."""
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip


def free_port(wanted: int) -> int:
    """Return the wanted port, or the next one that nothing listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    message = f"ports {wanted} to {wanted + 99} are all taken; name a free one with --port or --mlflow-port"
    raise UnavailableService(message)


@contextmanager
def _server(
    name: str, command: list[str], environment: dict[str, str], logs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own; at the end ask the group to stop, then make it."""
    with (logs / f"{name.lower()}.log").open("ab") as log:
        server = subprocess.Popen(  # noqa: S603 - our own commands
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield server
        finally:
            with _undisturbed():
                _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    for sent, patience in ((signal.SIGINT, _STOP_S), (signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        try:
            os.killpg(server.pid, sent)
        except ProcessLookupError:
            break
        if _group_ended(server, patience):
            return
    server.wait()


def _group_ended(server: subprocess.Popen[bytes], patience: float) -> bool:
    """Wait for the whole group: its leader ends before the children that it started."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        server.poll()
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(_POLL_S)
    return False


def _wait_until_up(name: str, url: str, server: subprocess.Popen[bytes], logs: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        _require_alive(name, server, logs)
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - http on loopback
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(_POLL_S)
    message = f"{name} did not answer at {url} within {_START_S:.0f} s; its output is in {logs / f'{name.lower()}.log'}"
    raise UnavailableService(message)


def _require_alive(name: str, server: subprocess.Popen[bytes], logs: Path) -> None:
    if (code := server.poll()) is not None:
        message = f"{name} ended by itself with exit code {code}; its output is in {logs / f'{name.lower()}.log'}"
        raise UnavailableService(message)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore a second Ctrl-C: it would end this process before its servers and leave them behind."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Stop both servers on SIGTERM as on Ctrl-C, and on SIGINT even where a shell started this in the background."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
