"""A rehearsed roll back: what its requests and the gateway's workers showed, and whether it passes.

A worker has followed from the first moment after which it is never again seen with the old route. What was begun before
that moment counts as the target's, so the time that is told is never shorter than the real one; it is longer by at most
the time between two sightings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from anven_pipelines.domain.traffic import Arm

MOST_BEFORE: Final = 12
"""Requests before the roll back at most; they show that the target has the traffic."""
MOST_AFTER: Final = 36
"""Requests from the roll back on at most."""
MAX_TOKENS: Final = 16
"""Longest answer that a request asks for; some providers refuse less."""


class Sighting(NamedTuple):
    """What one worker did with the drill's route.

    Attributes:
        at_s: When the request that showed it was begun, on the drill's monotonic clock.
        worker: Its name.
        generation: Of the route that it followed.
        served: Arm that answered; None where only the worker's own word was asked for.
    """

    at_s: float
    worker: str
    generation: int
    served: Arm | None = None


class Asked(NamedTuple):
    """One synthetic request.

    Attributes:
        begun_s: When it was begun, on the drill's monotonic clock.
        seen: What it showed; None where it failed.
        problem: Why it failed; None where it did not.
        input_tokens: Tokens of its prompt, as the gateway told.
        output_tokens: Tokens of its answer.
    """

    begun_s: float
    seen: Sighting | None = None
    problem: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class DrillResult:
    """What a drill showed.

    Attributes:
        passed: Whether it counts.
        seconds: From the roll back's being written until every worker gave everything to legacy; None where one never
            was seen to.
        limit_s: Longest time that passes.
        requests: Synthetic requests.
        failed: Those without an answer; none may be.
        by_target: Answers of the target before the roll back; without one the drill shows nothing.
        late: Answers of the target that were begun after the roll back was written.
        workers: Each living worker's own time in seconds; None for one that was not seen to follow.
        reasons: Why it failed; empty where it passed.
        tokens: Of prompts and answers, by arm.
        cost_usd: What they cost; None where a price is not declared.
    """

    passed: bool
    seconds: float | None
    limit_s: float
    requests: int
    failed: int
    by_target: int
    late: int
    workers: dict[str, float | None]
    reasons: tuple[str, ...]
    tokens: dict[str, dict[str, int]]
    cost_usd: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON; the event `drilled` holds it."""
        return asdict(self) | {"reasons": list(self.reasons)}

    @property
    def words(self) -> str:
        """The result in one line."""
        if not self.passed:
            return f"failed: {'; '.join(self.reasons)}"
        return (
            f"passed: all traffic at legacy after {self.seconds:.2f} s (at most {self.limit_s:g} s), "
            f"{len(self.workers)} of {len(self.workers)} workers, {self.requests} requests, none failed"
        )


def judge_drill(
    asked: Sequence[Asked],
    heard: Iterable[Sighting],
    *,
    generation: int,
    written_s: float,
    living: Collection[str],
    limit_s: float,
) -> DrillResult:
    """Judge a drill.

    Args:
        asked: Its synthetic requests, before and after the roll back.
        heard: What the workers said of themselves meanwhile.
        generation: That the roll back began.
        written_s: When it was decided, before it was written anywhere, on the clock of the sightings.
        living: Workers that are known to live; each has to follow.
        limit_s: Longest time that passes.
    """
    seen = [each.seen for each in asked if each.seen is not None]
    times = follow_times((*seen, *heard), generation=generation, written_s=written_s)
    workers = {name: times.get(name) for name in sorted(set(living) | set(times))}
    known = [time for time in workers.values() if time is not None]
    seconds = max(known) if known and len(known) == len(workers) else None
    problems = [each.problem for each in asked if each.problem is not None]
    by_target = sum(each.served == "target" and each.at_s < written_s for each in seen)
    late = sum(each.served == "target" and each.at_s >= written_s for each in seen)
    to_legacy = sum(each.served == "legacy" and each.generation == generation for each in seen)
    reasons = []
    if problems:
        reasons.append(f"{len(problems)} of {len(asked)} requests failed, the first one: {problems[0]}")
    if not by_target:
        reasons.append("the target answered no request before the roll back, so that nothing was rolled back")
    if not to_legacy:
        reasons.append("legacy answered no request after the roll back")
    if missing := [name for name, time in workers.items() if time is None] or ([] if workers else ["all"]):
        reasons.append(f"not seen to follow: workers {', '.join(missing)}")
    if seconds is not None and seconds > limit_s:
        reasons.append(f"it took {seconds:.2f} s, at most {limit_s:g} s is allowed (rollout.drill_s)")
    return DrillResult(
        passed=not reasons,
        seconds=None if seconds is None else round(seconds, 4),
        limit_s=limit_s,
        requests=len(asked),
        failed=len(problems),
        by_target=by_target,
        late=late,
        workers={name: None if time is None else round(time, 4) for name, time in workers.items()},
        reasons=tuple(reasons),
        tokens=_tokens(asked),
    )


def follow_times(seen: Iterable[Sighting], *, generation: int, written_s: float) -> dict[str, float | None]:
    """Return how long each worker that was seen after the roll back took to follow; None for one that did not.

    Args:
        seen: In any order.
        generation: That the roll back began.
        written_s: When it was decided.

    Returns:
        Worker to seconds. A worker whose last sighting has the old route is there with None.
    """
    by_worker: dict[str, list[Sighting]] = {}
    for each in seen:
        if each.at_s >= written_s:
            by_worker.setdefault(each.worker, []).append(each)
    times: dict[str, float | None] = {}
    for worker, sightings in by_worker.items():
        last_old = max((each.at_s for each in sightings if is_old(each, generation)), default=written_s)
        fresh = [each.at_s for each in sightings if not is_old(each, generation) and each.at_s >= last_old]
        times[worker] = min(fresh) - written_s if fresh else None
    return times


def is_old(seen: Sighting, generation: int) -> bool:
    """Return whether a sighting shows the route before the roll back; what the target answers always does."""
    return seen.generation < generation or seen.served == "target"


def _tokens(asked: Iterable[Asked]) -> dict[str, dict[str, int]]:
    total = {arm: {"input": 0, "output": 0} for arm in ("legacy", "target")}
    for each in asked:
        if each.seen is not None and each.seen.served is not None:
            total[each.seen.served]["input"] += each.input_tokens
            total[each.seen.served]["output"] += each.output_tokens
    return total
