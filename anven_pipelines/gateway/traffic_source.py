"""The routes in force in this worker: read from the traffic file, at most a quarter of a second behind it.

The whole file is read and compared each time. It is a kilobyte, and neither a coarse clock of the file system, nor a
write of the same length, nor the symbolic links of a mounted ConfigMap can then hide a change.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.traffic import Traffic, accept
from anven_pipelines.domain.traffic_file import STAY, read_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLL_S: Final = 0.2
_LARGEST_BYTES: Final = 2**20

_log = logging.getLogger("anven.gateway")


class TrafficSource:
    """Follows a traffic file; a bad one changes nothing and is reported."""

    def __init__(self, path: Path) -> None:
        """Read the file once; where there is none yet, everything is legacy's.

        Args:
            path: Whoever writes it renames a whole file over it.
        """
        self._path = path
        self._read: bytes | None = None
        self._highest: dict[str, int] = {}
        self._stopping = threading.Event()
        self.traffic = Traffic()
        self.problem: str | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Look at the file; return whether the routes changed."""
        try:
            with self._path.open("rb") as file:
                content = file.read(_LARGEST_BYTES)
        except OSError as error:
            self._read = None  # when it is there again it is read, so that this is told no longer
            self._note(f"{self._path} cannot be read ({error.strerror or error}); the routes in force stay")
            return False
        if content == self._read:
            return False
        self._read = content
        try:
            read = read_whole(content, source=str(self._path))
        except InvalidInput as error:
            self._note(f"{error}; {STAY}")
            return False
        before = self.traffic
        accepted = accept(before, Traffic(read.routes), highest=self._highest, bad=read.bad)
        for name, route in accepted.traffic.routes.items():
            self._highest[name] = max(route.generation, self._highest.get(name, 0))
        self.traffic = accepted.traffic  # one assignment: a request sees the old routes or the new ones
        if read.problem is not None:
            self._note(f"{read.problem}; until it is mended, only routes that give the target less act")
        else:
            self._note("; ".join(accepted.refused) or None)
        return accepted.traffic != before

    def follow(self, also: Callable[[], None]) -> None:
        """Look again and again in a thread of its own, until `stop`.

        Args:
            also: Called with each look, for what is due as often.
        """

        def run() -> None:
            while not self._stopping.wait(POLL_S):
                try:
                    self.refresh()
                    also()
                except Exception as error:  # noqa: BLE001 - without this thread no kill switch acts any more
                    self._note(f"a look at {self._path} failed ({error!r}); the next one comes all the same")

        threading.Thread(target=run, name="anven-traffic", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def _note(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            _log.error("traffic file: %s", problem)
        self.problem = problem
