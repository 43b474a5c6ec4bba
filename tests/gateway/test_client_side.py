"""What the client sees of an error, whichever arm it came from."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import litellm
import openai
import pytest

from anven_pipelines.gateway.client_side import EXCHANGE_HEADER, ClientSide
from tests.gateway_service import asked, served
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.gateway.client_side import Message, Receive, Scope, Send
    from anven_pipelines.gateway.service import GatewayService

pytestmark = pytest.mark.filterwarnings("ignore:Item .* on TypedDict")  # pydantic's, of LiteLLM's types


@pytest.fixture
def service(tmp_path: Path) -> Iterator[GatewayService]:
    with served(tmp_path) as service:
        yield service


def failed(provider: str, reply: Reply, *, stream: bool) -> str:
    """Return LiteLLM's text of an arm's failure, as the proxy writes it into the answer."""

    async def ask(url: str) -> None:
        answer = await litellm.acompletion(
            model=f"{provider}/model",
            messages=[{"role": "user", "content": "hello"}],
            api_base=url,
            api_key="sk-scripted",
            stream=stream,
            max_retries=0,
        )
        async for _ in answer:
            pass

    with ScriptedEndpoint(lambda _: reply) as endpoint, pytest.raises(openai.APIError) as found:
        asyncio.run(ask(endpoint.url))
    text = f"{found.value.message}. Received Model Group=support--target"
    return json.dumps({"error": {"message": text, "code": str(reply.status)}})


def seen(service: GatewayService, status: int, *parts: bytes, stream: bool) -> list[bytes]:
    """Return what a client gets of a response that the proxy sends in these parts."""
    got: list[bytes] = []

    async def proxy(scope: Scope, _: Receive, send: Send) -> None:
        number = dict(scope["headers"])[EXCHANGE_HEADER.encode()].decode()
        service.deal(asked(stream=stream), {}, service.requests[number])
        await send({"type": "http.response.start", "status": status, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        got.append(message.get("body", b""))

    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": []}
    asyncio.run(ClientSide(proxy, service)(scope, receive, send))
    return [each for each in got if each]


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_an_error_names_no_provider(service: GatewayService, status: int) -> None:
    messages = []
    for provider in ("openai", "hosted_vllm"):
        body = failed(provider, Reply("it cannot be", status=status), stream=False)
        [answer] = seen(service, status, body.encode(), stream=False)
        messages.append(json.loads(answer)["error"]["message"])
    head, _, said = messages[0].partition("UpstreamException - ")
    assert said == "it cannot be. Received Model Group=support"
    assert messages[1].startswith(f"{head}UpstreamException - ")
    assert "vllm" not in messages[1].lower()


def test_an_error_after_the_first_token_names_neither_arm_nor_provider(service: GatewayService) -> None:
    token = b'data: {"model":"m","choices":[{"delta":{"content":"litellm.X: OpenAIException - support--target"}}]}\n\n'
    got = []
    for provider in ("openai", "hosted_vllm"):
        body = failed(provider, Reply("one two three four", breaks="error"), stream=True)
        got.append(seen(service, 200, token, f"data: {body}\n\n".encode(), stream=True))
    assert got[0] == got[1]
    assert got[0][0] == token.replace(b'"m"', b'"support"')  # an answer may say what it likes
    error = json.loads(got[0][1].removeprefix(b"data: "))["error"]["message"]
    assert error == (
        "litellm.MidStreamFallbackError: UpstreamException - the engine died. Received Model Group=support"
    )
