"""What the gateway refuses by itself, without a proxy behind it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.gateway.refusals import Refusals, body_refusal, messages_problem

if TYPE_CHECKING:
    from anven_pipelines.gateway.refusals import Message, Receive, Scope, Send

SAYS_HI: dict[str, Any] = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("start", [b"{}", b' \r\n\t{"model"', b"", b"  "])
def test_what_may_be_an_object_is_left_to_whoever_reads_it(start: bytes) -> None:
    assert body_refusal(start) is None


@pytest.mark.parametrize(
    "messages",
    [
        [SAYS_HI],
        [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "4"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "assistant"}],
    ],
)
def test_messages_that_a_model_may_answer(messages: object) -> None:
    assert messages_problem(messages) is None


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "messages is null; a list"),
        ("hi", "messages is a text; a list"),
        ({}, "messages is an object; a list"),
        ([], "messages is an empty list"),
        ([SAYS_HI, "hi"], "messages[1] is a text; an object"),
        ([{"content": "hi"}], "messages[0].role is null; a text"),
        ([{"role": 3, "content": "hi"}], "messages[0].role is 3; a text"),
        ([{"role": "user", "content": 3}], "messages[0].content is 3; a text"),
        ([{"role": "user", "content": {}}], "messages[0].content is an object; a text"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content has a part that is no object"),
    ],
)
def test_messages_that_no_model_could_answer(messages: object, problem: str) -> None:
    found = messages_problem(messages)
    assert found is not None
    assert found.startswith(problem)


def answered(
    proxys: tuple[int, bytes] | Exception, *, headers: list[tuple[bytes, bytes]], parts: tuple[bytes, ...] = (b"{}",)
) -> tuple[int, bytes, bytes | None]:
    """Return status and body that a client gets where the proxy answers so, and the body that the proxy saw."""
    got: list[Message] = []
    seen: list[bytes] = []

    async def proxy(_: Scope, receive: Receive, send: Send) -> None:
        read = b""
        while (message := await receive())["more_body"]:
            read += message["body"]
        seen.append(read + message["body"])
        if isinstance(proxys, Exception):
            raise proxys
        await send({"type": "http.response.start", "status": proxys[0], "headers": []})
        await send({"type": "http.response.body", "body": proxys[1][:3], "more_body": True})
        await send({"type": "http.response.body", "body": proxys[1][3:]})

    requests = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]

    async def receive() -> Message:
        return requests.pop(0)

    async def send(message: Message) -> None:
        got.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    asyncio.run(Refusals(proxy, "sk-of-the-gateway")(scope, receive, send))
    body = b"".join(each.get("body", b"") for each in got[1:])
    return got[0]["status"], body, seen[0] if seen else None


NO_PRISMA = ModuleNotFoundError("No module named 'prisma'", name="prisma")
"""What LiteLLM ends in where it looks for what was wrong with a key."""
WITH_KEY = [(b"authorization", b"Bearer sk-of-the-gateway")]


def test_a_body_is_handed_on_whole() -> None:
    assert answered((200, b"fine"), headers=WITH_KEY, parts=(b'{"a"', b": 1", b"}")) == (200, b"fine", b'{"a": 1}')


def test_a_body_that_is_no_object_never_reaches_the_proxy() -> None:
    status, body, seen = answered((200, b"fine"), headers=WITH_KEY, parts=(b"[", b"]"))
    assert (status, seen) == (400, None)
    assert json.loads(body)["error"]["message"] == "the body is a list; one JSON object is needed"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer sk-another")]])
@pytest.mark.parametrize("proxys", [NO_PRISMA, (400, b'{"error": {"type": "no_db_connection"}}')])
def test_whom_the_proxy_refused_for_the_key_is_told_so(
    headers: list[tuple[bytes, bytes]], proxys: tuple[int, bytes] | Exception
) -> None:
    status, body, _ = answered(proxys, headers=headers)
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("proxys", [(400, b'{"error": {"type": "bad"}}'), (401, b"expired"), (200, b"public")])
def test_other_answers_to_whoever_has_another_key_stay(proxys: tuple[int, bytes]) -> None:
    assert answered(proxys, headers=[])[:2] == proxys


@pytest.mark.parametrize(("error", "headers"), [(NO_PRISMA, WITH_KEY), (RuntimeError(), []), (ImportError(), [])])
def test_a_mistake_of_the_proxys_is_none_of_the_key(error: Exception, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(type(error)):
        answered(error, headers=headers)
