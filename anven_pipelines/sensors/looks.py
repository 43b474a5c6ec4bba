"""Looks at several things side by side, each in a thread, and waits for none of them longer than it is given.

Dagster ends a sensor's tick after 60 s (`DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS`) with all that it was about to ask for.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar

AT_ONCE: Final = 16
"""Looks that one tick begins at the same time: each takes connections, of which a database has some hundred."""

T = TypeVar("T")


class Taken(NamedTuple, Generic[T]):
    """What looks found.

    Attributes:
        found: In the order of the names.
        late: Names whose look is still under way, or was not begun; asked for again, they come first.
    """

    found: list[T]
    late: list[str]


class Looks(Generic[T]):
    """Remembers from tick to tick what is under way, so that no name is looked at twice at once.

    A look that is not waited for goes on, and what it finds is taken the next time; one that hangs has a thread of its
    own and is waited for once.
    """

    def __init__(self) -> None:
        """Begin with nothing under way."""
        self._changed = threading.Condition()
        self._begun: dict[str, float] = {}
        self._under_way: set[str] = set()
        self._found: dict[str, T] = {}

    def take(self, names: Iterable[str], look: Callable[[str], T], *, wait_s: float) -> Taken[T]:
        """Look at each name and return what was found by then.

        Args:
            names: What to look at.
            look: Looks at one; it must not raise.
            wait_s: Longest wait.
        """
        deadline, wanted = time.monotonic() + wait_s, list(dict.fromkeys(names))
        with self._changed:
            new = [name for name in wanted if name not in self._under_way and name not in self._found]
            queue = deque(sorted(new, key=lambda name: self._begun.get(name, 0.0)))
        for _ in range(min(len(new), AT_ONCE)):
            threading.Thread(target=self._work, args=(queue, look), name="anven-look", daemon=True).start()
        with self._changed:
            self._changed.wait_for(
                lambda: not queue and self._under_way.isdisjoint(new), timeout=deadline - time.monotonic()
            )
            queue.clear()
            late = [name for name in wanted if name not in self._found]
            return Taken([self._found.pop(name) for name in wanted if name in self._found], late)

    def _work(self, queue: deque[str], look: Callable[[str], T]) -> None:
        while True:
            with self._changed:
                if not queue:
                    return
                name = queue.popleft()
                if name in self._under_way:  # of another tick, which came between
                    continue
                self._under_way.add(name)
                self._begun[name] = time.monotonic()
            try:
                found = look(name)
                with self._changed:
                    self._found[name] = found
            finally:
                with self._changed:
                    self._under_way.discard(name)
                    self._changed.notify_all()
