"""The whole chain in production: Postgres, S3 and an MLflow server, all of them real protocols on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg
import fsspec
import pytest
import sqlalchemy as sa
import yaml
from moto.server import ThreadedMotoServer

from anven_pipelines.chain import CHAIN_ASSETS, LOG_ASSETS
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.state_store import StateStore
from tests.mlflow_server import free_uri, mlflow_server
from tests.pipeline.conftest import logged_call, recorded_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Run

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]  # three servers and two chains: 1 minute, more when busy

SETTINGS: Final = Path(__file__).resolve().parents[2] / "k8s" / "dagster.yaml"
ITEMS: Final = 400
DAYS: Final = ("2026-10-05", "2026-10-06")
STEPS: Final = sorted([*LOG_ASSETS * len(DAYS), "workload_inventory", *CHAIN_ASSETS])
PASSWORD: Final = "invented-password"


class Site(NamedTuple):
    """The services of a production deployment, and the folders of the machine that runs the command."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return Path(self.environment["ANVEN_HOME"])

    @property
    def artifacts(self) -> ArtifactStore:
        options = {"endpoint_url": self.environment["ANVEN_ARTIFACTS_ENDPOINT"]}
        return ArtifactStore(url=self.environment["ANVEN_ARTIFACTS_URL"], storage_options=options)

    def anven(self, *words: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run the real command; a change to None takes a variable away."""
        environment = {**os.environ, **self.environment, **changes}
        return subprocess.run(
            [sys.executable, "-m", "anven_pipelines.cli", *words],
            env={name: value for name, value in environment.items() if value is not None},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def migrate(self, **changes: str | None) -> subprocess.CompletedProcess[str]:
        return self.anven("migrate", str(self.folder / "migrations" / "support.yaml"), "--json", **changes)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give one server with a database for Dagster and one for the state."""
    from pgserver.postgres_server import get_server  # noqa: PLC0415 - no wheel for Python 3.13, where these tests are left out

    with get_server(tmp_path_factory.mktemp("pg")) as running:
        url = sa.make_url(running.get_uri())
        with sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
            for name in ("dagster", "anven"):
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
        dagster, state = url.set(database="dagster"), url.set(database="anven", drivername="postgresql+psycopg2")
        yield {
            "DAGSTER_POSTGRES_URL": dagster.render_as_string(hide_password=False),
            "ANVEN_STATE_URL": state.render_as_string(hide_password=False),
        }


@pytest.fixture(scope="module")
def buckets() -> Iterator[dict[str, str]]:
    """Give an object store that holds the legacy log and the target's recorded answers."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    credentials = {
        "AWS_ACCESS_KEY_ID": "invented",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # a closed port stays closed
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        files = fsspec.filesystem("s3", endpoint_url=url)
        for bucket in ("llm-logs", "anven-production"):  # moto keeps those of other tests in this process
            files.mkdir(bucket)
        for day, numbers in zip(DAYS, (range(ITEMS // 2), range(ITEMS // 2, ITEMS)), strict=True):
            files.pipe_file(f"llm-logs/llm/calls-{day}.jsonl", lines(logged_call(at) for at in numbers))
        files.pipe_file("llm-logs/answers.jsonl", lines(recorded_answer(at, str(at)) for at in range(ITEMS)))
        yield {
            **credentials,
            "AWS_ENDPOINT_URL": url,
            "ANVEN_ARTIFACTS_ENDPOINT": url,
            "ANVEN_ARTIFACTS_URL": "s3://anven-production/artifacts",
        }
    server.stop()


@pytest.fixture(scope="module")
def site(
    databases: dict[str, str], buckets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder, tracking_uri = tmp_path_factory.mktemp("site"), free_uri()
    (folder / "dagster").mkdir()
    shutil.copy(SETTINGS, folder / "dagster" / "dagster.yaml")
    declare(folder / "migrations" / "support.yaml")
    environment = {
        **databases,
        **buckets,
        "ANVEN_DEPLOYMENT": "production",
        "ANVEN_HOME": str(folder / "home"),
        "ANVEN_MIGRATIONS": str(folder / "migrations"),
        "DAGSTER_HOME": str(folder / "dagster"),
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    with mlflow_server(tracking_uri, tmp_path_factory.mktemp("mlflow")):
        yield Site(folder, environment)


@pytest.fixture(scope="module")
def done(site: Site) -> subprocess.CompletedProcess[str]:
    """Run the chain once for all tests that look at what it left."""
    return site.migrate()


@pytest.fixture
def instance(
    site: Site, done: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", site.environment["DAGSTER_POSTGRES_URL"])
    with dg.DagsterInstance.from_config(site.environment["DAGSTER_HOME"]) as opened:
        yield opened


@pytest.fixture
def mlflow_runs(site: Site, done: subprocess.CompletedProcess[str]) -> list[Run]:
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and not at collection

    client = MlflowClient(site.environment["MLFLOW_TRACKING_URI"])
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments))


def lines(calls: Any) -> bytes:
    return "".join(json.dumps(call) + "\n" for call in calls).encode()


def declare(file: Path) -> None:
    file.parent.mkdir()
    migration = {
        "workload": "support",
        "legacy": {"model": "legacy-model", "logs": "s3://llm-logs/llm/*.jsonl"},
        "target": {"model": "target-model", "engine": "recorded", "answers": "s3://llm-logs/answers.jsonl"},
        "grading": [{"kind": "json_field", "field": "answer"}],
        "golden": {"size": "all", "holdout": 1.0},
        "sign_off": {"quality_margin": 0.05, "waive": ["ttft", "cost", "safety"]},
    }
    file.write_text(yaml.safe_dump(migration))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_command_says_go_and_nothing_else_on_stdout(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["verdict"], verdict["quality"]["n_measured"]) == ("GO", ITEMS)
    assert "mlflow" not in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_runs_and_materializations_are_in_postgres(instance: dg.DagsterInstance) -> None:
    runs = instance.get_runs()
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert len(runs) == len(DAYS) + 2  # the log days, the inventory and the chain
    for asset in STEPS:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None, asset


def test_the_state_stores_events_verify(site: Site, done: subprocess.CompletedProcess[str]) -> None:
    state = StateStore(url=site.environment["ANVEN_STATE_URL"])
    assert state.verify().ok
    assert [event.kind for event in state.events()] == ["shown", "opened", "signed_off"]
    assert state.events(kind="signed_off")[0].payload["verdict"] == "GO"


def test_every_part_is_in_the_bucket_under_its_digest(site: Site, done: subprocess.CompletedProcess[str]) -> None:
    signed = site.artifacts.load_manifest("sign_off", "support")
    assert signed is not None
    assert site.artifacts.read(signed)["json"].item() == done.stdout.strip()
    logged = [site.artifacts.load_manifest("request_log", day) for day in DAYS]
    assert [site.artifacts.read(manifest).height for manifest in logged if manifest] == [ITEMS // 2] * len(DAYS)


def test_mlflow_has_one_tagged_run_for_each_step(mlflow_runs: list[Run], instance: dg.DagsterInstance) -> None:
    assert sorted(run.data.tags["asset"] for run in mlflow_runs) == STEPS
    assert {run.info.status for run in mlflow_runs} == {"FINISHED"}
    assert {run.data.tags["deployment"] for run in mlflow_runs} == {"production"}
    assert {run.data.tags["dagster.run_id"] for run in mlflow_runs} == {run.run_id for run in instance.get_runs()}
    of_workload = [run for run in mlflow_runs if run.data.tags.get("workload") == "support"]
    assert sorted(run.data.tags["asset"] for run in of_workload) == sorted(CHAIN_ASSETS)
    # The plan is made before there is a dataset.
    frozen = [run.data.tags for run in of_workload if run.data.tags["asset"] != "power_plan"]
    assert len({tags["dataset_digest"] for tags in frozen}) == 1


def test_the_machine_keeps_nothing_but_its_lock_and_dagsters_logs(
    site: Site, done: subprocess.CompletedProcess[str]
) -> None:
    assert files_in(site.home) == {"locks/support.lock"}
    kept = files_in(site.folder / "dagster") - {"dagster.yaml"}
    assert {Path(name).suffix for name in kept} <= {".out", ".err", ".complete", ".telemetry"}
    assert files_in(site.folder / "migrations") == {"support.yaml"}
    assert {path.name for path in site.folder.iterdir()} == {"home", "dagster", "migrations"}


def test_doctor_finds_every_service_in_order(site: Site, done: subprocess.CompletedProcess[str]) -> None:
    report = site.anven("doctor", "--json")
    assert report.returncode == 0, report.stdout
    found = {check["name"]: check["status"] for check in json.loads(report.stdout)["checks"]}
    services = ("artifact store", "dagster", "mlflow", "state store", "support: answers", "support: logs")
    assert {name: found[name] for name in services} == dict.fromkeys(services, "ok")


def test_the_local_deployment_gives_the_same_verdict_to_the_byte(
    site: Site, done: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    shared = [name for name in site.environment if not name.startswith(("AWS_", "ANVEN_MIGRATIONS"))]
    local = site.migrate(**{**dict.fromkeys(shared), "ANVEN_HOME": str(tmp_path / "home")})
    assert local.returncode == 0, local.stderr
    assert local.stdout == done.stdout
    assert "Traceback" not in local.stderr
    assert (tmp_path / "home" / "state.db").exists()


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        (
            "ANVEN_STATE_URL",
            f"postgresql+psycopg2://anven:{PASSWORD}@127.0.0.1:1/anven",
            "the state store postgresql+psycopg2://anven:***@127.0.0.1:1/anven did not answer",
        ),
        ("DAGSTER_POSTGRES_URL", f"postgresql://dagster:{PASSWORD}@127.0.0.1:1/dagster", "Dagster's instance"),
        ("DAGSTER_POSTGRES_URL", None, "DAGSTER_POSTGRES_URL"),
        ("ANVEN_ARTIFACTS_ENDPOINT", "http://127.0.0.1:1", "s3://anven-production/artifacts"),
    ],
)
def test_a_service_that_is_down_is_one_clear_error(site: Site, variable: str, value: str | None, named: str) -> None:
    failed = site.migrate(**{variable: value})
    assert failed.returncode == 3, failed.stderr
    message = json.loads(failed.stdout)["error"]["message"]
    assert named in message
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert PASSWORD not in failed.stdout + failed.stderr


def test_what_the_environment_lacks_is_bad_input(site: Site) -> None:
    refused = site.migrate(ANVEN_STATE_URL=None)
    assert refused.returncode == 2
    assert "the production deployment needs ANVEN_STATE_URL" in refused.stderr


def test_a_file_outside_the_folder_is_refused_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    declare(tmp_path / "elsewhere" / "support.yaml")
    file = tmp_path / "elsewhere" / "support.yaml"
    file.write_text(file.read_text().replace("workload: support", "workload: other"))
    refused = site.anven("migrate", str(file))
    assert refused.returncode == 2
    assert "ANVEN_MIGRATIONS" in refused.stderr
    assert not list(site.folder.glob("*.json"))
