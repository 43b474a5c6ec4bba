"""Two clusters on which the same cases run: the double in tests/fakes, and a real one that KUBECONFIG names."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import dagster as dg

from anven_pipelines.domain.gpu_job import CONTAINER, GpuJobSettings, Work, job_of
from anven_pipelines.resources.kubernetes_api import KubernetesApi
from anven_pipelines.resources.kubernetes_launcher import KubernetesLauncher
from anven_pipelines.resources.pod_logs import PodLogs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.kubernetes_cluster import KubernetesCluster

REPOSITORY: Final = Path(__file__).parents[2]
NAMESPACE: Final = "default"
PATIENCE_S: Final = 90.0

Found = TypeVar("Found")


@dataclass
class Place:
    """A cluster with a folder that its pods see.

    Attributes:
        folder: Seen by the test and by the pods under the same path.
        double: The cluster's state, where it is the double.
        settings: How Jobs run there.
    """

    folder: Path
    double: KubernetesCluster | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def api(self) -> KubernetesApi:
        return KubernetesApi(NAMESPACE, container=CONTAINER)

    def settings_with(self, **changes: Any) -> GpuJobSettings:
        return GpuJobSettings.model_validate(self.settings | changes)

    def written(self, **changes: Any) -> str:
        """Write the deployment's file and return its path."""
        file = self.folder / "gpu-job.yaml"
        file.write_text(self.settings_with(**changes).model_dump_json())
        return str(file)

    def script(self, text: str) -> str:
        """Write a Python program that stands in for the worker's interpreter, and return its path."""
        file = self.folder / "script"
        file.write_text(f"#!{sys.executable}\nimport sys, time\n{text}\n")
        file.chmod(0o755)
        return str(file)

    def asked(self, verb: str, resource: str) -> int:
        """Count what the double was asked."""
        assert self.double is not None
        return self.double.asked.count((verb, resource))

    def delete_job(self, work: Work) -> None:
        job = self.api.job(work.job_name)
        assert job is not None
        self.api.delete_job(job)

    def delete_pod(self, name: str) -> None:
        self.api._core.delete_namespaced_pod(name, NAMESPACE) if self.double is None else self.double.delete_pod(name)

    def evict(self, name: str) -> None:
        if self.double is not None:
            self.double.evict(name)
            return
        body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        self.api._core.create_namespaced_pod_eviction(name, NAMESPACE, body)

    def when_running(self, work: Work) -> dict[str, Any]:
        """Wait for a pod of the work that runs."""
        return waited(
            lambda: next((pod for pod in self.pods(work) if pod["status"].get("phase") == "Running"), None),
            f"no pod of {work.job_name} runs",
        )

    def pods(self, work: Work) -> list[dict[str, Any]]:
        return self.api.pods(work.job_name).items


def local_settings(folder: Path, *, real: bool) -> dict[str, Any]:
    """Return settings under which pods run this checkout."""
    paths = {"checkout": REPOSITORY, "folder": folder}
    volumes = {
        "volumes": [{"name": name, "hostPath": {"path": str(path)}} for name, path in paths.items()],
        "volume_mounts": [{"name": name, "mountPath": str(path)} for name, path in paths.items()],
    }
    return {
        "image": "localhost/python:test",
        "image_pull_policy": "Never",
        "python": sys.executable,
        "env": {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        "requests": {"cpu": "100m", "memory": "100Mi"},
        "shared_memory": "64Mi",
        "run_as_user": None,
        "pending": "60s",
        "keep_for": "10m",
        **(volumes if real else {"volume_mounts": volumes["volume_mounts"]}),
    }


def launched(
    settings: GpuJobSettings, work: Work, *, api: KubernetesApi | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the launcher within a run; return the workers' figures and what the run's log says."""
    found: list[list[dict[str, Any]]] = []

    # No annotations: they are strings here, and Dagster would look for them at the top of the module.
    @dg.asset
    def batch(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see above
        found.append(KubernetesLauncher(settings, api).launch(context, work, job_uri="jobs/x.json"))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        try:
            dg.materialize([batch], instance=instance)
        except BaseException as error:
            error.add_note("\n".join(said(instance)))
            raise
        return found[0], said(instance)


def said(instance: dg.DagsterInstance) -> list[str]:
    (run,) = instance.get_runs()
    return [entry.user_message for entry in instance.all_logs(run.run_id)]


def created(place: Place, settings: GpuJobSettings, work: Work) -> None:
    """Create the Job as a step does that is killed right afterwards, with the variables of its Pipes session."""

    @dg.asset
    def batch(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster reads annotations
        with dg.open_pipes_session(context.op_execution_context, dg.PipesEnvContextInjector(), PodLogs()) as session:
            job = job_of(settings, work, job_uri="jobs/x.json", environment=session.get_bootstrap_env_vars())
            assert place.api.create_job(job) is not None
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([batch], instance=instance)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while the body runs; what goes wrong there goes wrong here."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        try:
            yield
        finally:
            done.result(PATIENCE_S)


def until(flag: Path) -> str:
    """Return a script that runs until a file is there."""
    return f"import os\nwhile not os.path.exists({str(flag)!r}):\n    time.sleep(0.05)"


def waited(look: Callable[[], Found | None], problem: str, *, seconds: float = PATIENCE_S) -> Found:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(problem)
