"""Receivers of notices on loopback: a real HTTP server and a real SMTP server, which behave as a test tells them."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_string
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message


@dataclass
class Hook:
    """An HTTP server; `status` is what the next posts get, None hangs until the test ends."""

    url: str = ""
    status: int | None = 200
    drip: bool = False
    got: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hook(parse: Callable[[bytes], Any] = json.loads) -> Iterator[Hook]:
    """Serve posts until the block ends; `parse` reads their bodies."""
    state = Hook()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            state.got.append(parse(body))
            if state.status is None:
                while state.drip and not state.ended.wait(0.5):
                    self.wfile.write(b"X")  # a status line that never ends
                state.ended.wait()
                return
            self.send_response(state.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_port}/secret-path"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()


@dataclass
class Mailbox:
    """An SMTP server; `refusal` is what it says to a letter, None takes it."""

    port: int = 0
    refusal: str | None = None
    letters: list[Message] = field(default_factory=list)
    to: list[str] = field(default_factory=list)


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """Serve letters until the block ends."""
    state = Mailbox()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 mailbox")
            while line := self.rfile.readline().decode().strip():
                verb = line[:4].upper()
                if verb == "DATA":
                    self._letter()
                    continue
                if verb == "RCPT":
                    state.to.append(line.partition("<")[2].rstrip(">"))
                self._say("221 bye" if verb == "QUIT" else "250 mailbox")

        def _letter(self) -> None:
            self._say("354 go on")
            lines = list(iter(lambda: self.rfile.readline().decode(), ".\r\n"))
            if state.refusal is None:
                state.letters.append(message_from_string("".join(lines)))
            self._say(state.refusal or "250 taken")

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()


def until(holds: Any, within_s: float = 30.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
