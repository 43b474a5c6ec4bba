"""The launcher: a worker that dies is started again, and goes on where it was."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.nano.models import model_folder
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchAnswers, BatchInference, together
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec_target import JobTarget, NanoTarget
from anven_pipelines.worker.engines import LocalModel
from anven_pipelines.worker.job import VllmSettings
from anven_pipelines.worker.weight_sources import ModelCaches
from anven_pipelines.worker.weights import Weights
from tests.fakes.kubernetes_cluster import kubernetes_cluster
from tests.worker_jobs import REPOSITORY, questions

if TYPE_CHECKING:
    from anven_pipelines.domain.inference import CompletionRequest
    from anven_pipelines.spec_target import BatchTarget

NANO = NanoTarget(engine="nano", model="anven-nano")
FOLDER = model_folder("anven-nano")


def a_job(**changes: object) -> JobTarget:
    declared = {
        "engine": "vllm-job",
        "model": "m",
        "weights": str(FOLDER),
        "digest": Weights.in_folder(FOLDER).digest(),
        "licence": "Apache-2.0",
    }
    return JobTarget.model_validate(declared | changes)


def answered(
    store: Path, target: BatchTarget, requests: list[CompletionRequest], *, python: str = ""
) -> tuple[BatchAnswers, list[str]]:
    """Answer within a run; return what came of it and what the run's log says."""
    found: list[BatchAnswers] = []

    # No annotations: they are strings here, and Dagster would look for them at the top of the module.
    @dg.asset(required_resource_keys={"batch_inference"})
    def batch(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see above
        found.append(context.resources.batch_inference.answer(context, target, requests, key="k"))
        return dg.MaterializeResult()

    artifacts = ArtifactStore(url=str(store))
    launcher = BatchInference(artifacts=artifacts, llm_client=LlmClient(), worker_python=python, drain_s=5.0)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([batch], resources={"batch_inference": launcher}, instance=instance)
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    return found[0], said


def test_a_killed_worker_is_started_again_and_asks_what_is_left(tmp_path: Path) -> None:
    requests = questions(900)
    killer = threading.Thread(target=kill_first_worker, args=[tmp_path])
    killer.start()
    (answers, figures), said = answered(tmp_path, NANO, requests)
    killer.join()
    assert answers["item_id"].to_list() == [request.item_id for request in requests]
    assert set(answers["status"]) == {"answered"}
    assert figures["rows"] == 900
    assert any("the worker ended with signal 9 in attempt 1 of 3" in each for each in said)
    kept = ArtifactStore(url=str(tmp_path)).checkpoint(ANSWERS, "k").load()
    assert kept.height - 900 <= 32 + 16  # asked twice: what was in flight, and one part


def test_a_request_that_kills_the_worker_costs_deaths_but_no_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f'shift 2; cd {REPOSITORY}; exec {sys.executable} -m tests.fakes.deadly_worker "$@"'
    monkeypatch.setattr(sys, "executable", script(tmp_path, run))
    requests = questions(40)
    requests[7].messages[-1]["content"] += " deadly"
    (answers, figures), said = answered(tmp_path / "store", NANO, requests)
    assert answers["item_id"].to_list() == [request.item_id for request in requests]
    assert answers.filter(answers["status"] == "failed")["item_id"].to_list() == [requests[7].item_id]
    assert (figures["rows"], figures["answered"], figures["failed"]) == (40, 39, 1)
    assert sum("signal 9 in attempt 1 of 3" in each for each in said) == 1
    searches = [each for each in said if "in search of a request that kills it" in each]
    assert [each.split(", death ")[1].partition(":")[0] for each in searches] == [
        f"{death} of at most 12" for death in (1, 2, 3, 4)
    ]


def test_a_search_does_not_go_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anven_pipelines.resources.subprocess_launcher.SEARCHES", 2)
    python = script(tmp_path, "echo died >&2; kill -9 $$")
    monkeypatch.setattr("anven_pipelines.worker.asking.SearchDeaths.any_more", lambda _: True)
    with pytest.raises(UnavailableService, match=r"signal 9 in each of 3 attempts"):
        answered(tmp_path / "store", a_job(), questions(1), python=python)
    (log,) = (tmp_path / "store").glob("jobs/*.log")
    assert log.read_text().split() == ["died"] * (2 + 3)


def test_a_worker_that_does_nothing_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(UnavailableService, match="says that it is done, and 3 of 3 requests have neither"):
        answered(tmp_path / "store", a_job(), questions(3), python="/bin/true")


def test_an_empty_batch_starts_no_worker(tmp_path: Path) -> None:
    (answers, figures), _ = answered(tmp_path, a_job(), [], python="/nowhere")
    assert answers.is_empty()
    assert figures == {}


def test_a_worker_that_always_dies_is_given_up_with_what_it_said(tmp_path: Path) -> None:
    python = script(tmp_path, "echo 'CUDA out of memory' >&2; exit 1")
    with pytest.raises(UnavailableService, match=r"status 1 in each of 3 attempts.*CUDA out of memory"):
        answered(tmp_path / "store", a_job(), questions(1), python=python)


def test_a_job_that_cannot_be_done_is_not_tried_again(tmp_path: Path) -> None:
    python = script(tmp_path, "echo tried >> $0.log; echo 'worker: no such model' >&2; exit 2")
    with pytest.raises(InvalidInput, match="no such model"):
        answered(tmp_path / "store", a_job(), questions(1), python=python)
    assert Path(f"{python}.log").read_text() == "tried\n"


def test_the_workers_environment_sees_this_package_and_none_of_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/the/users/own")
    python = script(tmp_path, 'echo "seen: $PYTHONPATH" $(ls "${PYTHONPATH%%:*}") >&2; exit 2')
    with pytest.raises(InvalidInput, match=r"seen: /\S+:/the/users/own anven_pipelines \(see"):
        answered(tmp_path / "store", a_job(), questions(1), python=python)


def test_without_an_environment_of_vllm_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="set ANVEN_WORKER_PYTHON to its python"):
        answered(tmp_path, a_job(), questions(1))


