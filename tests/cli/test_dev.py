"""`anven dev` brings both servers up, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.dev_command import STOP_S, alive, anven_dev, descendants, wait_until
from tests.mlflow_server import free_uri

if TYPE_CHECKING:
    from tests.dev_command import Dev

pytestmark = pytest.mark.timeout(600)

INTERRUPTED: Final = 130
NOT_DONE: Final = 3


def test_ctrl_c_ends_both_servers_which_had_moved_past_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with anven_dev(tmp_path, port=port, mlflow_port=free_port()) as dev:
            assert port_of(dev.dagster) in range(port + 1, port + 100)
            for url in (dev.dagster, dev.mlflow):
                with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http on loopback
                    assert answer.status == 200
            started = descendants(dev.process.pid)
            assert len(started) > 2
            dev.process.send_signal(signal.SIGINT)
            assert dev.process.wait(STOP_S) == INTERRUPTED
            assert_gone(dev, started)
            assert "interrupted" in dev.said.read_text()


def test_asking_twice_to_end_does_not_cut_the_clean_end_short(tmp_path: Path) -> None:
    with anven_dev(tmp_path, port=free_port(), mlflow_port=free_port()) as dev:
        started = descendants(dev.process.pid)
        dev.process.terminate()
        wait_until(lambda: not started <= alive(), STOP_S, "none of its processes ended")
        dev.process.terminate()
        assert dev.process.wait(STOP_S) == INTERRUPTED
        assert_gone(dev, started)


def test_a_server_that_dies_ends_the_command_with_the_name_of_its_log(tmp_path: Path) -> None:
    with anven_dev(tmp_path, port=free_port(), mlflow_port=free_port()) as dev:
        started = descendants(dev.process.pid)
        os.kill(mlflow_of(dev), signal.SIGKILL)
        assert dev.process.wait(STOP_S) == NOT_DONE
        assert_gone(dev, started)
        said = [line for line in dev.said.read_text().splitlines() if line.startswith("error")]
        log = tmp_path / "home" / "logs" / "mlflow.log"
        assert said == [f"error MLflow ended by itself with exit code -9; its output is in {log}"]
        assert log.stat().st_size > 0
        assert "Traceback" not in dev.said.read_text()


def assert_gone(dev: Dev, started: set[int]) -> None:
    """Require that no process of it runs, not even one that outlived its parent, and that its ports are free."""
    assert not started & alive()
    for url in (dev.dagster, dev.mlflow):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port_of(url)))


def mlflow_of(dev: Dev) -> int:
    """Return the process that `anven dev` started MLflow in."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in descendants(dev.process.pid)}
    servers = [pid for pid, words in commands.items() if words[1:4] == [b"-m", b"mlflow", b"server"]]
    assert len(servers) == 1
    return servers[0]


def free_port() -> int:
    return port_of(free_uri())


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
