"""A real Prometheus that scrapes a gateway on loopback, ended with the test that started it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

WITHIN_S: Final = 120.0


@dataclass(frozen=True)
class PrometheusServer:
    """A running server.

    Attributes:
        url: Base of its API.
        process: The server.
    """

    url: str
    process: subprocess.Popen[bytes]

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; a bound against hanging."""
        deadline = time.monotonic() + WITHIN_S
        while not holds():
            assert time.monotonic() < deadline, f"it did not come about within {WITHIN_S:g} s"
            time.sleep(0.05)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def backfill(folder: Path, samples: Iterable[str]) -> None:
    """Fill the data of a server that is not running with samples of the past.

    Args:
        folder: The server's, as for `prometheus_server`.
        samples: Lines of OpenMetrics with timestamps in seconds, those of a series in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "samples"
    text.write_text("\n".join([*samples, "# EOF\n"]))
    command = ["/usr/bin/promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(text)]
    told = subprocess.run([*command, str(folder / "data")], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


@contextmanager
def prometheus_server(
    folder: Path, *, target: str | None = None, key: str = "", port: int | None = None
) -> Iterator[PrometheusServer]:
    """Start a server that scrapes `host:port` of a gateway every two seconds, and stop it.

    Args:
        folder: Of its configuration and its data; one that was used before goes on with them.
        target: Host and port of the gateway; None scrapes nothing.
        key: The gateway's key.
        port: Of the server; a free one where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_text(key)
    gateway = {
        "job_name": "anven-gateway",
        "metrics_path": "/anven/metrics",
        "authorization": {"credentials_file": "key"},
        "static_configs": [{"targets": [target]}],
    }
    config = folder / "prometheus.yml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
                "scrape_configs": [gateway] if target else [],
            }
        )
    )
    port = port or free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            ["/usr/bin/prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        ) as process,
    ):
        server = PrometheusServer(f"http://127.0.0.1:{port}", process)
        try:
            server.until(lambda: _is_ready(server, folder))
            yield server
        finally:
            process.kill()


def _is_ready(server: PrometheusServer, folder: Path) -> bool:
    assert server.process.poll() is None, (folder / "log").read_text()
    try:
        return httpx.get(f"{server.url}/-/ready", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
