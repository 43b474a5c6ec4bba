"""A worker whose engine takes the whole process with it, as the kernel does when memory runs out.

    python -m tests.fakes.deadly_worker ARGUMENTS_OF_THE_WORKER

It echoes the last message, $ECHO_S seconds later. One that holds "deadly" kills this process with -9; with $ALL_DEADLY
every one does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.nano.models import weights_digest
from anven_pipelines.worker import __main__ as worker
from anven_pipelines.worker import engines
from anven_pipelines.worker.engine import EngineChunk, EngineHealth, EngineRequest, ModelFacts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

ECHO_S: Final = float(os.environ.get("ECHO_S", "0.005"))
ALL_DEADLY: Final = bool(os.environ.get("ALL_DEADLY"))


class DeadlyEngine:
    """See the module."""

    facts = ModelFacts(
        model="anven-nano",
        engine="deadly",
        weights=weights_digest("anven-nano"),
        precision="float32",
        context_length=64,
        features=frozenset(),
    )

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Echo, or die."""
        text = str(request.messages[-1]["content"])
        await asyncio.sleep(ECHO_S)
        if ALL_DEADLY or "deadly" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        yield EngineChunk(text=text, output_tokens=1, prompt_tokens=1, elapsed_ms=1.0, finish_reason="stop")

    def health(self) -> EngineHealth:
        """Say that it lives."""
        return EngineHealth(0, 0, None)

    async def close(self) -> None:
        """Free nothing."""


def main(arguments: Sequence[str]) -> int:
    """Run the worker with this engine."""

    def load(*_: Any) -> DeadlyEngine:
        return DeadlyEngine()

    engines.load = load  # type: ignore[assignment]  # names its parameters otherwise
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
