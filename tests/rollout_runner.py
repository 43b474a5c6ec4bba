"""A process that takes steps of rollouts in children of its own, which may be killed or refused by the system.

It reads one JSON object a line and answers with one. It forks after its imports, so that a child starts in
milliseconds; only the children use Polars, whose threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg
import sqlalchemy as sa

from anven_pipelines.domain.errors import AnvenError
from anven_pipelines.domain.uptime import Uptime
from anven_pipelines.ingest import event_store as _event_store  # noqa: F401 - once, not in each child
from anven_pipelines.migrate import of_kind
from anven_pipelines.resources import event_database
from anven_pipelines.resources.deployments import resources
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.resources.uptime import uptime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATE_URL: Final = "state-url"
REPOSITORY: Final = Path(__file__).resolve().parents[1]
_CHANGES_FILES: Final = {"os.rename", "os.mkdir", "os.remove"}
_CHANGES_ROWS: Final = ("INSERT", "UPDATE")
_PATIENCE_S: Final = 120


class Ended(NamedTuple):
    """How one child ended: what it said, or the signal that killed it."""

    said: dict[str, Any] | None
    signal: int | None


class Runner:
    """Asks the process for steps."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, home: Path, now: datetime, *, gone_by: timedelta, **how: Any) -> list[Ended]:
        """Take a step in as many children as `at_once` says.

        Args:
            home: Folder of the rollout's state.
            now: What the clock says.
            gone_by: Since the states were made, in truth.
            how: `workload`, `action` (`step` or `start`), `at_once`, and one of `die_at` (killed before the so many-th
                write), `full` (`database` or `traffic`: the system refuses to write there), `stops` (the data folder of
                the PostgreSQL server, which is stopped at once before the so many-th write that `at` says).
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"home": str(home), "now": now.isoformat(), "gone_by": gone_by.total_seconds(), **how}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the runner died"
        return [Ended(*each) for each in json.loads(answer)]


@contextmanager
def runner() -> Iterator[Runner]:
    """Start the process."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.rollout_runner"]
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Runner(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_PATIENCE_S)


def rollouts_at(home: Path) -> Rollouts:
    """Return the rollouts of a folder that `rollout_states.made` has filled.

    A file STATE_URL in it names the database of its log, where that is not the folder's own.
    """
    environment = {"ANVEN_HOME": str(home), "ANVEN_MIGRATIONS": str(home / "migrations")}
    found = of_kind(dg.Definitions(resources=resources("local", environment)), "rollouts", Rollouts)
    url = home / STATE_URL
    return found.model_copy(update={"state": StateStore(url=url.read_text())}) if url.exists() else found


def main() -> None:
    """Answer until nobody asks any more."""
    for line in sys.stdin:
        asked = json.loads(line)
        said, saying = os.pipe()
        gate, opening = os.pipe()
        children = [_forked(lambda: _act(asked, gate, saying)) for _ in range(asked.get("at_once", 1))]  # noqa: B023 - it runs at once
        os.close(saying)
        os.write(opening, b"x" * len(children))  # all of them go at once
        with os.fdopen(said) as heard:
            words = [json.loads(each) for each in heard]
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.close(gate)
        os.close(opening)
        killed = [(None, -end) for end in ends if end < 0]
        print(json.dumps([*((each, None) for each in words), *killed]), flush=True)


def _forked(task: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            task()
        finally:
            os._exit(0)
    return child


def _act(asked: dict[str, Any], gate: int, saying: int) -> None:
    """Take the step, and say what it did or why it could not."""
    vars(event_database)["_BUSY_SECONDS"] = 0.3  # a lock in these tests is never let go of
    now = datetime.fromisoformat(asked["now"])
    up = uptime()
    up = up and Uptime(up.boot, up.seconds + asked["gone_by"])
    rollouts = rollouts_at(Path(asked["home"]))
    if "die_at" in asked:
        _die_before(asked["die_at"])
    if "full" in asked:
        _refuse(asked["full"])
    if "stops" in asked:
        _stop_before(Path(asked["stops"]), asked["at"])
    workload = asked.get("workload", "support")
    os.read(gate, 1)
    try:
        if asked.get("action") == "start":
            rollouts.start(workload, who="ada", now=now, uptime=up)
            told = {"decision": "Started", "reasons": []}
        else:
            found = rollouts.step(workload, now=now, uptime=up)
            told = {"decision": type(found.decision).__name__, "reasons": list(found.decision.reasons)}
    except AnvenError as error:
        told = {"decision": type(error).__name__, "reasons": [str(error)]}
    os.write(saying, (json.dumps(told) + "\n").encode())


def _die_before(write: int) -> None:
    """Have this process killed before so many-th write: of a file, of a row, or of what is to be durable."""
    left = write

    def count(_: object = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def file_changes(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES_FILES:
            count()

    def row_changes(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(_CHANGES_ROWS):
            count()

    sys.addaudithook(file_changes)
    sa.event.listen(sa.Engine, "before_cursor_execute", row_changes)
    sa.event.listen(sa.Engine, "commit", count)


def stop_at_once(data: Path) -> None:
    """Stop a PostgreSQL server as `pg_ctl stop -m immediate` does, which root may not call."""
    file = data / "postmaster.pid"
    os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)
    deadline = time.monotonic() + _PATIENCE_S
    while file.exists():
        assert time.monotonic() < deadline, "the server does not stop"
        time.sleep(0.01)


def _stop_before(data: Path, write: int) -> None:
    """Have the server of the state database stopped before so many-th write of a row, or commit of what was written."""
    left, wrote = write, False

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            stop_at_once(data)

    def row_changes(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal wrote
        if statement.startswith(_CHANGES_ROWS):
            wrote = True
            count()

    def commit(_: object) -> None:
        nonlocal wrote
        if wrote:
            wrote = False
            count()

    sa.event.listen(sa.Engine, "before_cursor_execute", row_changes)
    sa.event.listen(sa.Engine, "commit", commit)


def _refuse(what: str) -> None:
    """Have the system refuse to write more than a few bytes into the state store, or into the traffic file.

    They lie on disks of their own: of the one that is full the system takes nothing, of the other all.
    """

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def row_changes(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(_CHANGES_ROWS):
            limit(10 if what == "database" else resource.RLIM_INFINITY)

    def file_changes(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith(".tmp") and "/gateway/." in str(args[0]):
            limit(10 if what == "traffic" else resource.RLIM_INFINITY)

    sys.addaudithook(file_changes)
    sa.event.listen(sa.Engine, "before_cursor_execute", row_changes)


if __name__ == "__main__":
    main()
