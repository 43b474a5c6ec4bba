"""All that Dagster loads: assets, checks, schedules, sensors and a deployment's resources."""

import dagster as dg

from anven_pipelines.assets import (
    cost,
    drift,
    drill,
    evaluation,
    golden,
    inference,
    inventory,
    load,
    power_plan,
    prompts,
    regression,
    request_log,
    rollout,
    sign_off,
)
from anven_pipelines.jobs import rollout_act
from anven_pipelines.resources.deployments import deployment_name, resources, step_executor
from anven_pipelines.schedules import (
    daily_drift,
    daily_drill,
    drift_job,
    drill_job,
    nightly_regression,
    nightly_regression_job,
)
from anven_pipelines.sensors.log_arrival import declared_partitions, log_arrival, request_log_job
from anven_pipelines.sensors.notices import rollout_notices, rollout_notices_job
from anven_pipelines.sensors.online_judge import online_judge, online_judge_job
from anven_pipelines.sensors.rollout import rollout as rollout_sensor
from anven_pipelines.sensors.rollout import rollout_step_job
from anven_pipelines.sensors.rollout_tracking import rollout_tracking, rollout_tracking_job

MODULES = [
    request_log,
    inventory,
    power_plan,
    golden,
    prompts,
    inference,
    load,
    evaluation,
    cost,
    sign_off,
    regression,
    drift,
    rollout,
    drill,
]

migration_job = dg.define_asset_job(
    "migration",
    selection=dg.AssetSelection.assets("power_plan").downstream()
    - dg.AssetSelection.assets("load_benchmark", "production_regression", "traffic_drift", "rollout_status"),
    description="A workload's chain from the power plan to the verdict.",
)


@dg.definitions
def definitions() -> dg.Definitions:
    """Return the definitions of the deployment that ANVEN_DEPLOYMENT names."""
    deployment = deployment_name()
    return dg.Definitions(
        assets=dg.load_assets_from_modules(MODULES),
        jobs=[
            migration_job,
            nightly_regression_job,
            request_log_job,
            drift_job,
            drill_job,
            rollout_step_job,
            rollout_act,
            rollout_notices_job,
            rollout_tracking_job,
            online_judge_job,
        ],
        schedules=[nightly_regression, daily_drift, daily_drill],
        sensors=[declared_partitions, log_arrival, rollout_sensor, rollout_notices, rollout_tracking, online_judge],
        resources=resources(deployment),
        executor=step_executor(deployment),
    )
