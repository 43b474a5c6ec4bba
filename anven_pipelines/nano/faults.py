"""Faults that a demonstration asks a server for: shown in its help and its health, off unless asked for."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.worker.engine import EngineRequest

REGRESSED_TEMPERATURE: Final = 2.0
_HASH_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and for which share of the requests.

    Whether a request is hit depends on its content and the seed alone, so that a demonstration can be repeated.

    Attributes:
        errors: Share of requests that are answered with HTTP 500.
        delay_ms: Milliseconds that every answer waits before its first token.
        regress: Share of requests whose tokens are drawn at a high temperature, so that the answers are the model's
            own and really worse.
        seed: Chooses other requests.
    """

    errors: float = 0.0
    delay_ms: float = 0.0
    regress: float = 0.0
    seed: int = 0

    def hits_with_error(self, content: Mapping[str, Any]) -> bool:
        """Say whether the request is to be answered with an error."""
        return self._draw("errors", content) < self.errors

    def regressed(self, request: EngineRequest, content: Mapping[str, Any]) -> EngineRequest:
        """Return the request, drawn at a high temperature where it is to be answered worse."""
        draw = self._draw("regress", content)
        if draw >= self.regress:
            return request
        seed = request.sampling.seed if request.sampling.seed is not None else int(draw * 2**32)
        worse = replace(request.sampling, temperature=REGRESSED_TEMPERATURE, top_p=1.0, top_k=0, seed=seed)
        return replace(request, sampling=worse)

    def shown(self) -> dict[str, float]:
        """Return the faults that are on."""
        return {name: value for name, value in asdict(self).items() if value and name != "seed"}

    @classmethod
    def read(cls, found: object) -> Faults:
        """Return the faults that a JSON object asks for; what it leaves out is off.

        Raises:
            InvalidInput: it is none, has an unknown name, or a number that is out of range.
        """
        most = {"errors": 1.0, "delay_ms": math.inf, "regress": 1.0, "seed": math.inf}
        if not isinstance(found, dict) or set(found) - {each.name for each in fields(cls)}:
            message = f"faults are {found!r}; an object with {', '.join(most)} is needed"
            raise InvalidInput(message)
        for name, value in found.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value) and 0 <= value <= most[name]):
                message = f"the fault {name} is {value!r}; a finite number from 0 to {most[name]:g} is needed"
                raise InvalidInput(message)
        return cls(**found)

    def _draw(self, fault: str, content: Mapping[str, Any]) -> float:
        """Return a number in [0, 1) that follows from the request."""
        key = f"{self.seed}:{fault}:{json.dumps(content, sort_keys=True)}"
        digest = hashlib.sha256(key.encode()).digest()[:_HASH_BYTES]
        return float(int.from_bytes(digest) / (1 << 8 * _HASH_BYTES))
