"""An OpenAI-compatible chat completions server on loopback that answers by script.

It is a real HTTP/1.1 server (keep-alive, chunked SSE, TCP_NODELAY), so clients meet real sockets. A prompt is the
content of the last message. What a prompt gets is a `Reply`: its text, its delays, its status, and how it breaks.

In a test, in a thread of the same process:

    def script(ask: Ask) -> Reply:
        return Reply(status=429, headers={"Retry-After": "7"}) if ask.nth == 1 else Reply("four")

    with ScriptedEndpoint(script) as endpoint:
        client.answer(EndpointTarget(engine="endpoint", model="m", url=endpoint.url), ...)
        assert endpoint.asked["2 + 2"] == 2          # asks per prompt; also .asks, .most_in_flight

Only answers matter? `ScriptedEndpoint(answering({"2 + 2": "four"}))`; prompts that are not listed get "echo: ...".

As a program, for tests that kill their client (tests/faults/test_endpoint_kill.py):

    python -m tests.scripted_endpoint --answers answers.json --script replies.json --log asks.jsonl --delay 0.05

prints `{"port": ..., "url": ...}` on its first line and serves until it gets SIGTERM or its stdin is closed, so it
never outlives the test that started it with a pipe. `--answers` is {prompt: text}. `--script` is {prompt: [reply of
the first ask, of the second, ...]}, each the keyword arguments of `Reply`, the last one for all that follow; the
prompt "*" stands for every other one. `--log` gets one JSON line per ask, fsynced before the reply begins, so it can
be counted whatever is killed; `asks_in(path)` reads it. `with endpoint_process(...)` starts and stops the program.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType


class Ask(NamedTuple):
    """One request as the server got it; `nth` counts the asks of the same prompt from 1."""

    prompt: str
    nth: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What one ask gets; the default is a good streamed answer.

    Attributes:
        text: The answer, sent in pieces of a word each; of an error status the error message.
        status: HTTP status.
        headers: Further response headers.
        delay_s: Wait before the response begins, and so before the first token.
        chunk_delay_s: Wait before each piece after the first.
        usage: Whether tokens are counted: words of the prompt and of the answer.
        cached_tokens: Prompt tokens said to come from the cache.
        finish_reason: None ends the answer without one.
        tool_calls: Whole tool calls, sent before the text: the name first, the arguments in two pieces.
        streams: False sends one JSON answer, whatever was asked for.
        refuses: Fields of the body that get a 400 when present (and not false), such as `stream_options`.
        breaks: `before` drops the connection instead of responding, `midway` after the first half of the answer;
            `error` sends an SSE error there, `garbage` something that is not JSON, `end` just ends the stream; `page`
            sends the text as an HTML page in Latin-1, as a portal or an old proxy does.
    """

    text: str = "ok"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    usage: bool = True
    cached_tokens: int | None = None
    finish_reason: str | None = "stop"
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    streams: bool = True
    refuses: tuple[str, ...] = ()
    breaks: Literal["before", "midway", "error", "garbage", "end", "page"] | None = None


def echo(ask: Ask) -> Reply:
    """Answer with the prompt."""
    return Reply(f"echo: {ask.prompt}")


def answering(answers: Mapping[str, str], **changes: Any) -> Callable[[Ask], Reply]:
    """Look answers up by prompt; `changes` are further arguments of every Reply."""
    return lambda ask: Reply(answers.get(ask.prompt, f"echo: {ask.prompt}"), **changes)


class ScriptedEndpoint:
    """The server, from `with` to its end.

    Attributes:
        asks: Every request, in the order of arrival.
        asked: Asks per prompt.
        most_in_flight: Most requests that were being answered at once.
    """

    def __init__(
        self, script: Callable[[Ask], Reply] = echo, *, api_key: str | None = None, log: Path | None = None
    ) -> None:
        """Prepare a server; with `api_key` it answers 401 to any other, and the error repeats the key it got."""
        self.asks: list[Ask] = []
        self.asked: Counter[str] = Counter()
        self.most_in_flight = 0
        self._in_flight = 0
        self._script = script
        self._api_key = api_key
        self._log = log
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_for(self))

    @property
    def url(self) -> str:
        """Base URL, as a migration file names it."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply_to(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        """Note an ask, durably where there is a log, and return what it gets."""
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
        with self._lock:
            self.asked[prompt] += 1
            ask = Ask(prompt, self.asked[prompt], body, headers)
            self.asks.append(ask)
            if self._log:
                _append(self._log, {"prompt": prompt, "nth": ask.nth})
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key is not None and bearer != self._api_key:
            return Reply(f"Incorrect API key provided: {bearer}", status=401)
        reply = self._script(ask)
        for name in reply.refuses:
            if body.get(name):
                return Reply(f"Unrecognized request argument supplied: {name}", status=400)
        return reply

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the server runs."""
        self._stopping.wait(seconds)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count a request as in flight."""
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # the default of 5 drops connections of a concurrent client
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet about clients that hang up: killing them is what some tests are about."""


