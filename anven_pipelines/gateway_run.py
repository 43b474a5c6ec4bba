"""Starts the gateway: a LiteLLM proxy with our plugin for the workloads of the migration files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.traffic import Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.config import prepare
from anven_pipelines.gateway.settings import (
    ASSIGNMENT_KEY_ENV,
    KEY_ENV,
    LOG_ENV,
    SETTINGS_ENV,
    UNTIL_STDIN_CLOSES_ENV,
    assignment_key,
    sends_spans,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ENVIRONMENT: Final[Mapping[str, str]] = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is downloaded at each start
    "LITELLM_MODE": "PRODUCTION",
    "NUM_WORKERS": "1",  # LiteLLM reads it, and it may be set for another program; `_wait` knows one worker by its pid
    "PYTHONFAULTHANDLER": "1",
    "PYTHON_GC_THRESHOLD": "0,0,0",  # see gateway/collection.py
}
_PROGRAM: Final = Path(sys.executable).parent / "litellm"
_MAIN: Final = "from anven_pipelines.gateway.proxy import main; main()"  # that program, with an end of our own
_PROXY_NEEDS: Final = ("apscheduler", "orjson")  # of the extra, and imported when the proxy starts
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http"  # of the extra, and imported where spans are sent
_EXTRA: Final = "the extra `gateway`: `./uvw run --extra gateway anven ...`, or anven-pipelines[gateway]"
_START_S: Final = 200.0  # 10 s on an idle machine
_STOP_S: Final = 30.0  # streams in flight are served to their end
_POLL_S: Final = 0.1
_KEEP_ALIVE_S: Final = 75
"""How long an idle connection stays open. Clients keep theirs for 5 s (httpx, OpenAI's library) to 60 s (proxies), and
whoever closes last is never asked on a connection that it is just closing: with uvicorn's 5 s, requests were lost."""
LOOPBACK: Final = "127.0.0.1"
"""Where it listens unless told otherwise: nobody reaches it but from this machine."""


class Started(NamedTuple):
    """A gateway that answers."""

    url: str
    process: subprocess.Popen[bytes]
    workloads: tuple[str, ...]
    traffic: Path
    events: Path


class GatewayPlan(NamedTuple):
    """What a gateway is started with.

    Attributes:
        migrations: Migration files.
        folder: Of its configuration and its log.
        traffic: Traffic file; one that is not there is made, without routes: everything is legacy's.
        events: Folder of the event log.
        prompts: Folder of adapted prompts by workload; None asks with the migration files' rewrites.
        port: Port; 0 takes a free one.
        litellm: File of further settings of LiteLLM.
        until_stdin_closes: It also stops when whoever started it is gone, however that came.
        host: Address or name of this machine at which it listens; 0.0.0.0 and :: are all of them.
    """

    migrations: Sequence[Path]
    folder: Path
    traffic: Path
    events: Path
    prompts: Path | None = None
    port: int = 0
    litellm: Path | None = None
    until_stdin_closes: bool = False
    host: str = LOOPBACK


@contextmanager
def running(plan: GatewayPlan, environ: Mapping[str, str]) -> Iterator[Started]:
    """Run a gateway until the block ends; requests in flight are then served to their end.

    Raises:
        InvalidInput: the key is missing, or the migration files have no gateway.
        UnavailableService: its address cannot be had, or it does not start; the message holds its own last words.
    """
    _require_key(environ)
    require_proxy()
    require_exporter(environ)
    port = _free_port(plan.host, plan.port)  # before the files of a gateway that runs there are written over
    if not plan.traffic.exists():
        plan.traffic.parent.mkdir(parents=True, exist_ok=True)
        plan.traffic.write_text(print_traffic(Traffic()), encoding="utf-8")
    prepared = prepare(
        plan.migrations,
        plan.folder,
        traffic=plan.traffic,
        events=plan.events,
        prompts=plan.prompts,
        litellm=plan.litellm,
    )
    log = plan.folder / "proxy.log"
    arguments = ["--config", str(prepared.config), "--host", plan.host, "--port", str(port)]
    arguments += ["--keepalive_timeout", str(_KEEP_ALIVE_S)]
    with log.open("ab") as output:
        said_before = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-P", "-c", _MAIN, *arguments],
            stdin=subprocess.PIPE,  # it closes with this process, however this process ends
            stdout=output,
            stderr=output,
            cwd=plan.folder,
            env={
                **environ,
                **ENVIRONMENT,
                SETTINGS_ENV: str(prepared.settings),
                LOG_ENV: str(log.absolute()),
                UNTIL_STDIN_CLOSES_ENV: "yes" if plan.until_stdin_closes else "",
            },
            start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it
        )
    try:
        url = url_of(plan.host, port)
        _wait(url, environ[KEY_ENV], process, log, said_before)
        yield Started(url, process, prepared.workloads, plan.traffic, plan.events)
    finally:
        _stop(process)


