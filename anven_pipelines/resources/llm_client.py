"""The resource through which a step asks a target's endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import dagster as dg

from anven_pipelines.resources.endpoint import ask_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.resources.answer_batch import Checkpoint, Progress
    from anven_pipelines.spec_target import EndpointTarget


class LlmClient(dg.ConfigurableResource[None]):
    """Asks a target's endpoint; the key is read from the environment variable that the target names."""

    def answer(
        self,
        target: EndpointTarget,
        requests: Sequence[CompletionRequest],
        *,
        checkpoint: Checkpoint,
        progress: Callable[[Progress], None],
    ) -> pl.DataFrame:
        """Do what `ask_endpoint` does, with the key from this process's environment."""
        # The file names a variable so that the key stands in no file; only here is it known which one.
        return ask_endpoint(target, requests, checkpoint=checkpoint, progress=progress, environ=os.environ)