def _handler_for(endpoint: ScriptedEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.endpoint = endpoint
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # TCP_NODELAY; without it a small chunk waits up to 40 ms
    endpoint: ScriptedEndpoint

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        pass

    def do_GET(self) -> None:
        """List the one model, for clients that look whether the server is up."""
        self._send_json(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.endpoint.counting():
            reply = self.endpoint.reply_to(body, {name.lower(): value for name, value in self.headers.items()})
            self.endpoint.wait(reply.delay_s)
            if reply.breaks == "before":
                self._hang_up()
            elif reply.breaks == "page":
                self._send(reply.status, reply.text.encode("latin-1"), {"Content-Type": "text/html", **reply.headers})
            elif reply.status != 200:
                error = {"error": {"message": reply.text, "type": "scripted", "code": None}}
                self._send_json(reply.status, error, reply.headers)
            elif reply.streams and body.get("stream"):
                self._stream(body, reply)
            else:
                self._send_json(200, _completion(body, reply), reply.headers)

    def _stream(self, body: dict[str, Any], reply: Reply) -> None:
        self.send_response(200)
        for name, value in {
            "Content-Type": "text/event-stream",
            "Transfer-Encoding": "chunked",
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        deltas = [*_call_deltas(reply), *({"content": piece} for piece in _pieces(reply.text))]
        if reply.breaks:
            deltas = deltas[: max(1, len(deltas) // 2)]
        self._send_event(_chunk(body, {"role": "assistant", "content": ""}))
        for place, delta in enumerate(deltas):
            self.endpoint.wait(reply.chunk_delay_s if place else 0)
            self._send_event(_chunk(body, delta))
        if reply.breaks == "midway":
            self._hang_up()
            return
        if reply.breaks == "error":
            self._send_event({"error": {"message": "the engine died", "code": 500}})
        elif reply.breaks == "garbage":
            self._send_part(b'data: {"choices": [\n\n')
        elif reply.breaks is None:
            if reply.finish_reason is not None:
                self._send_event(_chunk(body, {}, reply.finish_reason))
            if reply.usage and (body.get("stream_options") or {}).get("include_usage"):
                self._send_event({**_chunk(body, {}), "choices": [], "usage": _usage(body, reply)})
            self._send_part(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_event(self, event: Mapping[str, Any]) -> None:
        self._send_part(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _send_part(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send_json(self, status: int, value: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, header in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, header)
        self.end_headers()
        self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _pieces(text: str) -> list[str]:
    """Cut a text into words, each with the space that follows."""
    return [piece for piece in text.replace(" ", " \0").split("\0") if piece]


def _call_deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(reply.tool_calls):
        function = call["function"]
        half = len(function["arguments"]) // 2
        head = {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}
        yield {"tool_calls": [{"index": index, **head}]}
        for piece in (function["arguments"][:half], function["arguments"][half:]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _chunk(body: Mapping[str, Any], delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_head(body, "chat.completion.chunk"), "choices": [choice]}


def _completion(body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if reply.tool_calls else reply.text}
    if reply.tool_calls:
        message["tool_calls"] = list(reply.tool_calls)
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    usage = {"usage": _usage(body, reply)} if reply.usage else {}
    return {**_head(body, "chat.completion"), "choices": [choice], **usage}


def _head(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": int(time.time()), "model": body["model"]}


def _usage(body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    asked = sum(len(str(message["content"]).split()) for message in body["messages"])
    answered = len(reply.text.split())
    usage: dict[str, Any] = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    if reply.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": reply.cached_tokens}
    return usage


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line that survives whatever is killed next."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def asks_in(log: Path) -> Counter[str]:
    """Count the asks per prompt in a log."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter(json.loads(line)["prompt"] for line in lines)


@contextmanager
def endpoint_process(*arguments: str) -> Iterator[str]:
    """Run this file as a program of its own and yield its URL."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            message = "the scripted endpoint was started without pipes"
            raise RuntimeError(message)
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.stdin.close()
            process.wait(timeout=10)


def _script_of(options: argparse.Namespace) -> Callable[[Ask], Reply]:
    """Build the script that the command line describes."""
    answers: dict[str, str] = json.loads(options.answers.read_text(encoding="utf-8")) if options.answers else {}
    replies: dict[str, list[dict[str, Any]]] = (
        json.loads(options.script.read_text(encoding="utf-8")) if options.script else {}
    )

    def script(ask: Ask) -> Reply:
        listed = replies.get(ask.prompt) or replies.get("*") or [{}]
        defaults = {
            "text": answers.get(ask.prompt, f"echo: {ask.prompt}"),
            "delay_s": options.delay,
            "chunk_delay_s": options.chunk_delay,
        }
        return Reply(**{**defaults, **listed[min(ask.nth, len(listed)) - 1]})

    return script


def main() -> None:
    """Serve until SIGTERM, or until whoever started this closes its stdin."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server on loopback.")
    parser.add_argument("--answers", type=Path, help="JSON file: prompt to answer")
    parser.add_argument("--script", type=Path, help="JSON file: prompt to a list of replies, one per ask")
    parser.add_argument("--log", type=Path, help="file that gets one JSON line per ask")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a response begins")
    parser.add_argument("--chunk-delay", type=float, default=0.0, help="seconds before each further piece")
    parser.add_argument("--api-key", help="the only key that is let in")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ScriptedEndpoint(_script_of(options), api_key=options.api_key, log=options.log) as endpoint:
        print(json.dumps({"port": int(endpoint.url.split(":")[2].split("/")[0]), "url": endpoint.url}), flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