def url_of(host: str, port: int) -> str:
    """Return where this machine reaches what listens there."""
    reached = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - asked, not listened at
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def require_proxy() -> None:
    """Find out whether LiteLLM's proxy is installed: its program is there without what the proxy needs.

    Raises:
        UnavailableService: it is not.
    """
    lacking = [name for name in _PROXY_NEEDS if importlib.util.find_spec(name) is None]
    if lacking or not _PROGRAM.exists():
        message = f"LiteLLM's proxy is not installed ({', '.join(lacking) or _PROGRAM} is missing); install {_EXTRA}"
        raise UnavailableService(message)


def require_exporter(environ: Mapping[str, str]) -> None:
    """Find out whether spans can be sent, where they are to be.

    Raises:
        InvalidInput: the variables of OpenTelemetry ask for what the gateway does not speak.
        UnavailableService: the exporter is not installed.
    """
    if not sends_spans(environ):
        return
    try:
        found = importlib.util.find_spec(_EXPORTER)
    except ModuleNotFoundError:  # nor is what it stands in
        found = None
    if found is None:
        message = f"spans cannot be sent ({_EXPORTER} is missing); install {_EXTRA}, or set OTEL_TRACES_EXPORTER=none"
        raise UnavailableService(message)


def serve(plan: GatewayPlan, *, announce: Callable[[Started], None]) -> None:
    """Run a gateway until Ctrl-C, SIGTERM or its own end.

    Raises:
        UnavailableService: it ended by itself.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(plan, os.environ) as started:
            announce(started)
            started.process.wait()
            message = f"the gateway ended by itself with {started.process.returncode}; see {plan.folder / 'proxy.log'}"
            raise UnavailableService(message)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def how_to_call(started: Started) -> str:
    """Return lines that say how an application asks the gateway."""
    name = started.workloads[0]
    body = json.dumps({"model": name, "user": "ada", "messages": [{"role": "user", "content": "..."}]})
    return (
        f"the gateway serves {', '.join(started.workloads)} at {started.url}/v1\n"
        f'  curl {started.url}/v1/chat/completions -H "Authorization: Bearer ${KEY_ENV}" '
        f"-H 'Content-Type: application/json' -d '{body}'\n"
        f"shares: {started.traffic} (acts within a second)\nevents: {started.events}"
    )


def _require_key(environ: Mapping[str, str]) -> None:
    if not environ.get(KEY_ENV, "").startswith("sk-"):
        message = (
            f"{KEY_ENV} is not set, or does not start with `sk-`; it is the key that applications call the gateway "
            f"with: export {KEY_ENV}=sk-$(openssl rand -hex 24), and {ASSIGNMENT_KEY_ENV} for a secret of its own"
        )
        raise InvalidInput(message)
    assignment_key(environ)


def _wait(url: str, key: str, process: subprocess.Popen[bytes], log: Path, said_before: int) -> None:
    """Wait until it is this gateway, and not another one on its port, that answers."""
    request = urllib.request.Request(f"{url}/anven/status", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310 - loopback
                if str(json.load(answer).get("worker")).startswith(f"{process.pid}-"):
                    return
        except (OSError, ValueError, AttributeError):
            pass
        time.sleep(_POLL_S)
    code = process.poll()
    found = f"did not start within {_START_S:g} s" if code is None else f"ended with {code} before it answered"
    said = log.read_bytes()[said_before:].decode(errors="replace")[-3000:].strip() or "(none)"
    message = f"the gateway {found}; its last words ({log}):\n{said}"
    raise UnavailableService(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port(host: str, port: int) -> int:
    """Return the port, or one that is free where it is 0; raise where it cannot be listened at."""
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            # As the proxy does: connections of before do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or error
        message = (
            f"port {port} on {host} cannot be had ({said}); stop what listens there, or name another one with --port, "
            "or an address of this machine with --host"
        )
        raise UnavailableService(message) from error