@pytest.mark.parametrize(
    ("python", "changes", "message"),
    [
        ("", {}, "set ANVEN_WORKER_PYTHON"),
        ("/nowhere/python", {}, "does not run"),
        ("/bin/true", {}, "is no Python"),
        (sys.executable, {}, "lacks vllm; install"),
        (sys.executable, {"weights": "/nowhere"}, "holds no model"),
        (sys.executable, {"weights": "memory://nowhere/x"}, "memory://nowhere/x does not exist"),
        (sys.executable, {"weights": "hf://anven/m", "revision": "0" * 40}, "is not in the Hugging Face cache"),
        (sys.executable, {"weights": "oci:///nowhere"}, "no OCI image layout"),
        (sys.executable, {"gpu_memory_gib": 0.001}, "does not fit"),
        (sys.executable, {"max_model_len": 1 << 20}, "max_model_len is 1,048,576; config.json of m allows"),
        (sys.executable, {"quantization": "awqq"}, "quantization is 'awqq'"),
    ],
    ids=[
        "unset",
        "no python",
        "no Python",
        "no vllm",
        "no weights",
        "no store",
        "no snapshot",
        "no layout",
        "no room",
        "too long",
        "no such method",
    ],
)
def test_what_a_job_lacks_is_found_before_anything_is_spent(
    tmp_path: Path, python: str, changes: dict[str, object], message: str
) -> None:
    launcher = BatchInference(artifacts=ArtifactStore(url=str(tmp_path)), llm_client=LlmClient(), worker_python=python)
    launcher.require_runnable(NANO)
    with pytest.raises(InvalidInput, match=message):
        launcher.require_runnable(a_job(**changes))


def test_a_worker_looks_itself_before_an_engine_takes_a_gpu(tmp_path: Path) -> None:
    model = LocalModel(VllmSettings(target=a_job(max_model_len=1 << 20)))
    with pytest.raises(InvalidInput, match="max_model_len is 1,048,576"):
        model.fetch(ModelCaches(tmp_path, tmp_path), lambda _: None)


