"""What `anven drill` does: rehearses a roll back, and tells MLflow of it as the Dagster asset does."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.tracking import StepRecord, step_key, step_tags
from anven_pipelines.migrate import of_kind, prepared, tracking_of
from anven_pipelines.resources.drills import Drills

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.drill import DrillResult

_NAME = "rollout_drill"


def rehearse(workload: str, *, home: Path, url: str | None, who: str | None) -> DrillResult:
    """Rehearse a workload's roll back.

    Args:
        workload: Its name.
        home: Folder of local state.
        url: Of the gateway, where it is not the deployment's.
        who: Who does it; the user of this machine where None.

    Raises:
        InvalidInput: the workload, the key or the gateway is not what it has to be.
        UnavailableService: the gateway, the state store or the traffic file does not answer.
    """
    started = datetime.now(UTC)
    with prepared(home) as definitions:
        found = of_kind(definitions, "drills", Drills).rehearse(workload, who=who or getpass.getuser(), url=url)
        tracking_of(definitions).record(_record(workload, found, started))
    return found


def show_drill(workload: str, found: DrillResult, console: Console) -> None:
    """Print how it went, and what it cost."""
    colour = "green" if found.passed else "red"
    console.print(f"[bold]{workload}[/bold]  [{colour}]{'passed' if found.passed else 'failed'}[/{colour}]")
    console.print(f"  {found.words}", highlight=False, markup=False, soft_wrap=True)
    for worker, seconds in found.workers.items():
        told = "was not seen to follow" if seconds is None else f"followed after {seconds:.2f} s"
        console.print(f"  worker {worker} {told}", highlight=False, markup=False)
    cost = "cost unknown: a price is not declared" if found.cost_usd is None else f"{found.cost_usd:.5f} USD"
    tokens = sum(each["input"] + each["output"] for each in found.tokens.values())
    late = f"{found.late} answers of the target begun after the roll back"
    console.print(f"  {found.requests} requests, {tokens:,} tokens, {cost}; {late}", highlight=False)


def _record(workload: str, found: DrillResult, started: datetime) -> StepRecord:
    run = f"drill-{started.isoformat()}"
    return StepRecord(
        key=step_key(run_id=run, asset=_NAME, partition=workload),
        experiment=f"anven/{workload}",
        name=_NAME,
        started=started,
        ended=datetime.now(UTC),
        status="FINISHED",
        tags=step_tags(run_id=run, asset=_NAME, workload=workload),
        params={"limit_s": found.limit_s},
        metrics={"passed": float(found.passed), "seconds": found.seconds, "requests": float(found.requests)},
        documents={"drill.json": canonical_json(found.to_json())},
    )
