"""Batches as Kubernetes Jobs: the same cases on the double and on a real cluster."""

from __future__ import annotations

import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.gpu_job import Work
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchAnswers, BatchInference
from anven_pipelines.resources.llm_client import LlmClient
from anven_pipelines.spec_target import NanoTarget
from tests.cluster.places import created, launched, meanwhile, until, waited
from tests.worker_jobs import KEY, kept, questions, written

if TYPE_CHECKING:
    from anven_pipelines.domain.inference import CompletionRequest
    from tests.cluster.places import Place

NANO = NanoTarget(engine="nano", model="anven-nano")
NAP = "time.sleep(600)"


def some_work(**changes: Any) -> Work:
    return Work(**({"key": uuid.uuid4().hex, "store": "s", "workload": "support", "arguments": []} | changes))


def answered(
    place: Place, requests: list[CompletionRequest], target: NanoTarget = NANO
) -> tuple[BatchAnswers, list[str]]:
    """Answer within a run; return what came of it and what the run's log says."""
    found: list[BatchAnswers] = []

    @dg.asset(required_resource_keys={"batch_inference"})
    def batch(context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Dagster reads annotations
        found.append(context.resources.batch_inference.answer(context, target, requests, key=KEY))
        return dg.MaterializeResult()

    artifacts = ArtifactStore(url=str(place.folder))
    resource = BatchInference(artifacts=artifacts, llm_client=LlmClient(), gpu_job=place.written(), drain_s=5.0)
    resource.require_runnable(target)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([batch], resources={"batch_inference": resource}, instance=instance)
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    return found[0], said


def test_a_batch_is_answered_by_a_job_and_its_messages_stand_in_the_run_once(place: Place) -> None:
    requests = questions(60)
    (answers, figures), said = answered(place, requests)
    assert answers["item_id"].to_list() == [request.item_id for request in requests]
    assert set(answers["status"]) == {"answered"}
    assert figures["rows"] == figures["answered"] == 60
    assert sum("60 requests in 1 of 1 shards" in line for line in said) == 1
    assert sum("60 of 60 answered, 0 failed" in line for line in said) == 1
    assert any("runs on gpu-node-0" in line for line in said)


def test_what_is_answered_needs_no_job(place: Place) -> None:
    requests = questions(5)
    first, _ = answered(place, requests)
    again, said = answered(place, requests)
    assert first.answers.equals(again.answers)
    assert again.figures == {}
    assert not any("created" in line for line in said)


def test_a_step_that_starts_again_goes_along_with_the_job_that_runs(place: Place) -> None:
    uri = written(place.folder, questions(40))
    arguments = ["--store", str(place.folder), "--job", uri]
    work, settings = some_work(arguments=arguments), place.settings_with()
    created(place, settings, work)
    figures, said = launched(settings, work)
    assert any("this step goes along with it" in line for line in said)
    assert kept(place.folder).height == 40
    assert len(place.pods(work)) == 1
    assert [each["rows"] for each in figures] == [40]
    assert sum("40 of 40 answered, 0 failed" in line for line in said) == 1


def test_a_job_that_failed_is_made_again(place: Place) -> None:
    work, flag = some_work(), place.folder / "mended"
    settings = place.settings_with(
        python=place.script(f"import os\nsys.exit(0 if os.path.exists({str(flag)!r}) else 1)"), retries=0
    )
    with pytest.raises(
        UnavailableService, match=r"failed: BackoffLimitExceeded.*the next run asks only what is missing"
    ):
        launched(settings, work)
    flag.touch()
    _, said = launched(settings, work)
    assert any("ended before (BackoffLimitExceeded" in line for line in said)


def test_a_pod_that_finds_no_gpu_is_given_up_with_the_schedulers_reason(place: Place) -> None:
    work = some_work(gpus=100)
    with pytest.raises(UnavailableService, match=r"had no running pod for 8 s.*Insufficient nvidia.com/gpu"):
        launched(place.settings_with(pending="8s"), work)
    waited(lambda: place.api.job(work.job_name) is None or None, "the job is still there")


@pytest.mark.parametrize(
    ("image", "changes", "reason"),
    [
        ("localhost/nowhere:none", {"image_pull_policy": "Never"}, "ErrImageNeverPull"),
        ("Not A Name", {}, "InvalidImageName"),
    ],
)
def test_an_image_that_can_never_come_fails_at_once_in_the_kubelets_words(
    place: Place, image: str, changes: dict[str, Any], reason: str
) -> None:
    work = some_work()
    if place.double is not None:
        place.double.image_problem = {"reason": reason, "message": f"the image {image!r} is not here"}
    with pytest.raises(InvalidInput, match=rf"can never run: pod \S+ waits: {reason}: .*; mend `image`"):
        launched(place.settings_with(image=image, pending="10m", **changes), work)
    waited(lambda: place.api.job(work.job_name) is None or None, "the job is still there")


def test_an_image_that_may_still_come_is_waited_for_and_told(double: Place) -> None:
    work, cluster = some_work(), double.double
    assert cluster is not None
    cluster.image_problem = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}

    def heal() -> None:
        waited(
            lambda: next((pod for pod in double.pods(work) if pod["status"].get("containerStatuses")), None), "no pod"
        )
        before = double.asked("get", "jobs")
        waited(lambda: double.asked("get", "jobs") > before + 1 or None, "nobody looks")
        cluster.image_problem = {}

    with meanwhile(heal):
        _, said = launched(double.settings_with(python=double.script("sys.exit(0)")), work)
    assert any("ImagePullBackOff: Back-off pulling image; it may heal" in line for line in said)


