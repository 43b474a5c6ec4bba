"""The Job that is created, and what the objects of a running one say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml
from pydantic import ValidationError

from anven_pipelines.domain import job_status
from anven_pipelines.domain.gpu_job import GpuJobSettings, Work, job_of, lacking
from anven_pipelines.domain.job_status import Ended

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = yaml.safe_load((REPOSITORY / "k8s" / "gpu-job.yaml").read_text())
WORK = Work(
    key="0123456789abcdef" * 4, store="s3://a", workload="support", arguments=["--job", "jobs/a.json"], pods=3, gpus=2
)
CURRENT = ("1.33", "1.35", "1.37")


def job(work: Work = WORK, **changes: Any) -> dict[str, Any]:
    settings = GpuJobSettings.model_validate(EXAMPLE | changes)
    return job_of(settings, work, job_uri="jobs/a.json", environment={"DAGSTER_PIPES_CONTEXT": "abc"})


@pytest.mark.parametrize("version", CURRENT)
@pytest.mark.parametrize(
    ("work", "changes"),
    [
        (WORK, {}),
        (WORK._replace(pods=1), {}),
        (WORK, {"queue": "gpus", "priority_class": "batch", "secrets": ["s3"]}),
        (WORK, {"run_as_user": None, "shared_memory": None, "model_cache": None, "service_account": None}),
        (WORK, {"volumes": [{"name": "x", "emptyDir": {}}], "volume_mounts": [{"name": "x", "mountPath": "/x"}]}),
    ],
    ids=["example", "one pod", "queued", "least", "volumes"],
)
def test_the_job_is_one_that_kubernetes_takes(version: str, work: Work, changes: dict[str, Any]) -> None:
    kubernetes_validate.validate(job(work, **changes), version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_noticed() -> None:
    wrong = job()
    wrong["spec"]["backoffLimitPerIndexes"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, CURRENT[0], strict=True)


@pytest.mark.parametrize("thing", list(yaml.safe_load_all((REPOSITORY / "k8s" / "gpu-job-role.yaml").read_text())))
def test_the_role_is_one_that_kubernetes_takes(thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, CURRENT[0], strict=True)


def test_the_example_shows_every_field() -> None:
    assert set(EXAMPLE) == set(GpuJobSettings.model_fields)


def test_each_index_has_its_own_gpus_and_restarts() -> None:
    spec = job()["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimitPerIndex"] == 6
    assert "backoffLimit" not in spec
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["--job", "jobs/a.json", "--indexes", "3"]
    assert (
        container["resources"]["requests"]["nvidia.com/gpu"]
        == container["resources"]["limits"]["nvidia.com/gpu"]
        == "2"
    )
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > WORK.drain_s
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (12 * 3600, 3600)


def test_a_single_pod_needs_no_index() -> None:
    spec = job(WORK._replace(pods=1))["spec"]
    assert "completionMode" not in spec
    assert spec["backoffLimit"] == 6


def test_the_same_work_has_the_same_name_and_other_work_another() -> None:
    assert job()["metadata"]["name"] == job(WORK._replace(pods=1, gpus=8))["metadata"]["name"]
    assert job()["metadata"]["name"] != job(WORK._replace(key="f" * 64))["metadata"]["name"]
    assert job()["metadata"]["name"] != job(WORK._replace(store="s3://b"))["metadata"]["name"]
    assert len(job()["metadata"]["name"]) <= 52  # the names of its pods must stay below 63


def test_pods_run_as_nobody_in_particular_and_know_no_token_of_the_cluster() -> None:
    pod = job()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("aws_access_key_id", "abc"),
        ("HF_TOKEN", "abc"),
        ("OPENAI_API_KEY", "abc"),
        ("DB_PASSWORD", "abc"),
        ("MYSQL_PWD", "abc"),
        ("AZURE_STORAGE_KEY", "abc"),
        ("AZURE_STORAGE_CONNECTION_STRING", "abc"),
        ("AZURE_STORAGE_SAS", "abc"),
        ("HTTPS_PROXY", "http://user:abc@proxy:3128"),
    ],
)
def test_a_credential_in_the_manifest_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name} would stand in the manifest .* under `secrets`"):
        job(env={name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/var/key.json"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HTTPS_PROXY", "http://proxy:3128"),
    ],
)
def test_what_only_sounds_like_one_may_stand_there(name: str, value: str) -> None:
    assert {"name": name, "value": value} in job(env={name: value})["spec"]["template"]["spec"]["containers"][0]["env"]


@pytest.mark.parametrize(
    ("dropped", "needed", "missed"),
    [
        ((), None, None),
        (("completionMode",), "knows no Indexed Jobs", None),
        (("suspend",), "cannot hold a Job back", None),
        (("backoffLimitPerIndex",), None, "counts `retries` for the whole Job"),
    ],
)
def test_what_an_older_cluster_drops_is_noticed(
    dropped: tuple[str, ...], needed: str | None, missed: str | None
) -> None:
    wanted, made = job(queue="gpus"), job(queue="gpus")
    for name in dropped:
        del made["spec"][name]
    for found, said in zip(lacking(wanted, made), (needed, missed), strict=True):
        assert (found is None) == (said is None)
        assert said is None or said in str(found)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image": ""}, "image"),
        ({"retries": -1}, "retries"),
        ({"deadline": "soon"}, "deadline"),
        ({"keep_for": "1s"}, "keep_for"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        job(**changes)


def a_pod(phase: str = "Pending", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": {"phase": phase, **status}}


def terminated(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "worker", "state": {"terminated": {"exitCode": 1} | state}}]


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes: no GPU."}
PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for pod q"}


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (a_pod(), "pod p waits: the scheduler has not looked at it yet"),
        (a_pod(conditions=[UNSCHEDULABLE]), "pod p waits: Unschedulable: 0/5 nodes: no GPU."),
        (
            a_pod(
                containerStatuses=[
                    {"name": "worker", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}
                ]
            ),
            "pod p waits: ErrImagePull: no; it may heal, so the kubelet tries again",
        ),
        (a_pod("Running"), "pod p runs on n1"),
        (a_pod("Succeeded"), "pod p is done"),
        (a_pod("Unknown"), "pod p is lost with its node n1"),
        (a_pod("Running", reason="NodeLost"), "pod p is lost with its node n1"),
        (a_pod("Failed", reason="Evicted", message="low on memory"), "pod p failed: Evicted: low on memory"),
        (
            a_pod("Failed", conditions=[PREEMPTED]),
            "pod p failed: its container never ran (PreemptionByScheduler: for pod q)",
        ),
        (
            a_pod("Failed", containerStatuses=terminated(exitCode=137, reason="OOMKilled")),
            "pod p failed: OOMKilled: it took more memory than `limits.memory` of the deployment's settings",
        ),
        (
            a_pod("Failed", containerStatuses=terminated(exitCode=137), conditions=[PREEMPTED]),
            "pod p failed: signal 9 (PreemptionByScheduler: for pod q)",
        ),
        (
            a_pod("Failed", containerStatuses=terminated(message='{"__dagster_pipes_version": "0.1"}\nno such model')),
            "pod p failed: status 1: no such model",
        ),
    ],
)
def test_a_pod_is_described_in_a_line(pod: dict[str, Any], said: str) -> None:
    assert job_status.describe(pod) == said


def waits(reason: str) -> list[dict[str, Any]]:
    return [{"name": "worker", "state": {"waiting": {"reason": reason, "message": "said so"}}}]


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        ([], None),
        ([a_pod()], None),
        ([a_pod(conditions=[UNSCHEDULABLE])], None),
        ([a_pod(containerStatuses=waits("ContainerCreating"))], None),
        ([a_pod(containerStatuses=waits("ImagePullBackOff"))], None),
        ([a_pod(containerStatuses=waits("ErrImagePull"))], None),
        ([a_pod(containerStatuses=waits("CreateContainerConfigError"))], None),  # its Secret may come
        ([a_pod(containerStatuses=waits("ErrImageNeverPull"))], "pod p waits: ErrImageNeverPull: said so"),
        ([a_pod("Running"), a_pod(containerStatuses=waits("InvalidImageName"))], "pod p waits: InvalidImageName: said"),
        ([a_pod("Failed", containerStatuses=waits("InvalidImageName"))], None),
    ],
)
def test_only_what_no_waiting_can_heal_is_hopeless(pods: list[dict[str, Any]], why: str | None) -> None:
    found = job_status.cannot_start(pods)
    assert (found is None) == (why is None)
    assert str(found).startswith(str(why))


def test_a_pod_that_is_being_deleted_is_told_so() -> None:
    pod = a_pod("Running", conditions=[PREEMPTED])
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert job_status.describe(pod) == "pod p is being deleted (PreemptionByScheduler: for pod q)"


@pytest.mark.parametrize(
    ("conditions", "ended"),
    [
        (None, None),
        ([{"type": "Failed", "status": "False"}], None),
        ([{"type": "FailureTarget", "status": "True"}], None),
        ([{"type": "Complete", "status": "True"}], Ended("complete")),
        ([{"type": "Failed", "status": "True", "reason": "A", "message": "b"}], Ended("failed", "A: b")),
        ([{"type": "Failed", "status": "True"}], Ended("failed", "the cluster gives no reason")),
    ],
)
def test_a_job_has_ended_when_its_condition_says_so(conditions: Any, ended: Ended | None) -> None:
    assert job_status.ended({"status": {"conditions": conditions}}) == ended


@pytest.mark.parametrize(
    ("pods", "warnings", "held"),
    [
        ([], [], "the cluster has made no pod for it yet"),
        ([], ["older", "FailedCreate: exceeded quota"], "FailedCreate: exceeded quota"),
        ([a_pod(conditions=[UNSCHEDULABLE])], [], "pod p waits: Unschedulable: 0/5 nodes: no GPU."),
        ([a_pod(), a_pod("Running")], [], None),
        ([a_pod("Failed")], [], None),
        ([a_pod("Succeeded"), a_pod(conditions=[UNSCHEDULABLE])], [], "pod p waits: Unschedulable: 0/5 nodes: no GPU."),
    ],
)
def test_what_holds_a_job_up_is_told_while_no_pod_runs(pods: list[Any], warnings: list[str], held: str | None) -> None:
    assert job_status.what_holds_it_up(pods, warnings) == held
