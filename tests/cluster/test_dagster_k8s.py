"""The chain on a real cluster: a pod for the run, a pod for each step, and a Job that a step starts for its batch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg
import pytest
import yaml
from kubernetes import client, config, utils
from kubernetes.client.exceptions import NotFoundException

from anven_pipelines.chain import CHAIN_ASSETS
from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.resources.artifact_store import ArtifactStore
from tests.cluster.places import Place, local_settings, waited
from tests.conftest import TEST_KUBECONFIG
from tests.pipeline.conftest import logged_call

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # 14 pods, one after the other, each loading Dagster

DAY: Final = "2026-10-05"
ITEMS: Final = 160
IN_POD: Final = "/opt/dagster"
LAUNCHER: Final = {"module": "dagster_k8s", "class": "K8sRunLauncher"}
# No daemon empties a queue here.
COORDINATOR: Final = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}


@pytest.fixture
def api() -> Iterator[client.ApiClient]:
    """Reach the cluster, and let pods of the default account make Jobs in their namespace."""
    with config.new_client_from_config(TEST_KUBECONFIG) as found:
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "dagster-edits", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        }
        cleared(found)  # of a test that was killed
        utils.create_from_dict(found, binding)
        yield found
        cleared(found)


def cleared(api: client.ApiClient) -> None:
    """Remove what the test makes, as far as it is there."""
    for delete in (
        partial(client.RbacAuthorizationV1Api(api).delete_namespaced_role_binding, "dagster-edits", "default"),
        partial(client.CoreV1Api(api).delete_namespaced_config_map, "dagster-instance", "default"),
        partial(client.BatchV1Api(api).delete_collection_namespaced_job, "default", propagation_policy="Background"),
    ):
        with contextlib.suppress(NotFoundException):
            delete()


def write_migration(folder: Path) -> None:
    calls = [
        logged_call(at, messages=anven_messages(item), output=item.answer, ground_truth=item.answer)
        for at, item in enumerate(generate("golden", ITEMS, seed=4))
    ]
    (folder / f"log-{DAY}.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    (folder / "migrations").mkdir()
    migration = {
        "workload": "support",
        "legacy": {"model": "legacy-model", "logs": str(folder / f"log-{DAY}.jsonl")},
        "target": {"engine": "nano", "model": "anven-nano"},
        "grading": [{"kind": "exact"}],
        "golden": {"size": "all", "holdout": 1.0, "near_duplicates": "keep"},
        "sign_off": {"quality_margin": 0.3, "waive": ["ttft", "cost", "safety"]},
    }
    (folder / "migrations" / "support.yaml").write_text(yaml.safe_dump(migration))


def instance_settings(place: Place, environment: dict[str, str]) -> str:
    """Return the dagster.yaml of the host and of the pods."""
    wanted = place.settings
    launcher = {
        "service_account_name": "default",
        "job_image": wanted["image"],
        "image_pull_policy": "Never",
        "instance_config_map": "dagster-instance",
        "dagster_home": IN_POD,
        "env_vars": [f"{name}={value}" for name, value in environment.items()],
        "volumes": wanted["volumes"],
        "volume_mounts": wanted["volume_mounts"],
        "load_incluster_config": False,
        "kubeconfig_file": str(place.folder / "kubeconfig"),
    }
    return yaml.safe_dump(
        {
            "storage": {"sqlite": {"base_dir": str(place.folder / "dagster")}},
            "run_coordinator": COORDINATOR,
            "run_launcher": {**LAUNCHER, "config": launcher},
            "telemetry": {"enabled": False},
        }
    )


def dagster(environment: dict[str, str], *words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dagster", *words, "-m", "anven_pipelines.definitions"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]


def test_the_chain_runs_in_pods_to_its_verdict(api: client.ApiClient, tmp_path: Path) -> None:
    place = Place(tmp_path, None, local_settings(tmp_path, real=True))
    write_migration(tmp_path)
    for name in ("host", "home", "dagster"):
        (tmp_path / name).mkdir()
    shared = {
        "ANVEN_HOME": str(tmp_path / "home"),
        "ANVEN_MIGRATIONS": str(tmp_path / "migrations"),
        "ANVEN_GPU_JOB": place.written(),
        "ANVEN_STEP_EXECUTOR": "kubernetes",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **place.settings["env"],
    }
    # Dagster hands the host's settings to the pod of the run, so both reach the cluster by one file.
    shutil.copy(TEST_KUBECONFIG, tmp_path / "kubeconfig")
    settings = instance_settings(place, shared)
    utils.create_from_dict(
        api,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "dagster-instance", "namespace": "default"},
            "data": {"dagster.yaml": settings},
        },
    )
    (tmp_path / "host" / "dagster.yaml").write_text(settings)
    here = shared | {"DAGSTER_HOME": str(tmp_path / "host")}
    with dg.DagsterInstance.from_config(str(tmp_path / "host")) as instance:
        instance.add_dynamic_partitions("workload", ["support"])
        instance.add_dynamic_partitions("log_day", [DAY])
        plain = here | {"ANVEN_STEP_EXECUTOR": "in_process"}
        dagster(plain, "asset", "materialize", "--select", "request_log,rejected_lines", "--partition", DAY)
        dagster(plain, "asset", "materialize", "--select", "workload_inventory")
        dagster(here, "job", "launch", "-j", "migration", "--tags", json.dumps({"dagster/partition": "support"}))
        (run,) = instance.get_runs(dg.RunsFilter(job_name="migration"))

        def ended() -> dg.DagsterRun | None:
            found = instance.get_run_by_id(run.run_id)
            return found if found is not None and found.is_finished else None

        status = waited(ended, "the run does not end", seconds=600).status
        said = [
            entry.user_message or entry.get_dagster_event().message or "" for entry in instance.all_logs(run.run_id)
        ]
    assert status == dg.DagsterRunStatus.SUCCESS, "\n".join(said)
    assert sum("in Kubernetes job" in line for line in said) == len(CHAIN_ASSETS), said
    assert any("created" in line and "job default/anven-" in line for line in said)
    assert any(f"{ITEMS} of {ITEMS} answered, 0 failed" in line for line in said)
    manifest = ArtifactStore(url=str(tmp_path / "home" / "artifacts")).load_manifest("target_answers", "support")
    assert manifest is not None
    assert manifest.rows == ITEMS
