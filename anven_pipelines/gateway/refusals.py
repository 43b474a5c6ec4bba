"""What the gateway refuses by itself, in the form of OpenAI's errors, where LiteLLM has no clear answer.

LiteLLM 1.106.2 without a database ends in a bare 500 where a body is no JSON object, or no key came: its own look at
what went wrong imports prisma, which is not installed. A wrong key is a 400 there, `No connected db.`. And messages
that are none fail inside it like a broken model, so that one client's mistake would count against an arm.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OF_OBJECTS: Final = ("/completions", "/embeddings", "/responses", "/messages", "/anven/feedback")
"""How the paths end whose body is one JSON object."""
_KINDS: Final = {b"[": "a list", b'"': "a text", b"n": "null", b"t": "true", b"f": "false"}
_NO_DATABASE: Final = b'"no_db_connection"'
_NO_DATABASE_STATUS: Final = 400


class Refusal(NamedTuple):
    """Why a request is refused."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None

    def content(self) -> dict[str, Any]:
        """Return the body of the answer, as OpenAI's API writes it."""
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return {"error": error}


NO_KEY: Final = Refusal(
    401,
    "no key that is valid here came with the request; `Authorization: Bearer <the gateway's key>` is needed",
    "invalid_api_key",
)


def body_refusal(start: bytes) -> Refusal | None:
    """Refuse a body that cannot be a JSON object; whether it is a good one is for whoever reads it.

    Args:
        start: The first bytes of the body; where they are blank, or there are none, nothing is refused.
    """
    first = start.lstrip()[:1]
    if first in (b"", b"{"):
        return None
    found = _KINDS.get(first, "a number" if first.isdigit() or first == b"-" else "no JSON")
    return Refusal(400, f"the body is {found}; one JSON object is needed", "invalid_json")


def messages_problem(messages: object) -> str | None:
    """Say what is wrong with the messages of a chat request, as far as no model could answer them."""
    if not isinstance(messages, list):
        return f"messages is {_kind(messages)}; a list of messages is needed"
    if not messages:
        return "messages is an empty list; at least one message is needed"
    found = (_message_problem(message) for message in messages)
    return next((f"messages[{number}]{problem}" for number, problem in enumerate(found) if problem), None)


def _message_problem(message: object) -> str | None:
    if not isinstance(message, dict):
        return f' is {_kind(message)}; an object such as {{"role": "user", "content": "..."}} is needed'
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        return f".role is {_kind(role)}; a text such as user is needed"
    if not isinstance(content, str | list | None):
        return f".content is {_kind(content)}; a text, or a list of objects, is needed"
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        return ".content has a part that is no object; a text, or a list of objects, is needed"
    return None


class Refusals:
    """ASGI middleware round the proxy, inside of whatever follows a request to its end."""

    def __init__(self, app: App, key: str) -> None:
        """Wrap the proxy.

        Args:
            app: The proxy.
            key: Its key. Who may ask is LiteLLM's to say: this only tells why it did not let somebody.
        """
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST" and scope["path"].endswith(_OF_OBJECTS) and not _is_form(scope):
            first = await receive()
            if refusal := body_refusal(first.get("body", b"")):
                await _refuse(send, refusal)
                return
            receive = _with_first(first, receive)
        if any(self._key in value for _, value in scope["headers"]):
            await self._app(scope, receive, send)
            return
        response = _KeylessResponse(send)
        try:
            await self._app(scope, receive, response.send)
        except ModuleNotFoundError as error:
            if error.name != "prisma" or response.is_begun:
                raise
            await _refuse(send, NO_KEY)


class _KeylessResponse:
    """Tells whoever asked without the key that it was this, where LiteLLM's answer does not."""

    def __init__(self, send: Send) -> None:
        self.is_begun = False
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        self.is_begun = True
        if message["type"] == "http.response.start" and message["status"] == _NO_DATABASE_STATUS:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._end(self._start)

    async def _end(self, start: Message) -> None:
        if _NO_DATABASE in self._body:
            await _refuse(self._send, NO_KEY)
            return
        await self._send(start)
        await self._send({"type": "http.response.body", "body": self._body})


def _is_form(scope: Scope) -> bool:
    return any(name == b"content-type" and b"form" in value for name, value in scope["headers"])


def _with_first(first: Message, receive: Receive) -> Receive:
    """Return what gives the message again that was looked at, and then the rest."""
    held = [first]

    async def again() -> Message:
        return held.pop() if held else await receive()

    return again


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps(refusal.content()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == NO_KEY.status:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"{value}"[:40])
