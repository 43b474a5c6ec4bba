"""What mirrored requests have spent today: kept in a file, so that no restart forgets it and workers share one cap."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    from anven_pipelines.spec_gateway import Shadow

_log = logging.getLogger("anven.gateway")

_RECORD: Final = 128
"""Bytes of the record, always written whole and by one call: a killed worker leaves the old one or the new one."""


_AGAIN_S: Final = 0.001
"""After what time a record is tried once more that another worker holds, which is for some ten microseconds."""


class Right(NamedTuple):
    """The right to one mirrored request.

    Attributes:
        day: Day (UTC) that it counts for.
        usd: What it may cost at most, which stands as spent until it is known.
    """

    day: date
    usd: float


class _Spent(NamedTuple):
    day: str
    calls: int
    usd: float


class Purse:
    """What a workload's mirrored requests may spend in a day (UTC)."""

    def __init__(self, limits: Shadow, file: Path) -> None:
        """Go on with what the file says was spent.

        Args:
            limits: Of a day, and of this worker at once.
            file: Shared by the workers of one machine; made with its folder when the first request is mirrored.
        """
        self._limits = limits
        self._file = file
        self._problem: str | None = None
        self._owed: dict[str, float] = {}
        """USD to be added to the record of each day; below 0 where a request cost less than its bound."""
        self.in_flight = 0

    def take(self, today: date, most_usd: float = 0.0) -> Right | None:
        """Take the right to one more request; None where a cap is reached, or what was spent cannot be kept.

        Args:
            today: The day (UTC).
            most_usd: What it may cost at most. A worker that is killed before it knows has spent so much.
        """
        if self.in_flight >= self._limits.at_once:
            return None
        try:
            with self._opened() as file:
                spent = self._settled(file, today)
                if spent.day != today.isoformat():
                    spent = _Spent(today.isoformat(), 0, 0.0)
                if self._is_empty(spent):
                    return None
                _write(file, spent._replace(calls=spent.calls + 1, usd=spent.usd + most_usd))
        except BlockingIOError:  # other workers are at it: no request waits for longer
            return None
        except OSError as error:
            self._tell(f"{type(error).__name__}: {error.strerror}")
            return None
        self._tell(None)
        self.in_flight += 1
        return Right(today, most_usd)

    def give_back(self, right: Right, usd: float) -> None:
        """Take down that a request has ended, and what it cost, or may have cost where that is not known.

        Where the record is held by others or cannot be written, it is taken down with the next request that can; what
        it may have cost at most stands as spent until then.
        """
        self.in_flight -= 1
        day = right.day.isoformat()
        self._owed[day] = self._owed.get(day, 0.0) + usd - right.usd
        with suppress(OSError), self._opened() as file:
            self._settled(file, right.day)

    def _settled(self, file: int, today: date) -> _Spent:
        """Return the record after what is owed of its day was added; an earlier day's counts no more."""
        spent = self._read(file, today)
        if owed := self._owed.get(spent.day, 0.0):
            spent = spent._replace(usd=max(0.0, spent.usd + owed))
            _write(file, spent)
        self._owed = {day: owed for day, owed in self._owed.items() if day > spent.day}
        return spent

    def _is_empty(self, spent: _Spent) -> bool:
        limits = self._limits
        is_spent = limits.usd_per_day is not None and spent.usd >= limits.usd_per_day
        return is_spent or spent.calls >= limits.calls_per_day

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the file for this worker alone; its lock goes with it, however the worker ends."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_AGAIN_S)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
        finally:
            os.close(file)

    def _read(self, file: int, today: date) -> _Spent:
        """Return the record; one that cannot be read may have been anything of today's, up to the caps."""
        text, day = os.pread(file, _RECORD, 0), today.isoformat()
        if not text:
            return _Spent(day, 0, 0.0)
        try:
            found = json.loads(text)
            spent = _Spent(str(found["day"]), int(found["calls"]), float(found["usd"]))
            if not (spent.calls >= 0 and 0 <= spent.usd < math.inf):
                raise ValueError  # noqa: TRY301 - the same as one that is torn
        except (ValueError, KeyError, TypeError, OverflowError):
            return _Spent(day, self._limits.calls_per_day, self._limits.usd_per_day or 0.0)
        return spent

    def _tell(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.error("%s cannot be kept (%s); nothing is mirrored until it can", self._file, problem)
        self._problem = problem


def _write(file: int, spent: _Spent) -> None:
    os.pwrite(file, json.dumps(spent._asdict()).ljust(_RECORD - 1).encode() + b"\n", 0)
