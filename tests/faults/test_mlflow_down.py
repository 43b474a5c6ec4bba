"""MLflow down, deaf, broken or killed half-way: the step goes on, and its run is there once in the end."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
import pytest

from anven_pipelines.domain.tracking import StepRecord
from anven_pipelines.resources.mlflow_connection import load_mlflow
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.entities import Run

pytestmark = pytest.mark.timeout(300)  # MLflow's import and migrations: 5 s, a minute on a busy machine

STEP = StepRecord(
    key="run-1/scores/support",
    experiment="anven/support",
    name="scores",
    started=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    ended=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
    status="FINISHED",
    params={"level": 0.05},
    metrics={"quality": 0.75},
    documents={"verdict.json": "{}"},
)
PROMPT_S = 2.0  # how much later than its timeout `record` may return on a busy machine

# Forks after the one import of mlflow, so that each process starts in milliseconds and really is killed.
PROCESSES = """
import json, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from anven_pipelines.domain.tracking import StepRecord
from anven_pipelines.resources.mlflow_connection import load_mlflow
from anven_pipelines.resources.mlflow_tracking import MlflowTracking

folder, step = Path(sys.argv[1]), StepRecord.from_json(sys.argv[2])
settings = dict(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=f"{folder}/artifacts",
                outbox=f"{folder}/outbox", timeout_s=120)
tracking = MlflowTracking(**settings)
load_mlflow(tracking.tracking_uri, timeout_s=tracking.timeout_s)
from mlflow import MlflowClient

def fork(work):
    if pid := os.fork():
        return pid
    try:
        os._exit(0 if work() else 1)
    finally:
        os._exit(2)

def signal_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed_in_migration():
    pid = fork(lambda: tracking.problem() is None)
    database = folder / "mlflow.db.new"
    while not (database.exists() and database.stat().st_size > 100_000):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return "ended too early"
    os.kill(pid, signal.SIGKILL)
    return signal_of(pid)

