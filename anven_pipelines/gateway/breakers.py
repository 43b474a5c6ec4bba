"""The breakers of this worker's workloads, how one that tripped elsewhere trips here too, and what outlives a restart.

Each worker counts for itself. The one that trips writes `breaker-<workload>.json`; the others read it within a fifth of
a second. It outlives a restart: the workload stays with legacy until its route gets a new generation. So do legacy's
times, `reference-<workload>.json`: once the target has all of the traffic, no new ones come. They are of the model and
the server that stand beside them: by the times of a faster legacy an equal target would be slow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.domain.breaker import (
    LEAST_REFERENCE,
    REFERENCE,
    BreakerState,
    Observation,
    observe,
    renewed,
    slow_above_ms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anven_pipelines.domain.breaker import BreakerLimits
    from anven_pipelines.domain.traffic import Route

_log = logging.getLogger("anven.gateway")

KEEP_S: Final = 10.0
"""How often legacy's times are written, where they have changed: what a killed worker loses of them."""


class Upstream(NamedTuple):
    """Where legacy is asked: its model as LiteLLM names it, and its base URL, None for the provider's own."""

    model: str | None = None
    url: str | None = None


class Breakers:
    """State of each workload's breaker."""

    def __init__(
        self,
        folder: Path,
        limits: Mapping[str, BreakerLimits],
        *,
        legacy: Mapping[str, Upstream] | None = None,
        changed: Callable[[str, BreakerState], None] = lambda _name, _state: None,
    ) -> None:
        """Start closed, but for what the folder says of earlier trips.

        Args:
            folder: Shared by all workers of the gateway; made where it is missing.
            limits: Workload to what a burst is.
            legacy: Workload to where legacy is asked; times that are kept of another one are left aside.
            changed: Gets a workload and its state when its breaker trips by what this worker saw.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limits = dict(limits)
        self._legacy = {name: (legacy or {}).get(name, Upstream()) for name in limits}
        self._changed = changed
        self._lock = threading.Lock()  # the event loop observes, the traffic thread reads the files
        self._states = {name: BreakerState(generation=0, legacy_ms=self._reference(name)) for name in limits}
        self._kept = {name: state.legacy_ms for name, state in self._states.items()}
        self._kept_s = dict.fromkeys(limits, -math.inf)
        self.refresh()

    def is_open(self, route: Route) -> bool:
        """Return whether the target must not be asked under this route."""
        with self._lock:
            state = renewed(self._states[route.workload], generation=route.generation)
            self._states[route.workload] = state
        return state.tripped is not None

    def observe(self, route: Route, seen: Observation) -> None:
        """Take a request into account, unless its route is no longer in force."""
        with self._lock:
            before = self._states[route.workload]
            if route.generation < before.generation:
                return
            after = observe(renewed(before, generation=route.generation), seen, self._limits[route.workload])
            self._states[route.workload] = after
        if after.tripped and not before.tripped:
            self._trip(route.workload, after)

    def slow_above_ms(self, workload: str, *, stream: bool) -> float | None:
        """Return what the target may take before it is slow; None where nothing says it."""
        return slow_above_ms(self._states[workload], self._limits[workload], stream=stream)

    def reason(self, workload: str) -> str | None:
        """Return why the breaker is open; None where it is closed."""
        return self._states[workload].tripped

    def refresh(self) -> None:
        """Read what other workers, or this one before a restart, have written."""
        for name in self._limits:
            found = self._written(name)
            if found is None:
                continue
            generation, reason = found
            with self._lock:
                state = self._states[name]
                if not state.tripped and generation >= state.generation:
                    self._states[name] = replace(state, generation=generation, tripped=reason)

    def keep_reference(self, now_s: float = math.inf) -> None:
        """Write legacy's times where they have changed, at most every `KEEP_S`; without a time, at once.

        They are not flushed: a file that a power cut tears is none, and writing waits for no disk.
        """
        for name, state in list(self._states.items()):
            plain, streamed = state.legacy_ms
            is_enough = max(len(plain), len(streamed)) >= LEAST_REFERENCE
            if is_enough and state.legacy_ms is not self._kept[name] and now_s - self._kept_s[name] >= KEEP_S:
                self._kept[name], self._kept_s[name] = state.legacy_ms, now_s
                self._write(
                    f"reference-{name}.json", {**self._legacy[name]._asdict(), "plain": plain, "streamed": streamed}
                )

    def _trip(self, workload: str, state: BreakerState) -> None:
        _log.error("breaker of %s tripped: %s; legacy serves all of it", workload, state.tripped)
        self._write(f"breaker-{workload}.json", {"generation": state.generation, "reason": state.tripped})
        self._changed(workload, state)

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        with suppress(OSError):  # a full disk: this worker knows it all the same
            temporary.write_text(json.dumps(content))
            temporary.replace(self._folder / name)

    def _reference(self, workload: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return legacy's times, plain and streamed, as a worker before this one has kept them of the same legacy."""
        try:
            found = json.loads((self._folder / f"reference-{workload}.json").read_text(encoding="utf-8"))
            if Upstream(found["model"], found["url"]) != self._legacy[workload]:
                return (), ()
            plain, streamed = (tuple(map(float, found[kind][-REFERENCE:])) for kind in ("plain", "streamed"))
        except (OSError, ValueError, KeyError, TypeError):
            return (), ()
        return (plain, streamed) if all(0 <= each < math.inf for each in (*plain, *streamed)) else ((), ())

    def _written(self, workload: str) -> tuple[int, str] | None:
        try:
            found = json.loads((self._folder / f"breaker-{workload}.json").read_text(encoding="utf-8"))
            return int(found["generation"]), str(found["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
