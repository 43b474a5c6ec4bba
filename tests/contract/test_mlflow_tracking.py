"""MLflow holds one complete run per asset step: the same on a SQLite file and on a real MLflow server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.tracking import StepRecord, legal_names
from anven_pipelines.resources.mlflow_tracking import MlflowTracking, Tracked
from anven_pipelines.resources.outbox import Outbox
from tests.mlflow_server import free_uri, mlflow_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = pytest.mark.timeout(300)  # the server's start: 10 s, a minute on a busy machine

STEP = StepRecord(
    key="run-1/scores/support",
    experiment="anven/support",
    name="scores",
    started=datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
    ended=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
    status="FINISHED",
    tags={"dagster.run_id": "run-1", "asset": "scores", "workload": "support", "dataset_digest": "d1"},
    params={"level": 0.05, "seed": 7, "sealed": True},
    metrics={"quality": 0.75, "lost": 0, "ttft_ms": None},
    documents={"reports/scorecard.html": "<h1>größer</h1>\n", "verdict.json": '{"verdict":"GO"}'},
)


class Outage(NamedTuple):
    """What a step was told while the server was not there."""

    tracking: MlflowTracking
    tracked: Tracked
    seconds: float


@pytest.fixture
def embedded(empty_mlflow: Path, tmp_path: Path) -> MlflowTracking:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return MlflowTracking(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        artifact_root=str(tmp_path / "artifacts"),
        outbox=str(tmp_path / "outbox"),
        timeout_s=30,
    )


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Outage:
    """Record a step while nothing listens where the server will be."""
    outbox = tmp_path_factory.mktemp("outage") / "outbox"
    tracking = MlflowTracking(tracking_uri=free_uri(), outbox=str(outbox), timeout_s=30)
    tracking.problem()  # imports mlflow, which no test here measures
    begun = time.monotonic()
    return Outage(tracking, tracking.record(replace(STEP, key="outage/scores")), time.monotonic() - begun)


@pytest.fixture(scope="module")
def server(outage: Outage, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real MLflow server on the port where nothing listened."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    with mlflow_server(outage.tracking.tracking_uri, folder):
        yield outage.tracking.tracking_uri


@pytest.fixture(params=["embedded", "server"])
def tracking(request: pytest.FixtureRequest, tmp_path: Path) -> MlflowTracking:
    """Give the contract both ways to run."""
    if request.param == "embedded":
        return request.getfixturevalue("embedded")  # type: ignore[no-any-return] # fixtures are untyped
    uri = request.getfixturevalue("server")
    return MlflowTracking(tracking_uri=uri, outbox=str(tmp_path / "outbox"), timeout_s=30)


def client_of(tracking: MlflowTracking) -> MlflowClient:
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and not at collection

    return MlflowClient(tracking.tracking_uri)


def runs_of(tracking: MlflowTracking, step: StepRecord) -> list[Run]:
    client = client_of(tracking)
    experiment = client.get_experiment_by_name(step.experiment)
    return (
        list(client.search_runs([experiment.experiment_id], f"tags.`anven.key` = '{step.key}'")) if experiment else []
    )


def text_of(tracking: MlflowTracking, run_id: str, path: str, folder: Path) -> str:
    return Path(client_of(tracking).download_artifacts(run_id, path, str(folder))).read_text()


def test_a_step_becomes_one_complete_run(tracking: MlflowTracking, tmp_path: Path) -> None:
    step = replace(STEP, key=f"complete/{tracking.tracking_uri}")
    tracked = tracking.record(step)

    assert tracked.warning is None
    [run] = runs_of(tracking, step)
    assert run.info.run_id == tracked.run_id
    assert run.info.run_name == "scores"
    assert run.info.status == "FINISHED"
    assert datetime.fromtimestamp(run.info.start_time / 1000, UTC) == step.started
    assert datetime.fromtimestamp(run.info.end_time / 1000, UTC) == step.ended
    assert run.data.tags.items() >= step.tags.items()
    assert run.data.params == {"level": "0.05", "seed": "7", "sealed": "true"}
    assert run.data.metrics == {"quality": 0.75, "lost": 0.0}
    assert run.data.tags["unmeasured.ttft_ms"] == "not measured"
    for path, text in step.documents.items():
        assert text_of(tracking, run.info.run_id, path, tmp_path) == text
    assert not list(Path(tracking.outbox).glob("*.json"))


def test_a_step_recorded_twice_is_one_run(tracking: MlflowTracking) -> None:
    step = replace(STEP, key=f"twice/{tracking.tracking_uri}")
    first, second = tracking.record(step), tracking.record(step)
    assert first == second
    assert len(runs_of(tracking, step)) == 1


def test_a_failed_step_is_a_failed_run(tracking: MlflowTracking) -> None:
    step = replace(STEP, key=f"failed/{tracking.tracking_uri}", status="FAILED")
    tracking.record(step)
    assert [run.info.status for run in runs_of(tracking, step)] == ["FAILED"]


def test_more_than_mlflow_takes_at_once_arrives_whole(tracking: MlflowTracking, tmp_path: Path) -> None:
    step = replace(
        STEP,
        key=f"large/{tracking.tracking_uri}",
        tags={f"tag {n}": str(n) for n in range(150)},
        params={f"param {n}": "é" * 6000 for n in range(130)} | {"prompt": "word " * 3000},
        metrics={f"metric/{n}": n / 7 for n in range(1500)} | {"p95 <ms>": 1.5},
    )
    assert tracking.record(step).warning is None
    [run] = runs_of(tracking, step)
    assert run.data.tags.items() >= step.tags.items()
    assert run.data.params.items() >= {f"param {n}": "é" * 6000 for n in range(130)}.items()
    assert run.data.metrics == {f"metric/{n}": n / 7 for n in range(1500)} | {"p95 _ms_": 1.5}
    assert run.data.params["prompt"].endswith("[cut: 15000 characters, whole in tracking/params/prompt.txt]")
    assert text_of(tracking, run.info.run_id, "tracking/params/prompt.txt", tmp_path) == "word " * 3000
    renamed = json.loads(text_of(tracking, run.info.run_id, "tracking/renamed.json", tmp_path))
    assert renamed == {"metrics": {"p95 _ms_": "p95 <ms>"}}


def test_a_server_that_was_down_gets_the_record_later_once_and_with_its_own_times(outage: Outage, server: str) -> None:
    assert outage.tracked.run_id is None
    assert outage.tracked.warning is not None
    assert "`anven fill-mlflow`" in outage.tracked.warning
    assert outage.seconds < 5

    assert outage.tracking.fill() == (1, 0, ())
    assert outage.tracking.fill() == (0, 0, ())
    [run] = runs_of(outage.tracking, replace(STEP, key="outage/scores"))
    assert run.info.status == "FINISHED"
    assert datetime.fromtimestamp(run.info.start_time / 1000, UTC) == STEP.started
    assert datetime.fromtimestamp(run.info.end_time / 1000, UTC) == STEP.ended


def test_the_link_to_a_servers_run_leads_to_the_server(server: str, tmp_path: Path) -> None:
    tracked = MlflowTracking(tracking_uri=server, outbox=str(tmp_path), timeout_s=30).record(STEP)
    assert tracked.url is not None
    assert tracked.url.startswith(f"{server}/#/experiments/")
    assert tracked.url.endswith(f"/runs/{tracked.run_id}")
    assert tracked.metadata()["mlflow_run"] == dg.MetadataValue.url(tracked.url)
    with urllib.request.urlopen(tracked.url, timeout=30) as page:  # noqa: S310 - http on loopback
        assert page.status == 200


def test_without_a_server_the_metadata_name_the_run_and_how_to_open_it(embedded: MlflowTracking) -> None:
    tracked = embedded.record(STEP)
    assert tracked.url is None
    assert tracked.metadata() == {
        "mlflow_run": dg.MetadataValue.text(f"run {tracked.run_id}; `anven dev` opens MLflow"),
        "mlflow_run_id": dg.MetadataValue.text(str(tracked.run_id)),
    }


def test_documents_stand_beside_the_database_where_no_folder_is_named(embedded: MlflowTracking, tmp_path: Path) -> None:
    unnamed = embedded.model_copy(update={"artifact_root": None})
    unnamed.record(STEP)
    [run] = runs_of(unnamed, STEP)
    assert Path(run.info.artifact_uri).is_relative_to(tmp_path / "artifacts" / "anven" / "support")
    assert (Path(run.info.artifact_uri) / "verdict.json").exists()


def test_a_ui_beside_the_database_is_linked(embedded: MlflowTracking) -> None:
    beside = embedded.model_copy(update={"ui_url": "http://127.0.0.1:5000/"})
    assert str(beside.run_url("3", "abc")) == "http://127.0.0.1:5000/#/experiments/3/runs/abc"


def test_the_deployment_is_tagged_unless_the_step_says_its_own(embedded: MlflowTracking) -> None:
    staging = embedded.model_copy(update={"deployment": "staging"})
    other = replace(STEP, key="other", tags={"deployment": "production"})
    staging.record(STEP)
    staging.record(other)
    assert [run.data.tags["deployment"] for run in runs_of(embedded, STEP)] == ["staging"]
    assert [run.data.tags["deployment"] for run in runs_of(embedded, other)] == ["production"]


def test_a_key_used_again_for_other_content_changes_nothing_and_says_so(embedded: MlflowTracking) -> None:
    first = embedded.record(STEP)
    second = embedded.record(replace(STEP, metrics={"quality": 0.1}))
    assert second.run_id is None
    assert second.warning is not None
    assert f"run {first.run_id} already tracks" in second.warning
    assert "step_key(attempt=...)" in second.warning
    [run] = runs_of(embedded, STEP)
    assert run.data.metrics["quality"] == 0.75
    assert len(list((Path(embedded.outbox) / "set-aside").iterdir())) == 1
    assert embedded.fill() == (0, 0, ())


def test_twins_of_one_step_become_one_run(embedded: MlflowTracking) -> None:
    client = client_of(embedded)
    experiment = client.create_experiment(STEP.experiment, artifact_location=str(embedded.artifact_root))
    for _ in range(2):
        client.create_run(experiment, tags={"anven.key": STEP.key, "anven.record": STEP.digest})
    tracked = embedded.record(STEP)
    [run] = runs_of(embedded, STEP)
    assert run.info.run_id == tracked.run_id
    assert run.data.metrics["quality"] == 0.75


def test_a_healthy_record_takes_earlier_ones_along(embedded: MlflowTracking) -> None:
    earlier = [replace(STEP, key=f"earlier-{n}") for n in range(4)]
    for step in earlier:
        Outbox(Path(embedded.outbox)).keep(step)
    embedded.record(replace(STEP, key="warm"))  # the first touch of a database may take over a second
    while embedded.record(replace(STEP, key="now")).warning is None and Outbox(Path(embedded.outbox)).waiting():
        continue
    assert [len(runs_of(embedded, step)) for step in earlier] == [1, 1, 1, 1]


def test_mlflow_stays_off_stdout_and_its_globals_stay_alone(
    embedded: MlflowTracking, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow  # noqa: PLC0415 - loaded by now

    before = mlflow.get_tracking_uri()
    embedded.record(STEP)
    MlflowTracking(tracking_uri=server, outbox=str(tmp_path / "outbox"), timeout_s=30).record(
        replace(STEP, key="quiet")
    )
    assert capfd.readouterr().out == ""
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_the_module_loads_without_mlflow() -> None:
    check = "import sys, anven_pipelines.resources.mlflow_tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@given(
    st.sets(
        st.text(st.sampled_from("ab./_+ :\n é"), max_size=12) | st.text(st.sampled_from("./a+"), max_size=300),
        max_size=8,
    )
)
def test_mlflow_accepts_every_name_we_give_it(names: set[str]) -> None:
    from mlflow.utils.validation import _validate_metric, _validate_param, _validate_tag  # noqa: PLC0415 - 1 s

    for name in legal_names(names).values():
        _validate_metric(name, 1.0, 0, 0)  # type: ignore[no-untyped-call] # mlflow's own check
        _validate_param(name, "value")  # type: ignore[no-untyped-call] # mlflow's own check
        _validate_tag(name, "value")  # type: ignore[no-untyped-call] # mlflow's own check