def dying(method, after):
    def call(self, *args, **kwargs):
        if after:
            getattr(MlflowClient, method)(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    client = type("Dying", (MlflowClient,), {method: call})
    return type("DyingTracking", (MlflowTracking,), {"_client": lambda self: client(self.tracking_uri)})(**settings)

def racing(n):
    own = tracking.record(replace(step, key=f"race/{n}"))
    shared = tracking.record(replace(step, key="race/shared"))
    tracking.fill()
    return own.warning is None and shared.warning is None

def killed(method, after):
    name = f"killed/{method}/{'after' if after else 'before'}"
    tracking = dying(method, after)
    return name, signal_of(fork(lambda: tracking.record(replace(step, key=name))))

moments = [(method, after) for method in ("create_run", "log_batch", "log_text", "set_terminated") for after in (0, 1)]
print(json.dumps({
    "migration": killed_in_migration(),
    "race": [signal_of(pid) for pid in [fork(lambda n=n: racing(n)) for n in range(3)]],
    "killed": dict(killed(*moment) for moment in moments),
    "kept": len(list((folder / "outbox").glob("*.json"))),
}))
"""


class Aftermath(NamedTuple):
    """What the killed and racing processes left: their exit codes, and MLflow with its outbox."""

    exits: dict[str, Any]
    tracking: MlflowTracking


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    folder = tmp_path_factory.mktemp("aftermath")
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, str(folder), STEP.to_json()]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Aftermath(json.loads(output), tracking_in(folder))


@pytest.fixture
def alive(aftermath: Aftermath, tmp_path: Path) -> MlflowTracking:
    """MLflow that works, on a database of the test's own."""
    shutil.copy(aftermath.tracking.tracking_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return tracking_in(tmp_path)


@pytest.fixture
def down(tmp_path: Path) -> Iterator[MlflowTracking]:
    """MLflow at a port that is bound and on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield away(bound.getsockname()[1], tmp_path)


def tracking_in(folder: Path) -> MlflowTracking:
    return MlflowTracking(
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        artifact_root=str(folder / "artifacts"),
        outbox=str(folder / "outbox"),
        timeout_s=60,
    )


def away(port: int, folder: Path) -> MlflowTracking:
    """Return tracking on a server, with mlflow imported so that times are the server's alone."""
    tracking = MlflowTracking(tracking_uri=f"http://127.0.0.1:{port}", outbox=str(folder / "outbox"), timeout_s=1.0)
    load_mlflow(tracking.tracking_uri, timeout_s=tracking.timeout_s)
    return tracking


def runs_of(tracking: MlflowTracking, key: str) -> list[Run]:
    client = tracking._client()
    experiment = client.get_experiment_by_name(STEP.experiment)
    return list(client.search_runs([experiment.experiment_id], f"tags.`anven.key` = '{key}'")) if experiment else []


def is_complete(run: Run) -> bool:
    return (
        run.info.status == "FINISHED"
        and datetime.fromtimestamp(run.info.start_time / 1000, UTC) == STEP.started
        and datetime.fromtimestamp(run.info.end_time / 1000, UTC) == STEP.ended
        and run.data.params == {"level": "0.05"}
        and run.data.metrics == {"quality": 0.75}
        and (Path(run.info.artifact_uri) / "verdict.json").read_text() == "{}"
    )


class Broken(socketserver.BaseRequestHandler):
    """A server that accepts and then answers in its own way."""

    reply: bytes = b""
    pause_s: float | None = None
    """None: the whole reply at once; else one byte at a time, this far apart, until the test is over."""

    def handle(self) -> None:
        self.request.recv(65536)
        if self.pause_s is None:
            self.request.sendall(self.reply)
            return
        over: threading.Event = self.server.over  # type: ignore[attr-defined] # set by `serving`
        for byte in self.reply * 1000:
            if over.wait(self.pause_s):
                return
            self.request.sendall(bytes([byte]))
        over.wait()


@contextmanager
def serving(reply: bytes, pause_s: float | None) -> Iterator[int]:
    handler = type("Reply", (Broken,), {"reply": reply, "pause_s": pause_s})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # the client hangs up, as it should
        server.over = threading.Event()  # type: ignore[attr-defined] # read by the handlers
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.over.set()  # type: ignore[attr-defined] # read by the handlers
            server.shutdown()
            thread.join()


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_a_pipeline_finishes_with_a_warning_and_the_run_is_filled_in_later(
    down: MlflowTracking, alive: MlflowTracking
) -> None:
    @dg.asset
    def scores(tracking: MlflowTracking) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=tracking.record(STEP).metadata())

    result = dg.materialize([scores], resources={"tracking": down})

    assert result.success
    warning = result.asset_materializations_for_node("scores")[0].metadata["mlflow_warning"].value
    [kept] = Outbox(Path(down.outbox)).waiting()
    assert f"MLflow at {down.tracking_uri} has no run for scores (anven/support)" in str(warning)
    assert "refused" in str(warning)
    assert f"kept at {kept}; `anven fill-mlflow` adds the run" in str(warning)

    assert alive.fill() == (1, 0, ())
    assert alive.fill() == (0, 0, ())
    [run] = runs_of(alive, STEP.key)
    assert is_complete(run)


def test_a_closed_port_costs_a_step_no_time(down: MlflowTracking) -> None:
    begun = time.monotonic()
    assert down.record(STEP).run_id is None
    assert time.monotonic() - begun < 1.0 + PROMPT_S


@pytest.mark.parametrize(
    ("reply", "pause_s", "reason"),
    [
        pytest.param(b"", 600, "no answer within 1 s", id="accepts and never answers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", 0.2, "no answer within 1 s", id="trickles without end"),
        pytest.param(b"", None, "Connection aborted", id="hangs up"),
        pytest.param(http("500 Oops", b"oops"), None, "500", id="fails"),
        pytest.param(
            http("403 Forbidden", b'{"error_code":"PERMISSION_DENIED"}'), None, "PERMISSION_DENIED", id="refuses"
        ),
        pytest.param(http("200 OK", b"<html>log in</html>"), None, "not in a valid JSON", id="is another program"),
    ],
)
def test_a_server_that_is_not_well_costs_a_step_its_timeout_and_nothing_else(
    reply: bytes, pause_s: float | None, reason: str, tmp_path: Path
) -> None:
    with serving(reply, pause_s) as port:
        tracking = away(port, tmp_path)
        begun = time.monotonic()
        tracked = tracking.record(STEP)
        seconds = time.monotonic() - begun
        filled = tracking.fill()
    assert tracked.run_id is None
    assert tracked.warning is not None
    assert reason in tracked.warning
    assert seconds < tracking.timeout_s + PROMPT_S
    assert (filled.delivered, filled.remaining) == (0, 1)
    assert f"MLflow at {tracking.tracking_uri} does not answer" in filled.problems[0]


def test_a_database_that_cannot_be_opened_costs_a_step_no_time(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    tracking = tracking_in(tmp_path)
    load_mlflow(tracking.tracking_uri, timeout_s=tracking.timeout_s)
    begun = time.monotonic()
    warning = tracking.record(STEP).warning
    assert time.monotonic() - begun < 1.0 + PROMPT_S
    assert warning is not None
    assert "file is not a database" in warning


def test_a_database_that_another_process_keeps_locked_costs_a_step_its_timeout(alive: MlflowTracking) -> None:
    tracking = alive.model_copy(update={"timeout_s": 1.0})
    tracking.problem()
    with closing(sqlite3.connect(alive.tracking_uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        warning = tracking.record(STEP).warning
        assert time.monotonic() - begun < 1.0 + PROMPT_S
    assert warning is not None
    assert "no answer within 1 s" in warning


def test_passwords_stay_out_of_warnings(down: MlflowTracking) -> None:
    address = down.tracking_uri.replace("http://", "http://anven:hush-hush@")
    tracking = down.model_copy(update={"tracking_uri": address})
    warning = tracking.record(STEP).warning
    assert warning is not None
    assert "http://***@127.0.0.1" in warning
    assert "hush-hush" not in f"{warning}{tracking.fill()}{tracking.run_url('1', 'abc')}"


def test_without_an_outbox_a_record_still_reaches_mlflow(alive: MlflowTracking, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tracked = alive.model_copy(update={"outbox": str(tmp_path / "file" / "outbox")}).record(STEP)
    assert tracked.warning is None
    assert [run.info.run_id for run in runs_of(alive, STEP.key)] == [tracked.run_id]


def test_without_an_outbox_and_without_mlflow_the_warning_says_that_the_record_is_lost(
    down: MlflowTracking, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    tracked = down.model_copy(update={"outbox": str(tmp_path / "file" / "outbox")}).record(STEP)
    assert tracked.warning is not None
    assert "could not be kept" in tracked.warning
    assert "is lost" in tracked.warning


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[:-20], id="cut"),
        pytest.param(lambda text: b"", id="emptied"),
        pytest.param(lambda text: b"\xff\x00" + text, id="garbled"),
        pytest.param(lambda text: text.replace(b"0.75", b"0.99"), id="edited"),
    ],
)
def test_a_damaged_record_is_set_aside_and_the_others_are_delivered(
    damage: Callable[[bytes], bytes], alive: MlflowTracking
) -> None:
    outbox = Outbox(Path(alive.outbox))
    damaged = outbox.keep(STEP)
    damaged.write_bytes(damage(damaged.read_bytes()))
    outbox.keep(replace(STEP, key="whole"))

    filled = alive.fill()

    assert (filled.delivered, filled.remaining) == (1, 0)
    assert "cut or changed" in filled.problems[0]
    assert str(outbox.folder / "set-aside" / damaged.name) in filled.problems[0]
    assert (outbox.folder / "set-aside" / damaged.name).exists()
    assert len(runs_of(alive, "whole")) == 1
    assert runs_of(alive, STEP.key) == []


def test_a_record_of_another_version_is_set_aside(alive: MlflowTracking) -> None:
    outbox = Outbox(Path(alive.outbox))
    outbox.keep(STEP)
    [path] = outbox.waiting()
    text = path.read_bytes().replace(b'"status"', b'"state"')
    from anven_pipelines.resources.outbox import _fingerprint  # noqa: PLC0415 - to write what was not written

    path.replace(path.with_name(f"0-{_fingerprint(text)}.json")).write_bytes(text)
    assert "no step record that this version reads" in alive.fill().problems[0]


def test_a_record_that_mlflow_refuses_keeps_nobody_waiting(alive: MlflowTracking) -> None:
    client = alive._client()
    client.delete_experiment(client.create_experiment("anven/gone"))
    outbox = Outbox(Path(alive.outbox))
    refused = outbox.keep(replace(STEP, experiment="anven/gone"))
    outbox.keep(replace(STEP, key="welcome", started=STEP.ended))

    filled = alive.fill()

    assert (filled.delivered, filled.remaining) == (1, 1)
    assert str(refused) in filled.problems[0]
    assert "active" in filled.problems[0]


def test_a_record_in_another_process_hands_is_left_to_it(alive: MlflowTracking) -> None:
    outbox = Outbox(Path(alive.outbox))
    path = outbox.keep(STEP)
    with outbox.claim(path, wait=False) as mine:
        assert mine
        assert alive.fill() == (0, 1, ())
    assert alive.fill() == (1, 0, ())


def test_a_kill_during_the_first_use_leaves_a_database_that_opens(aftermath: Aftermath) -> None:
    assert aftermath.exits["migration"] == -9
    assert aftermath.tracking.problem() is None


def test_processes_that_use_a_new_database_at_once_all_succeed_and_make_one_run_each(aftermath: Aftermath) -> None:
    assert aftermath.exits["race"] == [0, 0, 0]
    for key in ("race/0", "race/1", "race/2", "race/shared"):
        assert [is_complete(run) for run in runs_of(aftermath.tracking, key)] == [True]


def test_a_process_killed_at_any_moment_leaves_one_complete_run_once_filled_in(aftermath: Aftermath) -> None:
    killed = aftermath.exits["killed"]
    assert set(killed.values()) == {-9}
    assert aftermath.exits["kept"] == len(killed) == 8

    assert aftermath.tracking.fill() == (8, 0, ())

    for key in killed:
        assert [is_complete(run) for run in runs_of(aftermath.tracking, key)] == [True], key