def script(folder: Path, text: str) -> str:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def kill_first_worker(store: Path) -> None:
    """Kill the worker of that store once it has kept something."""
    deadline = time.monotonic() + 100
    while not list(store.glob("checkpoints/*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(store).encode() in words and b"anven_pipelines.worker" in words:
            os.kill(int(file.parent.name), signal.SIGKILL)


def on_cluster(store: Path, file: Path) -> BatchInference:
    return BatchInference(artifacts=ArtifactStore(url=str(store)), llm_client=LlmClient(), gpu_job=str(file))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "ANVEN_GPU_JOB names .* which cannot be read"),
        ("image: [", r"gpu-job.yaml: line 1, column 9 is not readable as YAML"),
        ("", "gpu-job.yaml: the file is empty; a mapping with `image` is needed"),
        (
            "namespace: anven",
            r"gpu-job.yaml: image is missing; a value is needed\n\(k8s/gpu-job.yaml is an example with every field\)",
        ),
        (
            "{image: a, retries: -1, colour: red}",
            r"yaml: retries is -1; at least 0 is needed\n.*yaml: colour is unknown; known here: image, namespace",
        ),
        (
            "{image: a, namespace: A_B, image_pull_policy: Sometimes}",
            r"namespace is 'A_B'; text of the form .* is needed\n.*image_pull_policy is 'Sometimes'; one of 'Always', ",
        ),
        ("{image: a, deadline: 10}", "deadline is 10; a duration with its unit is needed, such as 500ms"),
        ("{image: a, env: {HF_TOKEN: hidden}}", "env is a mapping of HF_TOKEN; HF_TOKEN would stand in the manifest"),
        ("{image: a, env: {HF_TOKEN: 12345}}", r"env.HF_TOKEN is \*\*\*; text is needed"),
        ("{image: a, model_cache: weights}", "model_cache is 'weights'; a mapping is needed"),
        ("image: a", "a folder of this machine, and the pods of .* do not see it"),
    ],
    ids=[
        "no file",
        "no yaml",
        "empty",
        "no image",
        "two problems",
        "two kinds of text",
        "no unit",
        "a secret",
        "a secret that is no text",
        "no mapping",
        "store not shared",
    ],
)
def test_what_a_cluster_lacks_is_found_before_anything_is_spent(
    tmp_path: Path, written: str | None, message: str
) -> None:
    file = tmp_path / "gpu-job.yaml"
    if written is not None:
        file.write_text(written)
    with pytest.raises(InvalidInput, match=message) as caught:
        on_cluster(tmp_path, file).require_runnable(NANO)
    assert not any(word in str(caught.value) for word in ("hidden", "12345", "Input should"))


def test_a_cluster_that_does_not_answer_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu-job.yaml"
    file.write_text(f"{{image: a, volume_mounts: [{{name: a, mountPath: {tmp_path}}}]}}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="no credentials for a Kubernetes cluster"):
        on_cluster(tmp_path, file).require_runnable(NANO)
    with kubernetes_cluster(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        on_cluster(tmp_path, file).require_runnable(NANO)
        cluster.is_down = True
        with pytest.raises(UnavailableService, match="503"):
            on_cluster(tmp_path, file).require_runnable(NANO)
    with pytest.raises(UnavailableService, match="does not answer"):
        on_cluster(tmp_path, file).require_runnable(NANO)


@pytest.mark.parametrize(
    ("told", "pods", "came_of_it"),
    [
        (0, 1, {}),
        (2, 1, {"rows": 10}),
        (3, 3, {"rows": 30, "seconds": 2.0}),
        (2, 3, {"told": "2 times by 3 pods"}),
        (4, 3, {"told": "4 times by 3 pods"}),
    ],
    ids=["nobody told", "a pod that started again", "all told", "one output is lost", "a Job that was made again"],
)
def test_figures_are_added_up_where_each_pod_told_once(told: int, pods: int, came_of_it: dict[str, object]) -> None:
    one = {"rows": 10, "answered": 9, "failed": 1, "tokens": 5, "seconds": 2.0}
    found = together([one] * told, pods=pods)
    assert came_of_it.items() <= found.items()
    assert pods == 1 or ("rows" in found) == (told == pods)
