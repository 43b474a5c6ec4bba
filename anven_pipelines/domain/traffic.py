"""Who is served by which arm: routes, the keyed hash that deals users to arms, and the traffic file.

A user or conversation (the unit) falls on a fixed point in [0, 1) per workload and attempt; those below the share are
the target's. So an arm is sticky, a rising share only moves units from legacy to target, and a new attempt deals anew.

Source:
    Kohavi, Tang and Xu (2020), "Trustworthy Online Controlled Experiments", chapters 4 and 14, on assignment by hash.
"""

from __future__ import annotations

import hmac
import json
import math
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Arm = Literal["legacy", "target"]

DRILL: Final = "--drill"
"""Ends the name of the route on which a workload's roll back is rehearsed; no application is served by it."""

VERSION: Final = 1
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
            _refuse("workload", self.workload, "a name")
        for name in ("attempt", "generation", "stage"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
                _refuse(name, value, "a whole number of at least 0 and below 2**63")
        for name in ("share", "shadow"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 1:  # which NaN is not, and it takes integers of any length
                _refuse(name, value, "a number from 0 to 1 (3 % is 0.03)")
        if not isinstance(self.killed, bool):
            _refuse("killed", self.killed, "true or false")


def _refuse(name: str, found: object, needed: str) -> NoReturn:
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


_FIELDS: Final = tuple(each.name for each in fields(Route) if each.name != "workload")
_STAY: Final = "the routes that were last read well stay in force until it is mended"
_NEEDED: Final = frozenset({"attempt", "generation", "stage", "share"})


def parse_traffic(text: str | bytes, *, source: str) -> Traffic:
    """Read a traffic file, `{"version": 1, "routes": {workload: {"attempt": 1, "generation": 4, ...}}}`.

    Args:
        text: The whole file.
        source: Its name, for the error.

    Raises:
        InvalidInput: anything is missing, unknown, twice there or out of range; the file's first problem is told.
    """
    read = read_routes(text, source=source)
    for problem in read.bad.values():
        message = f"{source}: {problem}; {_STAY}"
        raise InvalidInput(message)
    return read.traffic


class Readable(NamedTuple):
    """The routes of a traffic file that can be read, and by workload what is wrong with the others."""

    traffic: Traffic
    bad: Mapping[str, str]


def read_routes(text: str | bytes, *, source: str) -> Readable:
    """Read what can be read of a traffic file; each route stands for itself.

    Args:
        text: The whole file.
        source: Its name, for the error.

    Raises:
        InvalidInput: it is no traffic file at all, or says something twice.
    """
    try:
        entries = entries_in(text)
    except (ValueError, ArithmeticError, RecursionError, InvalidInput) as error:  # of JSON and UTF-8: ValueErrors
        message = f"{source}: {error}; {_STAY}"
        raise InvalidInput(message) from error
    routes: dict[str, Route] = {}
    bad: dict[str, str] = {}
    for name, entry in entries.items():
        try:
            routes[name] = route_in(name, entry)
        except (ArithmeticError, InvalidInput) as error:
            bad[name] = str(error)
    return Readable(Traffic(routes), bad)


def print_traffic(traffic: Traffic) -> str:
    """Write a traffic file; `parse_traffic` gives the same routes back."""
    routes = {name: entry_of(route) for name, route in sorted(traffic.routes.items())}
    return json.dumps({"version": VERSION, "routes": routes}, indent=1) + "\n"


def entry_of(route: Route) -> dict[str, Any]:
    """Return what stands in a traffic file for a route; `route_in` reads it."""
    return {key: value for key, value in asdict(route).items() if key != "workload"}


def entries_in(text: str | bytes) -> dict[str, Any]:
    """Return the entries of a traffic file, by workload, as they stand.

    Raises:
        InvalidInput: the file has another form, or a name twice.
        ValueError: it is no JSON, or no UTF-8.
    """
    document = json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_without_duplicates)
    _require_form(document)
    routes: dict[str, Any] = document["routes"]
    return routes


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            message = f"{name!r} stands there twice"
            raise InvalidInput(message)
        found[name] = value
    return found


def _require_form(document: object) -> None:
    if not isinstance(document, dict) or set(document) != {"version", "routes"}:
        shown = sorted(document) if isinstance(document, dict) else type(document).__name__
        message = f"found {shown}; an object with `version` and `routes` and nothing else is needed"
        raise InvalidInput(message)
    if document["version"] != VERSION or isinstance(document["version"], bool):
        _refuse("version", document["version"], str(VERSION))
    if not isinstance(document["routes"], dict):
        _refuse("routes", document["routes"], "an object of workload to route")


def route_in(workload: str, entry: object) -> Route:
    """Return the route that an entry stands for.

    Raises:
        InvalidInput: anything of it is missing, unknown or out of range.
    """
    path = f"routes.{workload}"
    if not isinstance(entry, dict):
        _refuse(path, entry, "an object")
    if missing := sorted(_NEEDED - set(entry)):
        message = f"{path} lacks {', '.join(missing)}"
        raise InvalidInput(message)
    if unknown := sorted(set(entry) - set(_FIELDS)):
        message = f"{path} has {', '.join(unknown)}, which is unknown; known are {', '.join(_FIELDS)}"
        raise InvalidInput(message)
    try:
        return Route(workload, **entry)
    except InvalidInput as error:
        message = f"{path}.{error}"
        raise InvalidInput(message) from error


class Accepted(NamedTuple):
    """The routes that are in force after a file was read, and what of the file was refused."""

    traffic: Traffic
    refused: tuple[str, ...]


def accept(held: Traffic, read: Traffic, *, highest: Mapping[str, int], bad: Collection[str] = frozenset()) -> Accepted:
    """Take over the routes that were read; a share never rises by the word of a stale writer.

    A route that raises the share, or unkills, needs a generation above the highest seen. One that gives the target
    less acts whatever its generation, as whoever takes traffic away by hand may forget it.

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
        if is_new or route == before or gives_less(route, before):
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
