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


def ledger_of(workload: str, state: StateStore, artifacts: ArtifactStore, *, items: pl.DataFrame) -> Ledger:
    """Read the ledger of all workloads; a frozen version is read only where its items are asked for.

    What another workload of the same store has seen counts too, so that no holdout is fresh again under another name.

    Args:
        workload: Whose items are known by their id or their cluster. Another workload's are known by id and prompt, as
            two logs may use the same ids.
        state: Holds the ledger.
        artifacts: Holds the versions.
        items: The items in question, with `id` and `source_prompt`.

    Raises:
        TamperedLog: an event is not what was appended, so nobody knows what is burnt.
    """
    state.require_intact()
    opened, verdicts, shown = (
        state.events_under(stream("")) for stream in (holdout_stream, sign_off_stream, shown_stream)
    )
    owners: dict[str, set[str]] = {}
    for event in (*opened, *shown):
        owners.setdefault(event.payload["golden_dataset"], set()).add(event.stream.partition("/")[2])

    @cache
    def names_of(digest: str, split: str) -> frozenset[str]:
        names: set[str] = set()
        for owner in owners.get(digest, {workload}):
            manifest = artifacts.load_manifest("golden_dataset", owner, digest=digest)
            if manifest is None:
                message = (
                    f"golden_dataset {digest} of {owner!r} stands in the holdout's ledger and not in {artifacts.url}: "
                    "what it sealed and what it showed cannot be told; restore it from a backup"
                )
                raise MissingInput(message)
            rows = artifacts.read(manifest).filter(pl.col("split") == split)
            same = rows if owner == workload else rows.join(items, on=["id", "source_prompt"], how="semi")
            names |= {*same["id"], *(same["cluster"] if owner == workload else ())}
        return frozenset(names)

    return Ledger(
        opened=opened,
        verdicts=verdicts,
        shown=shown,
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
