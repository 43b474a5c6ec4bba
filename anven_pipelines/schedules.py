"""Schedules: what runs at night without being asked."""

from collections.abc import Iterator

import dagster as dg

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.regression import serving
from anven_pipelines.domain.sign_off import SIGNED_OFF, sign_off_stream
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.state_store import StateStore

nightly_regression_job = dg.define_asset_job(
    "nightly_regression",
    selection=dg.AssetSelection.assets("production_regression"),
    description="Asks what serves production for the golden set and compares with the scores frozen at sign-off.",
)
drift_job = dg.define_asset_job(
    "drift",
    selection=dg.AssetSelection.assets("traffic_drift"),
    description="Compares the newest calls with the strata of the golden dataset.",
)
drill_job = dg.define_asset_job(
    "drill",
    selection=dg.AssetSelection.assets("rollout_drill"),
    description="Rehearses a workload's roll back on the running gateway, with synthetic traffic.",
)


@dg.schedule(
    job=drill_job,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Rehearses the roll back of each signed-off workload with a section gateway, at 05:00 UTC, in a run of "
    "its own. No stage is left without a passed drill that is fresh enough.",
)
def daily_drill(
    context: dg.ScheduleEvaluationContext, migrations: Migrations, state: StateStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Rehearse the roll back of every signed-off workload behind a gateway, each in a run of its own."""
    day = context.scheduled_execution_time.date().isoformat()
    drilled = [
        name
        for name, declared in sorted(migrations.catalogue().declared.items())
        if declared.migration.gateway is not None
        and "drill" not in declared.migration.rollout.waive
        and state.latest(sign_off_stream(name), SIGNED_OFF) is not None
    ]
    for workload in drilled:
        yield dg.RunRequest(run_key=f"{workload}/{day}", partition_key=workload)
    if not drilled:
        yield dg.SkipReason("no signed-off workload has a section `gateway` and does not waive the drill")


@dg.schedule(
    job=drift_job,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    description="Compares each judged workload's newest calls with its golden dataset, at 06:00 UTC. Turn it on once "
    "logs keep arriving.",
)
def daily_drift(
    context: dg.ScheduleEvaluationContext, migrations: Migrations, state: StateStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Look at the traffic of every workload that has a verdict, after the night's logs have arrived."""
    day = context.scheduled_execution_time.date().isoformat()
    judged = [name for name in sorted(migrations.catalogue().declared) if state.latest(sign_off_stream(name))]
    for workload in judged:
        yield dg.RunRequest(run_key=f"{workload}/{day}", partition_key=workload)
    if not judged:
        yield dg.SkipReason("no workload has a verdict yet")


@dg.schedule(
    job=nightly_regression_job,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    description="Asks what serves production for the golden set of each signed-off workload, at 02:00 UTC, and "
    "compares with the scores frozen at sign-off. Turn it on once something serves production.",
)
def nightly_regression(
    context: dg.ScheduleEvaluationContext, migrations: Migrations, state: StateStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Compare every signed-off workload with its frozen baseline; say why the others are left out."""
    night = context.scheduled_execution_time.date().isoformat()
    catalogue = migrations.catalogue()
    left_out = list(catalogue.broken.values())
    asked = 0
    for workload, declared in sorted(catalogue.declared.items()):
        if state.latest(sign_off_stream(workload), SIGNED_OFF) is None:
            left_out.append(f"{workload}: not signed off yet")
            continue
        try:
            serving(declared.migration)
        except InvalidInput as error:
            left_out.append(str(error))
            continue
        asked += 1
        yield dg.RunRequest(
            run_key=f"{workload}/{night}",
            partition_key=workload,
            run_config={"ops": {"production_regression": {"config": {"epoch": night}}}},
            tags={"anven/night": night},
        )
    for reason in left_out:
        context.log.info("left out: %s", reason)
    if not asked:
        yield dg.SkipReason("\n".join(left_out) or f"no migration file in {migrations.folder}")
