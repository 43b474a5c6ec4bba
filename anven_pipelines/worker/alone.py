"""One process of this machine at a time."""

from __future__ import annotations

import errno
import fcntl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import UnavailableService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOOK_AGAIN_S: Final = 0.2
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@contextmanager
def alone(lock: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a file's lock, which ends with this process, however this process ends.

    Args:
        lock: The file; it stays, and what it holds means nothing.
        waiting: Called once where another process holds it.

    Raises:
        UnavailableService: the file's volume has no locks.
    """
    with lock.open("w") as held:
        waits = False
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waits:
                    waiting()
                waits = True
                time.sleep(_LOOK_AGAIN_S)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                message = (
                    f"{lock} cannot be locked ({error.strerror}), and nothing else keeps two workers apart; mount its "
                    "volume with file locks (NFS needs its lock service), or name a folder on another one"
                )
                raise UnavailableService(message) from error
        yield
