"""Serve a nano model with OpenAI's chat completions API.

    python -m anven_pipelines.nano.server --model legacy-nano --port 0

prints one JSON line with its URL when it is ready, and serves until SIGTERM or SIGINT, or until its standard input
closes where `--until-stdin-closes` says so. It then takes no new connection, ends the answers in flight and exits
with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService
from anven_pipelines.nano.chat_api import ChatApi
from anven_pipelines.nano.faults import Faults
from anven_pipelines.nano.models import MODELS, model_folder, verify
from anven_pipelines.worker.embedded import EmbeddedEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BAD_INPUT: Final = 2
COULD_NOT: Final = 3
_LAST_PORT: Final = 65_535


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, and return the exit code: 0, 2 for bad input, 3 when it could not be done."""
    options = _parser().parse_args(arguments)
    try:
        app = _api(options).app()
        listener = bind(options.host, options.port)
    except (AnvenError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program's one line
        return BAD_INPUT if isinstance(error, InvalidInput) else COULD_NOT
    config = uvicorn.Config(
        app,
        # What is installed beside it must not decide how fast a server is.
        loop="asyncio",
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        # uvicorn's 5 s are also httpx's: a request would meet the connection just as it is closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=options.drain_seconds,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    ready = {"url": f"{url}/v1", "health": f"{url}/health", "port": port, "pid": os.getpid(), "model": _name(options)}
    asyncio.run(_Server(config, ready, until_stdin_closes=options.until_stdin_closes).serve([listener]))
    return 0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, not yet listening, and whose connections send at once.

    asyncio switches Nagle's algorithm off only where the socket names TCP as its protocol, which uvicorn's own does
    not: a stream's second packet then waits up to 40 ms for the acknowledgement of the first.

    Raises:
        UnavailableService: the host is not known here, or the port is taken.
    """
    with ExitStack() as stack:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = stack.enter_context(socket.socket(family, kind, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind(address)
        except OSError as error:
            message = f"cannot serve on port {port} of {host}: {error.strerror}; --port 0 takes a free port"
            raise UnavailableService(message) from error
        stack.pop_all()
    return listener


class _Server(uvicorn.Server):
    """Says when it is ready, and drains and exits with 0 when it is asked to stop.

    uvicorn's own signal handling raises the signal again after the shutdown, so that the process would die by it.
    """

    def __init__(self, config: uvicorn.Config, ready: dict[str, str | int], *, until_stdin_closes: bool) -> None:
        super().__init__(config)
        self._ready = ready
        self._until_stdin_closes = until_stdin_closes

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(json.dumps(self._ready), flush=True)  # noqa: T201 - whoever started it reads the URL here

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if self._until_stdin_closes:
            threading.Thread(target=self._stop_with_stdin, daemon=True).start()
        yield

    def _stop_with_stdin(self) -> None:
        while os.read(sys.stdin.fileno(), 1 << 12):
            pass
        self.should_exit = True


def _api(options: argparse.Namespace) -> ChatApi:
    """Load the model and return the API over it.

    Raises:
        InvalidInput: an option cannot be used, or the folder holds no model.
        CorruptArtifact: a shipped model is not what was shipped.
    """
    if options.model is None and options.model_folder is None:
        message = f"neither --model nor --model-folder is given; one of {', '.join(MODELS)} or a folder is needed"
        raise InvalidInput(message)
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    if options.api_key_env and not key:
        message = f"the environment variable {options.api_key_env} is empty; the key that clients send is needed in it"
        raise InvalidInput(message)
    if key is None and not _is_loopback(options.host):
        print(f"{options.host} is open to other machines and no key is asked for", file=sys.stderr)  # noqa: T201
    if options.model_folder is None:
        verify(options.model)
    folder = options.model_folder or model_folder(options.model)
    engine = EmbeddedEngine(folder, name=_name(options), precision=options.precision, threads=options.threads)
    faults = Faults(
        errors=options.fault_errors,
        delay_ms=options.fault_delay_ms,
        regress=options.fault_regress,
        seed=options.fault_seed,
    )
    return ChatApi(engine, capacity=options.capacity, faults=faults, api_key=key)


def _name(options: argparse.Namespace) -> str:
    return str(options.model or options.model_folder.name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m anven_pipelines.nano.server", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help=f"one of {', '.join(MODELS)}, or the name under which --model-folder is served")
    parser.add_argument("--model-folder", type=Path, help="another model's folder, with its conversion in ctranslate2/")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine)")
    parser.add_argument("--port", type=_port, default=0, help="0 takes a free one (default)")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the bearer key to ask for")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32", help="int8 differs slightly")
    parser.add_argument("--threads", type=_count, default=1, help="batches at the same time (default %(default)s)")
    parser.add_argument(
        "--capacity", type=_count, default=64, help="most requests in flight; one more gets 429 (default %(default)s)"
    )
    parser.add_argument(
        "--drain-seconds", type=_count, default=30, help="longest wait for answers at the end (default %(default)s)"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="also stop when whoever started it is gone")
    faults = parser.add_argument_group("faults", "for demonstrations; /health shows which are on")
    faults.add_argument(
        "--fault-errors", metavar="SHARE", type=_share, default=0.0, help="share answered with HTTP 500"
    )
    faults.add_argument(
        "--fault-delay-ms", metavar="MS", type=_milliseconds, default=0.0, help="wait before the first token"
    )
    faults.add_argument(
        "--fault-regress", metavar="SHARE", type=_share, default=0.0, help="share answered at a high temperature"
    )
    faults.add_argument("--fault-seed", metavar="N", type=int, default=0, help="hits other requests (default 0)")
    return parser


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    message = f"{text} is no share between 0 and 1"
    raise argparse.ArgumentTypeError(message)


def _milliseconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (milliseconds := float(text)) < float("inf"):
            return milliseconds
    message = f"{text} is no number of milliseconds"
    raise argparse.ArgumentTypeError(message)


def _count(text: str) -> int:
    with suppress(ValueError):
        if (count := int(text)) >= 1:
            return count
    message = f"{text} is no whole number of at least 1"
    raise argparse.ArgumentTypeError(message)


def _port(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (port := int(text)) <= _LAST_PORT:
            return port
    message = f"{text} is no port between 0 and {_LAST_PORT}"
    raise argparse.ArgumentTypeError(message)


if __name__ == "__main__":
    sys.exit(main())
