"""What a person does to a rollout: one form for the command line and Dagster, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from anven_pipelines.domain.errors import InvalidInput, Problem
from anven_pipelines.domain.rollout_flag import flag_id
from anven_pipelines.domain.rollout_status import LONGEST_OVERRIDE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from anven_pipelines.domain.events import Event

Verb = Literal["start", "approve", "pause", "resume", "abort", "override", "flag", "unflag", "kill", "unkill", "shadow"]

KINDS: Final[dict[Verb, str]] = {
    "start": "started",
    "approve": "approved",
    "pause": "paused",
    "resume": "resumed",
    "abort": "aborted",
    "override": "overridden",
    "flag": "flagged",
    "unflag": "unflagged",
    "kill": "killed",
    "unkill": "unkilled",
    "shadow": "shadowed",
}
"""The event that each act writes."""
OVERRIDE_HOURS: Final = 4.0
"""How long an override counts unless its signer says otherwise."""
_REASONED: Final[dict[Verb, str]] = {
    "flag": "what was seen is needed, as",
    "unflag": "how it was answered is needed, as",
    "unkill": "what was mended is needed, as",
    "override": "what makes up for the missing proof is needed, as",
}
"""Acts that nobody understands later without their reason, and what it has to say."""
_LONGEST_NAME: Final = 200
_LONGEST_REASON: Final = 2000
_MOST_HOURS: Final = LONGEST_OVERRIDE / timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Act:
    """What somebody wants done.

    Attributes:
        verb: What.
        workload: Whose rollout it is.
        who: Who wants it, without spaces round the name; `signature.person_of` tells people apart.
        reason: Why, for the audit log.
        hours: How long an override counts; None for OVERRIDE_HOURS, and with any other act.
        generation: Of the traffic that it is meant for; None for whatever is in force.
        flag: Id of the flag that `unflag` closes; None for the only one that is open, and with any other act.
        share: Share of legacy's requests that `shadow` mirrors to the target, in [0, 1]; None with any other act.
        request: Names the request, which acts once however often it is made; None where each call is a new one.
    """

    verb: Verb
    workload: str
    who: str
    reason: str = ""
    hours: float | None = None
    generation: int | None = None
    flag: str | None = None
    share: float | None = None
    request: str | None = None

    def __post_init__(self) -> None:
        """Keep the name without what nobody sees of it."""
        object.__setattr__(self, "who", self.who.strip())

    @property
    def kind(self) -> str:
        """The kind of its event."""
        return KINDS[self.verb]

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with it by itself, each with the field's name, what stands there and what is needed."""
        found = []
        if not (0 < len(self.who) <= _LONGEST_NAME and self.who.isprintable()):
            needed = f"the name of who does it, 1 to {_LONGEST_NAME} printable characters, is needed for the audit log"
            found.append(Problem("who", repr(self.who), needed))
        if len(self.reason) > _LONGEST_REASON:
            needed = f"at most {_LONGEST_REASON:,} are needed"
            found.append(Problem("reason", f"{len(self.reason):,} characters long", needed))
        if self.verb in _REASONED and not self.reason.strip():
            found.append(
                Problem("reason", "empty", f"{_REASONED[self.verb]} the audit log is all that others have of it")
            )
        if self.flag is not None and self.verb != "unflag":
            found.append(Problem("flag", repr(self.flag), f"only unflag names one: leave it out of {self.verb}"))
        if self.hours is not None and self.verb != "override":
            found.append(Problem("hours", f"{self.hours:g}", f"only an override lasts: leave it out of {self.verb}"))
        elif self.hours is not None and not 0 < self.hours <= _MOST_HOURS:  # nan is neither
            found.append(Problem("hours", f"{self.hours:g}", f"above 0 and at most {_MOST_HOURS:g} is needed"))
        if self.share is not None and self.verb != "shadow":
            found.append(Problem("share", f"{self.share:g}", f"only shadow has one: leave it out of {self.verb}"))
        elif self.verb == "shadow" and (self.share is None or not 0 <= self.share <= 1):  # nan is not
            shown = "missing" if self.share is None else f"{self.share:g}"
            needed = "the share of legacy's requests to mirror, from 0 to 1 (10 % is 0.1), is needed"
            found.append(Problem("share", shown, needed))
        if self.generation is not None and self.generation < 0:
            found.append(Problem("generation", str(self.generation), "a whole number of at least 0 is needed"))
        return tuple(found)

    def told(self, *, now: datetime) -> dict[str, Any]:
        """Return what its event says of it, beside who did it and in which generation."""
        told: dict[str, Any] = {"reason": self.reason}
        if self.request is not None:
            told["request"] = self.request
        if self.verb == "override":
            told["until"] = (now + timedelta(hours=self.hours or OVERRIDE_HOURS)).isoformat()
        if self.verb == "shadow":
            told["shadow"] = self.share
        if self.verb == "flag":
            told["flag"] = flag_id(self.workload, self.who, self.reason, self.request or now.isoformat())
        return told

    def is_done(self, events: Iterable[Event]) -> bool:
        """Tell whether the request stands among the events of the rollout: making it again must change nothing."""
        return self.request is not None and any(
            event.kind == self.kind and event.payload.get("request") == self.request for event in events
        )

    def payload(self, generation: int, *, now: datetime) -> dict[str, Any]:
        """Return the payload of its event.

        Args:
            generation: Of the traffic in force.
            now: The clock, from which an override counts.

        Raises:
            InvalidInput: it was meant for another generation.
        """
        if self.generation not in (None, generation):
            message = (
                f"generation is {self.generation}, and the rollout of {self.workload} is at {generation} by now: look "
                f"at it again, and give {generation} if you still want to {self.verb}"
            )
            raise InvalidInput(message)
        return {"who": self.who, "generation": generation, **self.told(now=now)}
