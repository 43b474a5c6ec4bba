"""The connection to the client, as ASGI middleware round the whole proxy: what it waited for, and what it may see.

LiteLLM's own times cover the serving attempt only, and its log says nothing of a client that hung up on an answer that
was not streamed. Here both are seen. And here the arm is hidden: headers, model names of streams and error texts
would tell which one answered, and an evaluation whose users know is none.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.traffic import DRILL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from anven_pipelines.gateway.exchange import Exchange
    from anven_pipelines.gateway.service import GatewayService

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXCHANGE_HEADER: Final = "x-anven-exchange"
_HEADER: Final = EXCHANGE_HEADER.encode()
DRILL_HEADER: Final = "x-anven-drill"
"""Marks a drill's requests; its answers have it too, and say there what a drill alone may know."""

_TOKEN: Final = re.compile(rb'"(?:content|reasoning_content|arguments|name)":\s*"[^"]')
_FAILED: Final = b'data: {"error"'
_FAILURE: Final = re.compile(rb'data: \{"error".*')  # a line of a stream
_PROVIDER: Final = re.compile(rb"(litellm\.\w+: )(?:[\w. ]{1,60}: )*?[\w-]+ ?Exception(?:[\w ]{0,40} - |: )")
"""How LiteLLM 1.106.2 begins an error's text: its own class, and then what the provider's code made of it."""
_MODEL: Final = re.compile(rb'"model":\s*"[^"]*"')
_TELLING: Final = (
    b"x-litellm-model-",
    b"x-litellm-attempted-",
    b"x-litellm-response-cost",
    b"x-litellm-key-spend",  # with the cost of this request
    b"x-litellm-timeout",
    b"llm_provider-",
)
_GZIPPED: Final = (b"content-encoding", b"gzip")
_BAD: Final = 400


class ClientSide:
    """Gives every POST an exchange and follows it to its end."""

    def __init__(self, app: App, service: GatewayService) -> None:
        """Wrap the proxy."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange = self._service.begin(time.perf_counter())
        headers = [(name, value) for name, value in scope["headers"] if name != _HEADER]
        headers.append((_HEADER, exchange.id.encode()))
        response = _Response(exchange, send, worker=self._service.worker)
        try:
            await self._app({**scope, "headers": headers}, receive, response.send)
        finally:
            response.look_at_connection()  # a stream that nobody reads is cancelled, without a last part
            exchange.ended(
                time.perf_counter(), is_complete=response.is_complete, is_disconnected=response.is_disconnected
            )
            self._service.ended(exchange)


class _Response:
    """Follows one response and hides the arm in it."""

    def __init__(self, exchange: Exchange, send: Send, *, worker: str) -> None:
        self._worker = worker
        self.is_complete = False
        self.is_disconnected = False
        self._exchange = exchange
        self._send = send
        # uvicorn's connection knows when the client hung up, also where nobody asks it.
        self._connection = getattr(send, "__self__", None)
        self._held: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._exchange.http_status = message["status"]
            if self._exchange.assignment is not None:
                message = _discreet(message, told=self._told())
                if message["status"] >= _BAD:  # its length changes with its text
                    self._held = message
                    return
        elif message["type"] == "http.response.body":
            message = await self._body(message)
        await self._send(message)

    def _told(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the header that tells a drill, and nobody else, who answered it."""
        exchange = self._exchange
        if exchange.assignment is None or not exchange.assignment.route.workload.endswith(DRILL):
            return ()
        facts = {
            "worker": self._worker,
            "generation": exchange.assignment.route.generation,
            "served": "legacy" if exchange.is_rescued or exchange.is_unfit else exchange.assignment.asked,
        }
        return ((DRILL_HEADER.encode(), json.dumps(facts).encode()),)

    def look_at_connection(self) -> None:
        """Notice that the client hung up before it had its answer."""
        if not self.is_complete and getattr(self._connection, "disconnected", False):
            self.is_disconnected = True

    async def _body(self, message: Message) -> Message:
        exchange, body = self._exchange, message.get("body", b"")
        self.look_at_connection()
        if exchange.assignment is not None and body:
            workload = exchange.assignment.route.workload
            if (exchange.http_status or 0) >= _BAD:  # in all its parts
                body = _without_arms(self._unzipped(body), workload)
                message = {**message, "body": body}
            elif exchange.stream:
                self._look_at(body)
                body = _FAILURE.sub(lambda failure: _without_arms(failure[0], workload), body)
                body = _MODEL.sub(b'"model":"' + workload.encode() + b'"', body, count=body.count(b"data:") or 1)
                message = {**message, "body": body}
        if self._held is not None:
            await self._send(_with_length(self._held, None if message.get("more_body") else len(body)))
            self._held = None
        if not message.get("more_body", False):
            self.is_complete = True
        return message

    def _unzipped(self, body: bytes) -> bytes:
        """Undo the proxy's compression, which hides names; it compresses bodies of one part, from 500 bytes on."""
        if self._held is None or _GZIPPED not in self._held["headers"]:
            return body
        self._held = {**self._held, "headers": [each for each in self._held["headers"] if each != _GZIPPED]}
        return gzip.decompress(body)

    def _look_at(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange.first_token_s is None and _TOKEN.search(body):
            exchange.first_token_s = time.perf_counter()
        if _FAILED in body:
            exchange.stream_failed = True


def _discreet(message: Message, *, told: tuple[tuple[bytes, bytes], ...]) -> Message:
    headers = [(name, value) for name, value in message.get("headers", ()) if not name.lower().startswith(_TELLING)]
    return {**message, "headers": [*headers, *told]}


def _with_length(message: Message, length: int | None) -> Message:
    headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {**message, "headers": headers}


def _without_arms(body: bytes, workload: str) -> bytes:
    name = workload.encode()
    body = body.replace(name + b"--target", name).replace(name + b"--legacy", name)
    return _PROVIDER.sub(rb"\1UpstreamException - ", body)
