"""A traffic file entry by entry: one that a person broke keeps no other workload from getting its traffic taken away.

What gives the target more is never read from, or written over, a file that is not good as a whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.traffic import VERSION, Route, entries_in, entry_of, route_in

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def read_traffic_file(text: bytes, *, source: str) -> TrafficFile:
    """Read a traffic file, whatever is wrong with it.

    Of one that is no traffic file as a whole the entries that can be found whole are taken. One that is found and is
    not whole may have been killed: it is taken for killed. One that is not found has no route.

    Args:
        text: The whole file.
        source: Its name, for the problem.
    """
    try:
        entries = entries_in(text)
    except (ValueError, RecursionError, ArithmeticError, InvalidInput) as error:
        return TrafficFile(_pieces(text.decode(errors="replace")), {}, f"{source}: {error}", is_torn=True)
    routes, bad, problems = {}, {}, []
    for name, entry in entries.items():
        try:
            routes[name] = route_in(name, entry)
        except (InvalidInput, ArithmeticError) as error:
            bad[name] = entry
            problems.append(str(error))
    return TrafficFile(routes, bad, f"{source}: {'; '.join(problems)}" if problems else None)


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
            route = route_in(name, decoder.raw_decode(text, match.end())[0])
        except (ValueError, RecursionError, ArithmeticError, InvalidInput):
            route = killed
        found[name] = killed if name in found else route
    return found
