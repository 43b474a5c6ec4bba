"""The gateway's traffic file, as a Dagster resource: what it is told, and what it says is in force."""

from __future__ import annotations

import fcntl
import hashlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import AnvenError, InvalidInput, TamperedLog, UnavailableService, UnknownWorkload
from anven_pipelines.domain.traffic import Route, Traffic, gives_less
from anven_pipelines.domain.traffic_file import TrafficFile, parse_traffic, print_traffic, read_traffic_file
from anven_pipelines.resources.durable_folder import DurableFolder

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gateway(dg.ConfigurableResource[None]):
    """Publishes the route of a workload; every gateway worker follows the file within a second."""

    traffic: str = Field(description="Path of the traffic file, which the gateway mounts.")

    def publish(self, route: Route) -> bool:
        """Put a workload's route in force; return whether that changed the file.

        Kill switch and shadow stay as the file has them: people set them there, and no step may lift a kill.
        A route of an older generation than the one in force changes nothing: whoever publishes it was overtaken.
        What stands in a torn file is not in force, so that a share of 0 is written over it whatever it says.
        What gives the target less is written over a bad file, too, of which all that can be read is kept; not the
        shadow, which may be more than the one in force.

        Raises:
            InvalidInput: the file is bad, and the route gives the target more; nothing was changed.
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            content = self._content()
            file = read_traffic_file(content, source=self.traffic)
            before = file.of(route.workload)
            killed = file.is_killed(route.workload)
            shadow = before.shadow if before is not None and file.problem is None else 0.0
            route = replace(route, killed=killed, shadow=shadow)
            is_told = not (file.is_torn and route.share == 0)
            if (
                is_told
                and before is not None
                and (route == before or (route.workload in file.routes and route.generation < before.generation))
            ):
                return False
            is_less = route.share == 0 or (before is not None and not file.is_torn and gives_less(route, before))
            if file.problem is not None and not is_less:
                message = f"{file.problem}; nothing that gives the target more is written until the file is mended"
                raise InvalidInput(message)
            _write(path, file, route, content)
            return True

    def kill(self, workload: str) -> None:
        """Keep a workload at legacy whatever its route says, until somebody lifts it (`unkill`).

        Of a bad file all that can be read is kept.

        Raises:
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            content = self._content()
            file = read_traffic_file(content, source=self.traffic)
            route = file.of(workload) or Route(workload, attempt=0, generation=0, stage=0, share=0.0)
            _write(path, file, replace(route, killed=True), content)

    def unkill(self, workload: str) -> None:
        """Turn a workload's kill switch off.

        Raises:
            InvalidInput: the file is bad; nothing was changed.
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            content = self._content()
            route = parse_traffic(content, source=self.traffic).of(workload)
            if route.killed:
                _write(path, read_traffic_file(content, source=self.traffic), replace(route, killed=False), content)

    def mirror(self, workload: str, share: float) -> None:
        """Have a share of the requests of a workload's legacy arm mirrored to the target; 0 ends it.

        Raises:
            InvalidInput: the file is bad, or the share not in [0, 1]; nothing was changed.
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            content = self._content()
            route = parse_traffic(content, source=self.traffic).of(workload)
            if route.shadow != share:
                _write(path, read_traffic_file(content, source=self.traffic), replace(route, shadow=share), content)

    @contextmanager
    def giving_back(self, workload: str) -> Iterator[None]:
        """Kill a workload whose abort or kill ends in an error, so that its traffic moves; the error goes on.

        Where the log was altered or does not answer, always. Else unless the file gives the target nothing anyway, as
        of a name that is misspelt.

        Raises:
            UnavailableService: the file cannot be read or written; what was in force stays.
        """
        try:
            yield
        except AnvenError as error:
            if isinstance(error, TamperedLog | UnavailableService) or self._may_serve_target(workload, error):
                self.kill(workload)
            raise

    def _may_serve_target(self, workload: str, error: AnvenError) -> bool:
        file = read_traffic_file(self._content(), source=self.traffic)
        if file.is_torn:  # the gateway follows the last good one; a name that nobody knows had nothing in it
            return workload in file.routes or not isinstance(error, UnknownWorkload)
        route = file.of(workload)
        return route is None or (route.share > 0 and not route.killed)

    def is_killed(self, workload: str) -> bool:
        """Tell whether people keep a workload at legacy, whatever is wrong with the file or with other entries.

        Raises:
            UnavailableService: it cannot be read.
        """
        return read_traffic_file(self._content(), source=self.traffic).is_killed(workload)

    def route(self, workload: str) -> Route | None:
        """Return a workload's route, whatever is wrong with other entries; None where its own is bad.

        Raises:
            InvalidInput: the file as a whole is none.
            UnavailableService: it cannot be read.
        """
        file = read_traffic_file(self._content(), source=self.traffic)
        if file.is_torn:
            raise InvalidInput(str(file.problem))
        return file.of(workload)

    def read(self) -> Traffic:
        """Return the routes that the file names; none where there is no file yet.

        Raises:
            InvalidInput: the file, or one of its entries, is bad.
            UnavailableService: it cannot be read.
        """
        return parse_traffic(self._content(), source=self.traffic)

    def _content(self) -> bytes:
        path = Path(self.traffic)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return print_traffic(Traffic()).encode()
        except OSError as error:
            message = f"the traffic file {path} cannot be read: {error.strerror}; what is in force stays"
            raise UnavailableService(message) from error


def _write(path: Path, file: TrafficFile, route: Route, content: bytes) -> None:
    """Replace the file by one with the route; a torn one is kept beside it."""
    folder = DurableFolder(str(path.parent), {})
    if file.is_torn:
        folder.write(f"{path.name}.broken-{hashlib.sha256(content).hexdigest()[:12]}", content)
    folder.write(path.name, file.with_route(route).printed().encode())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one writer at a time read and replace the file; a killed one leaves no lock behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        message = f"the folder of the traffic file {path} cannot be written: {error.strerror}; what is in force stays"
        raise UnavailableService(message) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
