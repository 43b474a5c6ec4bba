"""The door on loopback through which llama-prompt-ops asks its models, and the desk behind it that answers.

The program knows one address and one key, which opens nothing else: this process asks the target and the proposing
model within their budgets, keeps their answers, and grades.
"""

from __future__ import annotations

import json
import secrets
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.resources.reflector import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anven_pipelines.resources.reflector import Reflector, Reply


class Door(NamedTuple):
    """Where the program finds its desk, and the key that only it knows."""

    url: str
    key: str


@dataclass
class _Waiting:
    """A question of the program, and its reply once there is one."""

    asked: Conversation
    reply: Reply | None = None


@dataclass
class Desk:
    """Answers what the program asks; the first error ends the run.

    Its threads ask at once, and an endpoint is asked by the batch: whoever gets the lock asks for all who wait.
    """

    models: Mapping[str, Reflector]
    grade: Callable[[str, str], float]
    failure: BaseException | None = None
    _waiting: dict[str, list[_Waiting]] = field(default_factory=lambda: {"target": [], "proposer": []})
    _queueing: threading.Lock = field(default_factory=threading.Lock)
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _grading: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a chat completion request."""
        model = str(body["model"])
        params = {name: body[name] for name in ("temperature", "max_tokens", "top_p", "stop") if name in body}
        mine = _Waiting(Conversation(body["messages"], params))
        with self._queueing:
            self._waiting[model].append(mine)
        with self._asking:
            if mine.reply is None:
                self._ask(model)
        reply = mine.reply
        if reply is None or reply.text is None:
            raise _NoAnswer(reply.reason if reply and reply.reason else "the search has ended")
        choice = {
            "index": 0,
            "finish_reason": "stop" if reply.is_whole else "length",
            "message": {"role": "assistant", "content": reply.text},
        }
        usage = {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
        }
        head = {"id": "anven", "object": "chat.completion", "created": 0, "model": model}
        return {**head, "choices": [choice], "usage": usage}

    def score(self, question: str, answer: str) -> float:
        """Grade an answer; graders need not stand being called by several threads."""
        with self._grading:
            try:
                return self.grade(question, answer)
            except Exception as error:
                self.failure = error
                raise _NoAnswer(str(error)) from error

    def _ask(self, model: str) -> None:
        with self._queueing:
            waiting, self._waiting[model] = self._waiting[model], []
        if self.failure is not None:
            return
        try:
            replies = self.models[model].ask([each.asked for each in waiting])
        except Exception as error:  # noqa: BLE001 - raised again where the program is waited for
            self.failure = error
            return
        for each, reply in zip(waiting, replies, strict=True):
            each.reply = reply


@contextmanager
def open_door(desk: Desk) -> Iterator[Door]:
    """Serve the desk on a free port of the loopback."""
    key = secrets.token_urlsafe(24)
    with _Server(("127.0.0.1", 0), _handler_of(desk, key)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Door(f"http://127.0.0.1:{server.server_address[1]}", key)
        finally:
            server.shutdown()
            thread.join()


def _handler_of(desk: Desk, key: str) -> type[BaseHTTPRequestHandler]:
    """Return what answers one connection: a chat completion, or a grade under `/grade`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {key}"):
                self._send(401, {"error": {"message": "another key is needed"}})
                return
            try:
                asked = json.loads(data)
                if self.path == "/grade":
                    found: dict[str, Any] = {"score": desk.score(asked["question"], asked["answer"])}
                else:
                    found = desk.complete(asked)
            except (_NoAnswer, ValueError, KeyError) as error:
                self._send(400, {"error": {"message": str(error)}})
                return
            self._send(200, found)

        def _send(self, status: int, value: Mapping[str, Any]) -> None:
            data = json.dumps(value).encode()
            with suppress(OSError):  # it was stopped while it waited
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    return Handler


class _Server(ThreadingHTTPServer):
    """Answers many questions at once, and ends with the process."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's signature
        """Stay quiet about a program that was stopped while it asked."""


class _NoAnswer(Exception):  # noqa: N818 - becomes the body of an HTTP error
    """There is no answer to one question."""
