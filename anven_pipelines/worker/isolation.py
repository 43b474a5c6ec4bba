"""An engine that is opened again when it dies, and the search for the request that killed it.

When an engine dies, every request in flight is a suspect. The suspects are asked again, on a new engine, in halves of
halves: a group whose engine lives is cleared, and a request that kills an engine alone is the culprit. A request is
blamed only after two deaths, the second one alone, and only if a new engine then answers a harmless one: an engine
that dies with whatever it is asked is broken itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.errors import AnvenError, InvalidInput
from anven_pipelines.worker.engine import EngineFailed, EngineRequest, answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anven_pipelines.worker.engine import Engine, EngineAnswer

HARMLESS: Final = EngineRequest(messages=({"role": "user", "content": "Hello"},), max_tokens=1)

_log = logging.getLogger(__name__)


class PoisonRequest(InvalidInput):
    """The engine died with this request twice, the second time with nothing else to do."""


class EngineBroken(EngineFailed):
    """Every engine that was opened died, so no request is to blame."""


class _Suspect(NamedTuple):
    """A request in flight when an engine died, and the outcome that somebody waits for."""

    request: EngineRequest
    outcome: asyncio.Future[EngineAnswer]

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


@dataclass
class IsolatingEngine:
    """Answers requests with one engine after another.

    Attributes:
        open_engine: Starts an engine; called again whenever the last one died.
    """

    open_engine: Callable[[], Awaitable[Engine]]
    _engine: Engine | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _in_flight: int = 0
    _none_in_flight: asyncio.Event = field(default_factory=asyncio.Event)
    _suspects: list[_Suspect] = field(default_factory=list)
    _search: asyncio.Task[None] | None = None

    async def opened(self) -> Engine:
        """Return the engine, opened if none is."""
        async with self._opening:
            if self._engine is None:
                self._engine = await self.open_engine()
            return self._engine

    async def answer(self, request: EngineRequest) -> EngineAnswer:
        """Return the whole answer.

        Raises:
            PoisonRequest: see the class.
            EngineBroken: see the class.
            EngineFailed: this answer failed on an engine that lives.
            ContextLengthExceeded, UnsupportedRequest: as `Engine.stream` does.
        """
        while self._search is not None:
            await asyncio.wait([self._search])
        engine = await self.opened()
        self._in_flight += 1
        try:
            return await answer(engine, request)
        except EngineFailed:
            if engine.health().failure is None:
                raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._none_in_flight.set()
        suspect = _Suspect(request, asyncio.get_running_loop().create_future())
        self._suspects.append(suspect)
        if self._search is None:
            self._search = asyncio.create_task(self._settle_suspects())
        return await suspect.outcome

    async def close(self) -> None:
        """Free the engine."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.wait([self._search])
        if self._engine is not None:
            await self._engine.close()

    async def _settle_suspects(self) -> None:
        """Find an outcome for every suspect; meanwhile nothing else is asked."""
        try:
            while self._in_flight:  # they fail with the same engine
                self._none_in_flight.clear()
                await self._none_in_flight.wait()
            _log.warning("the engine died with %d requests in flight; they are asked again", len(self._suspects))
            groups = [list(self._suspects)]
            while groups:
                left = await self._suspects_left(groups.pop())
                middle = len(left) // 2
                groups += [half for half in (left[middle:], left[:middle]) if half]
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            broken = EngineBroken(f"no engine lives long enough to answer: {error}")
            broken.__cause__ = error
            for suspect in self._suspects:
                suspect.fail(broken)
        finally:
            self._suspects, self._search = [], None

    async def _suspects_left(self, group: list[_Suspect]) -> list[_Suspect]:
        """Ask a group of suspects at once; return those that are suspects still, as the engine died with them.

        Raises:
            EngineFailed: it dies with a harmless request too.
        """
        engine = await self._living()
        deaths = [death for death in await asyncio.gather(*(self._ask(engine, each) for each in group)) if death]
        if not deaths:
            return []
        if len(group) > 1:
            return [suspect for suspect in group if not suspect.outcome.done()]
        await answer(await self._living(), HARMLESS)
        group[0].fail(PoisonRequest(f"the engine died with this request, and again with it alone: {deaths[0]}"))
        return []

    async def _living(self) -> Engine:
        """Return the engine, another one if it died."""
        if self._engine is not None and self._engine.health().failure is not None:
            dead, self._engine = self._engine, None
            await dead.close()
        return await self.opened()

    @staticmethod
    async def _ask(engine: Engine, suspect: _Suspect) -> EngineFailed | None:
        """Ask one suspect; return the engine's failure where it died."""
        if suspect.outcome.done():  # nobody waits any more
            return None
        try:
            found = await answer(engine, suspect.request)
        except EngineFailed as death:
            if engine.health().failure is not None:
                return death
            suspect.fail(death)
        except AnvenError as error:
            suspect.fail(error)
        else:
            if not suspect.outcome.done():
                suspect.outcome.set_result(found)
        return None
