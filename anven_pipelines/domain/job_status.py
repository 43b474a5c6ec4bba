"""What the objects of a running Kubernetes Job say: how it ended, what its pods do, and what they wait for.

Everything is read from the API's own JSON form, so that it holds for a recorded object as for a live one. States and
reasons: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from anven_pipelines.domain.gpu_job import BAD_INPUT, CONTAINER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INDEX: Final = "batch.kubernetes.io/job-completion-index"
_OUT_OF_MEMORY: Final = "it took more memory than `limits.memory` of the deployment's settings"
_NEVER_HEALS: Final = frozenset({"ErrImageNeverPull", "InvalidImageName"})
_MAY_HEAL: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_KILLED: Final = 128
"""A container that a signal ended has this plus the signal as its exit status."""


class Ended(NamedTuple):
    """How a Job ended, and why where it failed."""

    outcome: Literal["complete", "failed"]
    reason: str = ""


def ended(job: Mapping[str, Any]) -> Ended | None:
    """Return how the Job ended; None while it may still run."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition["type"] == "Complete":
            return Ended("complete")
        if condition["type"] == "Failed":
            said = [condition.get("reason"), condition.get("message")]
            return Ended("failed", ": ".join(each for each in said if each) or "the cluster gives no reason")
    return None


def is_going(thing: Mapping[str, Any]) -> bool:
    """Tell whether it is being deleted."""
    return bool(thing["metadata"].get("deletionTimestamp"))


def is_queued(job: Mapping[str, Any]) -> bool:
    """Tell whether a queue holds the Job back."""
    return bool(job.get("spec", {}).get("suspend"))


def phase(pod: Mapping[str, Any]) -> str:
    """Return Pending, Running, Succeeded, Failed or Unknown."""
    return str(pod.get("status", {}).get("phase") or "Pending")


def pod_name(pod: Mapping[str, Any]) -> str:
    """Return a pod's name, with its index where it has one."""
    index = (pod["metadata"].get("annotations") or {}).get(INDEX)
    return f"pod {pod['metadata']['name']}" + (f" (index {index})" if index is not None else "")


def describe(pod: Mapping[str, Any]) -> str:
    """Say in a line what a pod does, what it waits for, or how it ended."""
    status, name = pod.get("status", {}), pod_name(pod)
    state = phase(pod)
    if state == "Succeeded":
        return f"{name} is done"
    if state == "Failed":
        return f"{name} failed: {_failure(pod)}"
    if is_going(pod):
        return f"{name} is being deleted{_disruption(pod)}"
    if status.get("reason") == "NodeLost" or state == "Unknown":
        return f"{name} is lost with its node {pod['spec'].get('nodeName')}"
    if state == "Running":
        return f"{name} runs on {pod['spec'].get('nodeName')}"
    return f"{name} waits: {waiting_for(pod)}"


def waiting_for(pod: Mapping[str, Any]) -> str:
    """Say what a pending pod waits for: a place, in the scheduler's words, or its container."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason')}: {condition.get('message')}"
    waiting = _waiting(pod)
    if waiting.get("reason"):
        said = ": ".join(each for each in (waiting["reason"], waiting.get("message")) if each)
        heals = "; it may heal, so the kubelet tries again" if waiting["reason"] in _MAY_HEAL else ""
        return said + heals
    return "the scheduler has not looked at it yet"


def cannot_start(pods: Sequence[Mapping[str, Any]]) -> str | None:
    """Say in the kubelet's words why a pod will never run, however long it waits; None where none is known to."""
    hopeless = (pod for pod in pods if phase(pod) == "Pending" and _waiting(pod).get("reason") in _NEVER_HEALS)
    return next((describe(pod) for pod in hopeless), None)


def exit_status(pod: Mapping[str, Any]) -> int | None:
    """Return with what the worker ended; None where it runs, or never ran."""
    terminated = _terminated(pod)
    return None if terminated is None else int(terminated["exitCode"])


def refused(pods: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what a worker said that found its job impossible; None if none did."""
    for pod in pods:
        if exit_status(pod) == BAD_INPUT and phase(pod) == "Failed":
            return _said(pod) or "the worker gave no reason"
    return None


def is_active(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod may still ask: it has not ended, as far as the cluster knows."""
    return phase(pod) not in {"Succeeded", "Failed"}


def what_holds_it_up(pods: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> str | None:
    """Say what the Job waits for while no pod of it runs; None where one runs, or all have ended.

    Args:
        pods: All pods of the Job.
        warnings: What the cluster said of the Job itself, the newest last.
    """
    if any(phase(pod) == "Running" for pod in pods):
        return None
    waiting = [describe(pod) for pod in pods if phase(pod) == "Pending"]
    if waiting or pods:
        return "; ".join(waiting) or None
    return warnings[-1] if warnings else "the cluster has made no pod for it yet"


def failures(pods: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each pod that failed why."""
    return (describe(pod) for pod in pods if phase(pod) == "Failed")


def _failure(pod: Mapping[str, Any]) -> str:
    status = pod["status"]
    if status.get("reason"):  # Evicted, DeadlineExceeded, NodeShutdown: the kubelet ended it
        return f"{status['reason']}: {status.get('message', '')}".rstrip(": ")
    terminated = _terminated(pod)
    if terminated is None:
        return f"its container never ran{_disruption(pod)}"
    if terminated.get("reason") == "OOMKilled":
        return f"OOMKilled: {_OUT_OF_MEMORY}"
    code = int(terminated["exitCode"])
    how = f"signal {code - _KILLED}" if code > _KILLED else f"status {code}"
    said = _said(pod)
    return f"{how}{_disruption(pod)}" + (f": {said}" if said else "")


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in pod.get("status", {}).get("containerStatuses") or []:
        if container["name"] == CONTAINER:
            found: Mapping[str, Any] | None = (container.get("state") or {}).get("terminated")
            return found
    return None


def _waiting(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the kubelet says of a container that has not started."""
    states = [each.get("state") or {} for each in pod.get("status", {}).get("containerStatuses") or []]
    return next((state["waiting"] for state in states if state.get("waiting")), {})


def _disruption(pod: Mapping[str, Any]) -> str:
    """Say why the cluster took the pod away, where it says so."""
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition.get("status") == "True":
            return f" ({condition.get('reason')}: {condition.get('message')})"
    return ""


def _said(pod: Mapping[str, Any]) -> str:
    """Return the last lines of the worker's output that the kubelet kept, without the messages to Dagster."""
    text = str((_terminated(pod) or {}).get("message") or "")
    lines = [line for line in text.splitlines() if line.strip() and "__dagster_pipes_version" not in line]
    return " | ".join(lines[-4:])
