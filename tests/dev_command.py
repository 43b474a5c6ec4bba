"""A real `anven dev` on a copy of the sample migrations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[1]
START_S: Final = 300.0
STOP_S: Final = 60.0


class Dev(NamedTuple):
    """A running `anven dev`, where it answers, and the file that takes what it says to its user."""

    process: subprocess.Popen[bytes]
    dagster: str
    mlflow: str
    said: Path


@contextmanager
def anven_dev(folder: Path, *, port: int, mlflow_port: int) -> Iterator[Dev]:
    """Start the command in a folder, wait for its URLs, and at the end kill whatever of it is left."""
    words = ("dev", "--json", "--port", str(port), "--mlflow-port", str(mlflow_port))
    printed, said = folder / "stdout", folder / "stderr"
    with printed.open("wb") as stdout, said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "anven_pipelines.cli", *words],
            cwd=folder,
            env={**os.environ, "ANVEN_HOME": str(folder / "home"), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    started: set[int] = set()
    try:
        wait_until(lambda: printed.stat().st_size > 0 or process.poll() is not None, START_S, "it printed no URLs")
        started = descendants(process.pid)
        assert printed.read_text(), said.read_text()
        urls = json.loads(printed.read_text())
        yield Dev(process, urls["Dagster"], urls["MLflow"], said)
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_S)
    finally:
        for pid in {process.pid, *started, *descendants(process.pid)} & alive():
            os.kill(pid, 9)
        process.wait()


def copy_samples(folder: Path) -> Path:
    """Copy what `anven` shows at first: two migrations and their logs and answers."""
    shutil.copytree(REPOSITORY / "migrations", folder / "migrations")
    shutil.copytree(REPOSITORY / "data" / "samples", folder / "data" / "samples")
    return folder


def wait_until(reached: Callable[[], bool], patience: float, complaint: str) -> None:
    """Poll until something is so.

    Raises:
        AssertionError: it was not so in time.
    """
    deadline = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < deadline, f"{complaint} within {patience:.0f} s"
        time.sleep(0.1)


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, and those that they started, while they run."""
    parents = {child: parent for child, (parent, _) in _processes().items()}
    found: set[int] = set()
    ring = {pid}
    while ring := {child for child, parent in parents.items() if parent in ring} - found:
        found |= ring
    return found


def alive() -> set[int]:
    """Return the processes that run; one that has ended and is not yet waited for does not."""
    return {pid for pid, (_, state) in _processes().items() if state != "Z"}


def _processes() -> dict[int, tuple[int, str]]:
    """Return parent and state of every process."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (each / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(each.name)] = (int(parent), state)
    return found
