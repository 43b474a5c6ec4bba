"""The resources of each deployment: the same keys everywhere, only their settings differ.

| variable | local | staging and production |
|---|---|---|
| ANVEN_DEPLOYMENT | `local` where absent | `staging` or `production` |
| ANVEN_HOME | folder of everything local, `.anven` where absent | folder for the MLflow outbox |
| DAGSTER_HOME | folder of `dagster.yaml`, `$ANVEN_HOME/dagster` where absent | put k8s/dagster.yaml there |
| ANVEN_MIGRATIONS | folder of migration files, `migrations` where absent | the same |
| ANVEN_ARTIFACTS_URL | `$ANVEN_HOME/artifacts` | needed: an fsspec URL such as s3://bucket/prefix |
| ANVEN_ARTIFACTS_ENDPOINT | unused | endpoint of an S3-compatible store that is not AWS |
| AWS_ENDPOINT_URL | endpoint of logs and answers at s3:// URLs | the same; of artifacts too, where theirs is absent |
| AWS_ACCESS_KEY_ID and the like | credentials for s3:// URLs, in every form that botocore reads | the same |
| ANVEN_STATE_URL | SQLite in `$ANVEN_HOME` | needed: a SQLAlchemy URL of a Postgres database |
| MLFLOW_TRACKING_URI | SQLite in `$ANVEN_HOME` | needed: URL of an MLflow server |
| ANVEN_WORKER_PYTHON | python of the environment with vLLM, for `engine: vllm-job` | the same |
| ANVEN_GPU_JOB | YAML file of the cluster that runs workers as Jobs (k8s/gpu-job.yaml) | the same |
| ANVEN_STEP_EXECUTOR | `in_process` where absent | `multiprocess` where absent; `kubernetes`: a pod for each step |
| ANVEN_PROMPT_OPS_PYTHON | python of an environment with llama-prompt-ops, for the strategy `prompt_ops` | the same |
| ANVEN_MODEL_CACHE | folder of fetched weights, `~/.cache/anven_pipelines/models` where absent | the same |
| HF_HUB_CACHE, HF_HOME | Hugging Face's cache, for weights at hf:// | the same |
| ANVEN_GATEWAY | folder shared with the gateway, `$ANVEN_HOME/gateway` where absent | the same |
| ANVEN_GATEWAY_URL | the gateway, for drills and judges: `http://127.0.0.1:4000` where absent | same: its balancer |
| ANVEN_MLFLOW_UI | link target in asset metadata | the same; MLFLOW_TRACKING_URI where absent |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import dagster as dg

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.drills import Drills
from anven_pipelines.resources.environment import keep_private
from anven_pipelines.resources.gateway import Gateway
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.resources.load_driver import LoadDriver
from anven_pipelines.resources.manifest_io import ManifestIOManager
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.online_judge import OnlineJudges
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.prompt_search import PromptSearch
from anven_pipelines.resources.rollout_tracking import RolloutTracking
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    from collections.abc import Mapping

Deployment = Literal["local", "staging", "production"]

GATEWAY_URL: Final = "http://127.0.0.1:4000"
"""Where `anven gateway` serves unless told otherwise."""
SHARED_SETTINGS: Final = ("ANVEN_ARTIFACTS_URL", "ANVEN_STATE_URL", "MLFLOW_TRACKING_URI")
# A run worker that dies early would stay STARTING for ever without run monitoring; `nux` is Dagster's newsletter form.
# Without threads each sensor waits for the one before it, that of roll backs too.
DAGSTER_SETTINGS: Final = """\
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
sensors:
  use_threads: true
  num_workers: 4
"""


def deployment_name(environment: Mapping[str, str] = os.environ) -> Deployment:
    """Return the deployment that the environment names.

    Raises:
        InvalidInput: ANVEN_DEPLOYMENT is none of the known ones.
    """
    name = environment.get("ANVEN_DEPLOYMENT", "local")
    for known in get_args(Deployment):
        if name == known:
            deployment: Deployment = known
            return deployment
    message = f"ANVEN_DEPLOYMENT is {name!r}; one of {', '.join(get_args(Deployment))} is needed"
    raise InvalidInput(message)


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of everything that a deployment keeps on its own disk."""
    return Path(environment.get("ANVEN_HOME") or ".anven").resolve()


def adopt_home() -> Path:
    """Create the home folder and make it absolute, here and for the processes started from here.

    Dagster keeps its runs there too, unless DAGSTER_HOME says otherwise, so that the command line and the UI
    show the same runs. A variable that is empty counts as unset.
    """
    folder = home()
    dagster_home = Path(os.environ.get("DAGSTER_HOME") or folder / "dagster").resolve()
    dagster_home.mkdir(parents=True, exist_ok=True)
    settings = dagster_home / "dagster.yaml"
    if not settings.exists() and deployment_name() == "local":
        settings.write_text(DAGSTER_SETTINGS, encoding="utf-8")
    migrations = Path(os.environ.get("ANVEN_MIGRATIONS") or "migrations").resolve()
    os.environ.update(ANVEN_HOME=str(folder), DAGSTER_HOME=str(dagster_home), ANVEN_MIGRATIONS=str(migrations))
    keep_private()
    return folder


