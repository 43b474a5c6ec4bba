"""What failures in a row say about an endpoint, as opposed to the items that were asked.

A batch of 100,000 must not fail row by row because a key is wrong, and a batch must not stop because a few items can
never be answered. So failures count against the endpoint only while nothing was answered between them, and items
that already failed in an earlier run do not count at all, unless nobody listens at the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal

from anven_pipelines.domain.completion import ITEMS_OWN, Answer, Failure
from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService

if TYPE_CHECKING:
    from anven_pipelines.domain.completion import Kind, Outcome

SUSPICIOUS: Final = 3  # items in a row that were refused, or found nobody listening
HOPELESS: Final = 20  # items in a row that failed in any way, each after all its attempts

Blame = Literal["item", "either", "endpoint"]


@dataclass
class Outage:
    """The failures since the last answer.

    Attributes:
        endpoint: The endpoint in words.
        pending: Items that this run asks.
        concurrency: Requests in flight at once, which all fail together.
        has_answered: Whether the endpoint ever answered what the checkpoint keeps, in this run or before.
    """

    endpoint: str
    pending: int
    concurrency: int
    has_answered: bool
    _streak: list[Failure] = field(default_factory=list)

    def blame(self, outcome: Outcome, *, is_new: bool) -> Blame:
        """Take in how an item came out and say whose doing that was.

        Args:
            outcome: An answer, or the failure after the last attempt.
            is_new: Whether the item is asked for the first time.

        Returns:
            `item`: the endpoint is well, and failures before this one were their items' own; `endpoint`: the
            failure would hit any item; `either`: a failure that passes or not, and is kept with the item.
        """
        if isinstance(outcome, Answer) or (outcome.kind == "bad_request" and self.has_answered):
            self.has_answered = True
            self._streak.clear()
            return "item"
        if outcome.kind in ITEMS_OWN:
            self._streak.clear()
            return "item"
        if is_new or outcome.kind == "unreachable":
            self._streak.append(outcome)
        return "endpoint" if outcome.kind in ("refused", "unreachable", "bad_request") else "either"

    def error(self, *, kept: int) -> AnvenError | None:
        """Return the error to end the batch with; None while there is hope for the next item.

        Args:
            kept: Answers that are safe, for the message.
        """
        if not self._streak:
            return None
        last = self._streak[-1]
        alike = len(list(takewhile(lambda failure: failure.kind == last.kind, reversed(self._streak))))
        if alike < self._patience(last.kind) and len(self._streak) < self._longest:
            return None
        if last.kind in ("refused", "bad_request"):
            message = (
                f"{self.endpoint} refused {alike} requests in a row, the last with {last.reason!r}; "
                "check the key, the model, the URL and the params that are declared for it"
            )
            return InvalidInput(message)
        many = len(self._streak)
        did = "did not answer the only request" if many == 1 else f"answered none of the last {many} requests"
        message = (
            f"{self.endpoint} {did}; the last failed with {last.reason!r}; {kept} answers are kept, and the next run "
            "asks only what is missing: see that the endpoint is up, then run again"
        )
        return UnavailableService(message)

    def _patience(self, kind: Kind) -> int:
        """Return how many failures of one kind in a row end the batch; a small batch is over before."""
        at_most = self._longest if self.has_answered else self.pending
        match kind:
            case "refused" | "unreachable":
                return min(SUSPICIOUS, at_most)
            case "bad_request":  # until the first answer: some servers say 400 to a wrong key or model
                return min(self._longest, at_most)
            case _:
                return self._longest

    @property
    def _longest(self) -> int:
        return max(HOPELESS, 2 * self.concurrency)
