"""One round of an online judge: asks about some answers, several at once, and tells the gateway each score at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import httpx

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.gateway.settings import KEY_ENV
from anven_pipelines.resources.environment import api_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from anven_pipelines.domain.grading import Grade
    from anven_pipelines.domain.online_judge import Asked
    from anven_pipelines.resources.judge import Judge
    from anven_pipelines.spec_grading import OnlineJudge

PASS_S: Final = 120.0
"""No judgement is begun later than this; those in flight have their own timeout."""
FAILURES_IN_A_ROW: Final = 5
"""So many end a round: what the judge cannot do now would be paid for each time."""
TOLD_S: Final = 10.0
"""Longest wait for the gateway to take a score."""

_REFUSED: Final = frozenset({401, 403})
_OF_ONE: Final = frozenset({400, 422})
"""What the gateway answers where it is this feedback that it does not take: others may be."""


class Round:
    """What became of a round.

    Attributes:
        begun: Judgements that were begun.
        scored: Requests whose score the gateway has taken.
        failed: Requests that could not be judged, with the reason.
        failure: What ended the round before its time; None where nothing did.
    """

    def __init__(self, spec: OnlineJudge, outcome: str, url: str) -> None:
        """Prepare.

        Args:
            spec: The judge.
            outcome: Tells its scores from others; with the request it is the key under which a score counts once.
            url: Base of the gateway.
        """
        self.begun = 0
        self.scored: list[str] = []
        self.failed: dict[str, str] = {}
        self.failure: str | None = None
        self._spec = spec
        self._outcome = outcome
        self._url = url.rstrip("/")
        self._in_a_row = 0
        self._until_s = time.monotonic() + PASS_S

    @property
    def reason(self) -> str:
        """The reason why most answers could not be judged."""
        reasons = list(self.failed.values())
        return max(reasons, key=reasons.count, default="")

    async def ask(self, judge: Judge, items: Sequence[Asked]) -> None:
        """Judge as many as there is time for.

        Raises:
            InvalidInput: a key is missing or refused, or the extra `eval` is not installed: nothing was judged.
            UnavailableService: the gateway does not answer: nothing was judged.
        """
        try:
            key = api_key(KEY_ENV, of="the gateway")
        except InvalidInput as error:
            message = f"{KEY_ENV} is not set; scores are told with the key that the gateway was started with"
            raise InvalidInput(message) from error
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": self._outcome}
        async with (
            httpx.AsyncClient(headers=headers, timeout=TOLD_S, trust_env=False) as gateway,
            judge.by_rubric(self._spec) as score,
        ):
            await self._reached(gateway.get(f"{self._url}/anven/status"))  # before anything is spent
            rest = iter(items)
            await asyncio.gather(*(self._work(rest, score, gateway) for _ in range(self._spec.concurrency)))
        if self.failure is None and self.failed and not self.scored:
            self.failure = self.reason

    async def _work(
        self, rest: Iterator[Asked], score: Callable[[Asked], Awaitable[Grade]], gateway: httpx.AsyncClient
    ) -> None:
        """Take one answer after the other, until none is left or the round has ended."""
        for item in rest:
            self.begun += 1
            grade = await score(item)
            if grade.score is None:
                told = grade.reason or "the judge gave no reason"
                self._note(item, f"{told}; the judge is {self._spec.model} at {self._spec.url}")
            else:
                await self._tell(item, grade.score, gateway)
            if self.failure is not None or time.monotonic() > self._until_s:
                return

    async def _tell(self, item: Asked, score: float, gateway: httpx.AsyncClient) -> None:
        said = {"request_id": item.request_id, "score": score, "outcome": self._outcome}
        try:
            answer = await self._reached(gateway.post(f"{self._url}/anven/feedback", json=said), may_be=_OF_ONE)
        except (InvalidInput, UnavailableService) as error:
            self.failure = str(error)
            return
        if not answer.is_success:  # it alone: one that ended each round would keep all others from being judged
            told = f"does not take the score of a request of this name: it answers with {answer.status_code}"
            self._note(item, f"the gateway at {self._url} {told}; is it of this release?")
            return
        self._in_a_row = 0
        self.scored.append(item.request_id)

    def _note(self, item: Asked, reason: str) -> None:
        self.failed[item.request_id] = reason
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            self.failure = reason

    async def _reached(self, asking: Awaitable[httpx.Response], *, may_be: Collection[int] = ()) -> httpx.Response:
        """Wait for the gateway's answer: a good one, or one of these statuses.

        Raises:
            InvalidInput: it refuses the key.
            UnavailableService: it does not answer, or not as a gateway does.
        """
        try:
            answer = await asking
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = (
                f"the gateway at {self._url} does not answer ({type(error).__name__}), so no score can be told; start "
                "it, or name another with ANVEN_GATEWAY_URL"
            )
            raise UnavailableService(message) from error
        if answer.status_code in _REFUSED:
            message = f"the gateway at {self._url} refuses the key in {KEY_ENV} ({answer.status_code})"
            raise InvalidInput(message)
        if not answer.is_success and answer.status_code not in may_be:
            message = f"the gateway at {self._url} takes no scores: it answers with {answer.status_code}"
            raise UnavailableService(message)
        return answer
