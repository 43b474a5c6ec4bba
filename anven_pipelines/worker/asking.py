"""What a worker is asking, durable beside its answers, so that its death can be laid at somebody's door.

Each worker keeps one small file under the work key, named by itself alone: workers share no file, and none can damage
another's word. It names every request that may be in flight, is written before the first of them is asked and removed
when the worker ends in order; what is left in the folder is what dead workers were asking. In the batch it runs ahead
of the questions by a block, so that a write is waited for only where the store is slower than the engine. From SIGTERM
on it names nothing, whatever becomes of the worker then. See `domain.suspects` for what is made of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from anven_pipelines.domain.completion import Failure
from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.domain.suspects import ALONE_DEATHS, Death, alone_deaths, is_to_blame, turns
from anven_pipelines.resources.answer_batch import Asked
from anven_pipelines.resources.durable_folder import path_name
from anven_pipelines.spec_values import Section

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.resources.durable_folder import DurableFolder

MOST_FILES: Final = 64
"""Deaths that are remembered; a request is found within 2 + ALONE_DEATHS of them."""
_FOLDER: Final = "asking"

_log = logging.getLogger(__name__)


class Asking(Section):
    """What a worker's file says."""

    at: str
    """When it was written, in ISO 8601."""
    search: bool
    """Whether workers died with these before."""
    items: list[str]
    """May be in flight; no other item is."""


def deaths(folder: DurableFolder, key: str) -> list[Death]:
    """Return what every worker that is under way, or died, says it asks; the oldest first.

    A file that is no `Asking` says nothing.

    Raises:
        UnavailableService: the store does not answer.
    """
    place = f"{_FOLDER}/{path_name(key)}"
    files = folder.read_all([f"{place}/{name}" for name in folder.names(place) if name.endswith(".json")])
    found = []
    for uri, data in files.items():
        try:
            said = Asking.model_validate_json(data)
        except ValidationError:
            _log.warning("%s is damaged and says nothing", folder.location(uri))
            continue
        name = uri.rsplit("/", 1)[-1].removesuffix(".json")
        found.append(Death(name, tuple(said.items), is_search=said.search, at=said.at))
    return sorted(found, key=lambda death: (death.at, death.worker))


class SearchDeaths:
    """Deaths of workers that asked suspects only: each brings the search for a deadly request nearer to its end."""

    def __init__(self, folder: DurableFolder, key: str) -> None:
        """Take what has happened so far as known."""
        self._folder, self._key = folder, key
        self._seen = self._found()

    def any_more(self) -> bool:
        """Look whether there was one since the last look."""
        found = self._found()
        more = bool(found - self._seen)
        self._seen |= found
        return more

    def _found(self) -> set[str]:
        return {death.worker for death in deaths(self._folder, self._key) if death.is_search and death.asking}


