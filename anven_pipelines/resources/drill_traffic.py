"""A drill's synthetic traffic: few short requests through the real gateway, and what its workers say of themselves.

Each request takes a connection of its own, so that a balancer or the kernel spreads them over all workers.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from anven_pipelines.domain.drill import MAX_TOKENS, Asked, Sighting
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.traffic import drill_of
from anven_pipelines.gateway.client_side import DRILL_HEADER
from anven_pipelines.gateway.metrics import ALIVE_S

if TYPE_CHECKING:
    from types import TracebackType

PACE_S: Final = 0.1
"""Seconds from one synthetic request to the next; a slow one is not waited for."""
LISTEN_S: Final = 0.05
"""Seconds between two questions for a worker's state, which cost no model anything."""

_AT_ONCE: Final = 16
_ANSWER_S: Final = 30.0
_STATUS_S: Final = 5.0
_REFUSED: Final = (400, 401, 403)
_TEXT: Final = "This request rehearses a rollback. Answer with OK."


class DrillTraffic:
    """Asks and listens in threads of its own until the block ends.

    Attributes:
        asked: Requests that have ended.
        heard: What workers said of the drill's route.
        living: When each worker was last heard, and which ones it named as living.
    """

    def __init__(self, url: str, key: str, workload: str) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: Base of the gateway, without `/v1`.
            key: Its key.
            workload: Whose roll back is rehearsed.
        """
        self.asked: list[Asked] = []
        self.heard: list[Sighting] = []
        self.living: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._url = url.rstrip("/")
        self._model = drill_of(workload)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
            timeout=_ANSWER_S,
        )
        self._numbers = itertools.count(1)
        self._budget = 0
        self._begun = 0
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="anven-drill")
        self._threads = [
            threading.Thread(target=run, name=f"anven-drill-{name}", daemon=True)
            for name, run in (("asks", self._keep_asking), ("listens", self._keep_listening))
        ]

    def __enter__(self) -> Self:
        """Begin to listen; requests are asked as far as `allow` lets them."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Ask nothing more, and wait for the answers that are due unless something went wrong."""
        self._stop(wait=kind is None)
        self._client.close()

    def allow(self, requests: int) -> None:
        """Let so many requests be asked from now on, and no more."""
        self._budget = self._begun + requests

    def finish(self) -> None:
        """Ask nothing more, and wait for the answers that are due."""
        self._stop(wait=True)

    def all_living(self) -> frozenset[str]:
        """Return every worker that was named as living in the last seconds."""
        now_s = time.monotonic()
        return frozenset(
            name for at_s, names in list(self.living.values()) if now_s - at_s <= ALIVE_S for name in names
        )

    def require_served(self) -> None:
        """Ask the gateway once whether it can be drilled.

        Raises:
            InvalidInput: the key is refused, or the gateway does not know the drill.
            UnavailableService: it does not answer.
        """
        where = f"the gateway at {self._url}"
        try:
            answer = self._client.get(f"{self._url}/anven/status", timeout=_STATUS_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = (
                f"{where} does not answer ({type(error).__name__}: {error}); start it with `anven gateway`, or name "
                "another with --url or ANVEN_GATEWAY_URL"
            )
            raise UnavailableService(message) from error
        if answer.status_code in _REFUSED:
            message = (
                f"{where} refuses the key in ANVEN_GATEWAY_KEY ({answer.status_code}); the one that it was started "
                "with is needed"
            )
            raise InvalidInput(message)
        found = _json(answer)
        if answer.status_code != httpx.codes.OK or "worker" not in found:
            message = f"{where} answers with {answer.status_code}, and not as `anven gateway` does; check --url"
            raise UnavailableService(message)
        if self._model not in found.get("workloads", ()):
            served = [name for name in found.get("workloads", ()) if not name.endswith(drill_of(""))]
            message = (
                f"{where} serves no {self._model!r}, only {', '.join(served) or 'nothing'} and their drills; restart "
                "it with the migration file: `anven gateway`"
            )
            raise InvalidInput(message)

    def _stop(self, *, wait: bool) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(_STATUS_S)
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _keep_asking(self) -> None:
        while not self._stopping.wait(PACE_S):
            if self._begun < self._budget:
                self._begun += 1
                self._pool.submit(self._ask)

    def _keep_listening(self) -> None:
        while not self._stopping.wait(LISTEN_S):
            begun_s = time.monotonic()
            try:
                found = _json(self._client.get(f"{self._url}/anven/status", timeout=_STATUS_S))
                worker, route = str(found["worker"]), found["routes"].get(self._model, {})
                living = tuple(map(str, found["workers"]))
                self.heard.append(Sighting(begun_s, worker, int(route.get("generation", 0))))
            except (httpx.HTTPError, LookupError, TypeError, ValueError, AttributeError):
                continue  # who is not heard has not followed
            self.living[worker] = (begun_s, living)

    def _ask(self) -> None:
        body = {
            "model": self._model,
            "user": f"drill-{next(self._numbers)}",
            "messages": [{"role": "user", "content": _TEXT}],
            "max_tokens": MAX_TOKENS,
        }
        begun_s = time.monotonic()
        try:
            answer = self._client.post(f"{self._url}/v1/chat/completions", json=body, headers={DRILL_HEADER: "1"})
            self.asked.append(_asked(begun_s, answer))
        except httpx.HTTPError as error:
            self.asked.append(Asked(begun_s, problem=f"{type(error).__name__}: {error}"))


def _asked(begun_s: float, answer: httpx.Response) -> Asked:
    found = _json(answer)
    if answer.status_code != httpx.codes.OK:
        return Asked(begun_s, problem=f"{answer.status_code}: {answer.text[:200]}")
    try:
        told = json.loads(answer.headers[DRILL_HEADER])
        seen = Sighting(begun_s, told["worker"], told["generation"], told["served"])
    except (LookupError, TypeError, ValueError):
        return Asked(begun_s, problem=f"the answer lacks the header {DRILL_HEADER}: something between removes it")
    usage = found.get("usage") or {}
    return Asked(begun_s, seen, None, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
