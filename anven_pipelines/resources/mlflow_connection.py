"""MLflow at one address: imported, opened once per process, and waited for no longer than its time.

Importing mlflow (1 s, 10 s on a busy machine) and making a new SQLite database (3 s) come once per process and
database. MLflow's own seven retries, two minutes each, are off: they would repeat the request that makes a run.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import math
import os
import sqlite3
import threading
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.resources.environment import keep_private

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient

Result = TypeVar("Result")
FIRST_USE_S: Final = 60.0  # a new SQLite database runs MLflow's migrations: 3 s, more on a busy machine


def load_mlflow(tracking_uri: str, *, timeout_s: float) -> None:
    """Import mlflow where no deadline runs: the import is our cost, not the server's."""
    settings = {
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for one JSON object
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(timeout_s)),
    }
    keep_private()
    for name, value in settings.items():
        os.environ.setdefault(name, value)  # mlflow reads these from nowhere else
    importlib.import_module("mlflow")
    if sqlite_file(tracking_uri):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


@functools.cache
def open_client(tracking_uri: str) -> MlflowClient:
    """Open MLflow, once per process."""
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and only steps that track need it

    if database := sqlite_file(tracking_uri):
        _prepare(database)
    return MlflowClient(tracking_uri)


def patience_s(tracking_uri: str, *, timeout_s: float) -> float:
    """Return the seconds that MLflow has: more while its SQLite database is still to be made."""
    database = sqlite_file(tracking_uri)
    return timeout_s + (FIRST_USE_S if database and not database.exists() else 0.0)


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Wait so long for the work and no longer; it may still end later, which delivery by key allows.

    Raises:
        UnavailableService: the time is over.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="mlflow-tracking", daemon=True).start()
    finished = threading.Event()
    future.add_done_callback(lambda _: finished.set())
    if not finished.wait(max(seconds, 0.0)):
        message = f"no answer within {seconds:.3g} s"
        raise UnavailableService(message)
    return future.result()


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the database file of a SQLite address; None for a server."""
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix).partition("?")[0]) if tracking_uri.startswith(prefix) else None


def _prepare(database: Path) -> None:
    """Make a new SQLite database, and refuse what is none: MLflow would try for 100 s to open it.

    A kill during MLflow's first migrations leaves a database that never opens again, and of several processes that
    migrate at once all but one fail. So one process at a time makes it aside and renames it into place.
    """
    from mlflow import MlflowClient  # noqa: PLC0415 - 1 s, and only steps that track need it

    if not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(f"{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists():
                fresh = database.with_name(f"{database.name}.new")
                for leftover in database.parent.glob(f"{fresh.name}*"):  # a killed try, and its journal
                    leftover.unlink()
                MlflowClient(f"sqlite:///{fresh}")
                fresh.replace(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master")