class AskingJournal:
    """The journal of one worker, and the order that the files of dead ones call for."""

    def __init__(
        self, folder: DurableFolder, key: str, *, mine: Collection[str], block: int, say: Callable[[str], None]
    ) -> None:
        """Begin with nothing in flight; nothing is written yet.

        Args:
            folder: The artifact store's folder.
            key: Work key of the batch.
            mine: Items of this worker's share, asked or not.
            block: How many requests the file runs ahead; with as many as are in flight at once it is written once
                while each place of the engine's batch is filled anew.
            say: Is told what a person should know.
        """
        self._folder, self._key, self._mine, self._block, self._say = folder, key, frozenset(mine), block, say
        self._worker = uuid.uuid4().hex
        self._accused: set[str] = set()
        self._open: set[str] = set()
        self._search, self._ahead = False, 0
        self._turn: list[str] = []
        self._places: dict[str, int] = {}
        self._covered = 0
        self._live: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._names_nothing = self._ended = self._written = False

    def turns(self, pending: Sequence[CompletionRequest]) -> Iterator[list[CompletionRequest]]:
        """Cut what is open into turns: all that is above suspicion first, then suspects, the least suspect first."""
        requests = {request.item_id: request for request in pending}
        self._open = set(requests)
        known = self._known()
        found = turns(list(requests), known)
        self._accused = set(found.blamed)
        for item in found.blamed:
            yield self._begun([requests[item]], block=1, search=True)
        if found.rest:
            yield self._begun([requests[item] for item in found.rest], block=self._block, search=False)
        for group in [*found.groups, *([item] for item in found.alone)]:
            yield self._begun([requests[item] for item in group], block=len(group), search=True)
        if not self._open:
            self._forget(known)

    async def asking(self, request: CompletionRequest) -> None:
        """Return when it is durable that the request may be in flight; the accused are not asked yet.

        Raises:
            UnavailableService: it cannot be made so.
        """
        if request.item_id in self._accused:
            return
        place = self._places[request.item_id]
        while place >= self._covered:
            await self._begun_write()
        if self._covered - place <= self._ahead // 2 and self._covered < len(self._turn):
            self._begun_write()

    def asked(self, request: CompletionRequest) -> None:
        """Take in that the request is not in flight any more; the next write leaves it out."""
        self._live.pop(request.item_id, None)
        self._open.discard(request.item_id)

    async def drain(self) -> None:
        """Name nothing from now on."""
        self._names_nothing = True
        if self._written:
            try:
                await asyncio.to_thread(self._write, (), search=False)
            except UnavailableService as error:
                _log.warning("what is being asked cannot be taken back: %s", error)

    def end(self) -> None:
        """Remove the file; where the store does not let us, it names nothing."""
        with self._lock:
            if self._ended or not self._written:
                self._ended = True
                return
            self._ended = True
            try:
                self._folder.remove(self._uri(self._worker))
            except UnavailableService:
                try:
                    self._folder.write(self._uri(self._worker), self._said((), search=False))
                except UnavailableService as error:
                    _log.warning("what is being asked cannot be taken back: %s", error)

    def judging(
        self, ask: Callable[[CompletionRequest], Awaitable[Asked]], *, prove_alive: Callable[[], Awaitable[None]]
    ) -> Callable[[CompletionRequest], Awaitable[Asked]]:
        """Return how to ask with this journal: an accused request fails, if the engine lives and the evidence stands.

        Args:
            ask: Asks the engine.
            prove_alive: Asks the engine something harmless; raises where it dies of that too.
        """

        async def asked(request: CompletionRequest) -> Asked:
            if request.item_id not in self._accused:
                return await ask(request)
            await prove_alive()
            reason = await asyncio.to_thread(self._reason, request.item_id)
            if reason is not None:
                return Asked(Failure("poison", reason), attempts=ALONE_DEATHS)
            self._accused.remove(request.item_id)
            await self.asking(request)
            return await ask(request)

        return asked

    def _known(self) -> list[Death]:
        """Read what others left behind, and clear away what says nothing about anything open.

        The file of another share's worker is left alone: it may live.
        """
        left = [death for death in deaths(self._folder, self._key) if self._mine.issuperset(death.asking)]
        known = [death for death in left if self._open.intersection(death.asking)][-MOST_FILES:]
        self._forget([death for death in left if death not in known])
        if known:
            suspects = self._open.intersection(item for death in known for item in death.asking)
            self._say(
                f"workers before this one died {len(known)} times; {len(suspects):,} requests that were in flight have "
                "no answer and are asked last, in smaller groups"
            )
        return known

    def _forget(self, known: Sequence[Death]) -> None:
        """Remove files that say nothing any more; where the store does not let us, they lie there."""
        for death in known:
            try:
                self._folder.remove(self._uri(death.worker))
            except UnavailableService as error:
                _log.warning("what a dead worker asked stays: %s", error)
                return

    def _reason(self, item: str) -> str | None:
        """Read the evidence afresh: a worker that was cut off and lives has said something else by now."""
        known = deaths(self._folder, self._key)
        if not is_to_blame(item, known):
            return None
        last = max(death.at for death in known if death.is_search and death.asking == (item,))
        return (
            f"the worker died {alone_deaths(known)[item]} times with this request alone in flight, last after {last}; "
            "a harmless one was answered"
        )

    def _begun(self, turn: list[CompletionRequest], *, block: int, search: bool) -> list[CompletionRequest]:
        self._turn = [request.item_id for request in turn]
        self._places = {item: place for place, item in enumerate(self._turn)}
        self._covered, self._search, self._ahead = 0, search, block
        self._live.clear()
        return turn

    def _begun_write(self) -> asyncio.Task[None]:
        """Return the write that is under way; begin one where none is."""
        if self._writing is None:
            covered = min(len(self._turn), self._covered + self._ahead)
            self._live.update(dict.fromkeys(self._turn[self._covered : covered]))
            self._writing = asyncio.create_task(self._cover(covered, tuple(self._live)))
        return self._writing

    async def _cover(self, covered: int, items: tuple[str, ...]) -> None:
        try:
            await asyncio.to_thread(self._write, items, search=self._search)
            self._covered = covered
        finally:
            self._writing = None

    def _write(self, items: Sequence[str], *, search: bool) -> None:
        """Write the file, in a thread; writes come one after another."""
        with self._lock:
            if not self._ended:
                self._written = True
                self._folder.write(
                    self._uri(self._worker), self._said(() if self._names_nothing else items, search=search)
                )

    @staticmethod
    def _said(items: Sequence[str], *, search: bool) -> bytes:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Asking(at=at, search=search, items=list(items)).model_dump_json().encode()

    def _uri(self, worker: str) -> str:
        return f"{_FOLDER}/{path_name(self._key)}/{worker}.json"