def test_a_job_that_no_attempt_could_do_is_not_tried_again(place: Place) -> None:
    work = some_work()
    settings = place.settings_with(python=place.script("print('worker: no such model'); sys.exit(2)"))
    with pytest.raises(InvalidInput, match="the worker cannot do the job: worker: no such model"):
        launched(settings, work)


def test_a_deadline_ends_the_job_and_is_named(place: Place) -> None:
    settings = place.settings_with(python=place.script(NAP), deadline="4s")
    with pytest.raises(UnavailableService, match="DeadlineExceeded"):
        launched(settings, some_work(drain_s=-14))


def test_a_worker_that_takes_too_much_memory_is_named_so(place: Place) -> None:
    work = some_work()
    if (double := place.double) is not None:
        settings = place.settings_with(python=place.script(NAP), retries=0)
        starve = lambda: double.run_out_of_memory(place.when_running(work)["metadata"]["name"])  # noqa: E731 - one line
    else:
        greedy = "held = [bytearray(1 << 20) for _ in range(2000)]\ntime.sleep(60)"
        settings = place.settings_with(python=place.script(greedy), limits={"memory": "100Mi"}, retries=0)
        starve = lambda: None  # noqa: E731 - it starves by itself
    with (
        meanwhile(starve),
        pytest.raises(UnavailableService, match=r"OOMKilled: it took more memory than `limits.memory`"),
    ):
        launched(settings, work)


@pytest.mark.parametrize("how", ["delete_pod", "evict"])
def test_a_pod_that_is_taken_away_is_replaced_and_nothing_is_lost(place: Place, how: str) -> None:
    requests = questions(1_500)
    uri = written(place.folder, requests)
    work = some_work(arguments=["--store", str(place.folder), "--job", uri, "--drain-s", "1"], drain_s=1.0)

    def take_away() -> None:
        name = place.when_running(work)["metadata"]["name"]
        waited(lambda: kept(place.folder).height > 50 or None, "nothing is answered")
        getattr(place, how)(name)

    with meanwhile(take_away):
        _, said = launched(place.settings_with(), work)
    rows = kept(place.folder)
    assert set(rows["item_id"]) == {request.item_id for request in requests}
    assert rows.filter(rows["status"] != "answered").is_empty()
    assert len({line.split()[1] for line in said if " runs on " in line}) == 2


def test_a_cancelled_run_deletes_its_job(place: Place) -> None:
    work = some_work(drain_s=-14)

    def cancel() -> None:
        place.when_running(work)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(cancel), pytest.raises(DagsterExecutionInterruptedError) as raised:
        launched(place.settings_with(python=place.script(NAP)), work)
    assert any("is deleted, and what it answered is kept" in note for note in raised.value.__notes__)
    waited(lambda: place.api.job(work.job_name) is None or None, "the job is still there")
    waited(lambda: not place.pods(work) or None, "its pod is still there")


def test_an_ended_job_is_cleaned_up(place: Place) -> None:
    work = some_work()
    settings = place.settings_with(python=place.script("sys.exit(0)"))
    _, said = launched(settings.model_copy(update={"keep_for": timedelta(seconds=12)}), work)
    assert sum("created" in line for line in said) == 1
    waited(lambda: place.api.job(work.job_name) is None or None, "the job is still there")


def test_a_drained_step_leaves_its_job_to_the_next_one(place: Place) -> None:
    work, flag = some_work(), place.folder / "enough"
    settings = place.settings_with(python=place.script(until(flag)))
    api = place.api
    api.is_within_cluster = True

    def drain() -> None:
        place.when_running(work)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(drain), pytest.raises(DagsterExecutionInterruptedError) as raised:
        launched(settings, work, api=api)
    assert any("runs on; the step that starts again goes along with it" in note for note in raised.value.__notes__)
    next_step = place.api
    look = next_step.job

    def look_and_let_it_end(name: str) -> dict[str, Any] | None:
        found = look(name)
        flag.touch()
        return found

    next_step.job = look_and_let_it_end  # type: ignore[method-assign]
    _, said = launched(settings, work, api=next_step)
    assert any("runs already; this step goes along with it" in line for line in said)
    assert len(place.pods(work)) == 1


def test_two_steps_at_once_share_one_job(place: Place) -> None:
    work, flag = some_work(), place.folder / "both look"
    settings = place.settings_with(python=place.script(until(flag)))
    seen: set[int] = set()

    def step(number: int) -> list[str]:
        api = place.api
        look = api.job

        def look_and_let_it_end_once_both_have_seen_it(name: str) -> dict[str, Any] | None:
            found = look(name)
            if found is not None:
                seen.add(number)
            if len(seen) == 2:
                flag.touch()
            return found

        api.job = look_and_let_it_end_once_both_have_seen_it  # type: ignore[method-assign]
        return launched(settings, work, api=api)[1]

    with ThreadPoolExecutor(2) as steps:
        outcomes = list(steps.map(step, range(2)))
    assert len(place.pods(work)) == 1
    assert sum(any("goes along with it" in line for line in lines) for lines in outcomes) == 1