def step_executor(name: Deployment, environment: Mapping[str, str] = os.environ) -> dg.ExecutorDefinition:
    """Return what runs the steps of a run.

    On one machine a process per step costs more than the step: the sample's two migrations took 108 s so, and 45 s in
    one process each.

    Raises:
        InvalidInput: ANVEN_STEP_EXECUTOR is none of the known ones, or its package is missing.
    """
    wanted = environment.get("ANVEN_STEP_EXECUTOR") or ("in_process" if name == "local" else "multiprocess")
    if wanted == "kubernetes":
        try:
            from dagster_k8s import k8s_job_executor  # noqa: PLC0415 - loads slowly
        except ModuleNotFoundError as error:
            message = "ANVEN_STEP_EXECUTOR is kubernetes, and dagster-k8s is missing; install anven-pipelines[k8s]"
            raise InvalidInput(message) from error
        return k8s_job_executor
    executors = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}
    if wanted not in executors:
        message = f"ANVEN_STEP_EXECUTOR is {wanted!r}; one of in_process, multiprocess and kubernetes is needed"
        raise InvalidInput(message)
    return executors[wanted]


def resources(name: Deployment, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Return the resources of a deployment, by the key under which assets ask for them.

    Nothing is opened here. What a shared deployment needs from the environment is looked up when a run starts,
    so that the definitions load, and can be checked, on any machine.
    """
    shared = name != "local"
    folder = home(environment)
    artifacts = _shared_artifacts(environment) if shared else ArtifactStore(url=str(folder / "artifacts"))
    llm_client, mlflow, judge = LlmClient(), folder / "mlflow", Judge()
    batch_inference = BatchInference(
        artifacts=artifacts,
        llm_client=llm_client,
        worker_python=environment.get("ANVEN_WORKER_PYTHON", ""),
        gpu_job=environment.get("ANVEN_GPU_JOB", ""),
    )
    state = StateStore(url=dg.EnvVar("ANVEN_STATE_URL") if shared else f"sqlite:///{folder / 'state.db'}")
    migrations = Migrations(
        folder=environment.get("ANVEN_MIGRATIONS", "migrations"),
        registry="" if shared else str(folder / "registered"),
    )
    gateway = Path(environment.get("ANVEN_GATEWAY") or folder / "gateway")
    url = environment.get("ANVEN_GATEWAY_URL") or GATEWAY_URL
    rollouts = Rollouts(
        migrations=migrations,
        state=state,
        artifacts=artifacts,
        gateway=Gateway(traffic=str(gateway / "traffic.json")),
        metrics=ProductionMetrics(events=str(gateway / "events"), store=str(gateway / "ingested")),
    )
    tracking = MlflowTracking(
        tracking_uri=dg.EnvVar("MLFLOW_TRACKING_URI") if shared else f"sqlite:///{mlflow / 'mlflow.db'}",
        artifact_root=None if shared else str(mlflow / "artifacts"),
        outbox=str(mlflow / "outbox"),
        ui_url=environment.get("ANVEN_MLFLOW_UI") or (environment.get("MLFLOW_TRACKING_URI") if shared else None),
        deployment=name,
    )
    return {
        "artifacts": artifacts,
        "io_manager": ManifestIOManager(artifacts=artifacts),
        "state": state,
        "tracking": tracking,
        "llm_client": llm_client,
        "batch_inference": batch_inference,
        "prompt_search": PromptSearch(artifacts=artifacts, batch_inference=batch_inference, judge=judge),
        "load_driver": LoadDriver(),
        "judge": judge,
        "migrations": migrations,
        "rollouts": rollouts,
        "rollout_tracking": RolloutTracking(state=state, tracking=tracking, folder=str(mlflow / "rollouts")),
        "notices": Notices(state=state, migrations=migrations, folder=str(gateway / "notices")),
        "drills": Drills(rollouts=rollouts, url=url),
        "judges": OnlineJudges(rollouts=rollouts, judge=judge, url=url, folder=str(gateway / "judged")),
    }


def _shared_artifacts(environment: Mapping[str, str]) -> ArtifactStore:
    endpoint = environment.get("ANVEN_ARTIFACTS_ENDPOINT")
    return ArtifactStore(
        url=dg.EnvVar("ANVEN_ARTIFACTS_URL"), storage_options={"endpoint_url": endpoint} if endpoint else {}
    )


def missing_settings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return what the deployment needs and the environment lacks: variables, and Dagster's own settings.

    Without its settings a shared deployment would silently keep its runs in a SQLite file of this machine.
    """
    if deployment_name(environment) == "local":
        return []
    lacking = [name for name in SHARED_SETTINGS if not environment.get(name)]
    dagster_home = environment.get("DAGSTER_HOME")
    if not dagster_home or not (Path(dagster_home) / "dagster.yaml").exists():
        lacking.append("DAGSTER_HOME with a dagster.yaml (k8s/dagster.yaml is one)")
    return lacking
