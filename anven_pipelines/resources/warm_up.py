"""A server on loopback that answers once and fails once, to ask before a target is asked."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    b'data: {"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":'
    b'[{"index":0,"delta":{"content":"warm"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_ERROR: Final = b"HTTP/1.1 500 Warm\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class WarmUpServer(NamedTuple):
    """Where it answers, and the replies that nobody has asked for yet."""

    url: str
    replies: list[bytes]


@asynccontextmanager
async def warm_up_server() -> AsyncIterator[WarmUpServer]:
    """Serve one streamed answer and one error on a free port of the loopback.

    Raises:
        OSError: there is no loopback.
    """
    replies = [_ANSWER, _ERROR]

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(replies.pop(0))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        yield WarmUpServer(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", replies)
