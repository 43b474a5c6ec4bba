"""Runs a batch's worker as a process of this machine, in the environment that its engine needs.

Without `from __future__ import annotations`: Dagster reads the annotations of what it is given.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

import dagster as dg

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.suspects import ALONE_DEATHS

ATTEMPTS: Final = 3  # of a worker that dies; each goes on where the last one was
SEARCHES: Final = 3 * (1 + ALONE_DEATHS)  # more deaths, in the search for requests that kill it: enough for three
PACKAGES: Final = ("vllm", "polars", "pydantic", "fsspec", "regex", "dagster_pipes")
_BAD_INPUT: Final = 2
_GRACE_S: Final = 10.0  # for a worker to write what it holds, after it has drained
_SHOWN_LINES: Final = 8
_PACKAGE: Final = Path(__file__).parents[1]


class SubprocessLauncher:
    """Starts `python -m anven_pipelines.worker` and stays until it ends."""

    def __init__(self, python: str, *, log: Path, drain_s: float) -> None:
        """Take how it is started.

        Args:
            python: Interpreter of the worker's environment.
            log: Where the worker's own output is kept.
            drain_s: Seconds that answers in flight get when the run is cancelled.
        """
        self._python, self._log, self._drain_s = python, log, drain_s

    def launch(
        self, context: dg.AssetExecutionContext, arguments: Sequence[str], *, searched: Callable[[], bool]
    ) -> Mapping[str, Any]:
        """Run the worker until it has done its job, a few times over if it dies; return its figures.

        Args:
            context: Of the step.
            arguments: The worker's, after its module.
            searched: Says of a worker that has just died whether it was in search of a request that kills it; such a
                death brings the search nearer to its end, and up to SEARCHES of them are no attempts.

        Raises:
            InvalidInput: it finds the job impossible.
            UnavailableService: it died each time.
        """
        command = [self._python, "-m", "anven_pipelines.worker", *arguments, "--until-stdin-closes"]
        attempt, searches = 1, 0
        while attempt <= ATTEMPTS:
            with self._log.open("ab") as output:
                code, figures = self._run(context, command, output)
            if code == 0:
                return figures
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = " | ".join(lines[-_SHOWN_LINES:])
            if code == _BAD_INPUT:
                message = f"the worker cannot do the job: {said} (see {self._log})"
                raise InvalidInput(message)
            ended = f"signal {-code}" if code < 0 else f"status {code}"
            if searches < SEARCHES and searched():
                searches += 1
                context.log.warning(
                    "the worker ended with %s while it was in search of a request that kills it, death %d of at most "
                    "%d: %s", ended, searches, SEARCHES, said,
                )  # fmt: skip
                continue
            context.log.warning("the worker ended with %s in attempt %d of %d: %s", ended, attempt, ATTEMPTS, said)
            attempt += 1
        message = (
            f"the worker ended with {ended} in each of {ATTEMPTS} attempts; what it answered is kept, and the next run "
            f"asks only what is missing; the last it said (see {self._log}): {said}"
        )
        raise UnavailableService(message)

    def _run(
        self, context: dg.AssetExecutionContext, command: list[str], output: IO[bytes]
    ) -> tuple[int, Mapping[str, Any]]:
        """Run the worker once; return its exit status and figures."""
        with (
            _package_alone() as place,
            dg.open_pipes_session(
                context=context.op_execution_context,  # on the other, Dagster 1.13 calls what it deprecates
                context_injector=dg.PipesTempFileContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
            ) as session,
        ):
            paths = os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, **session.get_bootstrap_env_vars(), "PYTHONPATH": paths}
            # Its standard input closes with this process, however this process ends, and then it drains and stops.
            with subprocess.Popen(  # noqa: S603 - our own program
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
            ) as worker:
                try:
                    code = worker.wait()
                except BaseException:
                    worker.terminate()
                    try:
                        worker.wait(self._drain_s + _GRACE_S)
                    except subprocess.TimeoutExpired:
                        worker.kill()
                    raise
        figures = [each for each in session.get_custom_messages() if isinstance(each, dict)]
        return code, figures[-1] if figures else {}


def require_packages(python: str) -> None:
    """Look for what the worker imports, without importing it.

    Raises:
        InvalidInput: the interpreter cannot be started, or lacks a package.
    """
    look = f"import importlib.util as u; print('lacks', *(n for n in {PACKAGES} if u.find_spec(n) is None))"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True)  # noqa: S603 - named by us
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"ANVEN_WORKER_PYTHON is {python!r}, which does not run: {error}; name the python of an environment"
        raise InvalidInput(message) from error
    if not found.stdout.startswith("lacks"):
        message = f"ANVEN_WORKER_PYTHON is {python!r}, which is no Python; name the python of an environment"
        raise InvalidInput(message)
    if missing := found.stdout.split()[1:]:
        message = f"the environment of {python} lacks {', '.join(missing)}; install them there"
        raise InvalidInput(message)


@contextmanager
def _package_alone() -> Iterator[str]:
    """Yield a folder that holds this package and nothing else.

    The worker's environment finds it there; beside it, in an installation, stand packages that would hide the
    environment's own.
    """
    with TemporaryDirectory(prefix="anven-worker-") as folder:
        (Path(folder) / _PACKAGE.name).symlink_to(_PACKAGE)
        yield folder
