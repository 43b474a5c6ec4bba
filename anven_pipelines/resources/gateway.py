"""The gateway's traffic file, as a Dagster resource: what it is told, and what it says is in force."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.domain.traffic import Route, Traffic, parse_traffic, print_traffic
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

        Raises:
            InvalidInput: the file is none; nothing was changed.
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            traffic = self.read()
            before = traffic.of(route.workload)
            route = replace(route, killed=before.killed, shadow=before.shadow)
            if route == before or (route.workload in traffic.routes and route.generation < before.generation):
                return False
            _write(path, Traffic({**traffic.routes, route.workload: route}))
            return True

    def kill(self, workload: str) -> None:
        """Keep a workload at legacy whatever its route says, until somebody sets `killed` to false in the file.

        Raises:
            InvalidInput: the file is none; nothing was changed.
            UnavailableService: it cannot be read or written; what was in force stays.
        """
        path = Path(self.traffic)
        with _locked(path):
            traffic = self.read()
            _write(path, Traffic({**traffic.routes, workload: replace(traffic.of(workload), killed=True)}))

    def read(self) -> Traffic:
        """Return the routes that the file names; none where there is no file yet.

        Raises:
            InvalidInput: the file is none.
            UnavailableService: it cannot be read.
        """
        path = Path(self.traffic)
        try:
            return parse_traffic(path.read_bytes(), source=str(path))
        except FileNotFoundError:
            return Traffic()
        except OSError as error:
            message = f"the traffic file {path} cannot be read: {error.strerror}; what is in force stays"
            raise UnavailableService(message) from error


def _write(path: Path, traffic: Traffic) -> None:
    DurableFolder(str(path.parent), {}).write(path.name, print_traffic(traffic).encode())


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
