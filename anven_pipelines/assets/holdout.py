"""The ledger of a workload's holdouts, as the assets and the command line read it."""

from functools import cache

import polars as pl

from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.ground_truth import changed_truths, explain_stale_verdict
from anven_pipelines.domain.holdout import Ledger, holdout_stream
from anven_pipelines.domain.sign_off import sign_off_stream
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.state_store import StateStore


def ledger_of(workload: str, state: StateStore, artifacts: ArtifactStore) -> Ledger:
    """Read the ledger; a frozen version is read only where its items are asked for.

    Raises:
        TamperedLog: an event is not what was appended, so nobody knows what is burnt.
    """
    state.require_intact()

    @cache
    def sealed_of(digest: str) -> frozenset[str]:
        manifest = artifacts.load_manifest("golden_dataset", workload, digest=digest)
        if manifest is None:
            message = (
                f"golden_dataset {digest} of {workload!r} stands in the holdout's ledger and not in {artifacts.url}: "
                "what it sealed cannot be told; restore it from a backup"
            )
            raise MissingInput(message)
        sealed = artifacts.read(manifest).filter(pl.col("split") == "sealed")
        return frozenset([*sealed["id"], *sealed["cluster"]])

    return Ledger(state.events(holdout_stream(workload)), state.events(sign_off_stream(workload)), sealed_of)


def stale_verdict(workload: str, rows: pl.DataFrame, state: StateStore, artifacts: ArtifactStore) -> str | None:
    """Say that the latest verdict rests on ground truths that have changed since; None where it does not.

    Args:
        workload: Whose verdict it is.
        rows: GOLDEN rows as they are now.
        state: Where the verdicts stand.
        artifacts: Where the version lies that it rests on.
    """
    verdict = state.latest(sign_off_stream(workload))
    if verdict is None:
        return None
    signed = artifacts.load_manifest("golden_dataset", workload, digest=verdict.payload["golden_dataset"])
    if signed is None:
        return None
    return explain_stale_verdict(verdict, changed_truths(artifacts.read(signed), rows))
