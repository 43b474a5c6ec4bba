"""Who is served by which arm: routes, and the keyed hash that deals users to arms.

A user or conversation (the unit) falls on a fixed point in [0, 1) per workload and attempt; those below the share are
the target's. So an arm is sticky, a rising share only moves units from legacy to target, and a new attempt deals anew.

Source:
    Kohavi, Tang and Xu (2020), "Trustworthy Online Controlled Experiments", chapters 4 and 14, on assignment by hash.
"""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Arm = Literal["legacy", "target"]

DRILL: Final = "--drill"
"""Ends the name of the route on which a workload's roll back is rehearsed; no application is served by it."""

LEAST_KEY_BYTES: Final = 16
_BITS: Final = 53  # what a float holds exactly
_MOST: Final = 2**63 - 1  # what a column of the event table holds


@dataclass(frozen=True)
class Route:
    """How one workload's traffic is split.

    Attributes:
        workload: Its name.
        attempt: Number of the rollout's try; a new one deals the units anew.
        generation: Rises with every change of the route.
        stage: Number of the plan's stage.
        share: The target's share of the units, in [0, 1].
        shadow: Share of the legacy arm's requests that are mirrored to the target, in [0, 1].
        killed: Everything is served by legacy, whatever the share.

    Raises:
        InvalidInput: a value is out of its range; NaN is.
    """

    workload: str
    attempt: int
    generation: int
    stage: int
    share: float
    shadow: float = 0.0
    killed: bool = False

    def __post_init__(self) -> None:
        if not self.workload:
            refuse("workload", self.workload, "a name")
        for name in ("attempt", "generation", "stage"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
                refuse(name, value, "a whole number of at least 0 and below 2**63")
        for name in ("share", "shadow"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 1:  # which NaN is not, and it takes integers of any length
                refuse(name, value, "a number from 0 to 1 (3 % is 0.03)")
        if not isinstance(self.killed, bool):
            refuse("killed", self.killed, "true or false")


def refuse(name: str, found: object, needed: str) -> NoReturn:
    """Raise `InvalidInput`: what a value is, and what is needed."""
    message = f"{name} is {found!r}; {needed} is needed"
    raise InvalidInput(message)


def bucket(key: bytes, *, workload: str, attempt: int, unit: str) -> float:
    """Return the unit's point in [0, 1): HMAC-SHA256 over workload, attempt and unit.

    Args:
        key: Secret of the deployment, at least 16 bytes; without it nobody can choose an arm.
        workload: Name of the workload; the points of two are independent.
        attempt: Number of the rollout's try.
        unit: The user or conversation.

    Raises:
        InvalidInput: the key is too short.
    """
    return _point(key, "bucket", workload, attempt, unit)


def drill_of(workload: str) -> str:
    """Return the name of the route, and the model, on which a workload's roll back is rehearsed."""
    return f"{workload}{DRILL}"


def arm_of(bucket: float, route: Route) -> Arm:
    """Return the arm of a point: the target's below the share, unless the workload is killed."""
    return "target" if bucket < route.share and not route.killed else "legacy"


def is_mirrored(key: bytes, route: Route, *, request_id: str) -> bool:
    """Return whether a request of the legacy arm is mirrored to the target; requests are drawn, not units."""
    if route.shadow <= 0 or route.killed:
        return False
    return _point(key, "shadow", route.workload, route.attempt, request_id) < route.shadow


def unit_hash(key: bytes, *, workload: str, unit: str) -> str:
    """Return what stands for a user or conversation in the event log: 32 hex digits, the same in every attempt.

    Raises:
        InvalidInput: the key is too short.
    """
    return _digest(key, ["unit", workload, unit])[:16].hex()


def _point(key: bytes, purpose: str, workload: str, attempt: int, unit: str) -> float:
    number = int.from_bytes(_digest(key, [purpose, workload, attempt, unit])[:8], "big") >> (64 - _BITS)
    return math.ldexp(number, -_BITS)


def _digest(key: bytes, parts: list[object]) -> bytes:
    """Hash the parts with the key; JSON keeps them apart, so that no two lists give the same bytes."""
    if len(key) < LEAST_KEY_BYTES:
        message = f"the key has {len(key)} bytes; at least {LEAST_KEY_BYTES} random ones are needed to hide names"
        raise InvalidInput(message)
    # Names may hold lone surrogates, which JSON requests can carry.
    return hmac.digest(key, canonical_json(parts).encode("utf-8", "surrogatepass"), "sha256")


@dataclass(frozen=True)
class Traffic:
    """The routes of all workloads; one that has none is served by legacy alone."""

    routes: Mapping[str, Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "routes", MappingProxyType(dict(self.routes)))

    def of(self, workload: str) -> Route:
        """Return the workload's route; share 0, of generation 0, where it has none."""
        return self.routes.get(workload) or Route(workload, attempt=0, generation=0, stage=0, share=0.0)


class Accepted(NamedTuple):
    """The routes that are in force after a file was read, and what of the file was refused."""

    traffic: Traffic
    refused: tuple[str, ...]


def accept(held: Traffic, read: Traffic, *, highest: Mapping[str, int], bad: Collection[str] = frozenset()) -> Accepted:
    """Take over the routes that were read; a share never rises by the word of a stale writer.

    A route that raises the share needs a generation above the highest seen. One that gives the target less acts
    whatever its generation, as whoever takes traffic away by hand may forget it. What is mirrored people set in the
    generation in force, as a higher one would be ahead of the rollout's log; there they lift a kill only where the
    share is 0. Else a file that was opened before the kill and is saved after it would lift it, and legacy's answers
    under the kill would stand for the target's in the generation that goes on.

    Args:
        held: The routes in force.
        read: What the file says.
        highest: The highest generation seen, by workload.
        bad: Workloads whose entry cannot be read. The file is not what its writer meant, then: of the routes that it
            does say only those that give the target less are taken, and all others stay.
    """
    routes = dict(held.routes) if bad else {}
    refused: list[str] = []
    for name, route in read.routes.items():
        before = held.of(name)
        is_new = not bad and (name not in highest or route.generation > highest[name])
        is_newest = not bad and route.generation == highest.get(name)
        is_same = replace(route, killed=before.killed, shadow=before.shadow) == before
        is_by_hand = is_newest and is_same and (route.killed == before.killed or not route.share)
        if is_new or route == before or is_by_hand or gives_less(route, before):
            routes[name] = route
            continue
        if bad:
            continue
        routes[name] = before
        refused.append(
            f"{name}: generation {route.generation} would give the target more than the route in force, but generation "
            f"{highest[name]} was seen before; a higher one is needed"
        )
    return Accepted(Traffic(routes), tuple(refused))


def gives_less(route: Route, before: Route) -> bool:
    """Return whether no unit and no mirrored request goes to the target that did not before."""
    if route.killed:
        return True
    same_deal = route.attempt == before.attempt or route.share == 0
    return same_deal and not before.killed and route.share <= before.share and route.shadow <= before.shadow
