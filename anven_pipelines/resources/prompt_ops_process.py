"""The process of llama-prompt-ops: what starts it, and that nothing of it stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PYTHON: Final = "ANVEN_PROMPT_OPS_PYTHON"

_GRACE_SECONDS: Final = 5.0
_SHOWN_LINES: Final = 8


def command_of(environ: Mapping[str, str]) -> list[str]:
    """Return what starts llama-prompt-ops.

    Raises:
        InvalidInput: the environment names no Python, or one that is not there.
    """
    python = environ.get(PYTHON, "")
    if not python or shutil.which(python) is None:
        found = f"is {python!r}, which does not run" if python else "is not set"
        message = (
            f"the strategy prompt-ops needs the Python of an environment with llama-prompt-ops, and {PYTHON} {found}; "
            f"make one (python3 -m venv DIR, DIR/bin/pip install llama-prompt-ops==0.0.8) and export "
            f"{PYTHON}=DIR/bin/python"
        )
        raise InvalidInput(message)
    return [python, "-I", "-m", "llama_prompt_ops.interfaces.cli"]


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Any,  # noqa: ANN401 - an open file
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and leave none of its processes behind."""
    try:
        process = subprocess.Popen(  # noqa: S603 - what the operator named
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        message = f"llama-prompt-ops cannot be started ({error}); see what {PYTHON} names"
        raise InvalidInput(message) from error
    with process:
        try:
            yield process
        finally:
            _end(process)


def last_lines(log: Path) -> list[str]:
    """Return the end of what it said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line[-300:] for line in lines if line][-_SHOWN_LINES:]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
