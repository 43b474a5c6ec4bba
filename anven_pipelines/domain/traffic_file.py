"""The traffic file, `{"version": 1, "routes": {workload: {"attempt": 1, "generation": 4, ...}}}`, entry by entry.

An entry that a person broke keeps no other workload from getting its traffic taken away.
What gives the target more is never read from, or written over, a file that is not good as a whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.traffic import Route, Traffic, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
STAY: Final = "the routes that were last read well stay in force until it is mended"
"""What a bad file means for the gateway."""

_FIELDS: Final = tuple(each.name for each in fields(Route) if each.name != "workload")
_NEEDED: Final = frozenset({"attempt", "generation", "stage", "share"})
_NAMED: Final = re.compile(r'("(?:[^"\\]|\\.)*")\s*:\s*(?=\{)')
_FRAME: Final = "routes"  # of the file, as `print_traffic` writes it

UNSEEN: Final = "--mend"
"""Bad entry that keeps a file bad in which a route was replaced, until somebody has looked through the others."""


@dataclass(frozen=True)
class TrafficFile:
    """What a traffic file says, and what of it cannot be read.

    Attributes:
        routes: Those that are good.
        bad: The other entries, as they stand.
        problem: What is wrong with the file; None where all of it is good.
        is_torn: Whether the whole is no traffic file; `routes` are then what was found in the pieces.
    """

    routes: Mapping[str, Route] = field(default_factory=dict)
    bad: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    is_torn: bool = False

    def of(self, workload: str) -> Route | None:
        """Return the workload's route, of generation 0 where it has none; None where its entry is bad."""
        if workload in self.bad:
            return None
        return self.routes.get(workload) or Route(workload, attempt=0, generation=0, stage=0, share=0.0)

    def is_killed(self, workload: str) -> bool:
        """Tell whether people keep the workload at legacy; what stands there in place of true or false does, too."""
        if workload in self.bad:
            return kills(self.bad[workload])
        return workload in self.routes and self.routes[workload].killed

    def with_route(self, route: Route) -> TrafficFile:
        """Return the file with one route in place of the workload's; the other entries stay, bad ones as they stand.

        A bad file stays bad: the gateway has taken of its other routes what gives the target less, and would take the
        rest out of a good one, an unkill among it that stands in no file that was ever good.
        """
        bad = {name: entry for name, entry in self.bad.items() if name != route.workload}
        is_open = any(not each.killed for name, each in self.routes.items() if name != route.workload)
        if self.problem is not None and is_open and not bad:
            bad[UNSEEN] = f"{self.problem}; look through the other routes, then remove this entry"
        return TrafficFile({**self.routes, route.workload: route}, bad)

    def printed(self) -> str:
        """Write the file."""
        routes = {**self.bad, **{name: entry_of(route) for name, route in self.routes.items()}}
        return json.dumps({"version": VERSION, "routes": dict(sorted(routes.items()))}, indent=1) + "\n"


def parse_traffic(text: str | bytes, *, source: str) -> Traffic:
    """Return the routes of a traffic file of which all is good.

    Args:
        text: The whole file.
        source: Its name, for the error.

    Raises:
        InvalidInput: anything is missing, unknown, twice there or out of range.
    """
    file = read_traffic_file(text, source=source)
    if file.problem is not None:
        message = f"{file.problem}; {STAY}"
        raise InvalidInput(message)
    return Traffic(file.routes)


def read_traffic_file(text: str | bytes, *, source: str) -> TrafficFile:
    """Read a traffic file, whatever is wrong with it.

    Of one that is no traffic file as a whole the entries that can be found whole are taken. One that is found and is
    not whole may have been killed: it is taken for killed. One that is not found has no route.

    Args:
        text: The whole file.
        source: Its name, for the problem.
    """
    try:
        return read_whole(text, source=source)
    except InvalidInput as error:
        pieces = _pieces(text if isinstance(text, str) else text.decode(errors="replace"))
        return TrafficFile(pieces, {}, str(error), is_torn=True)


def read_whole(text: str | bytes, *, source: str) -> TrafficFile:
    """Read a traffic file that is one as a whole; each of its entries stands for itself.

    Args:
        text: The whole file.
        source: Its name, for the problem and the error.

    Raises:
        InvalidInput: it is no traffic file at all, or says something twice.
    """
    try:
        entries = _entries_in(text)
    except (ValueError, ArithmeticError, RecursionError, InvalidInput) as error:  # of JSON and UTF-8: ValueErrors
        message = f"{source}: {error}"
        raise InvalidInput(message) from error
    routes, bad, problems = {}, {}, []
    for name, entry in entries.items():
        try:
            routes[name] = _route_in(name, entry)
        except (InvalidInput, ArithmeticError) as error:
            bad[name] = entry
            problems.append(str(error))
    return TrafficFile(routes, bad, f"{source}: {'; '.join(problems)}" if problems else None)


def print_traffic(traffic: Traffic) -> str:
    """Write a traffic file; `parse_traffic` gives the same routes back."""
    return TrafficFile(traffic.routes).printed()


def entry_of(route: Route) -> dict[str, Any]:
    """Return what stands in a traffic file for a route."""
    return {key: value for key, value in asdict(route).items() if key != "workload"}


def kills(entry: object) -> bool:
    """Tell whether a bad entry says, or may say, that its workload is killed."""
    return isinstance(entry, dict) and entry.get("killed", False) is not False


def _pieces(text: str) -> dict[str, Route]:
    """Return the routes that a torn file holds; one that is not whole, or is there twice, is killed."""
    decoder, found = json.JSONDecoder(), dict[str, Route]()
    for match in _NAMED.finditer(text):
        try:
            name = str(json.loads(match[1]))
        except ValueError:
            continue
        if name in ("", _FRAME):
            continue
        killed = Route(name, attempt=0, generation=0, stage=0, share=0.0, killed=True)
        try:
            route = _route_in(name, decoder.raw_decode(text, match.end())[0])
        except (ValueError, RecursionError, ArithmeticError, InvalidInput):
            route = killed
        found[name] = killed if name in found else route
    return found


def _entries_in(text: str | bytes) -> dict[str, Any]:
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
        refuse("version", document["version"], str(VERSION))
    if not isinstance(document["routes"], dict):
        refuse("routes", document["routes"], "an object of workload to route")


def _route_in(workload: str, entry: object) -> Route:
    """Return the route that an entry stands for.

    Raises:
        InvalidInput: anything of it is missing, unknown or out of range.
    """
    path = f"routes.{workload}"
    if not isinstance(entry, dict):
        refuse(path, entry, "an object")
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
