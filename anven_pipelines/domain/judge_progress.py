"""How an online judge fares: what it was asked today, what failed, and when it is asked again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FIRST_WAIT: Final = timedelta(seconds=15)
"""Wait after a pass in which the judge or the gateway failed; it doubles with each further one ..."""
LONGEST_WAIT: Final = timedelta(minutes=5)
"""... up to this: scores have an hour, as a rule."""
ANSWER_WAIT: Final = timedelta(minutes=1)
"""Wait of one answer that could not be judged; it doubles with each further try."""
LONGEST_ANSWER_WAIT: Final = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class JudgeProgress:
    """How a judge fares.

    Attributes:
        day: Whose judgements `asked` counts (UTC).
        asked: Judgements begun on that day.
        failures: Passes in a row that a failure ended.
        next_at: When the next pass is due; None at once.
        last_at: When the last pass began.
        problem: What the last pass could not do; None where it could.
        scored: Answers that the last pass scored.
        waiting: Answers that still waited after it.
        unjudged: Of these, answers whose texts are not there.
        seen_bytes: Size of the gateway's log of texts when the last pass read it.
        tries: Of each answer that could not be judged, how often that was tried, and when it is tried again.
    """

    day: str = ""
    asked: int = 0
    failures: int = 0
    next_at: str | None = None
    last_at: str | None = None
    problem: str | None = None
    scored: int = 0
    waiting: int = 0
    unjudged: int = 0
    seen_bytes: int = 0
    tries: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def is_due(self, now: datetime) -> bool:
        """Return whether a pass may begin; a wait that no pass gives is of another clock."""
        if self.next_at is None:
            return True
        left = datetime.fromisoformat(self.next_at) - now
        return left <= timedelta(0) or left > LONGEST_WAIT

    def may_ask(self, request_id: str, now: datetime) -> bool:
        """Return whether an answer may be tried now."""
        if request_id not in self.tries:
            return True
        left = datetime.fromisoformat(self.tries[request_id][1]) - now
        return left <= timedelta(0) or left > LONGEST_ANSWER_WAIT

    def tried(self, request_id: str) -> int:
        """Return how often an answer could not be judged."""
        return self.tries[request_id][0] if request_id in self.tries else 0

    def left_today(self, most: int, now: datetime) -> int:
        """Return how many judgements may still be begun today."""
        return max(0, most - (self.asked if self.day == _day(now) else 0))

    def reserved(self, judgements: int, now: datetime) -> JudgeProgress:
        """Return the progress before so many judgements are begun: a pass that is killed has used them all."""
        asked = self.asked if self.day == _day(now) else 0
        return replace(self, day=_day(now), asked=asked + judgements, last_at=now.isoformat())

    def failed_answers(self, request_ids: Iterable[str], *, waiting: Iterable[str], now: datetime) -> JudgeProgress:
        """Return the progress after some answers could not be judged; answers that wait no more are forgotten."""
        still = frozenset(waiting)
        tries = {name: tried for name, tried in self.tries.items() if name in still}
        for name in request_ids:
            count = self.tried(name) + 1
            wait = min(ANSWER_WAIT * 2 ** min(count - 1, 20), LONGEST_ANSWER_WAIT)
            tries[name] = (count, (now + wait).isoformat())
        return replace(self, tries=tries)

    def ended(self, *, failure: str | None, told: str | None, pace: timedelta, now: datetime) -> JudgeProgress:
        """Return the progress after a pass.

        Args:
            failure: What ended it before its time; the next one waits the longer, the more did.
            told: What else is to be told.
            pace: Wait until the next pass where nothing failed.
            now: When the pass began.
        """
        if failure is None:
            is_well = self.scored > 0 or self.waiting == 0  # a pass that could ask nothing tells nothing of the judge
            failures = 0 if is_well else self.failures
            return replace(self, failures=failures, problem=told, next_at=(now + pace).isoformat())
        wait = min(FIRST_WAIT * 2 ** min(self.failures, 20), LONGEST_WAIT)
        return replace(self, failures=self.failures + 1, problem=failure, next_at=(now + wait).isoformat())

    def to_bytes(self) -> bytes:
        """Write it for a file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, text: bytes | None) -> JudgeProgress:
        """Read what `to_bytes` wrote; the beginning for no file, and for a damaged one."""
        try:
            found = json.loads(text or b"{}")
            tries = {name: (int(count), str(at)) for name, (count, at) in found.pop("tries", {}).items()}
            return cls(**found, tries=tries)
        except (AttributeError, TypeError, ValueError):
            return cls()


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()
