from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import yaml

from anven_pipelines import gateway_run
from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.gateway.settings import ASSIGNMENT_KEY_ENV, KEY_ENV
from tests.gateway_proxy import KEY, MIGRATION

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {KEY_ENV: KEY, ASSIGNMENT_KEY_ENV: "0123456789abcdef"}


def plan(folder: Path, port: int = 0) -> gateway_run.GatewayPlan:
    arm = {"model": "openai/legacy", "url": "http://127.0.0.1:9/v1"}
    target = {"model": "target", "engine": "endpoint", "url": "http://127.0.0.1:9/v1"}
    file = folder / "desk.yaml"
    file.write_text(yaml.safe_dump({**MIGRATION, "workload": "desk", "target": target, "gateway": {"legacy": arm}}))
    return gateway_run.GatewayPlan([file], folder, folder / "traffic.json", folder / "events", port=port)


def test_without_what_the_proxy_needs_it_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program `litellm` comes without the extra too, and would end with an import error."""
    gateway_run.require_proxy()
    monkeypatch.setattr(gateway_run, "_PROXY_NEEDS", ("apscheduler", "no_such_module"))

    with pytest.raises(UnavailableService, match=r"\(no_such_module is missing\); install the extra `gateway`: `./uvw"):
        gateway_run.require_proxy()


def test_spans_that_cannot_be_sent_are_told_before_the_gateway_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    gateway_run.require_exporter(asked)
    monkeypatch.setattr(gateway_run, "_EXPORTER", "no_such_package.exporter")

    with pytest.raises(
        UnavailableService, match=r"\(no_such_package.exporter is missing\); install the extra `gateway`"
    ):
        gateway_run.require_exporter(asked)
    gateway_run.require_exporter({})
    gateway_run.require_exporter({**asked, "OTEL_TRACES_EXPORTER": "none"})


def test_a_port_that_is_taken_is_told_before_anything_is_written(tmp_path: Path) -> None:
    """Another gateway there would answer in its stead, and be taken for it; its files may be the same ones."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        wanted = plan(tmp_path, port)
        before = sorted(tmp_path.iterdir())
        with (
            pytest.raises(
                UnavailableService, match=rf"port {port} on 127.0.0.1 cannot be had .*, or name another one with --port"
            ),
            gateway_run.running(wanted, ENVIRON),
        ):
            pass
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("host", ["192.0.2.7", "x" * 70])
def test_an_address_that_is_not_this_machines_is_told_with_what_to_name(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(
            UnavailableService, match=rf"port 0 on {host} cannot be had .* address of this machine with --host"
        ),
        gateway_run.running(plan(tmp_path)._replace(host=host), ENVIRON),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4000"),
        ("0.0.0.0", "http://127.0.0.1:4000"),  # noqa: S104 - nothing listens
        ("::", "http://[::1]:4000"),
        ("gateway.example", "http://gateway.example:4000"),
    ],
)
def test_what_listens_everywhere_is_asked_from_this_machine(host: str, url: str) -> None:
    assert gateway_run.url_of(host, 4000) == url


_ENDS = "print('no such setting'); raise SystemExit(7)"
_ANOTHER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Other(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"worker": "1-of-another"}')
        sys.stdout.write("asked")
        sys.stdout.flush()
        self.server.done = True

server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Other)
server.done = False
while not server.done:
    server.handle_request()
raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [(_ENDS, r"ended with 7 before it answered.*:\nno such setting$"), (_ANOTHER, "ended with 3 before it answered")],
    ids=["ends", "another gateway answers on its port"],
)
def test_a_gateway_that_does_not_start_says_its_own_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setattr(gateway_run, "_MAIN", program)
    (tmp_path / "proxy.log").write_text("of the run before\n")
    with (
        pytest.raises(UnavailableService, match=rf"the gateway {said}") as told,
        gateway_run.running(plan(tmp_path), ENVIRON),
    ):
        pass
    assert "of the run before" not in str(told.value)


def test_an_idle_connection_outlives_the_clients_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks on a connection which the gateway is just closing is never answered."""
    monkeypatch.setattr(gateway_run, "_MAIN", "import sys; print(*sys.argv[1:]); raise SystemExit(1)")
    with (
        pytest.raises(UnavailableService, match=r"--keepalive_timeout 75$"),
        gateway_run.running(plan(tmp_path), ENVIRON),
    ):
        pass


def test_one_worker_serves_whatever_the_environment_says_to_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts waits for the process that it started; several workers are children of it, each of its own pid."""
    program = """
import sys
from litellm import run_server
print("workers:", run_server.make_context("litellm", sys.argv[1:]).params["num_workers"])
raise SystemExit(1)
"""
    monkeypatch.setattr(gateway_run, "_MAIN", program)
    with (
        pytest.raises(UnavailableService, match=r"(?m)^workers: 1$"),
        gateway_run.running(plan(tmp_path), {**os.environ, **ENVIRON, "NUM_WORKERS": "4"}),
    ):
        pass
