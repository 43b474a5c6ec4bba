"""The ledger of a workload's holdouts, as the assets and the command line read it."""

from datetime import UTC, datetime
from functools import cache, partial

import polars as pl

from anven_pipelines.domain.errors import MissingInput
from anven_pipelines.domain.ground_truth import changed_truths, explain_stale_verdict
from anven_pipelines.domain.holdout import ASKED, SHOWN, Ledger, holdout_stream, shown_stream
from anven_pipelines.domain.manifest import Manifest
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
    def names_of(digest: str, split: str) -> frozenset[str]:
        manifest = artifacts.load_manifest("golden_dataset", workload, digest=digest)
        if manifest is None:
            message = (
                f"golden_dataset {digest} of {workload!r} stands in the holdout's ledger and not in {artifacts.url}: "
                "what it sealed and what it showed cannot be told; restore it from a backup"
            )
            raise MissingInput(message)
        rows = artifacts.read(manifest).filter(pl.col("split") == split)
        return frozenset([*rows["id"], *rows["cluster"]])

    return Ledger(
        opened=state.events(holdout_stream(workload)),
        verdicts=state.events(sign_off_stream(workload)),
        shown=state.events(shown_stream(workload)),
        sealed_of=partial(names_of, split="sealed"),
        open_of=partial(names_of, split="open"),
    )


def record_shown(golden: Manifest, workload: str, state: StateStore) -> None:
    """Write into the ledger that the open items of a version are about to be shown; once for each draw."""
    draw = golden.inputs.get("draw")
    state.append(
        stream=shown_stream(workload),
        kind=SHOWN,
        key=f"{golden.digest}/{draw}",
        payload={"golden_dataset": golden.digest, "draw": draw},
        now=datetime.now(UTC),
    )


def record_asked(golden: Manifest, workload: str, state: StateStore, *, night: str, model: str) -> None:
    """Write into the ledger that production is asked all items of a version; once a night for each model."""
    state.append(
        stream=holdout_stream(workload),
        kind=ASKED,
        key=f"regression/{night}/{golden.digest}/{model}",
        payload={"golden_dataset": golden.digest, "night": night, "model": model},
        now=datetime.now(UTC),
    )


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
