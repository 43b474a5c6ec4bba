"""A nano model's server as a process of its own, which never outlives whoever started it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import UnavailableService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STOP_S: Final = 10.0


@contextmanager
def served(model: str, *options: str, log: Path) -> Iterator[str]:
    """Serve a shipped model on a free loopback port.

    Args:
        model: Name of the model.
        options: Further options of `python -m anven_pipelines.nano.server`.
        log: Gets what the server says of itself.

    Yields:
        The base URL, which ends in /v1.

    Raises:
        UnavailableService: the server did not start; the message is its own.
    """
    command = [sys.executable, "-m", "anven_pipelines.nano.server", "--model", model, "--port", "0", *options]
    with log.open("ab") as output:
        server = subprocess.Popen(  # noqa: S603 - our own program
            # Its standard input closes with this process, however this process ends.
            [*command, "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for whoever started it, who then closes it
        )
    with server:
        try:
            yield _url(server, model, log)
        finally:
            _stop(server)


def _url(server: subprocess.Popen[bytes], model: str, log: Path) -> str:
    line = server.stdout.readline() if server.stdout else b""
    if not line:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        message = f"the server of {model} did not start: {' '.join(said) or 'it said nothing'} (see {log})"
        raise UnavailableService(message)
    return str(json.loads(line)["url"])


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.stdin:
        server.stdin.close()
    try:
        server.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
