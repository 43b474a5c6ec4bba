"""A judge over HTTP that answers Ragas' faithfulness and rubric prompts by script, on loopback.

It speaks the part of the OpenAI chat completions API that the judge resource uses. The claims of a response are
its sentences; a claim is supported when it stands in the context. By a rubric a response with the word `wrong` gets 1
of 5, another one 5. So the right score can be read off a test's data.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

INPUT: Final = "\ninput: "  # Ragas writes it before what is to be judged


@dataclass(frozen=True)
class Reply:
    """What the server sends instead of a judgement; `hold` waits until the server stops."""

    status: int = 200
    content: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: bool = False


def claims_of(response: str) -> list[str]:
    """Split a response into its sentences."""
    return [sentence for sentence in re.split(r"(?<=\.)\s+", response.strip()) if sentence]


def judged_input(prompt: str) -> dict[str, Any]:
    """Return the input that Ragas wrote at the end of its prompt."""
    text = prompt[prompt.rindex(INPUT) + len(INPUT) :]
    found: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    return found


def honest_answer(prompt: str) -> str:
    """Judge as a careful reader would: claims are sentences, supported ones stand in the context."""
    asked = judged_input(prompt)
    if "response" in asked:
        return json.dumps({"feedback": "looked at", "score": 1 if "wrong" in asked["response"] else 5})
    if "answer" in asked:
        return json.dumps({"statements": claims_of(asked["answer"])})
    verdicts = [
        {"statement": claim, "reason": "looked up", "verdict": int(claim in asked["context"])}
        for claim in asked["statements"]
    ]
    return json.dumps({"statements": verdicts})


@dataclass
class ScriptedJudge:
    """A chat completions server that runs from `with` to its end.

    Args:
        script: Replies in the order of the requests; an honest judgement where it is used up or holds None.
        always: Reply to every request, in place of the script.
        refused: What is refused where it stands in the response, as what is too long for a judge would be.
    """

    script: list[Reply | None] = field(default_factory=list)
    always: Reply | None = None
    refused: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list, init=False)
    keys: list[str | None] = field(default_factory=list, init=False)
    times: list[float] = field(default_factory=list, init=False)
    most_in_flight: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        """Start the server on a free port."""
        self._lock = threading.Lock()
        self._in_flight = 0
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what is held, and stop."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL, as a migration file names it."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply_to(self, request: dict[str, Any], key: str | None) -> Reply:
        """Record the request and choose the reply to it."""
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self.times.append(time.monotonic())
            scripted = self.always or (self.script.pop(0) if self.script else None)
        if self.refused and self.refused in judged_input(prompt_of(request))["response"]:
            return Reply(400)
        return scripted or Reply(content=honest_answer(prompt_of(request)))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge._lock:
                    judge._in_flight += 1
                    judge.most_in_flight = max(judge.most_in_flight, judge._in_flight)
                try:
                    reply = judge.reply_to(body, self.headers.get("Authorization"))
                    if reply.hold:
                        judge._stopping.wait()
                finally:
                    with judge._lock:
                        judge._in_flight -= 1
                self._send(reply, str(body.get("model")))

            def _send(self, reply: Reply, model: str) -> None:
                found = completion(model, reply.content) if reply.status == 200 else failure(reply)
                payload = json.dumps(found).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up while the reply was held

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Keep the test output clean."""

        return Handler


def prompt_of(request: dict[str, Any]) -> str:
    """Return Ragas' prompt, also where a correction of an unreadable answer follows it."""
    return next(str(message["content"]) for message in request["messages"] if INPUT in message["content"])


def completion(model: str, content: str) -> dict[str, Any]:
    """Build a chat completion."""
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def failure(reply: Reply) -> dict[str, Any]:
    """Build an error body."""
    return {"error": {"message": reply.content, "type": "scripted", "code": str(reply.status)}}
