"""Which request killed the worker, from what its dead workers were asking.

A dead worker cannot say what killed it: a request, or a node that went away. So one death blames nobody. It makes
suspects of the requests that were in flight and have no answer; those are asked again after all others, in GROUPS
groups of which one is in flight at a time. The requests of a group with which another worker dies are asked one by
one, and one that was alone in flight at ALONE_DEATHS more deaths is to blame. Whatever is answered is cleared.

A request that kills every worker thus costs 2 + ALONE_DEATHS of them, whatever the concurrency is.

How often is an innocent one blamed, where workers die by chance, T seconds apart on average, and a request or a group
takes t seconds? Each of the s suspects of a first death has to be in the group that a second one hits, which happens
in t of T, and then to be hit alone ALONE_DEATHS times, in t of T each, or it is answered and cleared: in all at most
s (t / T) ** (1 + ALONE_DEATHS) per first death, which `tests/domain/test_suspects.py` counts. With nodes that go
away once an hour, answers of 30 s and 640 suspects (256 in flight) that is 3e-6 with three deaths alone, and 4e-4 with
two. With kills every 4 s and answers of 50 ms, as `benchmarks/kill_batch.py` deals them to 80 suspects, it is 2e-6
with three and 2e-4 with two, of which a hundred kills would make one in sixty test runs. Hence three.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUPS: Final = 16
"""Into how many groups suspects are cut; an innocent death costs the time of so many answers."""
ALONE_DEATHS: Final = 3
"""Deaths of a worker with a request alone in flight that blame the request; see the module."""


class Death(NamedTuple):
    """What a worker that never ended in order was asking.

    Attributes:
        worker: Names it; each worker dies once.
        asking: Items that may have been in flight, no other was.
        is_search: Whether they were suspects already.
        at: When it last said so, in ISO 8601.
    """

    worker: str
    asking: tuple[str, ...]
    is_search: bool
    at: str


class Turns(NamedTuple):
    """Items in the order in which they are dealt with.

    Attributes:
        blamed: Not to be asked any more, once the engine has proved that it answers something.
        rest: No worker died with them, all at once.
        groups: A worker died with them, each group on its own.
        alone: Each on its own, the least suspect first.
    """

    blamed: list[str]
    rest: list[str]
    groups: list[list[str]]
    alone: list[str]


def turns(pending: Sequence[str], deaths: Sequence[Death]) -> Turns:
    """Sort what is open by how suspect it is; within a sort the order stays.

    Args:
        pending: Items without an answer or a failure.
        deaths: All that is known; items that are not pending count for nothing.
    """
    ever = {item for death in deaths for item in death.asking}
    again = {item for death in deaths for item in death.asking if death.is_search}
    alone = alone_deaths(deaths)
    blamed = [item for item in pending if item in alone and is_to_blame(item, deaths)]
    once = [item for item in pending if item in ever and item not in again]
    size = max(1, -(-len(once) // GROUPS))
    return Turns(
        blamed=blamed,
        rest=[item for item in pending if item not in ever],
        groups=[once[start : start + size] for start in range(0, len(once), size)],
        alone=sorted((item for item in pending if item in again and item not in blamed), key=alone.__getitem__),
    )


def is_to_blame(item: str, deaths: Sequence[Death]) -> bool:
    """Tell whether workers died often enough with it alone, after one that died in the search already."""
    in_search = sum(death.is_search and item in death.asking for death in deaths)
    return alone_deaths(deaths)[item] >= ALONE_DEATHS and in_search > ALONE_DEATHS


def alone_deaths(deaths: Sequence[Death]) -> Counter[str]:
    """Count, for each item, the workers that died while they asked it, a suspect, and nothing else."""
    return Counter(death.asking[0] for death in deaths if death.is_search and len(death.asking) == 1)
