"""What an error of LiteLLM, openai, httpx or asyncio means for one item of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anven_pipelines.domain.completion import Failure, kind_of, retry_after_s, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime


def failure_of(
    error: Exception, headers: Mapping[str, str] | None, *, key: str | None, timeout_s: float, now: datetime
) -> Failure:
    """Say what an error means: its kind, the server's words, its status and how long it asks to wait.

    Args:
        error: What was raised while an item was asked.
        headers: Of the response that was an error; None where there was no response at all.
        key: The key, to keep it out of the words.
        timeout_s: What a whole answer may take.
        now: To read a date in `retry-after`.
    """
    links = list(_chain(error))
    message = without_secrets(_said(error), secrets=[key] if key else [])
    if isinstance(error, TimeoutError):
        return Failure("timeout", f"no whole answer within {timeout_s:g} s")
    if headers is not None:
        statuses = [status for link in links if isinstance(status := getattr(link, "status_code", None), int)]
        status = statuses[-1]  # the innermost is the server's own
        asked_to_wait = headers.get("retry-after") or headers.get("llm_provider-retry-after")  # LiteLLM's proxy
        return Failure(kind_of(status), message, status, retry_after_s(asked_to_wait, now=now))
    names = {type(link).__name__ for link in links}
    if "ConnectError" in names:
        return Failure("unreachable", message)
    return Failure("timeout" if names & {"APITimeoutError", "Timeout"} else "broken_answer", message)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Walk from an error to what caused it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _said(error: Exception) -> str:
    """Return the server's words without the names that LiteLLM puts before them."""
    text = str(error)
    return text.partition("OpenAIException - ")[2] or text or type(error).__name__
