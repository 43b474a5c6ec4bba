"""What only newer clusters have: Indexed Jobs, queues, and refusals that a test can bring about at will."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.spec_target import NanoTarget
from tests.cluster.places import launched, meanwhile, until, waited
from tests.cluster.test_gpu_job import answered, some_work
from tests.worker_jobs import kept, questions

if TYPE_CHECKING:
    from tests.cluster.places import Place

THREE = NanoTarget(engine="nano", model="anven-nano", pods=3)
OF_INDEX = "import os\nindex = os.environ['JOB_COMPLETION_INDEX']"


def test_each_index_answers_its_share_and_no_item_is_asked_twice(double: Place) -> None:
    requests = questions(90)
    (answers, figures), said = answered(double, requests, THREE)
    assert answers["item_id"].to_list() == [request.item_id for request in requests]
    assert set(answers["status"]) == {"answered"}
    assert figures["rows"] == 90
    assert [each["rows"] for each in figures["pods"]] == [30, 30, 30]
    assert max(Counter(kept(double.folder)["item_id"]).values()) == 1
    assert not any("another worker is at this work" in line for line in said)
    assert {line.partition("(index ")[2][0] for line in said if " runs on " in line} == {"0", "1", "2"}


def test_more_pods_than_requests_leave_none_without_work(double: Place) -> None:
    (answers, figures), _ = answered(double, questions(2), THREE)
    assert answers.height == figures["rows"] == 2
    assert len(figures["pods"]) == 2


def test_an_index_that_fails_is_started_again_alone(double: Place) -> None:
    work = some_work(pods=3)
    settings = double.settings_with(
        python=double.script(f"{OF_INDEX}\nflag = sys.argv[0] + index\n"
        "if index == '1' and not os.path.exists(flag):\n    open(flag, 'w').close()\n    sys.exit(1)")
    )  # fmt: skip
    launched(settings, work)
    pods = Counter(
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for pod in double.pods(work)
    )
    assert pods == {"0": 1, "1": 2, "2": 1}


def test_an_index_that_never_succeeds_fails_the_job_once_the_others_are_done(double: Place) -> None:
    settings = double.settings_with(
        python=double.script(f"{OF_INDEX}\nprint('index', index, 'speaks')\nsys.exit(index == '1')"), retries=1
    )
    with pytest.raises(
        UnavailableService, match=r"FailedIndexes.*\(index 1\) failed: status 1: index 1 speaks"
    ) as raised:
        launched(settings, some_work(pods=3))
    assert sum("is done" in note for note in raised.value.__notes__[0].splitlines()) == 2


def test_evictions_do_not_count_as_failures(double: Place) -> None:
    work = some_work()
    flag = double.folder / "evicted"
    settings = double.settings_with(python=double.script(until(flag)), retries=0)

    def evict() -> None:
        double.evict(double.when_running(work)["metadata"]["name"])
        flag.touch()

    with meanwhile(evict):
        _, said = launched(settings, work)
    assert any("Evicted: The node was low on resource" in line for line in said)


def test_a_cluster_without_indexed_jobs_is_told_apart(double: Place) -> None:
    assert double.double is not None
    double.double.is_old = True
    work = some_work(pods=2)
    with pytest.raises(InvalidInput, match=r"knows no Indexed Jobs .* set `target.pods: 1`"):
        launched(double.settings_with(), work)
    assert double.api.job(work.job_name) is None


def test_a_queue_may_hold_the_job_back_for_as_long_as_it_likes(double: Place) -> None:
    work = some_work()
    settings = double.settings_with(queue="gpus", pending="1s", python=double.script("pass"))

    def release() -> None:
        job = waited(lambda: double.api.job(work.job_name), "no job")
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        waited(lambda: double.asked("get", "jobs") > 12 or None, "nobody looks")  # far more than `pending`
        assert not double.pods(work)
        assert double.double is not None
        double.double.release(work.job_name)

    with pytest.MonkeyPatch.context() as patch, meanwhile(release):
        patch.setattr("anven_pipelines.resources.kubernetes_launcher.LOOK_EVERY_S", 1.0)
        _, said = launched(settings, work)
    assert sum("waits in the queue 'gpus'" in line for line in said) == 1


def test_an_api_server_that_is_away_for_a_while_stops_nothing(double: Place) -> None:
    work = some_work()

    flag = double.folder / "away"

    def take_down() -> None:
        double.when_running(work)
        assert double.double is not None
        double.double.is_down = True
        before = double.asked("get", "jobs")
        waited(lambda: double.asked("get", "jobs") > before + 1 or None, "nobody looks")
        double.double.is_down = False
        flag.touch()

    with meanwhile(take_down):
        _, said = launched(double.settings_with(python=double.script(until(flag))), work)
    assert any("503" in line and "trying again" in line for line in said)
    assert len(double.pods(work)) == 1


def test_output_that_cannot_be_read_stops_nothing(double: Place) -> None:
    assert double.double is not None
    double.double.lost_output = True
    _, said = launched(double.settings_with(python=double.script("time.sleep(1)")), some_work())
    assert sum("its output cannot be read" in line for line in said) == 1


def test_a_job_that_somebody_deletes_is_made_again(double: Place) -> None:
    work = some_work(drain_s=-14)

    flag = double.folder / "deleted"

    def delete() -> None:
        double.when_running(work)
        double.delete_job(work)
        flag.touch()

    with meanwhile(delete):
        _, said = launched(double.settings_with(python=double.script(until(flag))), work)
    assert any("was deleted by somebody else; it is created again" in line for line in said)


@pytest.mark.parametrize(("verb", "resource"), [("get", "jobs"), ("create", "jobs"), ("list", "pods")])
def test_a_right_that_is_missing_is_named(double: Place, verb: str, resource: str) -> None:
    assert double.double is not None
    double.double.forbidden = {(verb, resource)}
    with pytest.raises(InvalidInput, match=rf"does not let us {verb} {resource} in namespace 'default'.*gpu-job-role"):
        launched(double.settings_with(python=double.script("pass")), some_work())


@pytest.mark.parametrize(
    ("verb", "resource", "told"), [("list", "events", 1), ("get", "pods/log", 1), ("watch", "pods", 1)]
)
def test_a_right_that_only_helps_people_may_be_missing(double: Place, verb: str, resource: str, told: int) -> None:
    assert double.double is not None
    double.double.forbidden = {(verb, resource)}
    _, said = launched(double.settings_with(python=double.script("pass")), some_work())
    assert sum(f"does not let us {verb} {resource}" in line for line in said) == told


def test_every_line_is_told_once_however_often_the_logs_are_read(double: Place) -> None:
    script = "for each in range(40):\n    print('line', each, flush=True)\n    time.sleep(0.2)"
    work = some_work()
    printed: list[str] = []
    settings: Any = double.settings_with(python=double.script(script))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anven_pipelines.resources.kubernetes_launcher.LOOK_EVERY_S", 0.3)
        patch.setattr("anven_pipelines.resources.pod_logs._OVERLAP_S", 2)
        patch.setattr("builtins.print", lambda line, **_: printed.append(line))
        launched(settings, work)
    assert [line for line in printed if line.startswith("line")] == [f"line {each}" for each in range(40)]


@pytest.mark.parametrize("retries", [6, 2], ids=["within its restarts", "over several Jobs"])
def test_a_request_that_kills_its_pod_is_found_and_the_rest_answered(double: Place, retries: int) -> None:
    double.settings |= {
        "python": double.script(
            "from tests.fakes.deadly_worker import main\n"
            "sys.exit(main(sys.argv[3:]))"  # after -m and the worker's module
        ),
        "retries": retries,
    }
    requests = questions(60)
    requests[20].messages[-1]["content"] += " deadly"
    (answers, _), said = answered(double, requests, NanoTarget(engine="nano", model="anven-nano", pods=2))
    assert answers["item_id"].to_list() == [request.item_id for request in requests]
    assert answers.filter(answers["status"] == "failed")["item_id"].to_list() == [requests[20].item_id]
    assert sum("failed: signal 9" in line and "pod" in line.split()[:1] for line in said) == 5
    jobs = sum(line.startswith("job ") and line.endswith(" created") for line in said)
    assert jobs == (1 if retries == 6 else 2)
