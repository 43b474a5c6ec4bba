"""Makes calls through LiteLLM's SDK and prints the StandardLoggingPayload of each, one JSON object per line."""

# ruff: noqa: ARG002 - LiteLLM calls its callbacks by these names

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

import litellm
import openai
from litellm.integrations.custom_logger import CustomLogger

payloads: dict[str, dict[str, Any]] = {}
logged = asyncio.Semaphore(0)


class Keeper(CustomLogger):
    """Keeps what every log callback gets, by the application that called."""

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        keep(kwargs["standard_logging_object"])

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        keep(kwargs["standard_logging_object"])


def keep(payload: dict[str, Any]) -> None:
    payloads[payload["metadata"]["user_api_key_alias"]] = payload
    logged.release()


def told(name: str, **more: Any) -> dict[str, Any]:
    return {
        "user_api_key_alias": name,
        "requester_metadata": {"ground_truth": "4", "task": "sums", "headers": {"authorization": "Bearer secret"}},
        "tags": ["team:blue"],
        **more,
    }


async def call(name: str, prompt: str, **options: Any) -> None:
    with suppress(openai.OpenAIError):  # LiteLLM's errors are kinds of it
        answer = await litellm.acompletion(
            api_key="none",
            messages=[{"role": "system", "content": "Add."}, {"role": "user", "content": prompt}],
            temperature=0,
            user="jane",
            metadata=told(name),
            litellm_session_id="conversation-1",
            max_retries=0,
            **options,
        )
        if options.get("stream"):
            async for _ in answer:
                pass


async def wait_for(more: int) -> None:
    """Wait for callbacks, which run in the background."""
    async with asyncio.timeout(30):
        for _ in range(more):
            await logged.acquire()


async def main(url: str) -> None:
    litellm.callbacks = [Keeper()]
    litellm.suppress_debug_info = True  # else it prints advice among the payloads
    here = {"model": "openai/open-3b", "api_base": url}
    await call("whole", "2 + 2", **here)
    await call("streamed", "2 + 2", stream=True, stream_options={"include_usage": True}, **here)
    await call("tool", "tool", **here)
    await call("busy", "busy", **here)
    await call("cut", "cut", stream=True, **here)
    await call("priced", "2 + 2", model="openai/gpt-4o", mock_response="four")
    await litellm.atext_completion(
        model="openai/gpt-3.5-turbo-instruct", prompt="Say", mock_response="said", api_key="x", metadata=told("text")
    )
    await litellm.aresponses(
        model="openai/gpt-4o", input="Hi", instructions="Be brief.", mock_response="Hello", api_key="x",
        max_output_tokens=5, metadata=told("responses"),
    )  # fmt: skip
    await litellm.aembedding(
        model="openai/text-embedding-3-small", input=["a"], mock_response=[0.1], api_key="x", metadata=told("embedding")
    )
    await wait_for(9)
    litellm.turn_off_message_logging = True
    await call("redacted", "2 + 2", model="openai/gpt-4o", mock_response="four")
    await wait_for(1)
    for payload in payloads.values():
        print(json.dumps(payload, default=str))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
