"""The Kubernetes Job that answers a batch: how a deployment runs it, and the object it becomes.

Field names and meanings: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, Field

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.spec_values import Duration, Section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTAINER: Final = "worker"
JOB_URI: Final = "anven.dev/job"
WORKLOAD: Final = "anven.dev/workload"
SETTINGS: Final = "anven.dev/settings"
BAD_INPUT: Final = 2
"""The worker's exit status where no other attempt could do the job."""
_QUEUE: Final = "kueue.x-k8s.io/queue-name"
_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_SECRET: Final = re.compile(
    r"(?i)(^|_)(secrets?|tokens?|pass|passw(or)?d|pwd|credentials?|(api)?keys?|sas|connection_string)(_|$)"
)
_WITH_PASSWORD: Final = re.compile(r"://[^/\s]*:[^/\s]*@")
_PATHS: Final = frozenset({"GOOGLE_APPLICATION_CREDENTIALS", "AWS_WEB_IDENTITY_TOKEN_FILE"})  # where one is, not what


def _no_secret(environment: dict[str, str]) -> dict[str, str]:
    named = sorted(
        name
        for name, value in environment.items()
        if (_SECRET.search(name) and name not in _PATHS) or _WITH_PASSWORD.search(value)
    )
    if named:
        message = (
            f"{', '.join(named)} would stand in the manifest for all to read; put the values into a Secret, name it "
            "under `secrets`, or give the service account the right to read the store"
        )
        raise ValueError(message)
    return environment


class ModelCache(Section):
    """A volume that keeps model weights between jobs."""

    claim: str = Field(pattern=_NAME)
    """Name of the PersistentVolumeClaim."""
    path: str = Field(default="/models", pattern=r"^/.+$")
    """Where it is mounted."""


class GpuJobSettings(Section):
    """How a deployment runs batches on Kubernetes; one YAML file, which `ANVEN_GPU_JOB` names."""

    image: str = Field(min_length=1)
    """Image of the worker; by its digest, or another one may run under the same name tomorrow."""
    namespace: str = Field(default="default", pattern=_NAME)
    """Where the Job is created; the namespace must exist."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    python: str = "python3"
    """The image's interpreter with the worker."""
    service_account: str | None = Field(default=None, pattern=_NAME)
    """Whose rights the pods have, such as those to read and write the object store."""
    secrets: list[str] = Field(default_factory=list)
    """Secrets whose entries become environment variables of the worker."""
    env: Annotated[dict[str, str], AfterValidator(_no_secret)] = Field(default_factory=dict)
    """Other environment variables; nothing secret."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the nodes call a GPU."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes with the right GPU."""
    tolerations: list[dict[str, Any]] = Field(
        default_factory=lambda: [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    )
    requests: dict[str, str] = Field(default_factory=lambda: {"cpu": "4", "memory": "16Gi"})
    """CPU and memory that a pod is given; its GPUs are those of the model."""
    limits: dict[str, str] = Field(default_factory=dict)
    """Most CPU and memory that a pod may take."""
    shared_memory: str | None = "8Gi"
    """Size of /dev/shm, through which the processes of one engine talk."""
    model_cache: ModelCache | None = None
    volumes: list[dict[str, Any]] = Field(default_factory=list)
    """More volumes, in Kubernetes' own form."""
    volume_mounts: list[dict[str, Any]] = Field(default_factory=list)
    """Where they are mounted, in Kubernetes' own form."""
    run_as_user: int | None = Field(default=10001, ge=1)
    """Numeric user of the container; with null the image's own, root included."""
    priority_class: str | None = Field(default=None, pattern=_NAME)
    queue: str | None = Field(default=None, pattern=_NAME)
    """Kueue's LocalQueue, which starts the Job when its quota allows."""
    deadline: Duration = Field(default=timedelta(hours=12), json_schema_extra={"default": "12h"})
    """Longest life of the Job, all retries included; what is answered by then is kept."""
    pending: Duration = Field(default=timedelta(minutes=20), json_schema_extra={"default": "20m"})
    """Longest wait for the first pod to run; the queue's own waiting is not counted."""
    retries: int = Field(default=6, ge=0)
    """Restarts of each index; evictions are not counted where the cluster can tell them apart.

    A request that kills its pod is found within 2 + ALONE_DEATHS of `domain.suspects`, five restarts, and one is left
    for another mishap. The cluster waits 10 s before the first, each time twice as long: five minutes before the fifth.
    """
    keep_for: Duration = Field(
        default=timedelta(hours=1), ge=timedelta(seconds=30), json_schema_extra={"default": "1h"}
    )
    """How long an ended Job can be looked at before the cluster removes it."""


class Work(NamedTuple):
    """What a Job is to do.

    Attributes:
        key: Work key of the batch.
        store: Where the answers go; the same work for another store is another Job.
        workload: Whose batch it is.
        arguments: The worker's command line after its module.
        pods: Into how many shares the batch is cut.
        gpus: GPUs of one pod.
        drain_s: Seconds that answers in flight get after SIGTERM.
    """

    key: str
    store: str
    workload: str
    arguments: Sequence[str]
    pods: int = 1
    gpus: int = 0
    drain_s: float = 20.0

    @property
    def job_name(self) -> str:
        """The same for the same work, so that a step that starts again finds the Job of the one before."""
        return f"anven-{digest_of([self.key, self.store])[:24]}"

    @property
    def is_indexed(self) -> bool:
        """Whether the batch is cut; a single pod needs no index, and clusters before 1.24 have none."""
        return self.pods > 1


def job_of(settings: GpuJobSettings, work: Work, *, job_uri: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the Job as the API takes it.

    Args:
        settings: The deployment's.
        work: What is to be done.
        job_uri: The worker's job file, for people who look at the object.
        environment: Variables of this run, such as those through which the worker's messages come back.
    """
    name = work.job_name
    labels = {"app.kubernetes.io/name": "anven-worker", "app.kubernetes.io/managed-by": "anven-pipelines"}
    queue = {_QUEUE: settings.queue} if settings.queue else {}
    indexed = (
        {"completionMode": "Indexed", "backoffLimitPerIndex": settings.retries}
        if work.is_indexed
        else {"backoffLimit": settings.retries}
    )
    spec = {
        "completions": work.pods,
        "parallelism": work.pods,
        **indexed,
        "activeDeadlineSeconds": int(settings.deadline.total_seconds()),
        "ttlSecondsAfterFinished": int(settings.keep_for.total_seconds()),
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [BAD_INPUT]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": labels}, "spec": _pod(settings, work, environment)},
        **({"suspend": True} if settings.queue else {}),
    }
    annotations = {
        JOB_URI: job_uri,
        WORKLOAD: work.workload,
        SETTINGS: digest_of(settings.model_dump(mode="json")),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels | queue, "annotations": annotations},
        "spec": spec,
    }


def lacking(wanted: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Compare a Job with what the cluster made of it: an older one drops what it does not know without a word.

    Returns:
        Why it cannot be used, and what to know of it otherwise; None for nothing.
    """
    spec, kept = wanted["spec"], made["spec"]
    if spec["completions"] > 1 and kept.get("completionMode") != "Indexed":
        return "this cluster knows no Indexed Jobs (Kubernetes 1.24 has them); set `target.pods: 1`", None
    if spec.get("suspend") and "suspend" not in kept:
        return "this cluster cannot hold a Job back (Kubernetes 1.24 can); leave `queue` out", None
    if "backoffLimitPerIndex" in spec and "backoffLimitPerIndex" not in kept:
        return None, "this cluster counts `retries` for the whole Job, not for each index (Kubernetes 1.29 does)"
    return None, None


def _pod(settings: GpuJobSettings, work: Work, environment: Mapping[str, str]) -> dict[str, Any]:
    user = settings.run_as_user
    optional = {
        "serviceAccountName": settings.service_account,
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
        "priorityClassName": settings.priority_class,
        "securityContext": {
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user} if user else {}),
        },
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,  # the worker never asks the cluster
        "terminationGracePeriodSeconds": int(work.drain_s) + 15,
        "containers": [_container(settings, work, environment)],
        "volumes": _volumes(settings),
        **{name: value for name, value in optional.items() if value},
    }


def _container(settings: GpuJobSettings, work: Work, environment: Mapping[str, str]) -> dict[str, Any]:
    gpus = {settings.gpu_resource: str(work.gpus)} if work.gpus else {}
    cache = {"ANVEN_MODEL_CACHE": settings.model_cache.path} if settings.model_cache else {}
    variables = {**cache, **settings.env, **environment}
    mounts = [
        *settings.volume_mounts,
        *([{"name": "shared-memory", "mountPath": "/dev/shm"}] if settings.shared_memory else []),  # noqa: S108 - a mount
        *([{"name": "model-cache", "mountPath": settings.model_cache.path}] if settings.model_cache else []),
    ]
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [settings.python, "-m", "anven_pipelines.worker"],
        "args": [*work.arguments, "--indexes", str(work.pods)],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "envFrom": [{"secretRef": {"name": name}} for name in settings.secrets],
        "resources": {"requests": settings.requests | gpus, "limits": settings.limits | gpus},
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _volumes(settings: GpuJobSettings) -> list[dict[str, Any]]:
    memory = {"medium": "Memory", "sizeLimit": settings.shared_memory}
    claim = settings.model_cache and {"claimName": settings.model_cache.claim}
    return [
        *settings.volumes,
        *([{"name": "shared-memory", "emptyDir": memory}] if settings.shared_memory else []),
        *([{"name": "model-cache", "persistentVolumeClaim": claim}] if claim else []),
    ]
